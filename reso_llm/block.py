"""ResoFormer block: pre-norm attention and feed-forward around a residual stream.

    x = a x + b x_0
    x = x + attention(norm x)
    x = x + W_2 relu(W_1 norm x)^2

x_0 is the embedding, mixed back in by two learned scalars per block (modded-nanogpt); squared
ReLU is Primer (So 2021, arXiv 2109.08668). W_2 starts at zero.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reso_llm.attention import Attention, KVCache
from reso_llm.config import ResoLLMConfig
from reso_llm.fused import linear, relu_squared, rms_norm


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

    def forward(self, x: Tensor) -> Tensor:
        return self.down(relu_squared(self.up(x)))


class Block(nn.Module):
    """One layer of the model; see the module's docstring."""

    def __init__(self, config: ResoLLMConfig, has_value_embedding: bool) -> None:
        super().__init__()
        self.attention = Attention(config.dim, config.num_heads, has_value_embedding)
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
    ) -> tuple[Tensor, KVCache | None]:
        """Residual stream x and embedding x0 (B,T,D) -> (B,T,D) and the longer cache."""
        x = torch.addcmul(self.keep * x, self.bring, x0)
        y, cache = self.attention(rms_norm(x), rotary, value_embedding, cache)
        x = x + self._dropped(y)
        return x + self._dropped(self.feed_forward(rms_norm(x))), cache

    def _dropped(self, y: Tensor) -> Tensor:
        return F.dropout(y, self.dropout) if self.training and self.dropout else y
