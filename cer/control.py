"""One step of entropy control, as published and as corrected.

published (one number for the whole batch):
    φ <- φ + 0.1 K sin(H* - H),   z <- z (1 + 0.3 sin φ),   then noise (escape) or z / c (brake)
corrected (every sample b and position s):
    θ_b <- Kuramoto step with frequencies ω_i e_b,  e_b = H_b - H*  (nats)
    z_i <- z_i exp(a e_b r_b cos(θ_bi - ψ_b))  for the features of oscillator i
    z_bs <- z_bs / T_bs  with H(z_bs / T_bs) = H* (at most d_max nats away in one step)

CER README and its published trajectories; Kuramoto 1975. The published update is a positive
feedback: H > H* gives φ < 0, z shrinks, H rises. In the corrected one the sign is the other way
round, the drift reaches the set point and everything is differentiable. Frequencies grow with the
error: far from the set point the oscillators drift apart, at it they lock and the gain is uniform.
The mean of r cos(θ_i - ψ) over i is r², the square of the order parameter.

Shapes: logits z are (B,S,D), phases () or (B,N); N divides D. Entropies in nats.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_core.control import CERAction, CEROptions, cer_control, solve_temperature
from entropy_core.information import entropy_nats
from entropy_core.kuramoto import rk4_step

PHASE_RATE = 0.1  # published: radians per step and unit of coupling
PHASE_GAIN = 0.3  # published: largest relative change of z by the phase
TIME_STEP = 0.5  # corrected: time of the oscillators in one refinement step
TOLERANCE_NATS = 1e-3  # corrected: closer than this is on the set point


class StepOutcome(NamedTuple):
    """State after a control step and the decision taken in it."""

    z: Tensor  # (B,S,D)
    phases: Tensor
    action: Tensor  # () or (B,), CERAction
    deficit: Tensor  # () or (B,), nats


def published_entropy_nats(z: Tensor) -> Tensor:
    """Mean entropy over batch and positions with the published ln(p + 1e-10): (B,S,D) -> ()."""
    p = z.softmax(-1)
    return -(p * (p + 1e-10).log()).sum(-1).mean()


@torch.no_grad()
def published_step(
    z: Tensor,
    phase: Tensor,
    options: CEROptions,
    coupling: float,
    generator: torch.Generator | None,
) -> StepOutcome:
    """Phase modulation and drift of the published reactor: (B,S,D), () -> the same.

    drift_strength 0 switches the drift off (no action), coupling 0 the modulation.
    """
    error = options.target_nats - published_entropy_nats(z)
    phase = phase + PHASE_RATE * coupling * error.sin()
    z = z * (1 + PHASE_GAIN * phase.sin())
    decision = cer_control(published_entropy_nats(z), options)
    if options.drift_strength == 0:
        return StepOutcome(z, phase, decision.action.new_zeros(()), phase.new_zeros(()))
    action = int(decision.action)
    if action == CERAction.ESCAPE:
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        z = z + noise * decision.noise_scale
    elif action == CERAction.BRAKE:
        z = z / decision.divisor
    return StepOutcome(z, phase, decision.action, decision.drift_nats)


def modulate(z: Tensor, phases: Tensor, error_nats: Tensor, strength: float) -> Tensor:
    """Scale each oscillator's features by exp(a e r cos(θ_i - ψ)): (B,S,D), (B,N), (B,) -> (B,S,D).

    Above the set point (e > 0) oscillators in phase with the mean sharpen. Without an angle: r
    cos(θ_i - ψ) = X cos θ_i + Y sin θ_i with X + iY the mean of e^{iθ}, smooth where r = 0.
    """
    cos, sin = phases.cos(), phases.sin()
    in_phase = cos * cos.mean(-1, keepdim=True) + sin * sin.mean(-1, keepdim=True)  # (B,N)
    gains = (strength * error_nats.unsqueeze(-1) * in_phase).exp()
    grouped = z.unflatten(-1, (phases.shape[-1], -1))  # (B,S,N,D/N)
    return (grouped * gains[:, None, :, None]).flatten(-2)


def drift_to_target(z: Tensor, options: CEROptions) -> tuple[Tensor, Tensor]:
    """z / T with T solved for the set point: (B,S,D) -> (B,S,D), wanted change of H (B,S) in nats.

    No position moves by more than max_deficit_nats. One whose goal no temperature attains (all
    logits equal, say) keeps its z; its deficit is still told.
    """
    entropy = entropy_nats(z)
    limit = options.max_deficit_nats
    deficit = (options.target_nats - entropy).clamp(-limit, limit)
    solution = solve_temperature(z, entropy + deficit)
    temperature = torch.where(solution.attained, solution.temperature, 1.0)
    return z / temperature.unsqueeze(-1), deficit


def corrected_step(
    z: Tensor, phases: Tensor, omega: Tensor, options: CEROptions, coupling: float
) -> StepOutcome:
    """Oscillators, modulation and drift of each sample: (B,S,D), (B,N), omega (N,) -> the same.

    The deficit of a sample is the mean over its positions; its sign is the action.
    """
    limit = options.max_deficit_nats
    error = (entropy_nats(z).mean(-1) - options.target_nats).clamp(-limit, limit)  # (B,)
    phases = rk4_step(phases, omega * error.unsqueeze(-1), coupling, TIME_STEP)
    z, wanted = drift_to_target(modulate(z, phases, error, options.drift_strength), options)
    deficit = wanted.mean(-1)
    action = torch.where(deficit > TOLERANCE_NATS, int(CERAction.ESCAPE), int(CERAction.NONE))
    action = action.masked_fill(deficit < -TOLERANCE_NATS, int(CERAction.BRAKE))
    return StepOutcome(z, phases, action, deficit)
