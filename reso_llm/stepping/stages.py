"""The stages around the blocks for one more token: numpy twins of the torch modules' forward.

    TokenEmbedding, BindingMemory, Synchronisation, MemoryField

Their equations stand in the modules named. Each class here takes the module and its state; what it
changes in place is a copy. `state` gives the value back.

Shapes: D width, H heads, K head width, V vocabulary, N oscillators, M orders, C channels,
S = 16 components.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from reso_llm.ngrams import MODULI
from reso_llm.stepping.arrays import EPS, logistic, matrix, rms_norm, row_squares, scalar, view


class EmbeddingStep:
    """`TokenEmbedding`: a token -> x (D,), with the smear of the token before."""

    def __init__(self, module: nn.Module, last: Tensor | None) -> None:
        self.table = view(module.weight)  # (V,D)
        self.gate = view(module.smear_gate.weight)[0]
        self.scale = module.smear_scale.item()
        self.last = np.zeros_like(self.table[0]) if last is None else view(last).ravel()

    def __call__(self, token: int) -> ndarray:
        e = rms_norm(self.table[token])
        z = float(self.gate.dot(e[: len(self.gate)]))
        x = self.last * (self.scale * (0.5 + 0.5 * math.tanh(0.5 * z)))
        x += e
        self.last = e  # a new array each time: what was given is never written to
        return rms_norm(x, out=x)

    @property
    def state(self) -> Tensor:
        return torch.from_numpy(self.last).view(1, 1, -1)


class Found(NamedTuple):
    """A context of the binding memory: its order less one, its entries, ln(1 + count)."""

    order: int
    entries: slice
    log_count: float


class BindingStep:
    """`BindingMemory`: the contexts that end with a token, and what they add to the logits.

    Keys are Python integers, and only the entries there are get read: no padding.
    """

    def __init__(self, module: nn.Module, tail: list[int]) -> None:
        self.powers, self.keys, self.bounds = map(view, (module.powers, module.keys, module.bounds))
        self.ids, self.evidence, self.log_counts = map(
            view, (module.entry_ids, module.evidence, module.log_counts)
        )
        self.slots, self.width_scale = module.slots, module.gate.shape[1] ** -0.5
        self.gate = view(module.gate)  # (M,D)
        self.trust, self.count_scale = module.trust.tolist(), module.count_scale.tolist()
        before = tail[len(tail) - module.tail_length :]
        self.recent = [self.powers[token].tolist() for token in reversed(before)]  # newest first

    def look_up(self, token: int) -> list[Found]:
        """The contexts found that end with `token`, the newest."""
        self.recent.insert(0, self.powers[token].tolist())
        keys, high, low = [], 1, 1
        for k, powers in enumerate(self.recent):
            high, low = high * powers[k][0] % MODULI[0], low * powers[k][1] % MODULI[1]
            keys.append(high * MODULI[1] + low)
        self.recent.pop()
        rows = self.keys.searchsorted(np.array(keys)).tolist()
        found = []
        for m, (key, row) in enumerate(zip(keys, rows, strict=True)):
            if self.keys[row] == key:
                first, end = self.bounds[row].tolist()
                entries = slice(first, min(end, first + self.slots[m]))
                found.append(Found(m, entries, float(self.log_counts[row])))
        return found

    def add(self, found: list[Found], hidden: ndarray, logits: ndarray) -> None:
        """Weigh the entries found by the final, normalised x (D,), into the logits (V,)."""
        if not found:
            return
        alphas = np.dot(self.gate, hidden).tolist()
        for m, entries, log_count in found:
            alpha = alphas[m] * self.width_scale + self.trust[m] + self.count_scale[m] * log_count
            np.add.at(logits, self.ids[entries], alpha * self.evidence[entries])


class SynchronisationStep:
    """`Synchronisation`: x (D,) -> phases (N,) and coherence r."""

    def __init__(self, module: nn.Module, state: tuple) -> None:
        self._given, self.config = state, module.config
        self.project = matrix(module.project)
        self.retention = scalar(self.config.retention)
        self.dt = scalar(self.config.step_size)
        self.sums = np.stack([view(total)[0, 0] for total in state.sums])  # (steps + 1,2,N)
        self.weight = state.weight.item()

    def __call__(self, x: ndarray) -> tuple[ndarray, float]:
        c, N = self.config, self.sums.shape[-1]
        phases = np.dot(rms_norm(x), self.project)
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
        return pair[1], min(r, 1.0)  # in this order NaN stays

    @property
    def state(self) -> tuple:
        sums = torch.from_numpy(self.sums.copy())[:, None, None]  # (steps + 1,1,1,2,N)
        weight = self._given.weight.new_tensor(self.weight).view(1, 1, 1, 1)
        return self._given._replace(sums=tuple(sums.unbind()), weight=weight)


class RotaryStep:
    """The turn (K/2,) of a position and of the phases: `rotary_table`, `turned_by_phases`."""

    def __init__(self, table: Tensor, base: float, gain: Tensor | None) -> None:
        self.table = view(table).view(np.complex64)[..., 0]  # (T,K/2)
        self.base = base
        self.gain = None if gain is None else view(gain)

    def __call__(self, position: int, theta: ndarray | None) -> ndarray:
        known = position < len(self.table)
        turn = self.table[position] if known else self._beyond(position)
        if theta is None:
            return turn
        turn, angles = turn.copy(), self.gain * theta
        phases = np.empty(len(angles), np.complex64)
        np.cos(angles, out=phases.real)
        np.sin(angles, out=phases.imag)
        turn[len(turn) - len(angles) :] *= phases
        return turn

    def _beyond(self, position: int) -> ndarray:
        """Positions past the table, which a window allows."""
        width = 2 * self.table.shape[1]
        angles = position * self.base ** (-np.arange(0, width, 2) / width)
        return (np.cos(angles) + 1j * np.sin(angles)).astype(np.complex64)


class FieldStep:
    """`MemoryField`: reads the field into x (D,), in place, then writes this token into it."""

    def __init__(self, module: nn.Module, state: tuple) -> None:
        self._given = state
        self.inputs, self.out = matrix(module.inputs), matrix(module.out)
        self.mix, self.bias = view(module.previous_mix), view(module.gate_bias)[..., None]
        self.field = view(state.field)[0].copy()  # (H,C,S)
        self.previous = view(state.previous_address)[0]  # (H,S)
        _, C, S = self.field.shape
        # rms is sqrt(sum of squares + S eps) / sqrt(S), and likewise below with 1 for eps.
        self.product, self.eps = view(module.product) * S**0.5, scalar(S * EPS)
        self.size, self.root = scalar(C * S), scalar((C * S) ** 0.5)

    def __call__(self, x: ndarray) -> None:
        H, C, S = self.field.shape
        z = np.dot(rms_norm(x), self.inputs)
        vectors, content = z[: 2 * H * S].reshape(2 * H, S), z[2 * H * S : -3 * H]
        self._mix(vectors[:H])
        vectors /= np.sqrt(row_squares(vectors) + self.eps)
        address, reader = np.dot(vectors, self.product).reshape(2, H, S, S)
        write, read, retention = logistic(z[-3 * H :].reshape(3, H, 1) + self.bias)
        y = np.matmul(self.field, reader.transpose(0, 2, 1)).reshape(H, C * S)
        y *= read * self.root / np.sqrt(row_squares(y) + self.size)
        x += np.dot(y.ravel(), self.out)
        writes = np.matmul(content.reshape(H, C, S), address)
        writes *= write[..., None]
        self.field *= retention[..., None]
        self.field += writes

    def _mix(self, addresses: ndarray) -> None:
        """Mix the raw addresses (H,S) with the previous ones, in place."""
        difference = self.previous - addresses
        self.previous = addresses.copy()
        difference *= self.mix
        addresses += difference

    @property
    def state(self) -> tuple:
        field, previous = torch.from_numpy(self.field.copy()), torch.from_numpy(self.previous)
        return self._given._replace(field=field[None], previous_address=previous[None])
