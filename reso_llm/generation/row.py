"""One row of a generation: its ids, prompt included, its decoding, its text and its stop reason.

Shapes: B rows, V vocabulary, D width.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_core.information import entropy_nats
from reso_llm.decoding.row import Draw, Measure, Row
from reso_llm.decoding.stability import StabilityMonitor
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.text_stream import TextStream
from reso_llm.tokenizer import SPECIAL_TOKENS, ResoTokenizer

PROMPT_WINDOW = 64  # last tokens of a prompt that count for the class of a text


class Prediction(NamedTuple):
    """The model's prediction of the next token of every row, and the measurements of that pass."""

    logits: Tensor  # (B,V), float32; -inf where a token may not be written
    coherence: Sequence[float]  # (B,) order parameter of the newest token; NaN without kuramoto
    layers_used: Sequence[int]  # (B,)
    hidden: np.ndarray  # (B,D), the final, normalised x
    embedding: np.ndarray  # (B,D), of the newest token


class TextRow:
    """One row that is being written; `stop_reason` is "" until it has ended."""

    def __init__(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        tokenizer: ResoTokenizer,
        *,
        seed: int,
        device: torch.device,
        monitor: StabilityMonitor | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.ids, self.num_prompt = list(prompt), len(prompt)
        self.options, self.seed = options, seed
        self.decoding = Row(
            options.sampling,
            options.controllers,
            seed=seed,
            device=device,
            signals=options.signals,
            monitor=monitor,
        )
        self.measured = options.metrics or bool(options.controllers)
        self.stream = TextStream(tokenizer, options.stop_strings, on_text)
        self.ends = ends_of(tokenizer)
        self.surprises: list[float] = []  # nats
        self.coherence: list[float] = []
        self.layers: list[int] = []
        self.stop_reason = "" if options.max_length else "length"

    @property
    def new_ids(self) -> list[int]:
        """Ids after the prompt."""
        return self.ids[self.num_prompt :]

    @property
    def text(self) -> str:
        """The text after the prompt as far as it is certain; all of it once the row has ended."""
        return self.stream.text

    def read_prompt(self, logits: Tensor) -> None:
        """Show the monitor the end of the prompt: logits (T,V) after each of its last T ids."""
        monitor = self.decoding.monitor
        ids = self.ids[1:][-min(PROMPT_WINDOW, len(logits) - 1) :]
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
            return self.decoding.decide(measured, prediction.embedding[row])
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
            coherence = prediction.coherence[row]
            known = None if math.isnan(coherence) else coherence
            self.decoding.observe(token, surprise, known)
            self.surprises.append(surprise)
            self.coherence.append(coherence)
            self.layers.append(prediction.layers_used[row])
        self.ids.append(token)
        if token in self.ends:
            self.end("end")
        elif self.stream.add(token):
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

    def penalised(self, device: torch.device) -> Tensor:
        """Ids (1,n) that the repetition penalty counts: a turn must stay free to end."""
        if self.decoding.sampling.repetition_penalty == 1:
            return torch.empty((1, 0), dtype=torch.long, device=device)
        words = [i for i in self.ids if i >= len(SPECIAL_TOKENS)]
        return torch.tensor([words], dtype=torch.long, device=device)


def ends_of(tokenizer: ResoTokenizer) -> tuple[int, int]:
    """Tokens that end a text: its own end, and the beginning of another."""
    return tokenizer.end_id, tokenizer.bos_id
