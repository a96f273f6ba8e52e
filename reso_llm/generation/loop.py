"""The decoding loop: rows of text, written token by token until each has an end.

    read -> measure -> decide -> draw -> observe -> append, for every row, until all have ended

Shapes: B rows, V vocabulary.
"""

import math
import secrets
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial

import torch
from torch import Tensor

from reso_llm.decoding.controllers import Controller
from reso_llm.decoding.row import Draw, Measure, Row, SignalOptions, measure, measure_row
from reso_llm.decoding.sampling import SamplingOptions
from reso_llm.decoding.stability import StabilityMonitor
from reso_llm.generation.context import Context, Read, ends_of
from reso_llm.generation.text_stream import TextStream
from reso_llm.tokenizer import SPECIAL_TOKENS, ResoTokenizer


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to generate. Raises ValueError naming the option that is out of range.

    max_length: number of new tokens, at most.
    temperature, top_k, top_p, min_p, repetition_penalty: see `SamplingOptions`.
    stop: strings (or one) that end the text and are not part of it.
    controllers: what decides before each token, in this order (`reso_llm.decoding.controllers`).
    signals: how the signals they read are averaged.
    metrics: measure the text as it is written; without, no traces and no attention summary.
    """

    max_length: int = 100
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | Sequence[str] = ()
    controllers: Sequence[Controller] = ()
    signals: SignalOptions = field(default_factory=SignalOptions)
    metrics: bool = True

    def __post_init__(self) -> None:
        if self.max_length < 0:
            raise ValueError(f"max_length = {self.max_length}: expected at least 0")
        if not all(self.stop_strings):
            raise ValueError("stop contains an empty string, which would stop at once")
        self.sampling  # noqa: B018  (refuses what is out of range before anything runs)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @cached_property
    def sampling(self) -> SamplingOptions:
        """The part of the sampler."""
        names = (item.name for item in fields(SamplingOptions))
        return SamplingOptions(**{name: getattr(self, name) for name in names})


def drawn_seed() -> int:
    """A seed that nobody has chosen."""
    return secrets.randbelow(2**31)


class RowRun:
    """One row of a generation: its decoding, its text, and why it ended ("" while it has not)."""

    def __init__(
        self,
        options: GenerationOptions,
        tokenizer: ResoTokenizer,
        *,
        seed: int,
        device: torch.device,
        monitor: StabilityMonitor | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.options, self.seed = options, seed
        self.row = Row(
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
        self.ids: list[int] = []
        self.surprises: list[float] = []  # nats
        self.coherence: list[float] = []
        self.layers: list[int] = []
        self.stop_reason = "" if options.max_length else "length"

    def decide(self, measured: Measure | None, read: Read, row: int) -> Draw:
        """How to draw the next token.

        Raises FloatingPointError where the logits are no distribution.
        """
        if measured is not None:
            return self.row.decide(measured, read.embedding[row])
        if not math.isfinite(read.logits[row].max().item()):
            raise FloatingPointError("the model's logits are not finite: its weights are damaged")
        return Draw(self.row.sampling)

    def take(self, token: int, stop: str, measured: Measure | None, read: Read, row: int) -> None:
        """Note the token drawn after `read`, of which this is the given row."""
        if measured is not None:
            surprise = measured.log_total - read.logits[row, token].item()
            coherence = read.coherence[row]
            known = None if math.isnan(coherence) else coherence
            self.row.observe(token, surprise, known, read.hidden[row])
            self.surprises.append(surprise)
            self.coherence.append(coherence)
            self.layers.append(read.layers_used[row])
        self.ids.append(token)
        if token in self.ends:
            self.stop_reason = "end"
        elif self.stream.add(token):
            self.stop_reason = "stop"
        elif stop:
            self.stop_reason = stop
        elif len(self.ids) >= self.options.max_length:
            self.stop_reason = "length"

    def seen(self, context_ids: Sequence[int], device: torch.device) -> Tensor:
        """Ids (1,n) that the repetition penalty knows: a turn must stay free to end."""
        if self.row.sampling.repetition_penalty == 1:
            return torch.empty((1, 0), dtype=torch.long, device=device)
        words = [i for i in context_ids if i >= len(SPECIAL_TOKENS)]
        return torch.tensor([words], dtype=torch.long, device=device)


def write(context: Context, runs: Sequence[RowRun]) -> Generator[None, None, None]:
    """Write all rows to their end, in step, and yield after each token.

    To be run in inference mode. Raises FloatingPointError when the model's logits are not finite.
    """
    while not all(r.stop_reason for r in runs):
        read = context.read()
        for b, (r, measured) in enumerate(zip(runs, measured_rows(read, runs), strict=True)):
            if not r.stop_reason:
                _write_token(context, r, b, read, measured)
        yield


def _write_token(context: Context, r: RowRun, b: int, read: Read, measured: Measure | None) -> None:
    """Decide about, draw and note the next token of row b."""
    logits = read.logits[b : b + 1]
    draw = r.decide(measured, read, b)
    seen = r.seen(context.ids[b], logits.device)
    token = r.row.draw(logits, seen, draw, partial(context.lookahead, b))
    if draw.cache_noise is not None:
        context.heat(b, draw.cache_noise, r.row.noise)
    context.append(b, token)
    r.take(token, draw.stop, measured, read, b)
    if r.stop_reason:
        context.ended.add(b)


def measured_rows(read: Read, runs: Sequence[RowRun]) -> Sequence[Measure | None]:
    """Measures of the rows; nothing where nobody reads them."""
    if not runs[0].measured:
        return [None] * len(runs)
    min_prob = runs[0].options.signals.min_prob
    if len(runs) == 1 and read.logits.device.type == "cpu":
        return [measure_row(read.logits[0].numpy(), min_prob)]
    return measure(read.logits, min_prob)


@torch.inference_mode()
def finish(steps: Iterable[None], runs: Sequence[RowRun]) -> None:
    """Take all steps; Ctrl-C ends the rows where they are."""
    try:
        for _ in steps:
            pass
    except KeyboardInterrupt:
        for r in runs:
            r.stop_reason = r.stop_reason or "interrupted"
