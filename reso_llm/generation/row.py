"""One row of a generation: its ids, prompt included, its decoding, its text and its stop reason.

Shapes: B rows, V vocabulary, D width.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_core.information import entropy_nats
from reso_llm.decoding.measure import Measure
from reso_llm.decoding.row import Draw, Row
from reso_llm.decoding.stability import StabilityMonitor
from reso_llm.generation.bans import Bans, marks_of
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.remembered import NOTHING, Memories
from reso_llm.generation.text_stream import TextStream
from reso_llm.generation.tokens import Tokens

PROMPT_WINDOW = 64  # last tokens of a prompt that count for the class of a text


class Prediction(NamedTuple):
    """The model's prediction of the next token of every row, and the measurements of that pass."""

    logits: Tensor  # (B,V), float32; -inf where a token may not be written
    embedding: np.ndarray  # (B,D), of the newest token
    coherence: Sequence[float] | None = None  # (B,) order parameter of it; None without kuramoto
    layers_used: Sequence[int] | None = None  # (B,), None without the coherence gate
    hidden: np.ndarray | None = None  # (B,D), the final, normalised x; None without the monitor's


Alternative = tuple[int, float]
"""A token that could have been drawn, and ln p of it."""


_Seen = tuple[Measure | None, Prediction, int]
"""The measures of a token's distribution, the prediction, and the row of it."""


class TextRow:
    """One row that is being written; `stop_reason` is "" until it has ended."""

    def __init__(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        tokenizer: Tokens,
        *,
        seed: int,
        device: torch.device,
        monitor: StabilityMonitor | None = None,
        on_text: Callable[[str], None] | None = None,
        memories: Memories = NOTHING,
        question: str = "",
    ) -> None:
        self.ids, self.num_prompt = list(prompt), len(prompt)
        self.memories = memories  # that the prompt asks for
        self.options, self.seed = options, seed
        self.decoding = Row(
            options.sampling,
            options.controllers,
            seed=seed,
            device=device,
            signals=options.signals,
            monitor=monitor,
            marks=marks_of(options, tokenizer),
            question=question,
            text=lambda: self.stream.text,
        )
        self.bans = Bans(options, tokenizer)
        self._nothing = torch.empty((1, 0), dtype=torch.long, device=device)
        self.measured = options.metrics or bool(options.controllers)
        reach = self.decoding.reach
        self.stream = TextStream(tokenizer, options.stop_strings, on_text, reach)
        self._past: deque[_Seen] = deque(maxlen=reach + 1)  # what the last tokens were drawn from
        self.ends, self.special = tokenizer.end_ids, tokenizer.special_ids
        self.surprises: list[float] = []  # nats
        self.coherence: list[float] = []
        self.layers: list[int] = []
        self.alternatives: list[list[Alternative]] = []
        """The most probable tokens beside each of the row's own, the best first."""
        self.stop_reason = "" if options.max_length else "length"

    @property
    def new_ids(self) -> list[int]:
        """Ids after the prompt."""
        return self.ids[self.num_prompt :]

    @property
    def text(self) -> str:
        """The text after the prompt as far as it is certain; all of it once the row has ended."""
        return self.stream.text

    def read_prompt(self, logits: Tensor, prompt: Sequence[int]) -> None:
        """Show the monitor the end of a prompt: logits (T,V) after each of its last T ids."""
        monitor = self.decoding.monitor
        ids = list(prompt[1:][-min(PROMPT_WINDOW, len(logits) - 1) :])
        if monitor is None or len(logits) < 2:
            return
        log_p = logits[-len(ids) - 1 : -1].float().log_softmax(-1)
        chosen = torch.tensor(ids, device=log_p.device)[:, None]
        surprises = -log_p.gather(-1, chosen)[:, 0]
        monitor.read_prompt(ids, surprises.tolist(), entropy_nats(log_p).tolist())

    def decide(self, measured: Measure | None, prediction: Prediction, row: int) -> Draw:
        """Decide how to draw the next token.

        Raises FloatingPointError where the logits are no distribution.
        """
        if measured is not None:
            end_nats = math.inf
            if self.decoding.reads_text:
                ends = prediction.logits[row, list(self.ends)].logsumexp(-1)
                end_nats = measured.log_total - ends.item()
            return self.decoding.decide(measured, prediction.embedding[row], end_nats)
        if not math.isfinite(prediction.logits[row].max().item()):
            raise FloatingPointError("the model's logits are not finite: its weights are damaged")
        return Draw(self.decoding.sampling)

    def take(
        self, token: int, stop: str, measured: Measure | None, prediction: Prediction, row: int
    ) -> None:
        """Append the token drawn from `prediction`, of which this is the given row.

        `stop` is the reason for which a controller ends the row here, or "".
        """
        if measured is not None:
            surprise = measured.log_total - prediction.logits[row, token].item()
            coherence = _of(prediction.coherence, row)
            self.decoding.observe(token, surprise, coherence)
            self.surprises.append(surprise)
            if coherence is not None:
                self.coherence.append(coherence)
            if prediction.layers_used is not None:
                self.layers.append(prediction.layers_used[row])
            if self.options.alternatives:
                best = most_probable(prediction.logits[row], self.options.alternatives)
                self.alternatives.append([(i, z - measured.log_total) for i, z in best])
        self.ids.append(token)
        if token in self.ends:
            self.end("end")
        elif token in self.options.stop_token_ids or self.stream.add(token):
            self.end("stop")
        elif stop:
            self.end(stop)
        elif len(self.ids) - self.num_prompt >= self.options.max_length:
            self.end("length")

    def end(self, reason: str) -> None:
        """End the row, unless it has ended, and pass on the rest of its text."""
        if not self.stop_reason:
            self.stop_reason = reason
            self.stream.close()

    @property
    def num_certain(self) -> int:
        """New ids that no controller will take back."""
        num_new = len(self.ids) - self.num_prompt
        return num_new if self.stop_reason else max(0, num_new - self.decoding.reach)

    def seen(self, measured: Measure | None, prediction: Prediction, row: int) -> None:
        """Keep what the next token is drawn from, where a controller may take tokens back."""
        if self.decoding.reach:
            self._past.append((measured, prediction, row))

    def take_back(self, num_tokens: int) -> "_Seen":
        """Take back the last tokens; return what the first of them was drawn from."""
        kept = len(self.new_ids) - num_tokens
        del self.ids[self.num_prompt + kept :]
        for trace in (self.surprises, self.coherence, self.layers, self.alternatives):
            del trace[kept:]
        self.stream = self.stream.after(self.new_ids)
        for _ in range(num_tokens):
            self._past.pop()
        return self._past[-1]

    def allowed(self, logits: Tensor) -> Tensor:
        """Logits (1,V) without what the options rule out as the next token.

        Raises ValueError where nothing is left.
        """
        return self.bans.allowed(logits, self.new_ids) if self.bans.any else logits

    def penalised(self, device: torch.device) -> Tensor:
        """Ids (1,n) that the penalties count: words of the row's own.

        What it read it may say, as an answer that repeats a name must; and a turn may always end.
        """
        if not self.decoding.sampling.reads_said:
            return self._nothing
        words = [i for i in self.new_ids if i not in self.special]
        return torch.tensor([words], dtype=torch.long, device=device)


def most_probable(logits: Tensor, count: int) -> list[tuple[int, float]]:
    """Ids and logits of the `count` largest of logits (V,), the best first; an excluded is none."""
    best = logits.topk(min(count, len(logits)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(token, z) for token, z in pairs if z > -math.inf]


def _of(values: Any, row: int) -> Any:
    """The value of a row, where the model has such values."""
    return None if values is None else values[row]
