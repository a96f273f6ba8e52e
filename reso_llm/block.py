"""ResoFormer block: pre-norm attention and feed-forward around a residual stream.

    x = a x + b x_0
    x = x + g attention(norm x)
    x = x + g W_2 relu(W_1 norm x + n)^2

x_0 is the embedding, mixed back in by two learned scalars per block (modded-nanogpt); squared
ReLU is Primer (So 2021, arXiv 2109.08668). W_2 starts at zero. g is what the coherence gate leaves
of this layer (`gate.py`; 1 without it); n is the noise of stochastic resonance (`noise.py`; none
without it). Where g is zero for every row, only keys and values are computed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reso_llm.attention import Attention, KVCache
from reso_llm.config import ResoLLMConfig
from reso_llm.fused import linear, relu_squared, rms_norm
from reso_llm.noise import FeedForwardNoise


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


class Block(nn.Module):
    """One layer of the model; see the module's docstring."""

    def __init__(self, config: ResoLLMConfig, has_value_embedding: bool) -> None:
        super().__init__()
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
        x0: Tensor,
        rotary: Tensor,
        value_embedding: Tensor | None,
        cache: KVCache | None,
        goal: Tensor | None = None,
        gate: Tensor | None = None,
        noise: FeedForwardNoise | None = None,
    ) -> tuple[Tensor, KVCache | None]:
        """Residual stream x and embedding x0 (B,T,D) -> (B,T,D) and the longer cache."""
        x = torch.addcmul(self.keep * x, self.bring, x0)
        if gate is not None and cache is not None and not gate.any():
            return x, self.attention.write(rms_norm(x), rotary, value_embedding, cache)
        y, cache = self.attention(rms_norm(x), rotary, value_embedding, cache, goal)
        x = self._add(x, y, gate)
        return self._add(x, self.feed_forward(rms_norm(x), noise), gate), cache

    def _add(self, x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
        y = F.dropout(y, self.dropout) if self.training and self.dropout else y
        return x + y if gate is None else torch.addcmul(x, gate, y)
