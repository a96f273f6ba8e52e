"""The published control: one phase and one mean entropy rule the whole batch.

    φ <- φ + 0.1 K sin(H* - H),   z <- z (1 + 0.3 sin φ),   then noise (escape) or z / c (brake)

Source: the Coherent Entropy Reactor's README and published trajectories, followed number for
number. The update is a positive feedback: H > H* gives φ < 0, z shrinks, H rises. The control
passes no gradient.

Shapes: logits z (B,S,D), phase (). Entropies in nats, phases in radians.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cer.trajectory import StateReading, StepOutcome, read_state
from entropy_core.information import semantic_mass
from entropy_core.policies import CERAction, CEROptions, cer_control

PHASE_RATE = 0.1  # radians per step and unit of coupling
PHASE_GAIN = 0.3  # largest relative change of z by the phase


def published_entropy_nats(z: Tensor) -> Tensor:
    """Mean entropy over batch and positions with the published ln(p + 1e-10): (B,S,D) -> ()."""
    p = z.softmax(-1)
    return -(p * (p + 1e-10).log()).sum(-1).mean()


@torch.no_grad()
def published_step(
    z: Tensor,
    phase: Tensor,
    options: CEROptions,
    kuramoto_k: float,
    generator: torch.Generator | None,
) -> StepOutcome:
    """Phase modulation and drift of the published reactor: (B,S,D), () -> the same.

    drift_strength 0 switches the drift off (no action), kuramoto_k 0 the modulation.
    """
    error = options.target_nats - published_entropy_nats(z)
    phase = phase + PHASE_RATE * kuramoto_k * error.sin()
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


@dataclass
class PublishedControl:
    """The mode `published` of the reactor; `cer.corrected.CorrectedControl` is the other."""

    options: CEROptions
    kuramoto_k: float

    default_dropout = 0.1
    phases_go_on = True  # from one call of `react` to the next

    def make_oscillators(self, num_oscillators: int) -> tuple[None, None]:
        """No learned oscillators: the one phase is a number of the state."""
        return None, None

    def init_phases(self, learned: None, batch_size: int, like: Tensor) -> Tensor:
        """Phase 0: ()."""
        return like.new_zeros(())

    def step(
        self, z: Tensor, phases: Tensor, omega: None, generator: torch.Generator | None
    ) -> StepOutcome:
        """`published_step` with this control's options."""
        return published_step(z, phases, self.options, self.kuramoto_k, generator)

    def mass(self, z: Tensor) -> Tensor:
        """Semantic mass, the mean over batch and positions: (B,S,D) -> ()."""
        return semantic_mass(z).mean()

    def record(self, outcome: StepOutcome) -> dict[str, Any]:
        """The numbers of a TrajectoryStep as floats, means over batch and positions."""
        numbers = torch.stack(read_state(outcome.z.detach())).mean((1, 2)).tolist()
        action = CERAction(outcome.action.item())
        return dict(
            zip(StateReading._fields, numbers, strict=True),
            phase=outcome.phases.item(),
            drift_applied=action != CERAction.NONE,
            deficit=outcome.deficit.item(),
            control=action,
        )
