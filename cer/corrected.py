"""The corrected control: every sample b is held to the set point at every position s.

    θ_b <- Kuramoto step with frequencies ω_i e_b,  e_b = H_b - H*  (nats)
    z_i <- z_i exp(a e_b r_b cos(θ_bi - ψ_b))  for the features of oscillator i
    z_bs <- z_bs / T_bs  with H(z_bs / T_bs) = H* (at most d_max nats away in one step)

Kuramoto 1975; the published rule is in `cer.published`. Here the feedback has the other sign, the
drift reaches the set point and everything is differentiable. Frequencies grow with the error: far
from the set point the oscillators drift apart, at it they lock and the gain is uniform. The mean of
r cos(θ_i - ψ) over i is r², the square of the order parameter.

Shapes: logits z (B,S,D), phases θ (B,N), frequencies ω (N,); N divides D. Entropies in nats.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from cer.trajectory import TOLERANCE_NATS, StateReading, StepOutcome, read_state
from entropy_core.information import entropy_nats, semantic_mass
from entropy_core.kuramoto import order_parameter, rk4_step
from entropy_core.policies import CERAction, CEROptions, solve_temperature

TIME_STEP = 0.5  # time of the oscillators in one refinement step


def modulate(z: Tensor, phases: Tensor, error_nats: Tensor, strength: float) -> Tensor:
    """Scale each oscillator's features by exp(a e r cos(θ_i - ψ)): (B,S,D), (B,N), (B,) -> (B,S,D).

    Above the set point (e > 0) oscillators in phase with the mean sharpen. The angle ψ is not
    needed: r cos(θ_i - ψ) = X cos θ_i + Y sin θ_i with X + iY the mean of e^{iθ}, smooth where
    r = 0.
    """
    cos, sin = phases.cos(), phases.sin()
    in_phase = cos * cos.mean(-1, keepdim=True) + sin * sin.mean(-1, keepdim=True)  # (B,N)
    gains = (strength * error_nats.unsqueeze(-1) * in_phase).exp()
    grouped = rearrange(z, "b s (n k) -> b s n k", n=phases.shape[-1])
    return rearrange(grouped * rearrange(gains, "b n -> b 1 n 1"), "b s n k -> b s (n k)")


def drift_to_target(z: Tensor, options: CEROptions) -> tuple[Tensor, Tensor]:
    """z / T with T solved for the set point: (B,S,D) -> (B,S,D), wanted change of H (B,S) in nats.

    No position moves by more than max_deficit_nats. A position whose goal no temperature attains
    (all logits equal, say) keeps its z; the change it wanted is still returned.
    """
    entropy = entropy_nats(z)
    limit = options.max_deficit_nats
    deficit = (options.target_nats - entropy).clamp(-limit, limit)
    solution = solve_temperature(z, entropy + deficit)
    temperature = torch.where(solution.attained, solution.temperature, 1.0)
    return z / temperature.unsqueeze(-1), deficit


def corrected_step(
    z: Tensor, phases: Tensor, omega: Tensor, options: CEROptions, kuramoto_k: float
) -> StepOutcome:
    """Oscillators, modulation and drift of each sample: (B,S,D), (B,N), omega (N,) -> the same.

    The deficit of a sample is the mean over its positions; its sign is the action.
    """
    limit = options.max_deficit_nats
    error = (entropy_nats(z).mean(-1) - options.target_nats).clamp(-limit, limit)  # (B,)
    phases = rk4_step(phases, omega * error.unsqueeze(-1), kuramoto_k, TIME_STEP)
    z, wanted = drift_to_target(modulate(z, phases, error, options.drift_strength), options)
    deficit = wanted.mean(-1)
    action = torch.where(deficit > TOLERANCE_NATS, int(CERAction.ESCAPE), int(CERAction.NONE))
    action = action.masked_fill(deficit < -TOLERANCE_NATS, int(CERAction.BRAKE))
    return StepOutcome(z, phases, action, deficit)


@dataclass
class CorrectedControl:
    """The mode `corrected` of the reactor; `cer.published.PublishedControl` is the other."""

    options: CEROptions
    kuramoto_k: float

    default_dropout = 0.0
    phases_go_on = False  # each call of `react` starts from the learned phases

    def make_oscillators(self, num_oscillators: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Frequencies ω (rad per unit time and nat) and first phases, each (N,), both learned.

        Frequencies are the standard normal quantiles, phases are spread over half a circle. A
        golden-ratio shuffle pairs them: sorted both, they would be the same axis.
        """
        levels = (torch.arange(num_oscillators, dtype=torch.float64) + 0.5) / num_oscillators
        shuffled = torch.argsort(torch.arange(num_oscillators) * (math.sqrt(5) - 1) / 2 % 1)
        dtype = torch.get_default_dtype()
        omega = math.sqrt(2) * torch.erfinv(2 * levels - 1)
        phases = math.pi * (levels[shuffled] - 0.5)
        return nn.Parameter(omega.to(dtype)), nn.Parameter(phases.to(dtype))

    def init_phases(self, learned: Tensor, batch_size: int, like: Tensor) -> Tensor:
        """The learned first phases (N,), the same for each sample: (B,N)."""
        return learned.to(like.dtype).expand(batch_size, -1)

    def step(
        self, z: Tensor, phases: Tensor, omega: Tensor, generator: torch.Generator | None
    ) -> StepOutcome:
        """`corrected_step` with this control's options; it draws nothing."""
        return corrected_step(z, phases, omega.to(z.dtype), self.options, self.kuramoto_k)

    def mass(self, z: Tensor) -> Tensor:
        """Semantic mass of each sample, the mean over its positions: (B,S,D) -> (B,)."""
        return semantic_mass(z).mean(-1)

    def record(self, outcome: StepOutcome) -> dict[str, Any]:
        """The numbers of a TrajectoryStep as tensors (B,), means over positions, with gradients."""
        numbers = torch.stack(read_state(outcome.z)).mean(-1)  # (4,B)
        return dict(
            zip(StateReading._fields, numbers, strict=True),
            phase=order_parameter(outcome.phases)[1],
            drift_applied=outcome.action != CERAction.NONE,
            deficit=outcome.deficit,
            control=outcome.action,
        )
