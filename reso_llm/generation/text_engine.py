"""The interface of a model that writes text, for chat and tour: prompts in, results out.

`engine.Engine` is that of ResoLLM, `reso_llm.hf.engine.HFEngine` that of any causal model of
transformers. An engine says how a prompt becomes ids, how a generation starts, and what a text
means as a vector and as a memory; all else is here. One loop (`loop.py`) writes any number of rows
in step.

Shapes: V vocabulary, D width.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from entropy_core.checks import require
from reso_llm.decoding.controllers import SRB, StabilityTemperature
from reso_llm.decoding.row import Event
from reso_llm.decoding.stability import StabilityMonitor
from reso_llm.decoding.text_class import DEFAULT, StabilityCalibration
from reso_llm.generation.loop import Job, finish, follow, telling
from reso_llm.generation.options import GenerationOptions, options_of, seed_or_drawn
from reso_llm.generation.prompt import Prompt
from reso_llm.generation.prompt_cache import PromptCache
from reso_llm.generation.remembered import (
    Memories,
    memories_of,
    memory_limit,
    query_of,
    with_memories,
)
from reso_llm.generation.results import GenerationResult, result_of, written_text
from reso_llm.generation.row import TextRow
from reso_llm.generation.tokens import Tokens
from reso_llm.session.agency import Goal
from reso_llm.session.episodes import Moment, Recollection
from reso_llm.session.session import Session, WrittenText


class TextEngine(ABC):
    """Generates text with a model and its tokenizer; the session keeps goals, foci and episodes.

    `srb` is the SRB controller with the thresholds calibrated for this model, where there are some,
    and `stability_calibration` what the stability monitor knows of its texts. Without one the
    monitor uses defaults, and moves no temperature by itself.
    """

    tokenizer: Tokens
    session: Session
    srb: SRB
    stability_calibration: StabilityCalibration | None = None
    echo_times: float
    """How many times the echo reads a stored text of importance 1 that was learned just now."""

    # --- what every engine answers for itself

    @property
    @abstractmethod
    def context_length(self) -> int:
        """Tokens that the model reads at most."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Tokens that the model chooses from."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Layers of the model."""

    @property
    @abstractmethod
    def description(self) -> str:
        """One line about the model."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the model's weights."""

    @abstractmethod
    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt, special tokens included. Raises ValueError as `messages_of`."""

    @abstractmethod
    def reply_ids(self, text: str) -> list[int]:
        """Ids of replies that say a stored text back, for the echo."""

    @abstractmethod
    def text_vector(self, text: str) -> Tensor:
        """The pooled token embedding of a text (D,)."""

    @abstractmethod
    def update_memory(
        self, text: str, importance: float = 1.0, time: float | None = None, source: str = ""
    ) -> Moment:
        """Store a text, learned at `time` or now, from a node of a network or the user ("").

        Raises ValueError for a text without a token.
        """

    def recall(self, query: str, count: int = 5, now: float | None = None) -> list[Recollection]:
        """The stored texts that resonate with the query, the best first.

        Raises ValueError as `EpisodicMemory.recall` does.
        """
        return self.session.recall(query, count, now)

    @abstractmethod
    def start(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        seeds: Sequence[int | None],
        on_text: Callable[[str], None] | None = None,
        goals: Sequence[Goal] = (),
        cache: PromptCache | None = None,
    ) -> Job:
        """Prepare a generation with the session's goals, episodes and monitor; write nothing yet.

        on_text and cache belong to a single row; goals steer this generation beside the session's.
        """

    # --- texts

    def generate(
        self,
        prompt: Prompt,
        max_length: int = 100,
        *,
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
        cache: PromptCache | None = None,
        **options: Any,
    ) -> GenerationResult:
        """Continue a text, or reply to a conversation.

        A conversation is a list of {"role": ..., "content": ...} or (role, content). max_length is
        the number of new tokens; the options are the fields of `GenerationOptions`; on_text
        receives the text as it becomes certain, on_event what a controller decides, once for the
        same decision token after token; without a seed one is drawn and reported. With the `cache`
        of a conversation, what its prompts have in common is read once; the result is the same up
        to rounding. Active goals steer the text; what the user told and the prompt asks for is told
        to the model again. Ctrl-C ends the text early, and the result is that of the part written.

        Raises, before the first token, ValueError for a value of a wrong type or out of range, and
        TypeError for an unknown option; later FloatingPointError when the model's logits are not
        finite.
        """
        checked = options_of(max_length, options)
        job = self.start([prompt], checked, [seed], on_text, cache=cache)
        if on_event is not None:
            job = job._replace(steps=telling(job.steps, job.rows[0], on_event))
        return self.finish(job)[0]

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        max_length: int = 100,
        *,
        seed: int | None = None,
        **options: Any,
    ) -> list[GenerationResult]:
        """`generate` for several prompts in step; row i uses seed + i, and does as it would alone.

        It does so up to rounding, which may turn a draw that is nearly even. The noise of
        stochastic resonance is drawn for all rows at once. Off a CPU, noise in the cached keys of
        a row shorter than the longest is another draw, as keys are turned by their column. Raises
        ValueError for no prompts, and as `generate` does.
        """
        listed = isinstance(prompts, Sequence) and not isinstance(prompts, str | bytes)
        if not listed or not prompts:
            raise ValueError(f"prompts = {prompts!r}: expected a list of at least one prompt")
        checked = options_of(max_length, options)
        first = seed_or_drawn(seed, len(prompts))
        return self.finish(self.start(prompts, checked, range(first, first + len(prompts))))

    @torch.inference_mode()
    def stream(
        self, prompt: Prompt, max_length: int = 100, *, seed: int | None = None, **options: Any
    ) -> Generator[str, None, GenerationResult]:
        """`generate` piece by piece: yields text as it becomes certain, returns the result.

        Nothing happens, and nothing is refused, before the first piece is asked for.
        """
        pieces: list[str] = []
        checked = options_of(max_length, options)
        job = self.start([prompt], checked, [seed], pieces.append)
        for _ in job.steps:
            yield from pieces
            pieces.clear()
        return self.close(job)[0]

    def generate_with_goal(
        self,
        prompt: Prompt,
        goal_description: str,
        max_length: int = 100,
        *,
        goal_type: str = "exploratory",
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> GenerationResult:
        """`generate` towards a goal of this call alone; see `goals_achieved`.

        The session's goals steer it too. Raises ValueError without agency, and as `create_goal`
        and `generate` do.
        """
        described = isinstance(goal_description, str) and goal_description.strip()
        require(bool(described), "goal_description", goal_description, "a string with a word")
        vector = self.text_vector(goal_description)
        goal = self.session.new_goal(goal_description, goal_type, vector)
        checked = options_of(max_length, options)
        return self.finish(self.start([prompt], checked, [seed], on_text, goals=[goal]))[0]

    @torch.inference_mode()
    def read(self, text: str, prompt: Prompt = "") -> GenerationResult:
        """Measure a given text as if it had been written after a prompt; the session notes nothing.

        Goals and memories act as in `generate`, at guidance 1. Raises ValueError for a text without
        a token, and as `messages_of`.
        """
        ids = self.tokenizer.encode(text)
        require(bool(ids), "text", text, "a text with a token")
        monitor = self.session.stability
        try:
            options = GenerationOptions(max_length=len(ids), guidance=1)
            job = self.start([prompt], options, [0])
            follow(job.context, ids)
            return self._results(job, [written_text(job.context, 0, job.goals)])[0]
        finally:
            self.session.stability = monitor

    def create_goal(self, description: str, goal_type: str = "exploratory") -> Goal:
        """Pursue a goal; its vector (D,) is the pooled token embedding of the description.

        Raises ValueError without agency, and as `Agency.create_goal` does.
        """
        return self.session.create_goal(description, goal_type, self.text_vector(description))

    # --- the steps of a generation

    def finish(self, job: Job) -> list[GenerationResult]:
        """Write all rows of a job to their end, or to where Ctrl-C ends them; then `close` it."""
        finish(job.steps, job.rows)
        return self.close(job)

    @torch.inference_mode()
    def close(self, job: Job) -> list[GenerationResult]:
        """Return the results of a job whose rows have ended; the session notes their texts."""
        texts = [written_text(job.context, b, job.goals) for b in range(len(job.rows))]
        results = self._results(job, texts)
        for text in texts:
            self.session.note(text)
        return results

    def _results(self, job: Job, texts: Sequence[WrittenText]) -> list[GenerationResult]:
        milliseconds = (time.perf_counter() - job.started) * 1000
        context = job.context
        return [
            result_of(row, text, self.session, job.goals, context.warnings(b), milliseconds)
            for b, (row, text) in enumerate(zip(job.rows, texts, strict=True))
        ]

    def steering(self, goals: Sequence[Goal]) -> dict[Goal, bool]:
        """The session's active goals and these, each with whether it was achieved before."""
        active = () if self.session.agency is None else self.session.agency.active_goals
        return {goal: goal.achieved for goal in (*active, *goals)}

    def rows(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        seeds: Sequence[int],
        on_text: Callable[[str], None] | None,
    ) -> list[TextRow]:
        """One row for each prompt; the session follows the monitor of a row that is alone."""
        if on_text is not None and not callable(on_text):
            raise ValueError(f"on_text = {on_text!r}: expected a function of a text, or None")
        if self.stability_calibration is not None:
            options = options.followed_by(self.session.config.stability)
        options.require_known(self.vocab_size)
        rows = [
            self._row(prompt, options, seed, on_text)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        if len(rows) == 1 and rows[0].decoding.monitor is not None:
            self.session.stability = rows[0].decoding.monitor
        return rows

    def _row(
        self,
        prompt: Prompt,
        options: GenerationOptions,
        seed: int,
        on_text: Callable[[str], None] | None,
    ) -> TextRow:
        """Make one row, with what the user told and its prompt asks for.

        It has a stability monitor where metrics or a controller read it.
        """
        followed = any(isinstance(c, StabilityTemperature) for c in options.controllers)
        stability, monitor = self.session.config.stability, None
        if stability.enabled and (options.metrics or followed):
            monitor = StabilityMonitor(stability, self.stability_calibration or DEFAULT)
        memories = self.memories_of(prompt)
        return TextRow(
            self.prompt_ids(with_memories(prompt, memories.told)),
            options,
            self.tokenizer,
            seed=seed,
            device=self.device,
            monitor=monitor,
            on_text=on_text,
            memories=memories,
            question=query_of(prompt),
        )

    def memories_of(self, prompt: Prompt) -> Memories:
        """What the user told that a prompt asks for, as its reply uses it."""
        encode, room = self.reply_ids, memory_limit(self.context_length)
        if isinstance(prompt, str):
            encode = self.tokenizer.encode
        return memories_of(self.session, prompt, encode, self.echo_times, room)
