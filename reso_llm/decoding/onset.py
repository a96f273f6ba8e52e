"""Has damage begun? Bayes' rule, token by token, over three states of a text.

    p_t(k) ∝ L_k(token t) Σ_j A_jk p_{t-1}(j)        k = clean, replaced, looping

    L_clean = 1    ln L_replaced = slope s_t + offset    L_looping = HIT/m or (1 - HIT)/(1 - m)

s_t is the surprise of token t in nats. A token repeats where the loop score rises or is full: in a
loop in a share HIT of the tokens, in clean text in a share m. Slope, offset and m are those of the
calibration (`text_class.py`). Damage begins with the probabilities BEGIN and ends with
1/(2 horizon). Source: Shiryaev 1963; the forward algorithm of hidden Markov models, Rabiner 1989.

Plain floats: it runs once a token.
"""

import math
from typing import NamedTuple

BEGIN = (0.01, 0.0003)  # replaced, looping; per token
HIT = 0.9
LARGEST = 20.0  # nats that one token may say at most, so that no probability is lost


class Evidence(NamedTuple):
    """What tokens say of a state: slope and offset in surprise, and m, the share of repeats."""

    slope: float
    offset: float
    repeats: float


class Onset:
    """The probabilities of the three states after each token of one text; `add` takes a token."""

    def __init__(self, evidence: Evidence, horizon: int) -> None:
        """horizon: half of the tokens that damage is expected to last."""
        self.evidence, self.end = evidence, 1 / (2 * horizon)
        self.replaced, self.looping = BEGIN
        self._repetition = 0.0

    def add(self, surprise_nats: float, repetition: float) -> None:
        """Take the surprise of a token, and the loop score (0 to 1) after it."""
        slope, offset, m = self.evidence
        repeats = repetition > self._repetition or repetition == 1
        self._repetition = repetition
        odds = HIT / m if repeats else (1 - HIT) / (1 - m)
        nats = min(slope * surprise_nats + offset, LARGEST)
        clean = 1 - self.replaced - self.looping
        stays = 1 - self.end
        parts = (
            clean * (1 - sum(BEGIN)) + (1 - clean) * self.end,
            (self.replaced * stays + clean * BEGIN[0]) * math.exp(nats),
            (self.looping * stays + clean * BEGIN[1]) * odds,
        )
        total = sum(parts)
        self.replaced, self.looping = parts[1] / total, parts[2] / total

    @property
    def damaged_nats(self) -> float:
        """ln(p / (1 - p)) of damage of either kind."""
        return log_odds(self.replaced + self.looping)

    @property
    def replaced_nats(self) -> float:
        """ln(p / (1 - p)) of replaced tokens alone."""
        return log_odds(self.replaced)


def log_odds(p: float) -> float:
    """ln(p / (1 - p)); finite."""
    return math.log(max(p, 1e-15)) - math.log(max(1 - p, 1e-15))
