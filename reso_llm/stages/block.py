"""ResoFormer block: pre-norm attention and feed-forward around a residual stream.

    x = a x + b x_0
    x = x + g attention(norm x)
    x = x + g W_2 relu(W_1 norm x + n)^2

x_0 is the embedding, mixed back in by two learned scalars per block (modded-nanogpt); squared
ReLU is Primer (So 2021, arXiv 2109.08668). W_2 starts at zero. g is what the coherence gate leaves
of this layer (`gate.py`; 1 without it); n is the noise of stochastic resonance (`noise.py`; none
without it). Where g is zero for every row, only keys and values are computed.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from reso_llm.config import ResoLLMConfig
from reso_llm.stages import arrays
from reso_llm.stages.arrays import matrix, scalar, view
from reso_llm.stages.attention import Attention, AttentionStep
from reso_llm.stages.cache import Cache, KVCache, Scratch
from reso_llm.stages.fused import linear, relu_squared, rms_norm
from reso_llm.stages.gate import CoherenceGate, GateStep
from reso_llm.stages.noise import FeedForwardNoise


class FeedForward(nn.Module):
    """Two linear maps around a squared ReLU, (B,T,D) -> (B,T,D)."""

    def __init__(self, dim: int, multiplier: int) -> None:
        super().__init__()
        self.up = linear(dim, multiplier * dim)
        self.down = linear(multiplier * dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform input map of deviation 1/sqrt(D), zero output map."""
        bound = (3 / self.up.in_features) ** 0.5
        nn.init.uniform_(self.up.weight, -bound, bound)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, noise: FeedForwardNoise | None = None) -> Tensor:
        hidden = self.up(x)
        return self.down(relu_squared(hidden if noise is None else noise(hidden)))


class Shared(NamedTuple):
    """What all blocks of a pass read: x_0 (B,T,D), rotary table, r (B,T), noise, padding."""

    x0: Tensor
    rotary: Tensor
    coherence: Tensor | None
    noise: FeedForwardNoise | None
    hidden: Tensor | None  # (B,P) columns that a row must not see


class Block(nn.Module):
    """One layer of the model; see the module's docstring."""

    def __init__(self, config: ResoLLMConfig, has_value_embedding: bool, has_gate: bool) -> None:
        super().__init__()
        self.gate = CoherenceGate(config) if has_gate else None
        self.attention = Attention(config, has_value_embedding)
        self.feed_forward = FeedForward(config.dim, config.ffn_multiplier)
        self.keep = nn.Parameter(torch.empty(()))
        self.bring = nn.Parameter(torch.empty(()))
        self.dropout = config.dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the identity: all of x, none of x_0."""
        nn.init.ones_(self.keep)
        nn.init.zeros_(self.bring)

    def forward(
        self,
        x: Tensor,
        shared: Shared,
        value: Tensor | None,
        cache: KVCache | None,
        left: Tensor | None,
    ) -> tuple[Tensor, KVCache | None, Tensor | None]:
        """x (B,T,D), value embedding, cache and what the gate left of the layer before (B,T,1)."""
        x = torch.addcmul(self.keep * x, self.bring, shared.x0)
        normed = rms_norm(x)
        if self.gate is not None:
            left = self.gate(normed, shared.coherence, left)
            if cache is not None and not left.any():
                return x, self.attention.write(normed, shared.rotary, value, cache), left
        y, cache = self.attention(normed, shared.rotary, value, cache, shared.hidden)
        x = self._add(x, y, left)
        return self._add(x, self.feed_forward(rms_norm(x), shared.noise), left), cache, left

    def _add(self, x: Tensor, y: Tensor, left: Tensor | None) -> Tensor:
        y = F.dropout(y, self.dropout) if self.training and self.dropout else y
        return x + y if left is None else torch.addcmul(x, left, y)


ZERO = scalar(0.0)


class BlockStep:
    """`Block`: one layer, which changes x (D,) in place."""

    def __init__(self, module: nn.Module, cache: Cache, scratch: Scratch) -> None:
        self.scratch = scratch
        self.gate = None if module.gate is None else GateStep(module.gate)
        self.attention = AttentionStep(module.attention, cache, scratch)
        self.up, self.down = matrix(module.feed_forward.up), matrix(module.feed_forward.down)
        self.keep, self.bring = view(module.keep), view(module.bring)

    def __call__(
        self,
        x: ndarray,
        x0: ndarray,
        turn: ndarray,
        value: ndarray | None,
        coherence: float,
        left: float,
    ) -> float:
        """What the gate left of this layer, given what it left of the one before."""
        s = self.scratch
        x *= self.keep
        x += np.multiply(x0, self.bring, out=s.out)
        arrays.rms_norm(x, out=s.normed)
        if self.gate is not None:
            left = self.gate(s.normed, coherence, left)
            if left == 0:
                self.attention.write(turn, value)
                return left
        self._add(x, self.attention(turn, value), left)
        arrays.rms_norm(x, out=s.normed)
        self._add(x, self._feed_forward(), left)
        return left

    def _feed_forward(self) -> ndarray:
        s = self.scratch
        hidden = np.dot(s.normed, self.up, out=s.hidden)
        np.maximum(hidden, ZERO, out=hidden)
        hidden *= hidden
        return np.dot(hidden, self.down, out=s.out)

    @staticmethod
    def _add(x: ndarray, y: ndarray, left: float) -> None:
        if left != 1:
            y *= left
        x += y
