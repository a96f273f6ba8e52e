"""Alarms of the stability monitor: a score for each cause of damage, and when the cause warns.

    score = sigmoid((value - midpoint) / scale)

    surprise   average of surprise - entropy, in nats per token
    loop       repetition of the last tokens, 0 to 1
    growth     exponent over its threshold, while the text is chaotic or divergent

At most 1 % of the tokens of clean text lie above each midpoint (`evaluate.py stability`, horizon 5;
quantiles of .99: 4.8 nats and .65 of a small model on guanaco, 3.7 to 4.1 and .58 of the shipped
one). The scales keep the noise of one cause on clean text below the early values of the other.
"""

import math
from collections.abc import Mapping

EXCESS_MIDPOINT, EXCESS_SCALE = 4.8, 1.0  # nats per token
LOOP_MIDPOINT, LOOP_SCALE = 0.65, 0.1
ALARM, REARM = 0.5, 0.25  # a cause warns above ALARM, and again only after falling below REARM


def surprise_score(excess_nats: float) -> float:
    """Score, 0 to 1, of tokens that are more surprising than the model expects."""
    return _sigmoid((excess_nats - EXCESS_MIDPOINT) / EXCESS_SCALE)


def repetition_score(repetition: float) -> float:
    """Score, 0 to 1, of a text that repeats itself."""
    return _sigmoid((repetition - LOOP_MIDPOINT) / LOOP_SCALE)


def growth_score(exponent: float, threshold: float) -> float:
    """Score, 0 to 1, of an exponent above its threshold."""
    return _sigmoid(exponent / threshold - 1)


def _sigmoid(z: float) -> float:
    return 0.5 * (1 + math.tanh(0.5 * z))


class Alarms:
    """The causes that warn at present; `active` holds their names."""

    def __init__(self) -> None:
        self.active: set[str] = set()

    def update(self, scores: Mapping[str, float]) -> list[str]:
        """Take the scores of one token and return the causes that begin to warn."""
        self.active = {cause for cause in self.active if scores.get(cause, 0) >= REARM}
        begun = [c for c, score in scores.items() if score > ALARM and c not in self.active]
        self.active |= set(begun)
        return begun
