"""The Coherent Entropy Reactor: a state refined in steps, its entropy controlled after each.

    x --encoder--> z --[attention, FFN, phases, drift] x steps x layers--> z --output--> reactions

Every position of the input is a probability distribution over D_in outcomes; the state z (B,S,D) is
the logits of a distribution over D, whose entropy the control watches. Semantic mass is
1 - sum p² of the final state. Two behaviours, never mixed (`cer.control`): `published` follows the
public trajectories number for number, `corrected` controls each sample to the set point and is
differentiable. Source: the Coherent Entropy Reactor's README and published trajectories.

Shapes: B batch, S positions, D width, O output width, N oscillators. Entropies in nats.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from cer.blocks import RefinementBlock
from cer.control import StepOutcome, corrected_step, published_step
from cer.trajectory import ReactorOutput, ReactorState, StateReading, TrajectoryStep, read_state
from entropy_core.control import CERAction, CEROptions
from entropy_core.information import semantic_mass
from entropy_core.kuramoto import order_parameter

MODES = ("published", "corrected")
PUBLISHED_DROPOUT = 0.1
Mode = Literal["published", "corrected"]


class CoherentEntropyReactor(nn.Module):
    """Reactor of about 1.6 million parameters with its defaults: x (B,S,D_in) -> ReactorOutput.

    Args:
        target_entropy: set point of the state's entropy, nats, inside (0, ln hidden_dim).
        drift_strength: relative change of z per nat of error. published: brake and escape noise,
            0 switches the drift off. corrected: the oscillators' modulation.
        max_drift_deficit: nats. published: largest deficit an escape sees. corrected: the most
            that one step changes the entropy, either way; 0 switches the drift off.
        coupling: K of the oscillators.
        num_oscillators: N, a divisor of hidden_dim; used by `corrected`.
        dropout: in train mode; None is 0.1 in `published`, 0 in `corrected`.

    In `published` mode the control passes no gradient and one mean rules all samples; in train
    mode with torch seeded before the construction it gives the public numbers.
    Raises ValueError when an option is out of range.
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
        coupling: float = 2.0,
        num_oscillators: int = 16,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        sizes = dict(
            input_dim=input_dim, hidden_dim=hidden_dim, output_dim=output_dim,
            num_layers=num_layers, num_heads=num_heads,
            num_refinement_steps=num_refinement_steps, num_oscillators=num_oscillators,
        )  # fmt: skip
        _check(sizes, mode, target_entropy, coupling, dropout)
        self.mode = mode
        self.num_refinement_steps = num_refinement_steps
        self.coupling = coupling
        self.dropout = _default_dropout(mode) if dropout is None else dropout
        self.options = CEROptions(
            target_nats=target_entropy,
            drift_strength=drift_strength,
            max_deficit_nats=max_drift_deficit,
        )
        self.encoder = nn.Linear(input_dim, hidden_dim)
        self.encoder_norm = nn.LayerNorm(hidden_dim)
        self.blocks = nn.ModuleList(
            RefinementBlock(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.output = nn.Linear(hidden_dim, output_dim)
        if mode == "corrected":
            self._make_oscillators(num_oscillators)
        self.reset_history()

    def _make_oscillators(self, num: int) -> None:
        """Standard normal quantiles as frequencies (rad per unit time and nat); half a circle.

        Frequencies and phases are paired by a golden-ratio shuffle: sorted both, they would be
        the same axis.
        """
        levels = (torch.arange(num, dtype=torch.float64) + 0.5) / num
        shuffled = torch.argsort(torch.arange(num) * (math.sqrt(5) - 1) / 2 % 1)
        dtype = torch.get_default_dtype()
        omega = math.sqrt(2) * torch.erfinv(2 * levels - 1)
        self.omega = nn.Parameter(omega.to(dtype))
        self.initial_phases = nn.Parameter((math.pi * (levels[shuffled] - 0.5)).to(dtype))

    def init_state(self, batch_size: int) -> ReactorState:
        """State before the first step: phase 0 in `published`, learned phases in `corrected`."""
        if self.mode == "published":
            return ReactorState(self.encoder.weight.new_zeros(()))
        return ReactorState(self.initial_phases.expand(batch_size, -1))

    def encode(self, x: Tensor) -> Tensor:
        """Logits before the first step: (B,S,D_in) -> (B,S,D)."""
        return self.encoder_norm(self.encoder(x))

    def forward(
        self,
        x: Tensor,
        state: ReactorState | None = None,
        generator: torch.Generator | None = None,
        *,
        log: bool = True,
    ) -> ReactorOutput:
        """Refine x (B,S,D_in), each position a probability distribution; pure.

        state None starts anew; a returned state goes on. The generator draws dropout and the
        published escape noise (None: torch's global one). log=False returns no trajectory.
        Raises ValueError when x or state has another shape.
        """
        self._check_input(x, state)
        phases = (state or self.init_state(x.shape[0])).phases
        rate = self.dropout if self.training else 0.0
        trajectory = []
        z = self.encode(x)
        for layer, block in enumerate(self.blocks):
            for step in range(self.num_refinement_steps):
                outcome = self._control(block(z, rate, generator), phases, generator)
                z, phases = outcome.z, outcome.phases
                if log:
                    trajectory.append(self._measure(layer, step, outcome))
        reactions = self.output(z)
        return ReactorOutput(reactions, self._mass(z), tuple(trajectory), ReactorState(phases))

    def react(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` that adds its steps to the history: (B,S,D_in) -> (B,S,O), mass.

        In `published` mode the phase goes on from the last call, as it did there.
        """
        result = self(x, self._history_state)
        if self.mode == "published":
            self._history_state = result.state
        self._history += tuple(map(_detached, result.trajectory))
        return result.reactions, result.mass

    def get_trajectory(self) -> tuple[TrajectoryStep, ...]:
        """Steps of all calls of `react` since `reset_history`, detached."""
        return self._history

    def reset_history(self) -> None:
        """Forget the steps and, in `published` mode, the phase."""
        self._history: tuple[TrajectoryStep, ...] = ()
        self._history_state: ReactorState | None = None

    def _control(self, z: Tensor, phases: Tensor, generator: torch.Generator | None) -> StepOutcome:
        if self.mode == "published":
            return published_step(z, phases, self.options, self.coupling, generator)
        return corrected_step(z, phases, self.omega, self.options, self.coupling)

    def _mass(self, z: Tensor) -> Tensor:
        mass = semantic_mass(z)  # (B,S)
        return mass.mean() if self.mode == "published" else mass.mean(-1)

    def _measure(self, layer: int, step: int, outcome: StepOutcome) -> TrajectoryStep:
        measure = _published_record if self.mode == "published" else _corrected_record
        largest = math.log(outcome.z.shape[-1])
        return TrajectoryStep(layer, step, max_entropy=largest, **measure(outcome))

    def _check_input(self, x: Tensor, state: ReactorState | None) -> None:
        if x.dim() != 3 or x.shape[-1] != self.encoder.in_features:
            raise ValueError(
                f"x must be (batch, positions, {self.encoder.in_features}), got {tuple(x.shape)}"
            )
        expected = self.init_state(x.shape[0]).phases.shape
        if state is not None and state.phases.shape != expected:
            raise ValueError(
                f"state phases must be {tuple(expected)}, got {tuple(state.phases.shape)}"
            )


def _published_record(outcome: StepOutcome) -> dict:
    numbers = torch.stack(read_state(outcome.z.detach())).mean((1, 2)).tolist()
    control = CERAction(outcome.action.item())
    return dict(
        zip(StateReading._fields, numbers, strict=True),
        phase=outcome.phases.item(),
        drift_applied=control != CERAction.NONE,
        deficit=outcome.deficit.item(),
        control=control,
    )


def _corrected_record(outcome: StepOutcome) -> dict:
    numbers = torch.stack(read_state(outcome.z)).mean(-1)  # (4,B)
    return dict(
        zip(StateReading._fields, numbers, strict=True),
        phase=order_parameter(outcome.phases)[1],
        drift_applied=outcome.action != CERAction.NONE,
        deficit=outcome.deficit,
        control=outcome.action,
    )


def _detached(step: TrajectoryStep) -> TrajectoryStep:
    return TrajectoryStep(*(v.detach() if isinstance(v, Tensor) else v for v in step))


def _default_dropout(mode: str) -> float:
    return PUBLISHED_DROPOUT if mode == "published" else 0.0


def _check(
    sizes: dict[str, int], mode: str, target: float, coupling: float, dropout: float | None
) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    for name in ("num_heads", "num_oscillators"):
        if sizes["hidden_dim"] % sizes[name]:
            raise ValueError(f"hidden_dim must be a multiple of {name}, got {sizes}")
    if not 0 < target < math.log(sizes["hidden_dim"]):
        raise ValueError(f"target_entropy must be inside (0, ln hidden_dim) nats, got {target}")
    if not math.isfinite(coupling):
        raise ValueError(f"coupling must be finite, got {coupling}")
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
