"""Alarms of the stability monitor: a score for each cause of damage, and when the cause warns.

    surprise   sigmoid(log odds of replaced tokens - alarm), `onset.py`
    loop       repetition / (2 alarm), repetition of the last tokens from 0 to 1
    growth     exponent / (2 alarm), alarm = lyapunov_threshold

A score above ALARM = 1/2 warns. The alarms of the first two are those of clean text
(`text_class.calibrated`): of each FALSE_ALARMS says in which share of clean texts it warns.
"""

import math
from collections.abc import Mapping

ALARM, REARM = 0.5, 0.25  # a cause warns above ALARM, and again only after falling below REARM


def sigmoid(nats: float) -> float:
    """1 / (1 + exp(-nats)), without overflow."""
    return 0.5 * (1 + math.tanh(0.5 * nats))


def share_of_alarm(value: float, alarm: float) -> float:
    """Score of a value, 0 to 1; 0.5 at its alarm."""
    return min(1.0, max(0.0, 0.5 * value / alarm))


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
