"""Options of a generation: length, sampling, what ends it, controllers, seed."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from entropy_core.checks import is_number, is_whole, nearest, require
from reso_llm.config import StabilityConfig
from reso_llm.decoding.controllers import Controller, StabilityTemperature
from reso_llm.decoding.row import SignalOptions
from reso_llm.decoding.sampling import SamplingOptions

LARGEST = 2**63 - 1  # torch's largest integer
LARGEST_GUIDANCE = 100


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(SamplingOptions):
    """Options of a generation, those of `SamplingOptions` among them, temperature and the like.

    max_length: number of new tokens, at most.
    min_tokens: new tokens before a token may end the text; stop strings and controllers still may.
    stop: strings (or one) that end the text and are not part of it.
    stop_token_ids: ids that end the text; their words are not part of it.
    bad_words: strings (or one) that the text never contains (`bans.py`).
    guidance: how far goals move the text: 0 not at all, 1 as the model was trained to, above 1
        further (`guidance.py`). Without a goal it does nothing.
    controllers: what decides before each token, in this order (`reso_llm.decoding.controllers`).
    signals: how the signals they read are averaged.
    auto_temperature: let the stability monitor move the temperature, after the controllers, where
    the model has a calibrated one with stability.auto_temperature_adjust.
    metrics: measure the text as it is written; without, no traces and no attention summary.
    alternatives: most probable tokens that each row keeps beside every token; 0 without metrics.
    sampling: the sampler's part of these options; derived.

    Raises ValueError naming the option of a wrong type or out of range.
    """

    max_length: int = 100
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    bad_words: str | Sequence[str] = ()
    guidance: float = 1.5
    controllers: Sequence[Controller] = ()
    signals: SignalOptions = field(default_factory=SignalOptions)
    auto_temperature: bool = True
    metrics: bool = True
    alternatives: int = 0
    sampling: SamplingOptions = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        length = self.max_length
        fits = is_whole(length) and 0 <= length <= LARGEST
        require(fits, "max_length", length, "a whole number from 0 to 2^63 - 1")
        least = self.min_tokens
        fits = is_whole(least) and 0 <= least <= LARGEST
        require(fits, "min_tokens", least, "a whole number from 0 to 2^63 - 1")
        _check_strings("stop", self.stop, "which would stop at once")
        _check_strings("bad_words", self.bad_words, "which every text contains")
        _check_ids(self.stop_token_ids)
        _check_controllers(self.controllers)
        signals, guidance = self.signals, self.guidance
        fits = is_number(guidance) and 0 <= guidance <= LARGEST_GUIDANCE
        require(fits, "guidance", guidance, f"a number from 0 to {LARGEST_GUIDANCE}")
        require(isinstance(signals, SignalOptions), "signals", signals, "SignalOptions")
        for name in ("auto_temperature", "metrics"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, value, "True or False")
        count = self.alternatives
        counted = is_whole(count) and 0 <= count <= (LARGEST if self.metrics else 0)
        require(counted, "alternatives", count, "a count of at least 0, and 0 without metrics")
        names = [item.name for item in fields(SamplingOptions)]
        sampling = SamplingOptions(**{name: getattr(self, name) for name in names})
        derived = {"max_length": int(length), "min_tokens": int(least), "sampling": sampling}
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return _listed(self.stop)

    @property
    def banned(self) -> tuple[str, ...]:
        """`bad_words` as a tuple."""
        return _listed(self.bad_words)

    def require_known(self, vocab_size: int) -> None:
        """Raise ValueError for an id of an option that a vocabulary lacks."""
        for name in ("stop_token_ids", "logit_bias"):
            for token in getattr(self, name):
                require(token < vocab_size, name, token, f"an id from 0 to {vocab_size - 1}")

    def followed_by(self, stability: StabilityConfig) -> "GenerationOptions":
        """The options with the controller that `auto_temperature` asks for, after the others."""
        asked = self.auto_temperature and stability.enabled and stability.auto_temperature_adjust
        if not asked or any(isinstance(c, StabilityTemperature) for c in self.controllers):
            return self
        return replace(self, controllers=(*self.controllers, StabilityTemperature()))


def options_of(max_length: int, options: Mapping[str, Any]) -> GenerationOptions:
    """Check the keyword arguments of a `generate`.

    Raises TypeError for an unknown name, and ValueError as `GenerationOptions` does.
    """
    known = [item.name for item in fields(GenerationOptions) if item.init]
    for name in options:
        if name not in known:
            raise TypeError(f"unknown option {name}{nearest(name, [*known, 'seed'])}")
    return GenerationOptions(max_length=max_length, **options)


def seed_or_drawn(seed: int | None, count: int = 1) -> int:
    """Check a seed, the first of `count` in a row; draw one where none is given."""
    if seed is None:
        return secrets.randbelow(2**31)
    fits = is_whole(seed) and -LARGEST <= seed <= LARGEST - count
    require(fits, "seed", seed, "None, or a whole number between -2^63 and 2^63")
    return int(seed)


def _listed(strings: str | Sequence[str]) -> tuple[str, ...]:
    return (strings,) if isinstance(strings, str) else tuple(strings)


def _check_strings(name: str, value: Any, consequence: str) -> None:
    strings = [value] if isinstance(value, str) else value
    listed = isinstance(strings, Sequence) and all(isinstance(x, str) for x in strings)
    require(listed, name, value, "a string or a list of strings")
    if not all(strings):
        raise ValueError(f"{name} contains an empty string, {consequence}")


def _check_ids(ids: Any) -> None:
    listed = isinstance(ids, Sequence) and not isinstance(ids, str | bytes)
    whole = listed and all(is_whole(token) and token >= 0 for token in ids)
    require(whole, "stop_token_ids", ids, "a list of ids of at least 0")


def _check_controllers(controllers: Any) -> None:
    listed = isinstance(controllers, Sequence) and all(
        hasattr(c, "start") and not isinstance(c, type) for c in controllers
    )
    require(listed, "controllers", controllers, "a list of controllers, such as [SRB()]")
