"""Rotary positions, turned on by the oscillators' phases.

    (x_2i + i x_2i+1) e^{i (t f_i + gamma_n theta_tn)},    f_i = base^(-2i/K)

Pairs of a head's components are complex numbers, turned by the token's position t (RoPE, Su 2021,
arXiv 2104.09864) and by its phases theta. Resonant attention takes base = phi^(K/4), a
golden ladder in half steps; the plain decoder the configured one.

Shapes: B batch, T time, R rows, H heads, K head width, N oscillators.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from entropy_core.compiled import compiled
from reso_llm.stages.arrays import view


def rotary_table(start: int, end: int, width: int, base: float) -> Tensor:
    """cos and sin of position * base^(-2i/K) for positions start ... end - 1: (T, K/2, 2).

    base = phi^(K/4) gives the golden ladder in half steps: each frequency is 1/phi of the second
    one before it, from a turn in 6.3 tokens to one in 10,900 for a head of 64. In whole steps half
    of the pairs do not turn at all, and text longer than the training's is read worse.
    """
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(start, end, dtype=torch.float64), frequencies)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()


def turned_by_phases(rotary: Tensor, theta: Tensor, gain: Tensor) -> Tensor:
    """The table (T,K/2,2) turned on by gain (N,) * theta (B,T,N): (B,T,1,K/2,2).

    The N oscillators act on the last N pairs, whose positions turn slowest: they carry content.
    """
    angles = gain * theta  # (B,T,N); complex numbers need at least float32
    angles = angles.to(torch.promote_types(angles.dtype, torch.float32))
    angles = F.pad(angles, (rotary.shape[-2] - theta.shape[-1], 0))
    turn = torch.polar(torch.ones_like(angles), angles)
    table = torch.view_as_complex(rotary.to(angles.dtype)) * turn  # (B,T,K/2)
    return torch.view_as_real(table.unsqueeze(2))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the pairs (x_{2i}, x_{2i+1}) of (B,T,H,K) by a table (T,K/2,2) or (B,T,1 or H,K/2,2).

    One complex product: a third of the time of the four real ones.
    """
    if x.dtype.itemsize < 4:  # there is no bfloat16 complex number
        return rotate(x.float(), table.float()).to(x.dtype)
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    turns = torch.view_as_complex(table)
    turned = pairs * (turns.unsqueeze(1) if turns.ndim == 2 else turns)
    return torch.view_as_real(turned).flatten(-2)


class RotaryStep:
    """One-token form of `rotary_table` and `turned_by_phases`: turns (R,K/2,2), one a row."""

    def __init__(self, table: Tensor, base: float, gain: Tensor | None) -> None:
        self.table = view(table)  # (T,K/2,2)
        self.base = base
        self.gain = None if gain is None else view(gain)

    def __call__(self, positions: Sequence[int], theta: ndarray | None) -> ndarray:
        """Turns of the rows' positions and, where there are any, of their phases theta (R,N)."""
        known = max(positions) < len(self.table)
        turn = self.table[positions] if known else self._beyond(positions)
        if theta is not None:
            turn_on(turn, theta, self.gain)
        return turn

    def _beyond(self, positions: Sequence[int]) -> ndarray:
        """The turns of positions past the table; an attention window allows such positions."""
        width = 2 * self.table.shape[1]
        angles = np.outer(positions, self.base ** (-np.arange(0, width, 2) / width))
        return np.stack((np.cos(angles), np.sin(angles)), axis=-1).astype(np.float32)


@compiled
def turn_on(turn, theta, gain):
    """Turn the last pairs of turn (R,K/2,2) on by gain (N,) * theta (R,N)."""
    R, N = theta.shape
    first = turn.shape[1] - N
    for r in range(R):
        for n in range(N):
            angle = gain[n] * theta[r, n]
            cos, sin = np.cos(angle), np.sin(angle)
            pair = turn[r, first + n]
            x, y = pair[0], pair[1]
            pair[0] = x * cos - y * sin
            pair[1] = x * sin + y * cos
