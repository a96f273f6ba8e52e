"""Decoding and reactor policies as pure functions of signals.

    slip:  H > θ, or nothing for long, or a loop; never twice within the cooldown  (Phase-Slip)
    T:     T' = clamp(T exp(-g λ)), and T with H(softmax(z / T)) = H*
    CER:   d = min(H* - H, d_max) below target (escape), e = H - H* above the margin (brake)

Every row of a batch decides alone and owns its state, so decisions about decoding are numbers in,
numbers out; what acts on tensors (the solved temperature, CER) takes logits (B, V). Entropies are
in nats, λ in nats per step. Undefined signals are NaN (`entropy_core.signals`): a condition must
be a comparison that holds, so an undefined signal never fires, and its streak starts again.
"""

import math
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_core.checks import require_within
from entropy_core.information import entropy_nats, varentropy_nats2

# --- Phase-Slip -------------------------------------------------------------------------------


class SlipCause(IntEnum):
    """Why a row slips; NONE is 0, so `cause > 0` is the trigger."""

    NONE = 0
    SPIKE = 1
    STALE = 2
    LOOP = 3


@dataclass(frozen=True, kw_only=True)
class PhaseSlipOptions:
    """Thresholds of `phase_slip_step`; the defaults are the published ones, without loop trigger.

    Raises ValueError naming a field out of range.
    """

    spike_nats: float = 3.5
    confident_nats: float = 0.05
    stale_steps: float = 10  # math.inf for never
    cooldown_steps: int = 4
    loop_patience: int | None = None  # steps of looping before a slip; None switches it off
    loop_nats: float = 3.5  # where the spike begins: loops of small models are not that sure
    loop_score: float = 0.9

    def __post_init__(self) -> None:
        require_within(
            self,
            spike_nats=(0, math.inf),
            confident_nats=(0, math.inf),
            stale_steps=(0, math.inf),
            cooldown_steps=(0, math.inf),
            loop_nats=(0, math.inf),
            loop_score=(0, 1),
        )
        if self.loop_patience is not None:
            require_within(self, loop_patience=(1, math.inf))


class PhaseSlipState(NamedTuple):
    """Memory of `phase_slip_step`."""

    steps_since_slip: float  # its value at the coming step
    num_looping: int  # consecutive looping steps


def phase_slip_init(options: PhaseSlipOptions) -> PhaseSlipState:
    """State before the first token: as if the last slip were exactly `stale_steps` ago."""
    return PhaseSlipState(options.stale_steps, 0)


def phase_slip_step(
    state: PhaseSlipState,
    entropy_nats: float,
    options: PhaseSlipOptions,
    loop_score: float = math.nan,
) -> tuple[SlipCause, PhaseSlipState]:
    """Decide before sampling one token: entropy of its distribution -> cause, new state.

    Published rule: H >= confident_nats, and H > spike_nats or more than stale_steps since the last
    slip, and more than cooldown_steps since the last slip. Loops have low entropy, often below
    confident_nats, so the loop trigger ignores that floor: it fires, outside the cooldown, after
    loop_patience consecutive steps with H <= loop_nats and `signals.loop_score` >= loop_score.
    """
    since = state.steps_since_slip
    looping = entropy_nats <= options.loop_nats and loop_score >= options.loop_score
    num_looping = state.num_looping + 1 if looping else 0
    cause = SlipCause.NONE
    if since > options.cooldown_steps:
        unsure = entropy_nats >= options.confident_nats
        if options.loop_patience is not None and num_looping >= options.loop_patience:
            cause = SlipCause.LOOP
        elif unsure and entropy_nats > options.spike_nats:
            cause = SlipCause.SPIKE
        elif unsure and since > options.stale_steps:
            cause = SlipCause.STALE
    slipped = cause is not SlipCause.NONE
    return cause, PhaseSlipState(1 if slipped else since + 1, 0 if slipped else num_looping)


# --- temperature ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TemperatureOptions:
    """Gain and bounds of `stability_temperature`. Raises ValueError naming a field out of range."""

    gain: float = 1.0  # per nat per step
    min_temperature: float = 0.3
    max_temperature: float = 1.5

    def __post_init__(self) -> None:
        require_within(self, gain=(0, math.inf), min_temperature=(1e-6, math.inf))
        require_within(self, max_temperature=(self.min_temperature, math.inf))


def stability_temperature(
    temperature: float, exponent_per_step: float, options: TemperatureOptions
) -> float:
    """Cool a diverging run, warm a collapsing one: T' = clamp(T exp(-gain λ)), within the bounds.

    An undefined exponent (NaN) changes nothing, not even an out-of-bounds T.
    """
    if math.isnan(exponent_per_step):
        return temperature
    # Far beyond any bound, and still a number that exp can take.
    power = min(max(-options.gain * exponent_per_step, -700.0), 700.0)
    moved = temperature * math.exp(power)
    return min(max(moved, options.min_temperature), options.max_temperature)


class TemperatureSolution(NamedTuple):
    """Result of `solve_temperature`, per row."""

    temperature: Tensor  # (...)
    attained: Tensor  # (...) bool: the entropy is within the tolerance of the target


def solve_temperature(
    logits: Tensor,
    target_nats: Tensor | float,
    *,
    tolerance_nats: float = 1e-4,
) -> TemperatureSolution:
    """T with H(softmax(logits / T)) = target: (..., V), (...) -> (...), (...).

    H grows with ln T at the rate varentropy(logits / T), so Newton on ln T converges when
    bisection keeps it inside a shrinking bracket of T in [1e-6, 1e6]. A target below ln(number of
    tied maxima) or above ln(support) cannot be attained: T goes to that end of the bracket. A row
    without a distribution keeps T = 1, not attained.

    Differentiable in logits and target by the implicit function theorem: one more Newton step,
    with gradient, from the root. Rows not attained have gradient 0.
    """
    target = torch.as_tensor(target_nats, dtype=logits.dtype, device=logits.device)
    target = target.expand(logits.shape[:-1])
    with torch.no_grad():
        log_t = _root_log_temperature(logits, target, tolerance_nats)
    error, slope = _entropy_error(logits, target, log_t)
    attained = error.detach().abs() <= tolerance_nats
    usable = attained & (slope.detach() > 0)
    step = torch.where(usable, error, 0.0) / torch.where(usable, slope.detach(), 1.0)
    return TemperatureSolution((log_t - step).exp(), attained)


def _root_log_temperature(logits: Tensor, target: Tensor, tolerance_nats: float) -> Tensor:
    log_t = torch.zeros_like(target)
    low, high = log_t - math.log(1e6), log_t + math.log(1e6)
    for _ in range(100):
        error, slope = _entropy_error(logits, target, log_t)
        if not ((error.abs() > tolerance_nats) & (high - low > 1e-6)).any():
            break
        low, high = torch.where(error < 0, log_t, low), torch.where(error > 0, log_t, high)
        newton = log_t - error / slope
        inside = (newton > low) & (newton < high)
        settled = error.abs() <= tolerance_nats  # resolved rows must not be bisected away
        log_t = torch.where(settled, log_t, torch.where(inside, newton, (low + high) / 2))
    return log_t


def _entropy_error(logits: Tensor, target_nats: Tensor, log_t: Tensor) -> tuple[Tensor, Tensor]:
    scaled = logits / log_t.exp().unsqueeze(-1)
    return entropy_nats(scaled) - target_nats, varentropy_nats2(scaled)


# --- CER: escape and brake --------------------------------------------------------------------


class CERAction(IntEnum):
    """Direction of the reactor's drift control."""

    NONE = 0
    ESCAPE = 1
    BRAKE = 2


@dataclass(frozen=True, kw_only=True)
class CEROptions:
    """Set point of `cer_control`; the defaults are the published ones.

    Raises ValueError naming a field out of range.
    """

    target_nats: float = 3.0
    margin_nats: float = 0.5
    drift_strength: float = 0.1
    max_deficit_nats: float = 2.0
    min_divisor: float = 0.5

    def __post_init__(self) -> None:
        require_within(self, **{field.name: (0, math.inf) for field in fields(self)})
        require_within(self, min_divisor=(1e-6, 1))


class CERControl(NamedTuple):
    """One control decision, each (...)."""

    action: Tensor  # CERAction, int64
    drift_nats: Tensor  # +deficit (escape), -excess (brake) or 0
    noise_scale: Tensor  # z += noise_scale · randn
    divisor: Tensor  # z /= divisor, below 1 sharpens


def cer_control(entropy_nats: Tensor, options: CEROptions) -> CERControl:
    """Published drift rule of the Coherent Entropy Reactor: entropy (...) -> decision, each (...).

    Below the target: escape with deficit d = min(target - H, max) and noise of scale strength · d.
    Above target + margin: brake with excess e = H - target, divisor max(min, 1 - strength · e).
    Undefined entropy does nothing. The noise hardly raises entropy (measured in the
    tests); `solve_temperature` reaches a set point.
    """
    escape = entropy_nats < options.target_nats
    brake = entropy_nats > options.target_nats + options.margin_nats
    deficit = (options.target_nats - entropy_nats).clamp(max=options.max_deficit_nats)
    excess = entropy_nats - options.target_nats
    braked = (1 - options.drift_strength * excess).clamp(min=options.min_divisor)
    action = torch.where(escape, int(CERAction.ESCAPE), int(CERAction.NONE))
    return CERControl(
        action=action.masked_fill(brake, int(CERAction.BRAKE)),
        drift_nats=torch.where(escape, deficit, torch.where(brake, -excess, 0.0)),
        noise_scale=torch.where(escape, options.drift_strength * deficit, 0.0),
        divisor=torch.where(brake, braked, 1.0),
    )
