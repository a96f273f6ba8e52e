"""How to generate: length, sampling, stop strings, controllers."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from reso_llm.decoding.controllers import Controller
from reso_llm.decoding.row import SignalOptions
from reso_llm.decoding.sampling import SamplingOptions


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to generate. Raises ValueError naming the option that is out of range.

    max_length: number of new tokens, at most.
    temperature, top_k, top_p, min_p, repetition_penalty: see `SamplingOptions`.
    stop: strings (or one) that end the text and are not part of it.
    controllers: what decides before each token, in this order (`reso_llm.decoding.controllers`).
    signals: how the signals they read are averaged.
    metrics: measure the text as it is written; without, no traces and no attention summary.
    sampling: the sampler's part of these options; derived.
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
    sampling: SamplingOptions = field(init=False)

    def __post_init__(self) -> None:
        if self.max_length < 0:
            raise ValueError(f"max_length = {self.max_length}: expected at least 0")
        if not all(self.stop_strings):
            raise ValueError("stop contains an empty string, which would stop at once")
        names = (item.name for item in fields(SamplingOptions))
        sampling = SamplingOptions(**{name: getattr(self, name) for name in names})
        object.__setattr__(self, "sampling", sampling)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def drawn_seed() -> int:
    """A fresh seed, for a generation that was given none."""
    return secrets.randbelow(2**31)
