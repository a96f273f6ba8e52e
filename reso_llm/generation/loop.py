"""The decoding loop: rows of text, written token by token until each has an end.

    predict -> measure -> decide -> draw -> take, for every row, until all have ended

Shapes: B rows, V vocabulary.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.measure import Measure, measure, measure_row
from reso_llm.decoding.row import Event
from reso_llm.generation.row import Prediction, TextRow
from reso_llm.generation.tokens import Tokens
from reso_llm.session.agency import Goal


class ModelContext(Protocol):
    """A model after the ids of some rows: `context.Context`, or `reso_llm.hf.context.HFContext`."""

    rows: Sequence[TextRow]
    tokenizer: Tokens
    table: Tensor  # (V,D), token embeddings
    attending: bool  # whether `received` is known
    monitored: bool  # whether the rows' monitors are told of the prompt and of the states

    def predict(self) -> Prediction:
        """Read the newest token of each row, and predict the next."""
        ...

    def heat(self, row: int, noise: CacheNoise, generator: torch.Generator) -> None:
        """Put noise into a row's cache; it acts from the next token on."""
        ...

    def take_back(self, row: int, num_tokens: int) -> None:
        """Forget the last tokens of a row, which the row has not forgotten yet."""
        ...

    def lookahead(self, row: int, candidates: Tensor, horizon: int) -> Tensor:
        """ln p (m,) of the most probable `horizon` tokens after each of the candidates (m,)."""
        ...

    def received(self, row: int) -> np.ndarray:
        """Share of attention (n,) that a row's n ids got."""
        ...

    def warnings(self, row: int) -> tuple[str, ...]:
        """Sentences about what a row's context has lost."""
        ...


class Job(NamedTuple):
    """A generation in progress: its rows, the steps that write them, and its state at the start."""

    started: float  # by time.perf_counter()
    context: ModelContext
    steps: Generator[None, None, None]
    goals: Mapping[Goal, bool]
    """The goals that steer the texts, and whether each was achieved before the generation."""

    @property
    def rows(self) -> Sequence[TextRow]:
        """The rows, one for each prompt."""
        return self.context.rows


def write(context: ModelContext) -> Generator[None, None, None]:
    """Write all rows of a context to their end, in step, and yield after each token.

    Run it in inference mode. Raises FloatingPointError when the model's logits are not finite.
    """
    rows = context.rows
    while not all(row.stop_reason for row in rows):
        prediction = context.predict()
        measures = measured_rows(prediction, rows)
        for b, (row, measured) in enumerate(zip(rows, measures, strict=True)):
            if not row.stop_reason:
                _write_token(context, row, b, prediction, measured)
        yield


def _write_token(
    context: ModelContext, row: TextRow, b: int, prediction: Prediction, measured: Measure | None
) -> None:
    """Decide about, draw and take the next token of row b."""
    row.seen(measured, prediction, b)
    draw = row.decide(measured, prediction, b)
    if draw.end:
        row.end(draw.stop)
        return
    if draw.rewind is not None:
        context.take_back(b, draw.rewind.num_tokens)
        measured, prediction, b = row.take_back(draw.rewind.num_tokens)
    logits = row.allowed(prediction.logits[b : b + 1])
    lookahead = partial(context.lookahead, b)
    token = row.decoding.draw(logits, row.penalised(logits.device), draw, lookahead)
    if draw.cache_noise is not None:
        context.heat(b, draw.cache_noise, row.decoding.noise)
    row.take(token, draw.stop, measured, prediction, b)


def follow(context: ModelContext, ids: Iterable[int]) -> None:
    """Give the one row of a context these tokens, each measured as if it had been drawn.

    Run it in inference mode. Raises FloatingPointError as `write` does.
    """
    row = context.rows[0]
    for token in ids:
        prediction = context.predict()
        measured = measured_rows(prediction, [row])[0]
        row.decide(measured, prediction, 0)
        row.take(token, "", measured, prediction, 0)


def measured_rows(prediction: Prediction, rows: Sequence[TextRow]) -> Sequence[Measure | None]:
    """Measures of the rows; None where neither metrics nor a controller reads them."""
    if not rows[0].measured:
        return [None] * len(rows)
    min_prob, logits = rows[0].options.signals.min_prob, prediction.logits
    if logits.device.type != "cpu":
        return measure(logits, min_prob)
    return [
        None if row.stop_reason else measure_row(z, min_prob)
        for row, z in zip(rows, logits.numpy(), strict=True)
    ]


@torch.inference_mode()
def finish(steps: Iterable[None], rows: Sequence[TextRow]) -> None:
    """Take all steps; after Ctrl-C every row ends with the tokens it has."""
    try:
        for _ in steps:
            pass
    except KeyboardInterrupt:
        for row in rows:
            row.end("interrupted")


def telling(
    steps: Iterable[None], row: TextRow, on_event: Callable[[Event], None]
) -> Generator[None, None, None]:
    """Steps of a row, its events told after each.

    A decision that is taken again at the next token is told once.
    """
    told, last = 0, {}
    for _ in steps:
        events = row.decoding.events
        for event in events[told:]:
            step, cause = last.get(event.controller, (-2, ""))
            if event.step > step + 1 or event.cause != cause:
                on_event(event)
            last[event.controller] = event.step, event.cause
        told = len(events)
        yield
