"""Liquid time-constant neurons, and a layer of them coupled to a Kuramoto population.

    C_i dx_i/dt = g_i (v_i - x_i) + Σ_j w_ji σ(s_ji (y_j - m_ji)) (E_ji - x_i),   y = [input, x]

x_i is a membrane potential with capacity C, leak conductance g and leak potential v. Source j, an
input or another neuron, opens a synapse of strength w and reversal potential E as far as y_j is
above m, with slope s. The sum has the form dx/dt = (target - x) / τ. Both target and τ depend on
the sources, so the time constant is liquid. Source: Hasani et al. 2021 (arXiv 2006.04439), in the
conductance form of its authors' package ncps.

While the conductances are held, the relaxation is exact,

    x(t) = target + (x(0) - target) exp(-t / τ)

so for a constant input and no synapse between neurons a step of any length is the exact solution;
between neurons one exponential midpoint step has a global error of O(dt²). A step never leaves the
interval spanned by x, v and E, however long it is.

Shapes: input (B, I), potentials x (B, H), phases theta (B, H) in radians; time has the unit of C/g.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from entropy_core.kuramoto import order_parameter, rk4_step


def relax(x: Tensor, target: Tensor, rate: Tensor, elapsed: Tensor | float) -> Tensor:
    """Solution of dx/dt = rate (target - x) after `elapsed`: (B, H) -> (B, H)."""
    return target + (x - target) * torch.exp(-rate * elapsed)


def _uniform(
    shape: tuple[int, ...], low: float, high: float, generator: torch.Generator | None
) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _inverse_softplus(positive: Tensor) -> Tensor:
    return positive + torch.log(-torch.expm1(-positive))


class LiquidCell(nn.Module):
    """Liquid time-constant neurons, all connected to all inputs and to each other.

    Parameters start in the ranges of ncps; what must be positive (C, g, w) passes a softplus.
    `generator` draws them; without one torch's global generator does. Raises ValueError for a
    size below 1.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if min(input_size, hidden_size) < 1:
            raise ValueError(f"sizes must be at least 1, got {input_size} and {hidden_size}")
        self.input_size, self.hidden_size = input_size, hidden_size
        neurons, synapses = (hidden_size,), (input_size + hidden_size, hidden_size)

        def positive(shape: tuple[int, ...], low: float, high: float) -> nn.Parameter:
            return nn.Parameter(_inverse_softplus(_uniform(shape, low, high, generator)))

        self.raw_capacity = positive(neurons, 0.4, 0.6)
        self.raw_leak = positive(neurons, 0.001, 1.0)
        self.leak_potential = nn.Parameter(_uniform(neurons, -0.2, 0.2, generator))
        self.raw_strength = positive(synapses, 0.001, 1.0)
        self.slope = nn.Parameter(_uniform(synapses, 3.0, 8.0, generator))
        self.midpoint = nn.Parameter(_uniform(synapses, 0.3, 0.8, generator))
        sign = _uniform(synapses, -1.0, 1.0, generator).sign()
        self.reversal = nn.Parameter(sign)

    def init_state(self, batch_size: int) -> Tensor:
        """Potentials 0: (B, H)."""
        return self.leak_potential.new_zeros(batch_size, self.hidden_size)

    def equilibrium(self, inputs: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Target and rate 1/τ of each neuron for sources `inputs` and x: twice (B, H)."""
        sources = torch.cat([inputs, x], dim=-1).unsqueeze(-1)  # (B, I+H, 1)
        opened = softplus(self.raw_strength) * torch.sigmoid(self.slope * (sources - self.midpoint))
        leak = softplus(self.raw_leak)
        conductance = leak + opened.sum(-2)  # (B, H)
        current = leak * self.leak_potential + (opened * self.reversal).sum(-2)
        return current / conductance, conductance / softplus(self.raw_capacity)

    def forward(
        self, inputs: Tensor, x: Tensor, elapsed: float = 1.0, num_steps: int = 1
    ) -> Tensor:
        """Potentials after `elapsed` under a constant input, in num_steps midpoint steps.

        inputs (B, I), x (B, H) -> (B, H). Raises ValueError unless elapsed > 0, num_steps >= 1.
        """
        if not elapsed > 0 or num_steps < 1:
            raise ValueError(f"need elapsed > 0 and num_steps >= 1, got {elapsed}, {num_steps}")
        dt = elapsed / num_steps
        for _ in range(num_steps):
            halfway = relax(x, *self.equilibrium(inputs, x), dt / 2)
            x = relax(x, *self.equilibrium(inputs, halfway), dt)
        return x


class LiquidState(NamedTuple):
    """State of a KuramotoLiquid layer."""

    x: Tensor  # (B, H) potentials
    theta: Tensor  # (B, H) phases in [-pi, pi)


class KuramotoLiquid(nn.Module):
    """Liquid neurons with oscillators: potentials set frequencies, the mean field is an input.

        dθ_i/dt = ω_i + a_i x_i + K r sin(ψ - θ_i),   r e^{iψ} = mean_j e^{iθ_j}

    The cell's inputs are the layer's and (r cos ψ, r sin ψ). K is at least 0 (softplus): coupling
    can only pull phases together. Each step relaxes the cell with the field held, then moves the
    phases by Runge–Kutta with the potentials held. Bounded for any length of run: potentials by
    the cell, phases by wrapping.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        coupling: float = 2.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not coupling > 0:
            raise ValueError(f"coupling must be positive, got {coupling}")
        self.cell = LiquidCell(input_size + 2, hidden_size, generator=generator)
        self.frequency = nn.Parameter(0.5 * torch.randn(hidden_size, generator=generator))
        self.frequency_gain = nn.Parameter(0.1 * torch.randn(hidden_size, generator=generator))
        self.raw_coupling = nn.Parameter(_inverse_softplus(torch.tensor(float(coupling))))

    def init_state(self, batch_size: int, generator: torch.Generator | None = None) -> LiquidState:
        """Potentials 0 and phases drawn uniformly."""
        x = self.cell.init_state(batch_size)
        theta = _uniform(tuple(x.shape), -math.pi, math.pi, generator).to(x)
        return LiquidState(x, theta)

    def coherence(self, state: LiquidState) -> Tensor:
        """Order parameter r of the oscillators: (B,), in [0, 1]."""
        return order_parameter(state.theta)[0]

    def step(self, inputs: Tensor, state: LiquidState, elapsed: float = 0.1) -> LiquidState:
        """One step of `elapsed`: inputs (B, I) -> new state; keep (K + |ω|) elapsed below 1."""
        x, theta = state
        field = torch.stack([theta.cos().mean(-1), theta.sin().mean(-1)], dim=-1)  # (B, 2)
        x = self.cell(torch.cat([inputs, field], dim=-1), x, elapsed)
        omega = self.frequency + self.frequency_gain * x
        theta = rk4_step(theta, omega, softplus(self.raw_coupling), elapsed)
        return LiquidState(x, torch.remainder(theta + math.pi, 2 * math.pi) - math.pi)

    def forward(
        self, inputs: Tensor, state: LiquidState, elapsed: float = 0.1
    ) -> tuple[Tensor, LiquidState]:
        """A sequence (B, T, I) -> potentials (B, T, H) and the last state."""
        outputs = []
        for t in range(inputs.shape[1]):
            state = self.step(inputs[:, t], state, elapsed)
            outputs.append(state.x)
        return torch.stack(outputs, dim=1), state
