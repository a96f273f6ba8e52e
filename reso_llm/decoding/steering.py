"""Temperature rule of the stability monitor: T' = T exp(-λ).

λ is positive, and the text is drawn cooler, where it is chaotic, divergent or too surprising; λ is
negative where it loops. The rule itself is `entropy_core.policies.stability_temperature`.
"""

import math
from collections.abc import Set
from typing import NamedTuple

from entropy_core.checks import require
from entropy_core.lyapunov import CHAOTIC, CLASSES, DIVERGENT, PERIODIC
from entropy_core.policies import TemperatureOptions, stability_temperature
from reso_llm.decoding.alarms import LOOP_MIDPOINT

LOOP_WARMING = 0.4  # nats: an exact loop is warmed by e^0.4 = 1.5


class Steering(NamedTuple):
    """Why the temperature moves ("" where it does not), and λ in nats per token."""

    cause: str = ""
    exponent: float = 0.0


def steering(
    stability_class: str, alarms: Set[str], exponent: float, repetition: float
) -> Steering:
    """The steering of a text, from its class, its active alarms, its exponent and its repetition.

    `exponent` counts where the text is chaotic, divergent or too surprising.
    """
    if stability_class in (CLASSES[CHAOTIC], CLASSES[DIVERGENT]):
        return Steering(stability_class, exponent)
    if "surprise" in alarms:
        return Steering("surprise", exponent)
    if stability_class == CLASSES[PERIODIC] or "loop" in alarms:
        cause = "loop" if "loop" in alarms else stability_class
        return Steering(cause, -LOOP_WARMING * max(LOOP_MIDPOINT, repetition))
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
