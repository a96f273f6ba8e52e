"""Temperature rule of the stability monitor: T' = T exp(-λ).

λ is positive, and the text is drawn cooler, where it is too surprising, chaotic or divergent; λ is
negative, and it is drawn warmer, where it loops. The rule is
`entropy_core.policies.stability_temperature`.
"""

import math
from collections.abc import Set
from typing import NamedTuple

from entropy_core.checks import require
from entropy_core.policies import TemperatureOptions, stability_temperature

STRENGTH = 0.4  # nats: an exact loop is warmed by e^0.4 = 1.5, the worst surprise cooled by as much


class Steering(NamedTuple):
    """Why the temperature moves ("" where it does not), and λ in nats per token."""

    cause: str = ""
    exponent: float = 0.0


def steering(
    stability_class: str, alarms: Set[str], surprise: float, repetition: float
) -> Steering:
    """The steering of a text, from its class, its active alarms and the scores (0 to 1) of both."""
    if "loop" in alarms or stability_class == "periodic":
        return Steering("loop" if "loop" in alarms else stability_class, -STRENGTH * repetition)
    if "surprise" in alarms or stability_class in ("chaotic", "divergent"):
        cause = "surprise" if "surprise" in alarms else stability_class
        return Steering(cause, STRENGTH * max(0.5, surprise))
    return Steering()


def steered_temperature(temperature: float, exponent: float) -> float:
    """T exp(-λ), cooled at most to 0.3 and warmed at most to 1.5; λ = 0 and T = 0 change nothing.

    A temperature beyond a bound is not moved back to it. Raises ValueError for a temperature below
    0 or not finite.
    """
    valid = math.isfinite(temperature) and temperature >= 0
    require(valid, "current_temp", temperature, "a finite number of at least 0")
    if exponent == 0 or temperature == 0:
        return temperature
    bounds = TemperatureOptions()
    options = TemperatureOptions(
        min_temperature=max(1e-6, min(bounds.min_temperature, temperature)),
        max_temperature=max(bounds.max_temperature, temperature),
    )
    return stability_temperature(temperature, exponent, options)
