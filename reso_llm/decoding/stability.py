"""Stability monitor: reads a generation token by token, classifies it, and warns ahead.

    excess   E_t = a (s_t - H_t) + (1 - a) E_{t-1},  E_0 = 0,  a = 2 / (h + 1)
    warning  w_t = max over causes of sigmoid((value - midpoint) / scale),  stability = 1 - w
    exponent λ = mean of ln(d_k / d_1) / (k - 1),  k = h + 1

s_t is the surprise of token t and H_t the entropy of the distribution it was drawn from, both in
nats: for the model's own samples at temperature 1, s - H is 0 on average, whatever the text. h is
predictive_horizon. d_j is the distance of the hidden state j tokens on from the state that was
nearest to it at j = 0 (Wolf et al. 1985; Rosenstein, Collins & De Luca 1993). The step from d_0 to
d_1 is left out: for noise it is large and all that follows is 0, which an exponent is not.

Shapes: D hidden width, T tokens. Exponents are in nats per token; what is undefined is NaN. State
lives in `StabilityMonitor`, one for each generation; all of it is plain floats and short windows.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from entropy_core.checks import require
from entropy_core.control import TemperatureOptions, stability_temperature
from entropy_core.divergence import MAX_HORIZON, HiddenDivergence
from entropy_core.lyapunov import CHAOTIC, CLASSES, DIVERGENT, PERIODIC, STABLE, UNKNOWN, classify
from entropy_core.signals import LoopTracker
from reso_llm.config import StabilityConfig

LOOP_WINDOW, MAX_PERIOD = 12, 32  # tokens; as `entropy_core.signals.loop_score` means them
LOOPING = 0.9  # repetition from which a text is periodic
SERIES_WINDOW, CLASSIFY_EVERY = 192, 64  # entropies seen by the classifier; tokens between calls
# Midpoints: at most 1 % of clean tokens lie above each (`evaluate.py stability`, h = 5; quantiles
# of .99: 4.8 nats and .65 of a small model on guanaco, 3.7 to 4.1 and .58 of the shipped one).
# Scales: so that neither cause hides the other's early values under its own clean-text noise.
EXCESS_MIDPOINT, EXCESS_SCALE = 4.8, 1.0  # nats per token
LOOP_MIDPOINT, LOOP_SCALE = 0.65, 0.1
ALARM, REARM = 0.5, 0.25  # a cause warns above ALARM, and again only after falling below REARM
LOOP_WARMING = 0.4  # nats: an exact loop is warmed by e^0.4 = 1.5


class Reading(NamedTuple):
    """What the monitor makes of the text after one token."""

    entropy_nats: float
    lyapunov_per_token: float  # nats per token, NaN where the data support no exponent
    order_parameter: float  # the model's coherence, NaN where not given
    repetition: float  # 0 to 1, loop score of the last tokens
    warning: float  # 0 to 1, above ALARM the text ahead is expected to be damaged
    stability_class: str  # one of entropy_core.lyapunov.CLASSES


class StabilityMonitor:
    """Stability of one generation. `observe` every token; the properties speak of the last one.

    The class is the worst that holds, in this order: divergent or chaotic (the entropies'
    verdict by `entropy_core.lyapunov.classify`, or the hidden states'; exponent above
    lyapunov_threshold), periodic (entropies, or tokens that repeat), stable (either, and no
    alarm), else unknown. Entropies are judged at every 64th token; their verdict holds in between.

    Causes of a warning: tokens more surprising than the model expects (needs surprise_nats);
    repetition; an exponent above the threshold. Entropy alone is none: it separates damaged from
    clean text hardly better than chance. `evaluate.py stability` measures it, on the shipped model:
    AUROC of entropy .5 to .6, of the warning .94 from 4 corrupted tokens on and .98 from 8 looping
    ones; nearly all clean text has class unknown, as neither series of it shows deterministic
    structure.

    Raises ValueError when predictive_horizon is above MAX_HORIZON.
    """

    def __init__(self, config: StabilityConfig) -> None:
        horizon = config.predictive_horizon
        require(horizon <= MAX_HORIZON, "predictive_horizon", horizon, f"at most {MAX_HORIZON}")
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next token is the first of a generation."""
        horizon, threshold = self.config.predictive_horizon, self.config.lyapunov_threshold
        self.num_tokens = 0
        self._loops = LoopTracker(LOOP_WINDOW, MAX_PERIOD)
        self._hidden = HiddenDivergence(horizon, threshold)
        self._entropies: deque[float] = deque(maxlen=SERIES_WINDOW)
        self._series = (UNKNOWN, math.nan)
        self._excess = 0.0
        self._active: set[str] = set()
        self._warnings: list[str] = []
        self._reading = Reading(math.nan, math.nan, math.nan, math.nan, math.nan, CLASSES[UNKNOWN])

    def observe(
        self,
        entropy_nats: float,
        token_id: int,
        *,
        surprise_nats: float | None = None,
        coherence: float | None = None,
        hidden: np.ndarray | None = None,
    ) -> Reading:
        """Read one token: entropy before it, its id, and what else is known -> Reading.

        surprise_nats is -ln of the probability the same distribution gave the token; coherence
        the model's order parameter; hidden (D,) its state at the token. Raises ValueError for an
        entropy, surprise or hidden state that is not finite, or a negative id.
        """
        require(math.isfinite(entropy_nats), "entropy_nats", entropy_nats, "a finite number")
        require(token_id >= 0, "token_id", token_id, "at least 0")
        self.num_tokens += 1
        self._entropies.append(entropy_nats)
        repetition = self._loops.add(token_id)
        if surprise_nats is not None:
            require(math.isfinite(surprise_nats), "surprise_nats", surprise_nats, "finite")
            weight = 2 / (self.config.predictive_horizon + 1)
            self._excess += weight * (surprise_nats - entropy_nats - self._excess)
        if hidden is not None:
            self._hidden.add(hidden)
        if self.num_tokens % CLASSIFY_EVERY == 0:
            self._series = self._classify_entropies()
        exponent = self._series[1] if hidden is None else self._hidden.lyapunov
        label = self._unstable_label(repetition)
        scores = self._scores(repetition, label)
        if label == UNKNOWN and max(scores.values()) <= ALARM:
            label = STABLE if STABLE in (self._series[0], self._hidden.label) else UNKNOWN
        order = math.nan if coherence is None else coherence
        warning = max(scores.values())
        self._reading = Reading(entropy_nats, exponent, order, repetition, warning, CLASSES[label])
        self._warn(scores)
        return self._reading

    def _classify_entropies(self) -> tuple[int, float]:
        """Label and exponent of the recent entropies; growth below the threshold is unknown."""
        series = torch.tensor([list(self._entropies)], dtype=torch.float64)
        label, exponent = (v.item() for v in classify(series))
        if label in (CHAOTIC, DIVERGENT) and not exponent > self.config.lyapunov_threshold:
            label = UNKNOWN
        return label, exponent

    def _unstable_label(self, repetition: float) -> int:
        labels = {self._series[0], self._hidden.label}
        if repetition >= LOOPING:
            labels.add(PERIODIC)
        return next((x for x in (DIVERGENT, CHAOTIC, PERIODIC) if x in labels), UNKNOWN)

    def _scores(self, repetition: float, label: int) -> dict[str, float]:
        """Score of each cause, 0 to 1."""
        scores = {
            "surprise": _sigmoid((self._excess - EXCESS_MIDPOINT) / EXCESS_SCALE),
            "loop": _sigmoid((repetition - LOOP_MIDPOINT) / LOOP_SCALE),
        }
        if label in (CHAOTIC, DIVERGENT):
            ratio = self._largest_exponent() / self.config.lyapunov_threshold
            scores["growth"] = _sigmoid(ratio - 1)
        return scores

    def _largest_exponent(self) -> float:
        """The larger of both exponents; at least the threshold, where neither is defined too."""
        known = (self._series[1], self._hidden.lyapunov)
        return max([self.config.lyapunov_threshold, *(x for x in known if x == x)])

    def _warn(self, scores: dict[str, float]) -> None:
        """Add a sentence for each cause that has just risen above ALARM."""
        self._active = {cause for cause in self._active if scores.get(cause, 0) >= REARM}
        for cause, score in scores.items():
            if score > ALARM and cause not in self._active:
                self._active.add(cause)
                self._warnings.append(self._sentence(cause))

    def _sentence(self, cause: str) -> str:
        reading, horizon = self._reading, self.config.predictive_horizon
        reason = {
            "surprise": f"{self._excess:.1f} nats a token more surprising than the model expects",
            "loop": f"{reading.repetition:.0%} of the last {LOOP_WINDOW} tokens are repeated",
            "growth": f"{reading.stability_class}, {self._largest_exponent():.2f} nats a token",
        }[cause]
        return f"token {self.num_tokens}: {reason}; expect damage in the next {horizon} tokens"

    @property
    def stability(self) -> float:
        """1 - warning, from 0 to 1; NaN before the first token. Wrong if clean text scores low."""
        return 1 - self._reading.warning

    @property
    def stability_class(self) -> str:
        """Class of the text so far; "unknown" is no claim of stability."""
        return self._reading.stability_class

    @property
    def lyapunov(self) -> float:
        """Nats per token, of the hidden states where observed, else of the entropies; or NaN."""
        return self._reading.lyapunov_per_token

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences, one each time a cause begins to warn, with the position counted from 1."""
        return tuple(self._warnings)

    def suggested_temperature(self, current_temp: float) -> float:
        """T' = T exp(-λ): cooler where chaotic, divergent or too surprising, warmer in a loop.

        Give the user's temperature, not the last suggestion, or suggestions compound. Unchanged
        where nothing is wrong, where auto_temperature_adjust is off, and at 0. Cooled at most to
        0.3 and warmed at most to 1.5. Raises ValueError for a temperature below 0 or not finite.
        """
        valid = math.isfinite(current_temp) and current_temp >= 0
        require(valid, "current_temp", current_temp, "a finite number of at least 0")
        exponent = self._steering()[1]
        if not self.config.auto_temperature_adjust or exponent == 0 or current_temp == 0:
            return current_temp
        bounds = TemperatureOptions()
        options = TemperatureOptions(  # a temperature beyond a bound must not be moved back to it
            min_temperature=max(1e-6, min(bounds.min_temperature, current_temp)),
            max_temperature=max(bounds.max_temperature, current_temp),
        )
        return stability_temperature(current_temp, exponent, options)

    @property
    def steering_cause(self) -> str:
        """Why `suggested_temperature` moves: a class, "surprise" or "loop"; "" where it does not.

        It says so also where auto_temperature_adjust is off.
        """
        return self._steering()[0]

    def _steering(self) -> tuple[str, float]:
        """Cause and λ of the temperature rule: positive cools, negative warms, 0 does nothing."""
        label = self.stability_class
        if label in (CLASSES[CHAOTIC], CLASSES[DIVERGENT]):
            return label, self._largest_exponent()
        if "surprise" in self._active:
            return "surprise", self._largest_exponent()
        if label == CLASSES[PERIODIC] or "loop" in self._active:
            cause = "loop" if "loop" in self._active else label
            return cause, -LOOP_WARMING * max(LOOP_MIDPOINT, self._reading.repetition)
        return "", 0.0


def _sigmoid(z: float) -> float:
    return 0.5 * (1 + math.tanh(0.5 * z))


def readings(
    config: StabilityConfig,
    entropy_nats: Sequence[float],
    ids: Sequence[int],
    *,
    surprise_nats: Sequence[float] | None = None,
    coherence: Sequence[float] | None = None,
    hidden: np.ndarray | None = None,
) -> list[Reading]:
    """The T readings of a finished text: as `observe` on each token of a new monitor.

    entropy_nats, ids, surprise_nats and coherence have T values, hidden is (T, D). Raises
    ValueError as `observe` does, and where lengths differ.
    """
    monitor, T = StabilityMonitor(config), len(ids)
    known = {"surprise_nats": surprise_nats, "coherence": coherence, "hidden": hidden}
    for name, values in {"entropy_nats": entropy_nats, **known}.items():
        if values is not None and len(values) != T:
            raise ValueError(f"{name} has {len(values)} values, expected {T}, one for each id")
    known = {name: values for name, values in known.items() if values is not None}
    return [
        monitor.observe(entropy_nats[t], ids[t], **{name: v[t] for name, v in known.items()})
        for t in range(T)
    ]
