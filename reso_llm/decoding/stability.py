"""Stability monitor: reads a generation token by token, classifies it, and warns of damage ahead.

    class      by surprise - entropy and repetition          `text_class.py`
    warning    sigmoid(log odds of damage - alarm) (`onset.py`); without the alarm, and no less than
               its score, where a cause warns (`alarms.py`)  stability = 1 - warning
    exponent   λ, how fast a nudged copy of the model's state leaves it, in nats per token

Where the model's states are not ours, λ is that of the entropies: the exponent that
`entropy_core.lyapunov.classify` finds, and 0 where it finds no deterministic growth. The class does
not read λ: `evaluate.py stability` measures what it would add. All state lives in
`StabilityMonitor`, one for each generation, as plain floats and short windows.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch

from entropy_core.checks import require
from entropy_core.lyapunov import classify
from entropy_core.signals import LoopTracker
from reso_llm.config import StabilityConfig
from reso_llm.decoding.alarms import ALARM, Alarms, share_of_alarm, sigmoid
from reso_llm.decoding.onset import Evidence, Onset
from reso_llm.decoding.steering import Steering, steered_temperature, steering
from reso_llm.decoding.text_class import (
    DEFAULT,
    LOOP_WINDOW,
    MAX_PERIOD,
    StabilityCalibration,
    TextClass,
    repetitions,
)

SERIES_WINDOW, SERIES_EVERY = 192, 64  # entropies that give an exponent; tokens between two


class StabilityReading(NamedTuple):
    """Reading of the monitor after one token."""

    entropy_nats: float
    lyapunov_per_token: float  # nats per token; 0 before the first measurement
    order_parameter: float  # the model's coherence, NaN where not given
    repetition: float  # 0 to 1, loop score of the last tokens
    warning: float  # 0 to 1; above ALARM the next tokens are expected to be damaged
    stability_class: str  # one of text_class.CLASSES


class StabilityMonitor:
    """Stability of one generation. Call `observe` on every token; properties describe the last one.

    `read_prompt` gives the class of the text before the first token. A warning has three causes:
    tokens that are too surprising, repetition, and an exponent of the states above the threshold.
    Entropy alone is not a cause, because it hardly separates damaged from clean text, and neither
    is the order parameter, which sees loops later than repetition does (`evaluate.py stability`).
    """

    def __init__(
        self, config: StabilityConfig, calibration: StabilityCalibration = DEFAULT
    ) -> None:
        self.config, self.calibration = config, calibration
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next token is the first of a generation."""
        self.num_tokens = 0
        self._loops = LoopTracker(LOOP_WINDOW, MAX_PERIOD)
        self._text = TextClass(self.calibration)
        self._entropies: deque[float] = deque(maxlen=SERIES_WINDOW)
        self._surprise = self.calibration.surprise_nats
        self._exponents: list[float] = []  # of the model's states
        self._series_exponent = 0.0
        self._onset = Onset(Evidence(*self.calibration.evidence), self.config.predictive_horizon)
        self._scores: dict[str, float] = {}
        self._warning = math.nan
        self._repetition = 0.0
        self._class = self._text.name
        self._alarms = Alarms()
        self._warnings: list[str] = []

    def read_prompt(
        self, ids: Sequence[int], surprises: Sequence[float], entropies: Sequence[float]
    ) -> None:
        """Read the text before the first token: id, surprise and entropy (nats) of each token.

        It counts for the class, not for a warning.
        """
        for s, h, repetition in zip(surprises, entropies, repetitions(ids), strict=True):
            self._text.add(s - h, repetition)
        self._entropies.extend(entropies)
        self._class = self._text.name

    def take_exponent(self, exponent: float) -> None:
        """Take an exponent of the model's states, in nats per token. ValueError unless finite."""
        require(math.isfinite(exponent), "exponent", exponent, "a finite number")
        self._exponents.append(exponent)

    def observe(
        self,
        entropy_nats: float,
        token_id: int,
        *,
        surprise_nats: float | None = None,
        coherence: float | None = None,
    ) -> StabilityReading:
        """Read one token: the entropy of its distribution, its id, and the optional measures.

        surprise_nats is -ln of the probability that this distribution gave the token, and as much
        as expected where it is not given; coherence is the model's order parameter. Raises
        ValueError for an entropy or surprise that is not finite, and for a negative id.
        """
        require(math.isfinite(entropy_nats), "entropy_nats", entropy_nats, "a finite number")
        require(token_id >= 0, "token_id", token_id, "at least 0")
        if surprise_nats is None:
            surprise_nats = entropy_nats
        require(math.isfinite(surprise_nats), "surprise_nats", surprise_nats, "finite")
        self.num_tokens += 1
        self._repetition = self._loops.add(token_id)
        self._text.add(surprise_nats - entropy_nats, self._repetition)
        self._class = self._text.name
        weight = 2 / (self.config.predictive_horizon + 1)
        self._surprise += weight * (surprise_nats - self._surprise)
        self._entropies.append(entropy_nats)
        if not self._exponents and self.num_tokens % SERIES_EVERY == 0:
            self._series_exponent = _series_exponent(self._entropies)
        self._onset.add(surprise_nats, self._repetition)
        self._scores = self._scored()
        expected = sigmoid(self._onset.damaged_nats - self.calibration.damage_alarm)
        passed = [x for x in self._scores.values() if x > ALARM]
        if passed:
            passed.append(sigmoid(self._onset.damaged_nats))
        self._warning = max(expected, *passed, 0.0)
        self._warnings += [self._sentence(cause) for cause in self._alarms.update(self._scores)]
        return StabilityReading(
            entropy_nats,
            self.lyapunov,
            math.nan if coherence is None else coherence,
            self._repetition,
            self._warning,
            self._class,
        )

    def _scored(self) -> dict[str, float]:
        """Score of each cause of a warning, 0 to 1."""
        c, threshold = self.calibration, self.config.lyapunov_threshold
        scores = {
            "surprise": sigmoid(self._onset.replaced_nats - c.surprise_alarm),
            "loop": share_of_alarm(self._repetition, c.loop_alarm),
        }
        if self.measured and self.lyapunov > threshold:
            scores["growth"] = share_of_alarm(self.lyapunov, threshold)
        return scores

    def _sentence(self, cause: str) -> str:
        horizon = self.config.predictive_horizon
        reason = {
            "surprise": f"the last tokens surprise the model by {self._surprise:.1f} nats each",
            "loop": f"{self._repetition:.0%} of the last {LOOP_WINDOW} tokens are repeated",
            "growth": f"nearby states separate by {self.lyapunov:.2f} nats a token",
        }[cause]
        return f"token {self.num_tokens}: {reason}; expect damage in the next {horizon} tokens"

    @property
    def stability(self) -> float:
        """1 - warning, from 0 to 1; NaN before the first token."""
        return 1 - self._warning

    @property
    def stability_class(self) -> str:
        """Class of the text so far: stable, periodic, chaotic or divergent."""
        return self._class

    @property
    def lyapunov(self) -> float:
        """Nats per token: the mean of those of the states, else that of the entropies."""
        if self._exponents:
            return sum(self._exponents) / len(self._exponents)
        return self._series_exponent

    @property
    def measured(self) -> bool:
        """Whether an exponent of the model's states has been taken."""
        return bool(self._exponents)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences, one each time a cause begins to warn, with the position counted from 1."""
        return tuple(self._warnings)

    def suggested_temperature(self, current_temp: float) -> float:
        """T' = T exp(-λ): cooler where the text is too surprising, warmer where it loops.

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
        surprise = self._scores.get("surprise", 0.0)
        return steering(self._class, self._alarms.active, surprise, self._repetition)


def _series_exponent(entropies: Sequence[float]) -> float:
    """The exponent of a series of entropies, nats per token; 0 where none is found."""
    series = torch.tensor([list(entropies)], dtype=torch.float64)
    exponent = classify(series).exponent_per_step.item()
    return exponent if math.isfinite(exponent) else 0.0


def readings(
    config: StabilityConfig,
    entropy_nats: Sequence[float],
    ids: Sequence[int],
    *,
    calibration: StabilityCalibration = DEFAULT,
    surprise_nats: Sequence[float] | None = None,
    coherence: Sequence[float] | None = None,
) -> list[StabilityReading]:
    """The T readings of a finished text: those of a new monitor that observes each token.

    entropy_nats, ids, surprise_nats and coherence have T values. Raises ValueError as `observe`
    does, and where lengths differ.
    """
    monitor, T = StabilityMonitor(config, calibration), len(ids)
    optional = {"surprise_nats": surprise_nats, "coherence": coherence}
    given = {name: values for name, values in optional.items() if values is not None}
    for name, values in {"entropy_nats": entropy_nats, **given}.items():
        if len(values) != T:
            raise ValueError(f"{name} has {len(values)} values, expected {T}, one for each id")
    return [
        monitor.observe(entropy_nats[t], ids[t], **{name: v[t] for name, v in given.items()})
        for t in range(T)
    ]
