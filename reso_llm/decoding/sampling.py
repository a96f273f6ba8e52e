"""Sampling: from logits to the next token id.

The steps act in this order; a step at its neutral value does nothing.

    logit_bias, repetition, presence and frequency penalty, DRY   `penalties.py`; greedy knows them
    temperature
    top-n-sigma, top-k, top-p, min-p, typical, XTC, mirostat 2    `filters.py`

Shapes: B batch, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_core.checks import is_number, is_whole, require
from entropy_core.compiled import LEAST, available, compiled, exponential, highest
from reso_llm.decoding import filters, penalties
from reso_llm.decoding.filters import Mirostat

LARGEST_BIAS = 100
LARGEST_PENALTY = 2


@dataclass(frozen=True)
class SamplingOptions:
    """Options of drawing a token; `penalties.py` and `filters.py` have equations and sources.

    Neutral values: temperature 0 takes the most probable token; top_k 0, top_p 1, min_p 0,
    typical_p 1, top_n_sigma 0, xtc_probability 0 and mirostat_tau 0 exclude nothing;
    repetition_penalty 1, presence_penalty 0, frequency_penalty 0, dry_multiplier 0 and no
    logit_bias lower nothing.

    xtc_probability: of excluding the top choices at a token. mirostat_tau: target in bits.
    logit_bias: what is added to the logits of some ids. Raises ValueError naming the option that is
    out of range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    top_n_sigma: float = 0.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat_tau: float = 0.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        t, k, penalty = self.temperature, self.top_k, self.repetition_penalty
        warm = is_number(t) and (t == 0 or t >= 1e-6)
        require(warm, "temperature", t, "0 (greedy), or a finite number from 1e-6 up")
        require(is_whole(k) and k >= 0, "top_k", k, "a count of at least 0 (0 keeps every token)")
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            require(is_number(value) and 0 < value <= 1, name, value, "above 0 and at most 1")
        for name in ("min_p", "xtc_probability"):
            value = getattr(self, name)
            require(is_number(value) and 0 <= value <= 1, name, value, "a number from 0 to 1")
        threshold = self.xtc_threshold
        within = is_number(threshold) and 0 < threshold <= 0.5
        require(within, "xtc_threshold", threshold, "above 0 and at most 0.5")
        positive = is_number(penalty) and penalty > 0
        require(positive, "repetition_penalty", penalty, "a finite number above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            within = is_number(value) and abs(value) <= LARGEST_PENALTY
            require(within, name, value, f"a number from -{LARGEST_PENALTY} to {LARGEST_PENALTY}")
        for name in ("dry_multiplier", "top_n_sigma", "mirostat_tau"):
            value = getattr(self, name)
            require(is_number(value) and value >= 0, name, value, "a finite number of at least 0")
        base, length, eta = self.dry_base, self.dry_allowed_length, self.mirostat_eta
        require(is_number(base) and 1 <= base <= 10, "dry_base", base, "a number from 1 to 10")
        require(is_whole(length) and length >= 1, "dry_allowed_length", length, "at least 1 token")
        require(is_number(eta) and 0 < eta <= 1, "mirostat_eta", eta, "above 0 and at most 1")
        for item in fields(SamplingOptions):  # numpy's numbers become Python's
            if item.type in (int, float):
                object.__setattr__(self, item.name, item.type(getattr(self, item.name)))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    @property
    def reads_said(self) -> bool:
        """Whether a penalty asks what was said before."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.dry_multiplier > 0
        )


class Marks(NamedTuple):
    """Tokens that some steps treat apart.

    breakers: no repeat that DRY counts goes beyond them. protected: XTC does not exclude them.
    """

    breakers: frozenset[int] = frozenset()
    protected: frozenset[int] = frozenset()


NO_MARKS = Marks()


def penalised(logits: Tensor, seen: Tensor, options: SamplingOptions, marks: Marks) -> Tensor:
    """Logits (B,V) after bias and penalties, for what was said, ids `seen` (B,n)."""
    o = options
    if o.logit_bias:
        logits = penalties.biased(logits, o.logit_bias)
    if not o.reads_said or seen.shape[-1] == 0:
        return logits
    logits = penalties.penalize_repetition(logits, seen, o.repetition_penalty)
    if o.presence_penalty or o.frequency_penalty:
        counted = o.presence_penalty, o.frequency_penalty
        logits = penalties.penalize_counts(logits, seen, *counted)
    if o.dry_multiplier:
        dry = o.dry_multiplier, o.dry_base, o.dry_allowed_length
        logits = penalties.penalize_repeats(logits, seen, *dry, marks.breakers)
    return logits


def filter_logits(logits: Tensor, options: SamplingOptions) -> Tensor:
    """Logits (B,V) after temperature and the filters that draw nothing and remember nothing."""
    logits = logits / options.temperature
    if options.top_n_sigma > 0:
        logits = filters.top_n_sigma(logits, options.top_n_sigma)
    if options.top_k > 0:
        logits = filters.top_k(logits, options.top_k)
    if options.top_p < 1:
        logits = filters.top_p(logits, options.top_p)
    if options.min_p > 0:
        logits = filters.min_p(logits, options.min_p)
    if options.typical_p < 1:
        logits = filters.typical_p(logits, options.typical_p)
    return logits


def sample(
    logits: Tensor,
    seen: Tensor,
    options: SamplingOptions,
    generator: torch.Generator | None,
    marks: Marks = NO_MARKS,
    mirostat: Mirostat | None = None,
) -> Tensor:
    """Draw ids (B,1) from logits (B,V); the penalties act on the ids `seen` (B,n).

    mirostat: the memory of mirostat 2, of one row; without it the target is not followed. XTC draws
    once for all rows.
    """
    logits = penalised(logits, seen, options, marks)
    if options.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = filter_logits(logits, options)
    if options.xtc_probability > 0:
        draw = torch.rand(1, generator=generator, device=logits.device).item()
        if draw < options.xtc_probability:
            logits = filters.exclude_top_choices(logits, options.xtc_threshold, marks.protected)
    if options.mirostat_tau > 0 and mirostat is not None:
        logits = mirostat.filter(logits, options.mirostat_tau)
    drawn = inverted(logits, generator)
    if options.mirostat_tau > 0 and mirostat is not None:
        p = logits.softmax(-1).gather(-1, drawn).item()
        mirostat.observe(p, options.mirostat_tau, options.mirostat_eta)
    return drawn


def inverted(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw ids (B,1) from logits (B,V) by inversion: one uniform number a row.

    An id is the first whose cumulative sum of probabilities passes the number. torch.multinomial
    draws an exponential number for every token of the vocabulary, which takes nine times as long.
    """
    shape, device = (len(logits), 1), logits.device
    u = torch.rand(shape, dtype=torch.float64, device=device, generator=generator)
    if device.type == "cpu" and logits.dtype is torch.float32 and available():
        rows = zip(logits.numpy(), u[:, 0].tolist(), strict=True)
        return torch.tensor([[first_beyond(z, share)] for z, share in rows])
    sums = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(sums, u * sums[:, -1:], right=True)


@compiled
def first_beyond(z, share):
    """The first place at which e^z of logits z (V,) sums to more than a share of the whole sum."""
    top, total, weights = highest(z), 0.0, np.empty_like(z)
    for i in range(len(z)):
        shifted = z[i] - top
        weights[i] = exponential(shifted) if shifted > LEAST else np.float32(0)
        total += weights[i]
    below, last = 0.0, 0
    for i in range(len(z)):
        below += weights[i]
        if below > share * total:
            return i
        last = i if weights[i] > 0 else last
    return last  # by rounding


def _checked_bias(bias: Any) -> dict[int, float]:
    """A dict of Python's numbers. ValueError naming the wrong entry."""
    require(isinstance(bias, Mapping), "logit_bias", bias, "a mapping of ids to numbers")
    for token, value in bias.items():
        known = is_whole(token) and token >= 0
        fits = known and is_number(value) and abs(value) <= LARGEST_BIAS
        expected = f"an id of at least 0, with a number from -{LARGEST_BIAS} to {LARGEST_BIAS}"
        require(fits, "logit_bias", {token: value}, expected)
    return {int(token): float(value) for token, value in bias.items()}
