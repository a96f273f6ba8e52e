"""The Coherent Entropy Reactor: a state refined in steps, its entropy controlled after each.

    x --encoder--> z --[attention, FFN, phases, drift] x steps x layers--> z --output--> reactions

Every position of the input is a probability distribution over D_in outcomes. The state z (B,S,D)
is the logits of a distribution over D, whose entropy the control watches. Semantic mass is
1 - sum p² of the final state. The mode picks the control: `published` (`cer.published`) follows the
public trajectories number for number, `corrected` (`cer.corrected`) holds each sample to the set
point and is differentiable. Source: the Coherent Entropy Reactor's README and published
trajectories.

The state and its control are computed in float32 or wider, whatever the weights' dtype: in half
precision the set point would lie between two numbers.

Shapes: B batch, S positions, D width, O output width, N oscillators. Entropies in nats.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from cer.blocks import RefinementBlock
from cer.corrected import CorrectedControl
from cer.inputs import ArrayLike, as_distributions
from cer.published import PublishedControl
from cer.trajectory import ReactorOutput, ReactorState, TrajectoryStep, batch_mean
from entropy_core.checks import is_number, is_whole
from entropy_core.policies import CEROptions

Mode = Literal["published", "corrected"]
CONTROLS = {"published": PublishedControl, "corrected": CorrectedControl}


class CoherentEntropyReactor(nn.Module):
    """Reactor of about 1.6 million parameters with its defaults: x (B,S,D_in) -> ReactorOutput.

    Args:
        target_entropy: set point of the state's entropy, nats, inside (0, ln hidden_dim).
        drift_strength: relative change of z per nat of error. published: brake and escape noise,
            0 switches the drift off. corrected: the oscillators' modulation.
        max_drift_deficit: nats. published: largest deficit an escape sees. corrected: the most
            that one step changes the entropy, either way; 0 switches the drift off.
        kuramoto_k: K, coupling of the oscillators.
        num_oscillators: N, a divisor of hidden_dim; used by `corrected`.
        dropout: in train mode; None is 0.1 in `published`, 0 in `corrected`.

    A reactor of mode `published`, in train mode and with torch seeded before the construction,
    gives the public numbers. Raises ValueError when an option is out of range.
    """

    def __init__(
        self,
        input_dim: int = 128,
        hidden_dim: int = 256,
        output_dim: int = 128,
        target_entropy: float = 3.0,
        drift_strength: float = 0.1,
        max_drift_deficit: float = 2.0,
        *,
        num_layers: int = 2,
        num_heads: int = 4,
        num_refinement_steps: int = 3,
        mode: Mode = "corrected",
        kuramoto_k: float = 2.0,
        num_oscillators: int = 16,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        sizes = dict(
            input_dim=input_dim, hidden_dim=hidden_dim, output_dim=output_dim,
            num_layers=num_layers, num_heads=num_heads,
            num_refinement_steps=num_refinement_steps, num_oscillators=num_oscillators,
        )  # fmt: skip
        _check(sizes, mode, target_entropy, kuramoto_k, dropout)
        self.mode = mode
        self.num_refinement_steps = num_refinement_steps
        options = CEROptions(
            target_nats=target_entropy,
            drift_strength=drift_strength,
            max_deficit_nats=max_drift_deficit,
        )
        self.control = CONTROLS[mode](options, kuramoto_k)
        self.dropout = self.control.default_dropout if dropout is None else dropout
        self.encoder = nn.Linear(input_dim, hidden_dim)
        self.encoder_norm = nn.LayerNorm(hidden_dim)
        self.blocks = nn.ModuleList(
            RefinementBlock(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.output = nn.Linear(hidden_dim, output_dim)
        self.omega, self.initial_phases = self.control.make_oscillators(num_oscillators)
        self.reset_history()

    def init_state(self, batch_size: int) -> ReactorState:
        """State before the first step: phase 0 in `published`, learned phases in `corrected`."""
        like = _at_least_float32(self.encoder.weight)
        return ReactorState(self.control.init_phases(self.initial_phases, batch_size, like))

    def encode(self, x: Tensor) -> Tensor:
        """Logits before the first step: (B,S,D_in) -> (B,S,D)."""
        return self.encoder_norm(self.encoder(x))

    def forward(
        self,
        x: ArrayLike,
        state: ReactorState | None = None,
        generator: torch.Generator | None = None,
        *,
        log: bool = True,
        normalise: bool = False,
    ) -> ReactorOutput:
        """Refine x (B,S,D_in), each position a probability distribution; pure.

        x may be a tensor, an array or nested lists; normalise=True divides each row by its sum.
        state None starts anew; a returned state goes on. The generator draws dropout and the
        published escape noise (None: torch's global one). log=False returns no trajectory.

        Raises ValueError or TypeError when x holds no distributions (see `as_distributions`) and
        ValueError when the state does not fit x or is not finite.
        """
        weight = self.encoder.weight
        x = as_distributions(x, weight, self.encoder.in_features, normalise=normalise)
        phases = self._phases(state, len(x))
        rate = self.dropout if self.training else 0.0
        trajectory = []
        z = _at_least_float32(self.encode(x))
        for layer, block in enumerate(self.blocks):
            for step in range(self.num_refinement_steps):
                z = _at_least_float32(block(z.to(weight.dtype), rate, generator))
                outcome = self.control.step(z, phases, self.omega, generator)
                z, phases = outcome.z, outcome.phases
                if log:
                    numbers = self.control.record(outcome)
                    largest = math.log(z.shape[-1])
                    trajectory.append(TrajectoryStep(layer, step, max_entropy=largest, **numbers))
        reactions = self.output(z.to(weight.dtype))
        mass = self.control.mass(z)
        return ReactorOutput(reactions, mass, tuple(trajectory), ReactorState(phases))

    def react(self, x: ArrayLike, *, normalise: bool = False) -> tuple[Tensor, Tensor]:
        """`forward` that adds its steps to the history: (B,S,D_in) -> (B,S,O), mean mass ().

        In `published` mode the phase goes on from the last call, as it did there. `forward`
        returns the mass of each sample. Raises as `forward` does; the history is then unchanged.
        """
        result = self(x, self._history_state, normalise=normalise)
        if self.control.phases_go_on:
            self._history_state = result.state
        self._history += tuple(map(batch_mean, result.trajectory))
        return result.reactions, result.mass.mean()

    def get_trajectory(self) -> tuple[TrajectoryStep, ...]:
        """Steps of all calls of `react` since `reset_history`, in plain numbers (`batch_mean`)."""
        return self._history

    def reset_history(self) -> None:
        """Forget the steps and, in `published` mode, the phase."""
        self._history: tuple[TrajectoryStep, ...] = ()
        self._history_state: ReactorState | None = None

    def _phases(self, state: ReactorState | None, batch_size: int) -> Tensor:
        """The phases to start from; ValueError when a given state does not fit."""
        fresh = self.init_state(batch_size).phases
        if state is None:
            return fresh
        if state.phases.shape != fresh.shape:
            raise ValueError(
                f"state phases must be {tuple(fresh.shape)}, got {tuple(state.phases.shape)}"
            )
        if not state.phases.isfinite().all():
            raise ValueError("state phases must be finite: start anew with state=None")
        return state.phases.to(fresh)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def _check(
    sizes: dict[str, int], mode: str, target: float, kuramoto_k: float, dropout: float | None
) -> None:
    if mode not in CONTROLS:
        raise ValueError(f"mode must be one of {', '.join(CONTROLS)}, got {mode!r}")
    for name, size in sizes.items():
        if not is_whole(size) or size < 1:
            raise ValueError(f"{name} must be at least 1 and whole, got {size!r}")
    for name in ("num_heads", "num_oscillators"):
        if sizes["hidden_dim"] % sizes[name]:
            raise ValueError(f"hidden_dim must be a multiple of {name}, got {sizes}")
    if not is_number(target) or not 0 < target < math.log(sizes["hidden_dim"]):
        raise ValueError(f"target_entropy must be inside (0, ln hidden_dim) nats, got {target!r}")
    if not is_number(kuramoto_k):
        raise ValueError(f"kuramoto_k must be finite and a number, got {kuramoto_k!r}")
    if dropout is not None and not (is_number(dropout) and 0 <= dropout < 1):
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
