"""The sixteen semantic axes of the v2 README: what each name reads of a text, or that it is free.

A tied axis is one signal that is measured in any case; its value is that signal and nothing else. A
free name has no signal that could come out against it, and shows nothing. The names belong to this
table alone: the sedenion field has sixteen axes too, which are learned, and none of them is one of
these (docs/architecture.md). `benchmarks/studies/axes.py` asks whether each moves as its name says.

Shapes: T tokens of the text.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from reso_llm.session.foci import novelty_of
from run_core.terminal import finite_mean


class TextMeasures(NamedTuple):
    """What was measured of a text of T tokens; a sequence is empty where the model has no such."""

    order: Sequence[float]  # (T,) Kuramoto order parameter, 0 to 1
    entropy_nats: Sequence[float]  # (T,)
    surprise_nats: Sequence[float]  # (T,)
    warning: Sequence[float]  # (T,) the stability monitor's, 0 to 1
    num_read: int  # tokens before the text
    goal_shares: Sequence[float]  # of each goal, that the text says, 0 to 1
    resonance: float  # of what was told and the prompt asks for, 0 to 1
    recency: float  # e^{-rate age} of the newest of it


class Axis(NamedTuple):
    """A name's signal with its unit, why this signal, and its value; NaN is "not defined"."""

    signal: str
    unit: str
    why: str
    value: Callable[[TextMeasures], float]


def _identity(m: TextMeasures) -> float:
    return len(m.surprise_nats) / (m.num_read + len(m.surprise_nats))


AXES: dict[str, Axis | None] = {
    "coherence": Axis(
        "order parameter of the oscillators", "0 to 1", "the phases of a text agree with its past",
        lambda m: finite_mean(m.order),
    ),
    "identity": Axis(
        "share of the tokens that the model spoke", "0 to 1", "who speaks: 1 is nobody else",
        _identity,
    ),
    "duality": None,
    "harmony": None,
    "truth": None,
    "consciousness": None,
    "beauty": None,
    "compassion": None,
    "intention": Axis(
        "share of the goal that is said", "0 to 1", "what a text intends; of several, the best",
        lambda m: max(m.goal_shares, default=math.nan),
    ),
    "wisdom": None,
    "creativity": Axis(
        "novelty, 1 - exp(-surprise / 3.5 nats)", "0 to 1", "what nobody expected is new",
        lambda m: finite_mean([novelty_of(s) for s in m.surprise_nats]),
    ),
    "stability": Axis(
        "1 - warning of the monitor", "0 to 1", "no damage is expected in the next tokens",
        lambda m: finite_mean([1 - w for w in m.warning]),
    ),
    "complexity": Axis(
        "entropy before each token", "nats a token", "how much is open at each step",
        lambda m: finite_mean(m.entropy_nats),
    ),
    "connection": Axis(
        "resonance with what was told", "0 to 1", "the share of the question that memory answers",
        lambda m: m.resonance,
    ),
    "presence": Axis(
        "recency of what was told", "0 to 1", "what the text draws on was told just now",
        lambda m: m.recency if m.resonance else math.nan,
    ),
    "transcendence": None,
}  # fmt: skip
"""The names in the order of the README; None is free."""


def axes_of(measures: TextMeasures) -> dict[str, float]:
    """Values of the tied axes that this text defines, none for a text without a token."""
    if not measures.surprise_nats:
        return {}
    values = {name: axis.value(measures) for name, axis in AXES.items() if axis is not None}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def described(values: Mapping[str, float]) -> list[tuple[str, str]]:
    """All sixteen names, each with its value, unit and signal, or that it is free or not known."""
    return [(name, _described(axis, values.get(name))) for name, axis in AXES.items()]


def _described(axis: Axis | None, value: float | None) -> str:
    if axis is None:
        return "free: tied to no signal"
    shown = "not known" if value is None else f"{value:.2f}"
    return f"{shown}, {axis.unit}: {axis.signal}; {axis.why}"
