"""Exponent of the model's states: a nudged copy of the state reads the same tokens.

    λ = (ln d_k - ln d_1) / (k - 1),    d_j = |x'_j - x_j| / |x_j|      nats per token

x_j is the final hidden state j tokens after the fork, x'_j that of the copy, in whose keys, values,
phases, field and last embedding noise of NUDGE deviations was put. This is the method of Benettin
et al. (1980) with one k for each fork, which begins anew in a random direction; the step to d_1
does not count, as it measures the nudge. The running text is never touched. The first fork is at
FIRST_FORK tokens and the others FORK_EVERY apart, so that a measurement, k tokens read once more,
costs about a tenth of the time of the tokens before; a shorter reply pays nothing. A copy of one
row on a CPU is read by a `Stepper`, token by token; others in one pass of the network.

Shapes: B rows, D width, k = FOLLOWED tokens.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reso_llm.generation.stepper import Stepper
from reso_llm.network import ResoNetwork, ResoState
from reso_llm.stages.cache import KVCache

NUDGE = 0.01  # deviations of each part of the state
FOLLOWED = 8  # tokens
FIRST_FORK, FORK_EVERY = 48, 96  # tokens
NUDGE_STREAM = 0x2E50_0B0E  # its own random stream, so that it never shifts a draw


class Nudged:
    """A nudged copy of the state of some rows, waiting for the tokens that the rows read next.

    Goals (B,D) steer it as they steer the rows.
    """

    def __init__(self, network: ResoNetwork, state: ResoState, goals: Tensor | None = None) -> None:
        self.network, self.goals = network, goals
        self.state = nudged(state)
        self.tokens: list[Tensor] = []  # (B,) each
        self.hidden: list[np.ndarray] = []  # (B,D) each, of the rows
        self.other: list[np.ndarray] = []  # (B,D) each, of the copy
        self.stepper: Stepper | None = None
        if len(state.tail) == 1 and Stepper.supports(network):
            self.stepper = Stepper(network, [self.state], goals)

    def follow(self, tokens: Tensor, hidden: np.ndarray) -> None:
        """Take the tokens (B,) that the rows have read, and their hidden states (B,D)."""
        self.tokens.append(tokens)
        self.hidden.append(hidden)
        if self.stepper is not None:
            self.other.append(self.stepper.read(tokens.tolist()).x)

    @property
    def complete(self) -> bool:
        """Whether FOLLOWED tokens have been read."""
        return len(self.tokens) >= FOLLOWED

    def exponents(self) -> list[float]:
        """The exponent of each row (B,), in nats per token; needs two tokens or more."""
        x = torch.from_numpy(np.stack(self.hidden, axis=1)).to(self.state.tail.device)
        if self.stepper is not None:
            return growth(x, torch.from_numpy(np.stack(self.other, axis=1)))
        ids = torch.stack(self.tokens, dim=1)
        return growth(x, self.network.trunk(ids, self.state, self.goals).x)


@torch.inference_mode()
def text_exponents(network: ResoNetwork, ids: Tensor) -> list[float]:
    """The exponent at the end of texts (B,T), in nats per token; 0 for one of under 5 tokens."""
    followed = min(FOLLOWED, ids.shape[1] - 1)
    if followed < 4:
        return [0.0] * len(ids)
    state = network.trunk(ids[:, :-followed], network.init_state(len(ids), ids.shape[1])).state
    last = ids[:, -followed:]
    copy = nudged(state)
    return growth(network.trunk(last, state).x, network.trunk(last, copy).x)


def growth(x: Tensor, other: Tensor) -> list[float]:
    """Exponents (B,) of the distance of states (B,k,D); 0 where they coincide."""
    gaps = torch.linalg.vector_norm(other - x, dim=-1) / torch.linalg.vector_norm(x, dim=-1)
    rates = (gaps[:, -1] / gaps[:, 0]).log() / (gaps.shape[1] - 1)
    return [rate if math.isfinite(rate) else 0.0 for rate in rates.tolist()]


def nudged(state: ResoState) -> ResoState:
    """The state with noise of NUDGE deviations in all its numbers; it shares nothing with it."""
    generator = torch.Generator(state.tail.device).manual_seed(NUDGE_STREAM)

    def noisy(value: Any) -> Any:
        if isinstance(value, KVCache):
            batch, heads, capacity, width = value.buffer.keys.shape
            room = min(capacity, value.length + FOLLOWED)
            keys, values = noisy(value.keys), noisy(value.values)
            return KVCache.empty(batch, heads, room, width, like=keys).append(keys, values)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1:
            size = NUDGE * 3**0.5 * value.std(correction=0)
            return value + size * torch.empty_like(value).uniform_(-1, 1, generator=generator)
        if isinstance(value, tuple):
            parts = [noisy(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    stages = {name: noisy(value) for name, value in state.stages.items() if name != "echo"}
    if "echo" in state.stages:  # acts on the logits alone
        stages["echo"] = state.stages["echo"]
    return state._replace(caches=tuple(map(noisy, state.caches)), stages=stages)
