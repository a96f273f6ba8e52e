"""ResoFormer block: pre-norm attention and feed-forward around a residual stream.

    x = a x + b x_0                                       residual_scale a, input_scale b
    x = x + g attention(norm x)
    x = x + g W_2 relu(W_1 norm x + n)^2

x_0 is the embedding, mixed back in by two learned scalars per block (modded-nanogpt); squared
ReLU is Primer (So 2021, arXiv 2109.08668). W_2 starts at zero. g is the share of this layer that
the coherence gate leaves (`gate.py`; 1 without it); n is the noise of stochastic resonance
(`noise.py`; none without it). Where g is zero for every row, only keys and values are computed.

Shapes: B batch, T time, D width, F hidden width.
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
from reso_llm.stages.attention import Attention, AttentionReceived, AttentionStep
from reso_llm.stages.cache import CacheStep, KVCache, Scratch
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
    """Inputs that all blocks share: x_0 (B,T,D), rotary table, r (B,T), noise, padding.

    received, if given, sums up the attention of all layers.
    """

    x0: Tensor
    rotary: Tensor
    coherence: Tensor | None
    noise: FeedForwardNoise | None
    padding: Tensor | None  # (B,P) columns that a row must not see
    received: AttentionReceived | None = None


class Block(nn.Module):
    """One layer of the model; see the module's docstring."""

    def __init__(self, config: ResoLLMConfig, has_value_embedding: bool, has_gate: bool) -> None:
        super().__init__()
        self.gate = CoherenceGate(config) if has_gate else None
        self.attention = Attention(config, has_value_embedding)
        self.feed_forward = FeedForward(config.dim, config.ffn_multiplier)
        self.residual_scale = nn.Parameter(torch.empty(()))
        self.input_scale = nn.Parameter(torch.empty(()))
        self.dropout = config.dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the identity: all of x, none of x_0."""
        nn.init.ones_(self.residual_scale)
        nn.init.zeros_(self.input_scale)

    def forward(
        self,
        x: Tensor,
        shared: Shared,
        value: Tensor | None,
        cache: KVCache | None,
        share: Tensor | None,
    ) -> tuple[Tensor, KVCache | None, Tensor | None]:
        """x (B,T,D), value embedding, cache, share (B,T,1) of the layer before -> the next ones."""
        # Mix the embedding back in.
        x = torch.addcmul(self.residual_scale * x, self.input_scale, shared.x0)
        normed = rms_norm(x)
        # The gate sets the share of the layer; one that no row uses writes keys and values only.
        if self.gate is not None:
            share = self.gate(normed, shared.coherence, share)
            if cache is not None and not share.any():
                return x, self.attention.write(normed, shared.rotary, value, cache), share
        # Attention, then feed-forward.
        y, cache = self.attention(
            normed, shared.rotary, value, cache, shared.padding, shared.received, share
        )
        x = self._add(x, y, share)
        return self._add(x, self.feed_forward(rms_norm(x), shared.noise), share), cache, share

    def _add(self, x: Tensor, y: Tensor, share: Tensor | None) -> Tensor:
        y = F.dropout(y, self.dropout) if self.training and self.dropout else y
        return x + y if share is None else torch.addcmul(x, share, y)


ZERO = scalar(0.0)


class BlockStep:
    """One-token form of `Block`: one layer, which changes x (D,) in place."""

    def __init__(self, module: Block, cache: CacheStep, scratch: Scratch) -> None:
        self.scratch = scratch
        self.gate = None if module.gate is None else GateStep(module.gate)
        self.attention = AttentionStep(module.attention, cache, scratch)
        self.up, self.down = matrix(module.feed_forward.up), matrix(module.feed_forward.down)
        self.residual_scale = view(module.residual_scale)
        self.input_scale = view(module.input_scale)

    def __call__(
        self,
        x: ndarray,
        x0: ndarray,
        turn: ndarray,
        value: ndarray | None,
        coherence: float,
        share: float,
    ) -> float:
        """The share of this layer, given that of the one before."""
        s = self.scratch
        x *= self.residual_scale
        x += np.multiply(x0, self.input_scale, out=s.out)
        arrays.rms_norm(x, out=s.normed)
        if self.gate is not None:
            share = self.gate(s.normed, coherence, share)
            if share == 0:
                self.attention.write(turn, value)
                return share
        self._add(x, self.attention(turn, value), share)
        arrays.rms_norm(x, out=s.normed)
        self._add(x, self._feed_forward(), share)
        return share

    def _feed_forward(self) -> ndarray:
        s = self.scratch
        hidden = np.dot(s.normed, self.up, out=s.hidden)
        np.maximum(hidden, ZERO, out=hidden)
        hidden *= hidden
        return np.dot(hidden, self.down, out=s.out)

    @staticmethod
    def _add(x: ndarray, y: ndarray, share: float) -> None:
        if share != 1:
            y *= share
        x += y
