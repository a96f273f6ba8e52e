"""Decoding and reactor policies as pure functions of signals.

    SRB:   stop when E <= θ_H, |ΔE| <= θ_Δ and C+ >= θ_C held for τ steps   (SRB notes, section 4)
    slip:  H > θ, or nothing for long, or a loop; never twice within the cooldown  (Phase-Slip)
    T:     T' = clamp(T exp(-g λ)), and T with H(softmax(z / T)) = H*
    CER:   d = min(H* - H, d_max) below target (escape), e = H - H* above the margin (brake)

Shapes: signals are (B,), logits (B, V); every row decides alone and owns its state. Entropies are
in nats, λ in nats per step. Undefined signals are NaN (`entropy_core.signals`): a condition must
be a comparison that holds, so an undefined signal never fires, and its streak starts again.
"""

import math
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_core.information import entropy_nats, varentropy_nats2


def _check(options: object, **ranges: tuple[float, float]) -> None:
    """Raise ValueError naming the first field outside its closed range (NaN is outside)."""
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise ValueError(f"{name} must be in [{low}, {high}], got {value}")


# --- SRB: stop, continue or deepen ----------------------------------------------------------


class SRBAction(IntEnum):
    """What to do after this token. Both STOP values end the row; the name is the stop reason."""

    CONTINUE = 0
    DEEPEN = 1
    STOP_SETTLED = 2
    STOP_BUDGET = 3


@dataclass(frozen=True, kw_only=True)
class SRBOptions:
    """Thresholds of `srb_step`. Raises ValueError naming a field out of range."""

    settled_nats: float = 1.0  # θ_H
    settled_delta_nats: float = 0.05  # θ_Δ
    settled_coherence: float = 0.9  # θ_C
    patience: int = 8  # τ, steps
    deepen_nats: float = 3.5
    deepen_coherence_rise: float = 0.02
    max_tokens: int = 512

    def __post_init__(self) -> None:
        _check(
            self,
            settled_nats=(0, math.inf),
            settled_delta_nats=(0, math.inf),
            settled_coherence=(-1, 1),
            patience=(1, math.inf),
            deepen_nats=(0, math.inf),
            deepen_coherence_rise=(0, 2),
            max_tokens=(1, math.inf),
        )


class SRBState(NamedTuple):
    """Per-row memory of `srb_step`."""

    num_settled: Tensor  # (B,) int64, consecutive settled steps
    num_tokens: Tensor  # (B,) int64
    coherence: Tensor  # (B,) previous C+


def srb_init(batch_size: int, device: torch.device | str | None = None) -> SRBState:
    """State before the first generated token."""
    zeros = torch.zeros(batch_size, dtype=torch.int64, device=device)
    return SRBState(zeros, zeros, torch.full((batch_size,), math.nan, device=device))


def srb_step(
    state: SRBState,
    ema_nats: Tensor,
    delta_ema_nats: Tensor,
    coherence: Tensor,
    options: SRBOptions,
) -> tuple[Tensor, SRBState]:
    """Decide after one generated token: signals (B,) -> SRBAction (B,) int64, new state.

    Settled text stops, also when it stops exactly at the budget. Deepen asks for more computation
    on this token: the averaged entropy is high but coherence has risen since the last token.
    """
    settled = (
        (ema_nats <= options.settled_nats)
        & (delta_ema_nats.abs() <= options.settled_delta_nats)
        & (coherence >= options.settled_coherence)
    )
    num_settled = torch.where(settled, state.num_settled + 1, 0)
    num_tokens = state.num_tokens + 1
    rising = coherence - state.coherence >= options.deepen_coherence_rise
    deepen = (ema_nats >= options.deepen_nats) & rising
    action = torch.where(deepen, int(SRBAction.DEEPEN), int(SRBAction.CONTINUE))
    action = action.masked_fill(num_tokens >= options.max_tokens, int(SRBAction.STOP_BUDGET))
    action = action.masked_fill(num_settled >= options.patience, int(SRBAction.STOP_SETTLED))
    return action, SRBState(num_settled, num_tokens, coherence)


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
    stale_steps: int = 10
    cooldown_steps: int = 4
    loop_patience: int | None = None  # steps of looping before a slip; None switches it off
    loop_nats: float = 0.5
    loop_score: float = 0.9

    def __post_init__(self) -> None:
        _check(
            self,
            spike_nats=(0, math.inf),
            confident_nats=(0, math.inf),
            stale_steps=(0, math.inf),
            cooldown_steps=(0, math.inf),
            loop_nats=(0, math.inf),
            loop_score=(0, 1),
        )
        if self.loop_patience is not None:
            _check(self, loop_patience=(1, math.inf))


class PhaseSlipState(NamedTuple):
    """Per-row memory of `phase_slip_step`."""

    steps_since_slip: Tensor  # (B,) int64, its value at the coming step
    num_looping: Tensor  # (B,) int64, consecutive looping steps


def phase_slip_init(
    batch_size: int, options: PhaseSlipOptions, device: torch.device | str | None = None
) -> PhaseSlipState:
    """State before the first token: as if the last slip were exactly `stale_steps` ago."""
    since = torch.full((batch_size,), options.stale_steps, dtype=torch.int64, device=device)
    return PhaseSlipState(since, torch.zeros_like(since))


def phase_slip_step(
    state: PhaseSlipState,
    entropy_nats: Tensor,
    options: PhaseSlipOptions,
    loop_score: Tensor | None = None,
) -> tuple[Tensor, PhaseSlipState]:
    """Decide before sampling one token: entropy (B,) -> SlipCause (B,) int64, new state.

    Published rule: H >= confident_nats, and H > spike_nats or more than stale_steps since the last
    slip, and more than cooldown_steps since the last slip. Loops have low entropy, often below
    confident_nats, so the loop trigger ignores that floor: it fires, outside the cooldown, after
    loop_patience consecutive steps with H <= loop_nats and `signals.loop_score` >= loop_score.

    Raises ValueError when the loop trigger is on and loop_score is missing.
    """
    since = state.steps_since_slip
    unsure = entropy_nats >= options.confident_nats
    spike = unsure & (entropy_nats > options.spike_nats)
    stale = unsure & (since > options.stale_steps)
    cause = torch.where(stale, int(SlipCause.STALE), int(SlipCause.NONE))
    cause = cause.masked_fill(spike, int(SlipCause.SPIKE))
    num_looping = state.num_looping
    if options.loop_patience is not None:
        if loop_score is None:
            raise ValueError("loop_patience is set, so loop_score is needed")
        looping = (entropy_nats <= options.loop_nats) & (loop_score >= options.loop_score)
        num_looping = torch.where(looping, num_looping + 1, 0)
        cause = cause.masked_fill(num_looping >= options.loop_patience, int(SlipCause.LOOP))
    cause = cause.masked_fill(since <= options.cooldown_steps, int(SlipCause.NONE))
    slipped = cause > 0
    return cause, PhaseSlipState(
        torch.where(slipped, 1, since + 1), torch.where(slipped, 0, num_looping)
    )


# --- temperature ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TemperatureOptions:
    """Gain and bounds of `stability_temperature`. Raises ValueError naming a field out of range."""

    gain: float = 1.0  # per nat per step
    min_temperature: float = 0.3
    max_temperature: float = 1.5

    def __post_init__(self) -> None:
        _check(self, gain=(0, math.inf), min_temperature=(1e-6, math.inf))
        _check(self, max_temperature=(self.min_temperature, math.inf))


def stability_temperature(
    temperature: Tensor, exponent_per_step: Tensor, options: TemperatureOptions
) -> Tensor:
    """Cool a diverging run, warm a collapsing one: (B,), (B,) -> (B,) within the bounds.

    T' = clamp(T exp(-gain λ)). An undefined exponent (NaN) changes nothing, not even an
    out-of-bounds T.
    """
    moved = temperature * (-options.gain * exponent_per_step).exp()
    bounded = moved.clamp(options.min_temperature, options.max_temperature)
    return torch.where(exponent_per_step.isnan(), temperature, bounded)


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
        _check(self, **{field.name: (0, math.inf) for field in fields(self)})
        _check(self, min_divisor=(1e-6, 1))


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
