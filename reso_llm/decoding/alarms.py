"""Alarms of the stability monitor: a score for each cause of damage, and when the cause warns.

    score = sigmoid((value - alarm) / deviation)

    surprise   average of the last tokens' surprise, in nats
    loop       repetition of the last tokens, 0 to 1
    growth     exponent, where it is above lyapunov_threshold, which is its deviation too

Alarm and deviation of the first two are those of clean text (`text_class.calibrated`): of each
FALSE_ALARMS says in which share of clean texts it warns.
"""

import math
from collections.abc import Mapping

ALARM, REARM = 0.5, 0.25  # a cause warns above ALARM, and again only after falling below REARM


def score(value: float, alarm: float, deviation: float) -> float:
    """Score, 0 to 1, of a value; 0.5 at its alarm."""
    return 0.5 * (1 + math.tanh(0.5 * (value - alarm) / deviation))


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
