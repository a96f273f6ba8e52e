"""The desk: one thread that owns the engine and writes all texts, token by token.

A text joins as soon as a slot is free and gets its first token at once; then the texts take turns,
one token each, and leave when they end. Every text has a `Job` of its own, so it is the text that
its seed gives alone, token for token, whoever is written beside it. Nobody is waited for: events
are handed over, and a text that nobody wants any more is dropped before its next token.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from reso_llm.generation.loop import Job
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.prompt import Prompt
from reso_llm.generation.results import GenerationResult
from reso_llm.generation.text_engine import TextEngine
from reso_llm.server.errors import ApiError
from reso_llm.server.facts import Token, TokenReader
from reso_llm.server.fitting import fitted
from reso_llm.server.sources import Sources
from reso_llm.server.variants import Variants

NUM_SLOTS = 8
"""Texts that are written at the same time, at most."""
MAX_WAITING = 64
"""Texts that wait for a slot, at most."""
log = logging.getLogger(__name__)


class Ended(NamedTuple):
    """The result of a text, and sentences about what was left out of its prompt."""

    result: GenerationResult
    notes: tuple[str, ...]


Event = Token | Ended | ApiError
"""What happens to a text: tokens, then its end or the reason why there is none."""


@dataclass(eq=False)
class Text:
    """A text to be written. on_event is called in the desk's thread, and must not wait."""

    prompt: Prompt
    options: GenerationOptions
    seed: int | None
    on_event: Callable[[Event], None]
    goal: str = ""
    without: frozenset[str] = frozenset()
    dropped: bool = field(default=False, init=False)

    def drop(self) -> None:
        """Nobody wants the text any more: its slot becomes free before its next token."""
        self.dropped = True


class _Open(NamedTuple):
    """A text that is being written."""

    text: Text
    engine: TextEngine
    job: Job
    reader: TokenReader
    pieces: list[str]
    notes: tuple[str, ...]


class Desk:
    """Writes texts with an engine, whose session all of them share."""

    def __init__(
        self, engine: TextEngine, num_slots: int = NUM_SLOTS, max_waiting: int = MAX_WAITING
    ) -> None:
        self.engine, self.variants = engine, Variants(engine)
        self.num_slots, self.max_waiting = num_slots, max_waiting
        self._waiting: deque[Text] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._open: deque[_Open] = deque()
        self._news, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)
        self._thread.start()

    # --- for every other thread

    def submit(self, texts: Sequence[Text]) -> None:
        """Take all of these texts, or none: ApiError 429 where too many wait, 503 once closed."""
        with self._news:
            if self._closed:
                raise ApiError(503, "the server is closing")
            self._waiting = deque(text for text in self._waiting if not text.dropped)
            free = self.num_slots - len(self._open)
            if len(self._waiting) + len(texts) > self.max_waiting + max(0, free):
                raise ApiError(429, f"{len(self._waiting)} texts are waiting: try again later")
            self._waiting.extend(texts)
            self._news.notify()

    def call(self, function: Callable[[], Any]) -> Future:
        """Call a function of the engine between two tokens, in the desk's thread."""
        future: Future = Future()
        with self._news:
            if self._closed:
                raise ApiError(503, "the server is closing")
            self._calls.append((function, future))
            self._news.notify()
        return future

    @property
    def load(self) -> tuple[int, int]:
        """Texts being written, and texts waiting."""
        with self._news:
            return len(self._open), sum(not text.dropped for text in self._waiting)

    def close(self) -> None:
        """Drop all texts and end the thread."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    # --- the desk's own thread

    def _run(self) -> None:
        while self._wait():
            self._answer_calls()
            self._take_newcomers()
            if self._open:
                self._turn(self._open[0])
                self._open.rotate(-1)
        for opened in self._open:
            opened.job.steps.close()

    def _wait(self) -> bool:
        """Wait until there is something to do; False once the desk is closed."""
        with self._news:
            self._news.wait_for(lambda: self._closed or self._open or self._waiting or self._calls)
            return not self._closed

    def _answer_calls(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - it is raised where the future is awaited
                future.set_exception(error)

    def _take_newcomers(self) -> None:
        """Start texts while a slot is free, and write the first token of each."""
        while len(self._open) < self.num_slots:
            with self._news:
                if not self._waiting:
                    return
                text = self._waiting.popleft()
            if text.dropped:
                continue
            if opened := self._guarded(text, lambda t=text: self._start(t)):
                self._open.append(opened)
                self._turn(opened)

    def _start(self, text: Text) -> _Open:
        engine, pieces = self.variants.without(text.without), []
        goals = []
        if text.goal:
            vector = engine.text_vector(text.goal)
            goals = [engine.session.new_goal(text.goal, "exploratory", vector)]
        prompt, notes = fitted(engine, text.prompt, text.options.max_length)
        job = engine.start([prompt], text.options, [text.seed], pieces.append, goals=goals)
        (row,), tokens = job.rows, engine.tokenizer
        used = zip(row.memories.texts, row.memories.echo, strict=True)
        memories = [(text, ids) for text, (echo, _) in used for ids in (tokens.encode(text), echo)]
        sources = Sources(row.ids[: row.num_prompt], memories, tokens.special_ids)
        return _Open(text, engine, job, TokenReader(row, engine.tokenizer, sources), pieces, notes)

    def _turn(self, opened: _Open) -> None:
        """Write one token of a text, whose slot becomes free where it has ended."""
        if opened.text.dropped:
            opened.job.steps.close()
            self._open.remove(opened)
        elif not self._guarded(opened.text, lambda: self._written(opened)):
            self._open.remove(opened)

    @torch.inference_mode()
    def _written(self, opened: _Open) -> bool:
        """Write one token; False where the text has ended."""
        going = next(opened.job.steps, self) is None
        if going:
            piece = "".join(opened.pieces)
            opened.pieces.clear()
            for token in opened.reader.certain(piece):
                opened.text.on_event(token)
        if opened.job.rows[0].stop_reason:
            opened.job.steps.close()
            (result,) = opened.engine.close(opened.job)
            opened.text.on_event(Ended(result, (*opened.notes, *result.warnings)))
            return False
        return going

    def _guarded(self, text: Text, function: Callable[[], Any]) -> Any:
        """The value of a function; where it fails, the text ends with the reason."""
        try:
            return function()
        except ValueError as error:  # the engine's way to refuse a value
            text.on_event(ApiError(400, str(error)))
        except FloatingPointError as error:
            text.on_event(ApiError(500, str(error)))
        except Exception:
            log.exception("a text could not be written")
            text.on_event(ApiError(500, "the text could not be written; the server's log says why"))
        return None
