"""Divergence of nearby hidden states while a text is written: a streaming exponent.

    λ = mean over pairs of  (ln d_k - ln d_1) / (k - 1)      nats per token

Each state is paired with its nearest neighbour among the states before it; d_j is the distance of
the two j tokens later. This is the method of Rosenstein, Collins & De Luca (1993), as in
`lyapunov.rosenstein_exponent_per_step`, in a form that takes one state at a time. Neighbours closer
in time than the Theiler window (Theiler 1986) do not count. `HiddenDivergence` gives the rate of
false alarms and the series that it was measured on.

Shapes: D components of a state. Plain numpy and floats: it runs once a token.
"""

import math
from collections import deque

import numpy as np

from entropy_core.lyapunov import CHAOTIC, STABLE, UNKNOWN

STATE_WINDOW = 128  # states that are searched for a neighbour
THEILER = 10  # tokens; two states closer in time than that are no pair
PAIR_WINDOW = 64  # newest pairs in the mean
MAX_HORIZON = 32  # tokens; a pair of states is followed that far within STATE_WINDOW


class MovingMean:
    """Mean of the last `window` values and its standard error.

    Neighbouring values overlap: every `overlap` of them count as one independent value.
    """

    def __init__(self, window: int, overlap: int) -> None:
        self.values: deque[float] = deque(maxlen=window)
        self.overlap = overlap
        self.total = self.squares = 0.0

    def add(self, value: float) -> None:
        if len(self.values) == self.values.maxlen:
            self.total -= self.values[0]
            self.squares -= self.values[0] ** 2
        self.values.append(value)
        self.total += value
        self.squares += value**2

    def estimate(self) -> tuple[float, float]:
        """Mean and standard error; NaN until half the window is filled."""
        n = len(self.values)
        if n < self.values.maxlen // 2:
            return math.nan, math.nan
        mean = self.total / n
        variance = max(0.0, self.squares / n - mean**2)
        return mean, math.sqrt(variance * self.overlap / n)


class HiddenDivergence:
    """Finite-time exponent of a sequence of hidden states (D,), one state at a time.

    A pair is followed for `horizon` + 1 tokens. `lyapunov` (nats per token) is NaN unless a
    state's neighbour predicts the next state better than the mean of all others does, by 3 standard
    errors; in noise it does not. `label` is CHAOTIC where the exponent over the later half of the
    path exceeds `threshold` by 2 standard errors (the growth of a diffusion fades by then), STABLE
    where the whole exponent is below the threshold by as much, UNKNOWN otherwise.

    How it can be wrong, measured on 20 sequences each of 128 and of 256 states: chaotic are 20 and
    19 logistic, 18 and 18 Hénon, 0 Lorenz each 0.1 (λ .14 for .09; 3 of 128 called stable); no
    noise, AR(1) at .9 and .99 or random walk is. In noise λ is undefined, in AR(1) at .99 it is
    .16 where defined, and a random walk in 4 dimensions is called stable in 8 of 20.
    """

    def __init__(self, horizon: int, threshold: float) -> None:
        self.last, self.threshold = horizon + 1, threshold
        self.middle = (self.last + 1) // 2
        self.time = 0
        self.pairs: deque[list[float]] = deque(maxlen=self.last)  # [neighbour, ln d_1, ln d_mid]
        self.growth = MovingMean(PAIR_WINDOW, self.last)
        self.late_growth = MovingMean(PAIR_WINDOW, self.last)
        self.advantage = MovingMean(PAIR_WINDOW, self.last)
        self.lyapunov, self.label = math.nan, UNKNOWN

    def add(self, x: np.ndarray) -> None:
        """Take the state x (D,) of the next token. Raises ValueError unless it is finite, (D,)."""
        if self.time == 0:
            self._make_room(x)
        if x.ndim != 1 or len(x) != self.query.size - 1:
            raise ValueError(f"hidden has shape {x.shape}, expected (D,), the same D every time")
        self.query[:-1] = x
        state = self.query[:-1]
        norm = float(state.dot(state))
        if not math.isfinite(norm):
            raise ValueError("hidden is not finite: expected finite numbers")
        at = self.time % STATE_WINDOW
        squares = self.rows[at : at + STATE_WINDOW].dot(self.query)
        squares += norm
        # The floor is the rounding error of this form: what repeats exactly has distance 0.
        np.maximum(squares, 2e-15 * norm + 1e-300, out=squares)
        self._follow(np.log(squares, out=squares))
        row = self.rows[at]
        np.multiply(state, -2.0, out=row[:-1])
        row[-1] = norm
        self.rows[at + STATE_WINDOW] = row
        self.time += 1

    def _make_room(self, x: np.ndarray) -> None:
        """Rows (-2 s, s·s) and the query (x, 1): one product gives every s·s - 2 s·x.

        A state is kept twice, STATE_WINDOW rows apart: the last ones always stand in a row.
        """
        self.rows = np.zeros((2 * STATE_WINDOW, x.size + 1))
        self.query = np.ones(x.size + 1)

    def _follow(self, logs: np.ndarray) -> None:
        """Advance every pair, then look for the neighbour of the state.

        logs: of the squared distances to the last STATE_WINDOW states, oldest first.
        """
        oldest = self.time - STATE_WINDOW  # time of logs[0]; below 0 there is no state
        first = max(-oldest, self.last + 1)  # a neighbour must stay long enough to follow
        candidates = logs[first:-THEILER]
        if pair := self._pair(1):
            pair[1] = 0.5 * logs.item(pair[0] + 1 - oldest)
            self.advantage.add(pair[1] - 0.5 * float(candidates.sum()) / candidates.size)
        if pair := self._pair(self.middle):
            pair[2] = 0.5 * logs.item(pair[0] + self.middle - oldest)
        if pair := self._pair(self.last):
            neighbour, start, halfway = pair
            end = 0.5 * logs.item(neighbour + self.last - oldest)
            self.growth.add((end - start) / (self.last - 1))
            self.late_growth.add((end - halfway) / (self.last - self.middle))
            self._judge()
        found = candidates.size > 0
        nearest = oldest + first + int(candidates.argmin()) if found else None
        self.pairs.append([nearest, math.nan, math.nan] if found else [])

    def _pair(self, age: int) -> list | None:
        """The pair made `age` tokens ago; None or [] where there was no neighbour."""
        return self.pairs[-age] if age <= len(self.pairs) else None

    def _judge(self) -> None:
        advantage, error = self.advantage.estimate()
        predictive = advantage + 3 * error < 0
        growth, error = self.growth.estimate()
        late, late_error = self.late_growth.estimate()
        self.lyapunov, self.label = (growth if predictive else math.nan), UNKNOWN
        if predictive and late - 2 * late_error > self.threshold:
            self.label = CHAOTIC
        elif predictive and growth + 2 * error < self.threshold:
            self.label = STABLE
