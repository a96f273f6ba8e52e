"""Stability monitor: reads a generation token by token, classifies it, and warns of damage ahead.

    excess   E_t = a (s_t - H_t) + (1 - a) E_{t-1},  E_0 = 0,  a = 2 / (h + 1)
    warning  w_t = the largest score of a cause (`alarms`),  stability = 1 - w
    exponent λ = mean of ln(d_k / d_1) / (k - 1),  k = h + 1

s_t is the surprise of token t and H_t the entropy of the distribution it was drawn from, both in
nats. For the model's own samples at temperature 1, s - H is 0 on average, whatever the text. h is
predictive_horizon. d_j is the distance between two hidden states, j tokens after they were nearest
neighbours (Wolf et al. 1985; Rosenstein, Collins & De Luca 1993). The step from d_0 to d_1 does not
count: for noise it is large and every later step is 0, which is not exponential growth.

Shapes: D hidden width, T tokens. Exponents are in nats per token; NaN means undefined. All state
lives in `StabilityMonitor`, one for each generation, as plain floats and short windows.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from entropy_core.checks import require
from entropy_core.divergence import MAX_HORIZON, HiddenDivergence
from entropy_core.lyapunov import CHAOTIC, CLASSES, DIVERGENT, PERIODIC, STABLE, UNKNOWN, classify
from entropy_core.signals import LoopTracker
from reso_llm.config import StabilityConfig
from reso_llm.decoding.alarms import ALARM, Alarms, growth_score, repetition_score, surprise_score
from reso_llm.decoding.steering import Steering, steered_temperature, steering

LOOP_WINDOW, MAX_PERIOD = 12, 32  # tokens; as `entropy_core.signals.loop_score` means them
LOOPING = 0.9  # repetition from which a text is periodic
SERIES_WINDOW, CLASSIFY_EVERY = 192, 64  # entropies seen by the classifier; tokens between calls


class StabilityReading(NamedTuple):
    """Reading of the monitor after one token."""

    entropy_nats: float
    lyapunov_per_token: float  # nats per token, NaN where the data support no exponent
    order_parameter: float  # the model's coherence, NaN where not given
    repetition: float  # 0 to 1, loop score of the last tokens
    warning: float  # 0 to 1; above ALARM the next tokens are expected to be damaged
    stability_class: str  # one of entropy_core.lyapunov.CLASSES


NO_READING = StabilityReading(*[math.nan] * 5, CLASSES[UNKNOWN])


class StabilityMonitor:
    """Stability of one generation. Call `observe` on every token; properties describe the last one.

    The class of a text is the first of these that holds: divergent or chaotic (by the entropies,
    which `entropy_core.lyapunov.classify` judges, or by the hidden states, with an exponent above
    lyapunov_threshold); periodic (by the entropies, or because tokens repeat); stable (by either,
    without an alarm); unknown. The entropies are judged at every 64th token and keep that class in
    between.

    A warning has three causes: tokens more surprising than the model expects (needs surprise_nats),
    repetition, and an exponent above the threshold. Entropy alone is not a cause, because it hardly
    separates damaged from clean text. `evaluate.py stability` measures this on the shipped model:
    the AUROC of entropy is .5 to .6, that of the warning .94 from 4 corrupted tokens on and .98
    from 8 looping ones. Nearly all clean text has class unknown, as neither its entropies nor its
    hidden states show deterministic structure.

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
        self._entropy_label, self._entropy_exponent = UNKNOWN, math.nan
        self._excess = 0.0
        self._alarms = Alarms()
        self._warnings: list[str] = []
        self._reading = NO_READING

    def observe(
        self,
        entropy_nats: float,
        token_id: int,
        *,
        surprise_nats: float | None = None,
        coherence: float | None = None,
        hidden: np.ndarray | None = None,
    ) -> StabilityReading:
        """Read one token: the entropy of its distribution, its id, and the optional measures.

        surprise_nats is -ln of the probability that this distribution gave the token; coherence is
        the model's order parameter; hidden (D,) is its state at the token. Raises ValueError for
        an entropy, surprise or hidden state that is not finite, and for a negative id.
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
            self._classify_entropies()
        label = self._unstable_label(repetition)
        scores = self._scores(repetition, label)
        warning = max(scores.values())
        if label == UNKNOWN and warning <= ALARM and STABLE in self._labels():
            label = STABLE
        self._reading = StabilityReading(
            entropy_nats,
            self._entropy_exponent if hidden is None else self._hidden.lyapunov,
            math.nan if coherence is None else coherence,
            repetition,
            warning,
            CLASSES[label],
        )
        self._warnings += [self._sentence(cause) for cause in self._alarms.update(scores)]
        return self._reading

    def _classify_entropies(self) -> None:
        """Judge the recent entropies; growth below the threshold is unknown."""
        series = torch.tensor([list(self._entropies)], dtype=torch.float64)
        label, exponent = (value.item() for value in classify(series))
        if label in (CHAOTIC, DIVERGENT) and not exponent > self.config.lyapunov_threshold:
            label = UNKNOWN
        self._entropy_label, self._entropy_exponent = label, exponent

    def _labels(self) -> set[int]:
        """The classes by the entropies and by the hidden states."""
        return {self._entropy_label, self._hidden.label}

    def _unstable_label(self, repetition: float) -> int:
        labels = self._labels()
        if repetition >= LOOPING:
            labels.add(PERIODIC)
        return next((x for x in (DIVERGENT, CHAOTIC, PERIODIC) if x in labels), UNKNOWN)

    def _scores(self, repetition: float, label: int) -> dict[str, float]:
        """Score of each cause of a warning, 0 to 1."""
        scores = {
            "surprise": surprise_score(self._excess),
            "loop": repetition_score(repetition),
        }
        if label in (CHAOTIC, DIVERGENT):
            threshold = self.config.lyapunov_threshold
            scores["growth"] = growth_score(self._largest_exponent(), threshold)
        return scores

    def _largest_exponent(self) -> float:
        """The larger of the defined exponents, and at least the threshold."""
        defined = (x for x in (self._entropy_exponent, self._hidden.lyapunov) if not math.isnan(x))
        return max([self.config.lyapunov_threshold, *defined])

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
        """1 - warning, from 0 to 1; NaN before the first token."""
        return 1 - self._reading.warning

    @property
    def stability_class(self) -> str:
        """Class of the text so far; "unknown" does not mean stable."""
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

        Give the temperature that the user chose: the last suggestion would compound. Nothing
        changes at temperature 0, on a text without a cause, and where auto_temperature_adjust is
        off. Raises ValueError for a temperature below 0 or not finite.
        """
        adjust = self.config.auto_temperature_adjust
        return steered_temperature(current_temp, self._steering().exponent if adjust else 0.0)

    @property
    def steering_cause(self) -> str:
        """Why `suggested_temperature` moves: a class, "surprise" or "loop"; "" where it does not.

        The cause is named where auto_temperature_adjust is off, too.
        """
        return self._steering().cause

    def _steering(self) -> Steering:
        return steering(
            self.stability_class,
            self._alarms.active,
            self._largest_exponent(),
            self._reading.repetition,
        )


def readings(
    config: StabilityConfig,
    entropy_nats: Sequence[float],
    ids: Sequence[int],
    *,
    surprise_nats: Sequence[float] | None = None,
    coherence: Sequence[float] | None = None,
    hidden: np.ndarray | None = None,
) -> list[StabilityReading]:
    """The T readings of a finished text: those of a new monitor that observes each token.

    entropy_nats, ids, surprise_nats and coherence have T values, hidden is (T, D). Raises
    ValueError as `observe` does, and where lengths differ.
    """
    monitor, T = StabilityMonitor(config), len(ids)
    optional = {"surprise_nats": surprise_nats, "coherence": coherence, "hidden": hidden}
    given = {name: values for name, values in optional.items() if values is not None}
    for name, values in {"entropy_nats": entropy_nats, **given}.items():
        if len(values) != T:
            raise ValueError(f"{name} has {len(values)} values, expected {T}, one for each id")
    return [
        monitor.observe(entropy_nats[t], ids[t], **{name: v[t] for name, v in given.items()})
        for t in range(T)
    ]
