"""Kuramoto synchronisation: phases pulled to the mean field of their past, and clocks they set.

    theta, omega, z = W norm(x)                                   (B,T,D) -> (B,T,N), z complex
    Z_t   = sum_{j<=t} rho^(t-j) e^{i theta_j} / sum_{j<=t} rho^(t-j)             (B,T,N)
    theta = theta + dt (omega + K Im(e^{-i theta} Z))             num_steps times
    r_t   = mean over the oscillators of |Z_t| of the final phases                (B,T)
    lambda_t = min(1, Re(z_t / s)) s,  s the n_i-th root of unity nearest to z_t,  n_i = i + 2
    h_t   = lambda_t h_{t-1} + (1 - |lambda_t|) e^{i theta_t}     h before the first token 1
    x     = x + W_o [Re h, Im h]                                  W_o zero at the start

K is the coupling, dt the step size, rho the share of its weight the past keeps from one token to
the next. Im(e^{-i theta} Z) = |Z| sin(psi - theta) with psi the phase of Z: K > 0 pulls towards
the field. It is the mean-field form of the Kuramoto model (Kuramoto 1975; Strogatz, Physica D 143,
2000, and `entropy_core.kuramoto`), where the population of an oscillator is its own past.

A clock h is the order parameter of a second population, whose frequency the tokens choose. A token
turns it by a whole multiple of 1/n, and a share 1 - |lambda| of it starts anew at the token's
phase, so |h| <= 1 and no clock runs down. All z beyond s give s, as a driven oscillator locks to a
rational frequency over a range of drives (the tongues of Arnold 1961): then nothing is renewed, and
the clock counts modulo n, exactly and for ever. A constant s is a rotary position. Turns that
depend on the input are what lets a linear recurrence track a state (Grazzi 2024, arXiv 2411.12537).

The final phases turn queries and keys by gamma theta (`rotary.py`), gamma zero at the start. The
monitors read r.

A weighted sum S_t = u_t + rho S_{t-1} is the only state of a mean field. Many tokens take it
as products with a triangular matrix, chunk by chunk; a single token takes one addition. Clocks of
many tokens are taken by doubling, in ceil(log2 T) rounds (Hillis and Steele 1986).

Shapes: B batch, T time, D width, N oscillators.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from entropy_core.compiled import compiled, norm
from reso_llm.config import KuramotoConfig
from reso_llm.stages import register_constants
from reso_llm.stages.arrays import Matrix, view
from reso_llm.stages.fused import linear, rms_norm

CHUNK = 64  # tokens in one matrix product
LEAK = 0.1  # share of its gradient that passes the lock to whole turns


class SyncState(NamedTuple):
    """Clocks, and sums of the mean fields, over the tokens before: a value, never changed in place.

    sums: for each Euler step, and last for the final read, the weighted sum of (cos, sin).
    weight: the sum of the weights, shared by all of them.
    clocks: (Re h, Im h).
    """

    sums: tuple[Tensor, ...]  # num_steps + 1 of (B,1,2,N)
    weight: Tensor  # (B,1,1,1)
    clocks: Tensor  # (B,1,2,N)


def locked(z: Tensor, num: Tensor) -> Tensor:
    """lambda: z (...,N), complex, drawn onto the nearest of num (N,) spokes of length 1.

    A share of the gradient passes: a token locked to a wrong turn could not leave it otherwise.
    """
    step = 2 * math.pi / num
    angle = (z.detach().angle() / step).round() * step
    spoke = torch.polar(torch.ones_like(angle), angle)
    turn = (z * spoke.conj()).real.clamp_max(1) * spoke
    beyond = LEAK * (z - turn)
    return turn + (beyond - beyond.detach())


def carried(turn: Tensor, renewal: Tensor, before: Tensor) -> Tensor:
    """h_t = turn_t h_{t-1} + renewal_t: all (B,T,N), and the h before them (B,1,N)."""
    first = torch.addcmul(renewal[:, :1], turn[:, :1], before)
    h, span = torch.cat((first, renewal[:, 1:]), dim=1), 1
    while span < h.shape[1]:
        h = torch.cat((h[:, :span], torch.addcmul(h[:, span:], turn[:, span:], h[:, :-span])), 1)
        turn = torch.cat((turn[:, :span], turn[:, span:] * turn[:, :-span]), dim=1)
        span *= 2
    return h


def forgetting_sum(u: Tensor, before: Tensor, retention: float) -> Tensor:
    """S_t = u_t + retention S_{t-1}: u (B,T,...) and the S before it (B,1,...) -> (B,T,...)."""
    if u.shape[1] == 1:
        return torch.add(u, before, alpha=retention)
    # Row t holds the weights of (S before, u_0, ..., u_t): lambda^(t+1), lambda^t, ..., 1.
    t = torch.arange(min(u.shape[1], CHUNK) + 1, device=u.device, dtype=u.dtype)
    decay = torch.pow(retention, t[1:, None] - t).tril(1)
    sums, last = [], before.flatten(2)
    with torch.autocast(u.device.type, enabled=False):  # it would take the sums in bfloat16
        for part in u.flatten(2).split(CHUNK, dim=1):
            rows = part.shape[1]
            sums.append(decay[:rows, : rows + 1] @ torch.cat((last, part), dim=1))
            last = sums[-1][:, -1:]
    return torch.cat(sums, dim=1).view_as(u)


def synchronise(
    theta: Tensor, omega: Tensor, config: KuramotoConfig, state: SyncState
) -> tuple[Tensor, Tensor, SyncState]:
    """Phases theta and frequencies omega (B,T,N) -> final phases (B,T,N), r (B,T), next state.

    theta in radians, not wrapped; omega in radians per unit of time; r in [0, 1].
    """
    dt, retention = config.step_size, config.retention
    # theta beside theta + pi/2: one sine gives both components of e^{i theta}.
    pair = torch.stack((theta + math.pi / 2, theta), dim=2)  # (B,T,2,N)
    omega = omega.unsqueeze(2)
    weight = forgetting_sum(torch.ones_like(pair[:, :, :1, :1]), state.weight, retention)
    sums = []
    for before in state.sums[:-1]:
        u = pair.sin()
        field = forgetting_sum(u, before, retention)
        (cos, sin), (x, y) = u.unbind(2), field.unbind(2)
        pull = torch.addcmul(cos * y, sin, x, value=-1).unsqueeze(2)  # (B,T,1,N)
        pair = pair.add(omega, alpha=dt).addcdiv(pull, weight, value=dt * config.coupling)
        sums.append(field[:, -1:])
    field = forgetting_sum(pair.sin(), state.sums[-1], retention)
    sums.append(field[:, -1:])
    # Of the ways to a length, |complex| is fast and has a finite gradient (zero) at zero.
    lengths = torch.complex(*field.unbind(2)).abs().mean(-1)
    r = (lengths / weight.flatten(1)).clamp_max(1)  # rounding may pass 1
    return pair[:, :, 1], r, state._replace(sums=tuple(sums), weight=weight[:, -1:])


class Synchronisation(nn.Module):
    """The stage: x (B,T,D) -> x', phases (B,T,N), coherence (B,T); see the module's docstring."""

    def __init__(self, dim: int, config: KuramotoConfig) -> None:
        super().__init__()
        self.config = config
        num = config.num_oscillators
        self.project = linear(dim, 2 * num)
        self.turn = linear(dim, 2 * num)  # Re z, then Im z
        self.read = linear(2 * num, dim)
        register_constants(self)
        self.silent = False
        self.reset_parameters()

    def constants(self) -> dict[str, Tensor]:
        """The moduli (N,) of the clocks."""
        return {"spokes": torch.arange(2.0, self.config.num_oscillators + 2)}

    def reset_parameters(self) -> None:
        """Uniform maps of deviation 1/sqrt(D): phases and z of deviation 1. The read is zero."""
        bound = (3 / self.project.in_features) ** 0.5
        for layer in (self.project, self.turn):
            nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.zeros_(self.read.weight)

    def init_state(self, batch: int, like: Tensor) -> SyncState:
        """The state before the first token, on the device of `like` and at least in float32."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        sums = like.new_zeros((batch, 1, 2, self.config.num_oscillators), dtype=dtype)
        weight = like.new_zeros((batch, 1, 1, 1), dtype=dtype)
        clocks = torch.cat((torch.ones_like(sums[:, :, :1]), sums[:, :, 1:]), dim=2)
        return SyncState((sums,) * (self.config.num_steps + 1), weight, clocks)

    def stepper(self, state: SyncState) -> "SynchronisationStep":
        """The one-token form."""
        return SynchronisationStep(self, state)

    def silence(self) -> None:
        """Read no clock and report phases of zero, which turn nothing; r stays for the others."""
        self.silent = True
        nn.init.zeros_(self.read.weight)

    def forward(
        self, x: Tensor, state: SyncState | None
    ) -> tuple[Tensor, Tensor, Tensor, SyncState]:
        """Residual stream x (B,T,D) -> x', final phases (B,T,N), r (B,T) in [0, 1], next state.

        All have the dtype of x; below float32 the dynamics run in float32.
        """
        if state is None:
            state = self.init_state(len(x), like=x)
        dtype, normal = state.weight.dtype, rms_norm(x)
        theta, omega = self.project(normal).to(dtype).chunk(2, dim=-1)
        theta, r, state = synchronise(theta, omega, self.config, state)
        h = self._clocks(self.turn(normal).to(dtype), theta, state)
        clocks = torch.stack((h.real, h.imag), dim=2)  # (B,T,2,N)
        x = x + self.read(clocks.flatten(2).to(x.dtype)).to(x.dtype)
        if self.silent:
            theta = torch.zeros_like(theta)
        state = state._replace(clocks=clocks[:, -1:].clone())
        return x, theta.to(x.dtype), r.to(x.dtype), state

    def _clocks(self, z: Tensor, theta: Tensor, state: SyncState) -> Tensor:
        """h of every token, complex (B,T,N), from z (B,T,2N) and the final phases."""
        turn = locked(torch.complex(*z.chunk(2, dim=-1)), self.spokes.to(z.dtype))
        renewal = (1 - turn.abs()) * torch.polar(torch.ones_like(theta), theta)
        return carried(turn, renewal, torch.complex(*state.clocks.unbind(2)))


class SynchronisationStep:
    """One-token form of `Synchronisation`: reads the clocks into x (R,D), in place.

    The result is the phases (R,N) and the coherence r (R,).
    """

    def __init__(self, module: Synchronisation, state: SyncState) -> None:
        self.config, self.silent = module.config, module.silent
        self.project, self.turn = (Matrix(m.weight) for m in (module.project, module.turn))
        self.read = Matrix(module.read.weight)
        self.sums = np.stack([view(total)[:, 0] for total in state.sums])  # (steps + 1,R,2,N)
        self.weight = view(state.weight)[:, 0, 0, 0].copy()  # (R,)
        self.clocks = view(state.clocks)[:, 0].copy()  # (R,2,N)
        c = self.config
        self.constants = np.array([c.retention, c.step_size, c.coupling], np.float32)

    def __call__(self, x: ndarray) -> tuple[ndarray, ndarray]:
        R, _, N = self.clocks.shape
        normal, r = np.empty_like(x), np.empty(R, np.float32)
        norm(x, normal)
        phases = self.project(normal)
        pull(phases, self.sums, self.weight, self.constants, r)
        tick(self.turn(normal), phases, self.clocks)
        x += self.read(self.clocks.reshape(R, 2 * N))
        theta = phases[:, :N].copy()
        if self.silent:
            theta[:] = 0
        return theta, r

    @property
    def state(self) -> SyncState:
        """The state after the tokens so far."""
        sums = torch.from_numpy(self.sums.copy())[:, :, None]  # (steps + 1,R,1,2,N)
        weight = torch.from_numpy(self.weight.copy())[:, None, None, None]
        return SyncState(
            tuple(sums.unbind()), weight, torch.from_numpy(self.clocks.copy())[:, None]
        )


@compiled
def pull(phases, sums, weight, constants, r):
    """Synchronise one token of each row: theta and omega (R,2N) -> final theta, in place, and r.

    sums (steps + 1,R,2,N) and weight (R,) are those of the past and become those after the token.
    """
    retention, dt, coupling = constants
    steps, R, _, N = sums.shape
    for row in range(R):
        weight[row] = weight[row] * retention + np.float32(1)
        scale, length = dt * coupling / weight[row], np.float32(0)
        for n in range(N):
            theta, omega = phases[row, n], phases[row, N + n]
            for step in range(steps):
                field, cos, sin = sums[step, row], np.cos(theta), np.sin(theta)
                x, y = field[0, n] * retention + cos, field[1, n] * retention + sin
                field[0, n], field[1, n] = x, y
                if step < steps - 1:
                    theta += dt * omega + scale * (cos * y - sin * x)
                else:
                    length += np.sqrt(x * x + y * y)
            phases[row, n] = theta
        r[row] = length / (np.float32(N) * weight[row])
        if r[row] > 1:  # by rounding; NaN stays
            r[row] = 1


@compiled
def tick(z, phases, clocks):
    """Turn the clocks (R,2,N) by z (R,2N), and renew a share of them by e^{i theta}, in place."""
    R, _, N = clocks.shape
    for row in range(R):
        for n in range(N):
            x, y, theta = z[row, n], z[row, N + n], phases[row, n]
            between = np.float32(2 * math.pi) / np.float32(n + 2)  # two spokes
            angle = np.rint(np.arctan2(y, x) / between) * between
            cos, sin = np.cos(angle), np.sin(angle)
            length = x * cos + y * sin
            length = np.float32(1) if length > 1 else length  # NaN stays
            new = np.float32(1) - abs(length)
            re, im = clocks[row, 0, n], clocks[row, 1, n]
            clocks[row, 0, n] = length * (re * cos - im * sin) + new * np.cos(theta)
            clocks[row, 1, n] = length * (re * sin + im * cos) + new * np.sin(theta)
