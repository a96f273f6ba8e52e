"""Foci of attention: what a text dwells on, and why.

    salience  = w novelty + (1 - w) (2 relevance + intensity) / 3,    w = novelty_weight
    novelty   = 1 - exp(-surprise / 3.5 nats)             relevance = max(0, cos(target, goal))

Every term lies in [0, 1]; at w = 0.4 the weights are 0.4, 0.4, 0.2.

Shapes: D width. A focus is a value; `reso_llm.session.agency` keeps those of a session.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

NOVELTY_SCALE_NATS = 3.5
"""Surprise at which novelty is 1 - 1/e: the entropy where the zone LANTERN begins."""

FOCUS_RETENTION = 0.9
"""Share of every term of a focus that is left after the next observation."""

REASONS = {"novelty": "novel", "relevance": "relevant to the goal", "intensity": "attended to"}


@dataclass(frozen=True)
class Focus:
    """A focus of attention. `type` is the term that adds most to salience.

    type is "novelty", "relevance" or "intensity"; the four numbers lie in [0, 1].
    """

    type: str
    target: str
    intensity: float  # attention received
    novelty: float
    relevance: float
    salience: float

    @property
    def why(self) -> str:
        """The reason in words: "novel", "relevant to the goal" or "attended to"."""
        return REASONS[self.type]


class Target(NamedTuple):
    """A candidate for a focus, as `Agency.observe` takes it."""

    name: str
    surprise_nats: float
    vector: Tensor | None
    attention: float


def novelty_of(surprise_nats: float) -> float:
    """Novelty in [0, 1] of a token with this surprise, at least 0."""
    return -math.expm1(-surprise_nats / NOVELTY_SCALE_NATS)


def focus_on(target: Target, goals: Sequence[Tensor], novelty_weight: float) -> Focus:
    """The focus on a target under goals with these vectors (D,)."""
    novelty, relevance = novelty_of(target.surprise_nats), 0.0
    if target.vector is not None:
        cosines = (F.cosine_similarity(target.vector, g.to(target.vector), dim=0) for g in goals)
        relevance = min(1.0, max((0.0, *(cosine.item() for cosine in cosines))))
    return focus_of(target.name, novelty, relevance, target.attention, novelty_weight)


def focus_of(
    target: str, novelty: float, relevance: float, intensity: float, novelty_weight: float
) -> Focus:
    """The focus on a target with these terms."""
    rest = (1 - novelty_weight) / 3
    parts = {
        "novelty": novelty_weight * novelty,
        "relevance": 2 * rest * relevance,
        "intensity": rest * intensity,
    }
    kind = max(parts, key=parts.__getitem__)
    return Focus(kind, target, intensity, novelty, relevance, sum(parts.values()))


def summary(foci: Iterable[Focus]) -> str:
    """The foci as one sentence, each with its reason; "" without any."""
    names: dict[str, list[str]] = {}
    for focus in foci:
        names.setdefault(focus.why, []).append(focus.target)
    parts = [f"{_listed(some)} ({why})" for why, some in names.items()]
    return f"The focus is on {_listed(parts)}." if parts else ""


def _listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
