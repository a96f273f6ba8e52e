"""Kuramoto synchronisation: every token carries N phases, pulled to the mean field of its past.

    theta^0, omega = W norm(x)                                    (B,T,D) -> (B,T,N) twice
    Z_t   = sum_{j<=t} lambda^(t-j) e^{i theta_j} / sum_{j<=t} lambda^(t-j)       (B,T,N)
    theta = theta + dt (omega + K Im(e^{-i theta} Z))             num_steps times
    r_t   = mean over the oscillators of |Z_t| of the final phases                (B,T)

K is the coupling, dt the step size, lambda the share of its weight the past keeps from one token
to the next. Im(e^{-i theta} Z) = |Z| sin(psi - theta) with psi the phase of Z: K > 0 pulls towards
the field. It is the mean-field form of the Kuramoto model (Kuramoto 1975; Strogatz, Physica D 143,
2000, and `entropy_core.kuramoto`), where the population of an oscillator is its own past.

The phases turn queries and keys by gamma theta (`rotary.py`), gamma zero at the start. The
coherence gate and the monitors read r.

A weighted sum S_t = u_t + lambda S_{t-1} is the only state of a mean field. Many tokens take it
as products with a triangular matrix, chunk by chunk; a single token takes one addition.

Shapes: B batch, T time, D width, N oscillators.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from reso_llm.config import KuramotoConfig
from reso_llm.stages import arrays
from reso_llm.stages.arrays import matrix, scalar, view
from reso_llm.stages.fused import linear, rms_norm

CHUNK = 64  # tokens in one matrix product


class SyncState(NamedTuple):
    """Sums of the mean fields over the tokens before: a value, never changed in place.

    sums: for each Euler step, and last for the final read, the weighted sum of (cos, sin).
    weight: the sum of the weights, shared by all of them.
    """

    sums: tuple[Tensor, ...]  # num_steps + 1 of (B,1,2,N)
    weight: Tensor  # (B,1,1,1)


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
    return pair[:, :, 1], r, SyncState(tuple(sums), weight[:, -1:])


class Synchronisation(nn.Module):
    """The stage: x (B,T,D) -> phases (B,T,N), coherence (B,T); see the module's docstring."""

    def __init__(self, dim: int, config: KuramotoConfig) -> None:
        super().__init__()
        self.config = config
        self.project = linear(dim, 2 * config.num_oscillators)
        self.silent = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform map of deviation 1/sqrt(D): phases and frequencies of deviation 1."""
        bound = (3 / self.project.in_features) ** 0.5
        nn.init.uniform_(self.project.weight, -bound, bound)

    def init_state(self, batch: int, like: Tensor) -> SyncState:
        """The state before the first token, on the device of `like` and at least in float32."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        sums = like.new_zeros((batch, 1, 2, self.config.num_oscillators), dtype=dtype)
        weight = like.new_zeros((batch, 1, 1, 1), dtype=dtype)
        return SyncState((sums,) * (self.config.num_steps + 1), weight)

    def stepper(self, state: SyncState) -> "SynchronisationStep":
        """The one-token form."""
        return SynchronisationStep(self, state)

    def silence(self) -> None:
        """Report phases of zero, which turn nothing; r stays for the gate and the monitors."""
        self.silent = True

    def forward(self, x: Tensor, state: SyncState | None) -> tuple[Tensor, Tensor, SyncState]:
        """Residual stream x (B,T,D) -> final phases (B,T,N), r (B,T) in [0, 1], next state.

        The phases and r have the dtype of x; below float32 the dynamics run in float32.
        """
        if state is None:
            state = self.init_state(len(x), like=x)
        phases = self.project(rms_norm(x)).to(state.weight.dtype)
        theta, omega = phases.chunk(2, dim=-1)
        theta, r, state = synchronise(theta, omega, self.config, state)
        if self.silent:
            theta = torch.zeros_like(theta)
        return theta.to(x.dtype), r.to(x.dtype), state


class SynchronisationStep:
    """One-token form of `Synchronisation`: x (D,) -> phases (N,) and coherence r."""

    def __init__(self, module: Synchronisation, state: SyncState) -> None:
        self._given, self.config, self.silent = state, module.config, module.silent
        self.project = matrix(module.project)
        self.retention = scalar(self.config.retention)
        self.dt = scalar(self.config.step_size)
        self.sums = np.stack([view(total)[0, 0] for total in state.sums])  # (steps + 1,2,N)
        self.weight = state.weight.item()

    def __call__(self, x: ndarray) -> tuple[ndarray, float]:
        c, N = self.config, self.sums.shape[-1]
        phases = np.dot(arrays.rms_norm(x), self.project)
        drift = phases[N:] * self.dt
        pair = np.empty((2, N), np.float32)  # theta + pi/2, theta: one sine gives both components
        np.add(phases[:N], math.pi / 2, out=pair[0])
        pair[1] = phases[:N]
        self.sums *= self.retention
        self.weight = self.weight * c.retention + 1
        pull_scale = c.step_size * c.coupling / self.weight
        for field in self.sums[:-1]:
            u = np.sin(pair)
            field += u
            pull = u[0] * field[1]
            pull -= u[1] * field[0]
            pull *= pull_scale
            pull += drift
            pair += pull
        field = self.sums[-1]
        field += np.sin(pair)
        r = float(np.add.reduce(np.hypot(field[0], field[1]))) / (N * self.weight)
        theta = np.zeros(N, np.float32) if self.silent else pair[1]
        return theta, min(r, 1.0)  # in this order NaN stays

    @property
    def state(self) -> SyncState:
        """The state after the tokens so far."""
        sums = torch.from_numpy(self.sums.copy())[:, None, None]  # (steps + 1,1,1,2,N)
        weight = self._given.weight.new_tensor(self.weight).view(1, 1, 1, 1)
        return self._given._replace(sums=tuple(sums.unbind()), weight=weight)
