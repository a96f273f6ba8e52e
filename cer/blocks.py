"""The refinement block: self-attention and feed-forward on a residual state, with dropout.

    z <- z + MHA(LN1 z),   z <- z + FFN(LN2 z),   FFN(u) = W2 gelu(W1 u)

Vaswani et al. 2017, pre-norm. Shapes: B batch, S positions (not causal), D width, H heads, K = D/H.
The parameters are drawn in the order of torch's own modules, so that a seed gives the weights of
the published reactor. Dropout takes its generator as an argument.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def dropout(x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """Zero each entry with probability p and scale the rest: (...) -> (...).

    Draws what `F.dropout` draws; generator None is torch's global one.
    """
    if p == 0.0:
        return x
    keep = torch.empty_like(x).bernoulli_(1 - p, generator=generator).div_(1 - p)
    if torch.is_grad_enabled() and x.requires_grad:
        return x * keep
    return keep.mul_(x)  # in place: memory for a second result costs as much as the product


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions: (B,S,D) -> (B,S,D).

    Parameters and values are those of `nn.MultiheadAttention(D, H, p, batch_first=True)`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.out = nn.Linear(dim, dim)  # drawn before the packed projection, as torch does
        self.in_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_bias = nn.Parameter(torch.zeros(3 * dim))
        nn.init.xavier_uniform_(self.in_weight)
        nn.init.zeros_(self.out.bias)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values: (B,S,D) -> three of (B,H,S,K)."""
        packed = F.linear(x, self.in_weight, self.in_bias)
        heads = rearrange(packed, "b s (n h k) -> n b h s k", n=3, h=self.num_heads)
        return heads.unbind(0)

    def merge(self, mixed: Tensor) -> Tensor:
        """Output projection of the heads side by side: (B,H,S,K) -> (B,S,D)."""
        return self.out(rearrange(mixed, "b h s k -> b s (h k)"))

    def forward(self, x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
        q, k, v = self.heads(x)
        if p == 0.0:
            return self.merge(F.scaled_dot_product_attention(q, k, v))
        weights = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)  # (B,H,S,S)
        return self.merge(dropout(weights, p, generator) @ v)


class FeedForward(nn.Module):
    """Two layers with GELU between, four times as wide: (B,S,D) -> (B,S,D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
        inner = dropout(F.gelu(self.up(x)), p, generator)
        return dropout(self.down(inner), p, generator)


class RefinementBlock(nn.Module):
    """One pre-norm step of attention and feed-forward: (B,S,D) -> (B,S,D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads)
        self.ffn = FeedForward(dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, z: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
        z = self.attention(self.attention_norm(z), p, generator).add_(z)
        return self.ffn(self.ffn_norm(z), p, generator).add_(z)
