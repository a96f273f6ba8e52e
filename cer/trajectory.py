"""The output of the reactor: reactions, the log of its steps and its final state.

The mode of the reactor decides what the numbers of a step are. `published` logs floats, means over
batch and positions. `corrected` logs tensors (B,), means over the positions of each sample, which
carry gradients. `batch_mean` turns either into floats.

Shapes: B batch, S positions, O output width, N oscillators.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_core.policies import CERAction

TOLERANCE_NATS = 1e-3  # closer than this is on the set point, in mode `corrected`


class StepOutcome(NamedTuple):
    """State after a control step and the decision taken in it."""

    z: Tensor  # (B,S,D)
    phases: Tensor  # published (), corrected (B,N)
    action: Tensor  # () or (B,), CERAction
    deficit: Tensor  # () or (B,), nats


class TrajectoryStep(NamedTuple):
    """The state after one refinement step and what the control did in it."""

    layer_idx: int
    step_idx: int
    entropy: Tensor | float  # nats, of softmax(z), after the control
    mass: Tensor | float  # semantic mass 1 - sum p²
    phase: Tensor | float  # radians; corrected: mean phase of the oscillators
    sum_p: Tensor | float  # 1 up to rounding
    max_prob: Tensor | float
    max_entropy: float  # nats, ln D
    drift_applied: Tensor | bool
    deficit: Tensor | float  # nats; escape > 0, brake < 0, before the control
    control: Tensor | CERAction  # corrected: (B,) int64 of CERAction values


def batch_mean(step: TrajectoryStep) -> TrajectoryStep:
    """A step in plain numbers: means over the batch, and the control that the mean deficit names.

    A step of `published` has plain numbers already and is returned as it is.
    """
    if not isinstance(step.control, Tensor):
        return step
    values = {
        name: value.detach().mean().item()
        for name, value in step._asdict().items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    action = CERAction.ESCAPE if values["deficit"] > 0 else CERAction.BRAKE
    if abs(values["deficit"]) <= TOLERANCE_NATS:
        action = CERAction.NONE
    return step._replace(**values, control=action, drift_applied=action != CERAction.NONE)


class ReactorState(NamedTuple):
    """Phases in radians: () in `published`, (B,N) in `corrected`."""

    phases: Tensor


class ReactorOutput(NamedTuple):
    """Result of `CoherentEntropyReactor.forward`."""

    reactions: Tensor  # (B,S,O) logits
    mass: Tensor  # of the final state: () in `published`, (B,) in `corrected`
    trajectory: tuple[TrajectoryStep, ...]  # empty when the log is off
    state: ReactorState


class StateReading(NamedTuple):
    """Numbers of softmax(z), each (B,S)."""

    entropy: Tensor  # nats
    mass: Tensor
    sum_p: Tensor
    max_prob: Tensor


def read_state(z: Tensor) -> StateReading:
    """All numbers of a step from one softmax: finite logits (B,S,D) -> four (B,S)."""
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    return StateReading(
        entropy=-torch.linalg.vecdot(p, log_p),
        mass=1 - torch.linalg.vecdot(p, p),
        sum_p=p.sum(-1),
        max_prob=p.amax(-1),
    )
