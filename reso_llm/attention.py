"""Causal self-attention with rotary positions, query-key norm and a preallocated cache.

    q, k, v = W x            (B,T,D) -> (B,H,T,K)
    q, k    = R_t norm(q), R_t norm(k)
    y       = W_o softmax(q k^T / sqrt(K)) (v + lambda v_e)

R_t rotates by the token's position (RoPE, Su 2021, arXiv 2104.09864); norm is RMS norm over K
(query-key norm, Henry 2020, arXiv 2010.04245); v_e is an optional per-token value from a table
(value embeddings, modded-nanogpt). W_o starts at zero, so a new block is the identity.

Shapes: B batch, T time, D width, H heads, K head width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reso_llm.fused import linear, rms_norm


class KVBuffer:
    """Storage behind `KVCache`: keys and values (B,H,capacity,K), and how far it is written."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.written = 0


class KVCache(NamedTuple):
    """Keys and values of the `length` tokens seen so far: a value, safe to keep and to fork.

    Appending writes into the shared buffer only where nobody has written yet; a cache that was
    continued before copies itself first. So one line of decoding never copies, and two
    continuations of one state never see each other.
    """

    buffer: KVBuffer
    length: int

    @classmethod
    def empty(cls, batch: int, heads: int, capacity: int, width: int, like: Tensor) -> "KVCache":
        """A cache for `capacity` tokens with the dtype and device of `like`."""
        shape = (batch, heads, capacity, width)
        return cls(KVBuffer(like.new_empty(shape), like.new_empty(shape)), 0)

    def append(self, keys: Tensor, values: Tensor) -> "KVCache":
        """The cache with (B,H,T,K) more; the caller checks the capacity."""
        end = self.length + keys.shape[2]
        buffer = self.buffer
        if buffer.written != self.length:
            fork = KVBuffer(torch.empty_like(buffer.keys), torch.empty_like(buffer.values))
            fork.keys[:, :, : self.length] = buffer.keys[:, :, : self.length]
            fork.values[:, :, : self.length] = buffer.values[:, :, : self.length]
            buffer = fork
        buffer.keys[:, :, self.length : end] = keys
        buffer.values[:, :, self.length : end] = values
        buffer.written = end
        return KVCache(buffer, end)

    @property
    def keys(self) -> Tensor:
        return self.buffer.keys[:, :, : self.length]

    @property
    def values(self) -> Tensor:
        return self.buffer.values[:, :, : self.length]


def rotary_table(length: int, width: int, base: float) -> Tensor:
    """cos and sin of position * base^(-2i/K), (length, K/2, 2)."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs (x_{2i}, x_{2i+1}) of (B,T,H,K) by the angles of a (T,K/2,2) table.

    One complex product: a third of the time of the four real ones.
    """
    if x.dtype.itemsize < 4:  # there is no bfloat16 complex number
        return rotate(x.float(), table.float()).to(x.dtype)
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    turned = pairs * torch.view_as_complex(table).unsqueeze(1)
    return torch.view_as_real(turned).flatten(-2)


class Attention(nn.Module):
    """Multi-head causal attention; see the module's docstring."""

    def __init__(self, dim: int, num_heads: int, has_value_embedding: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        # Apart, so that Muon sees three maps; in memory the input comes first, as in `linear`.
        self.qkv = nn.Parameter(torch.empty(dim, 3, dim).permute(1, 2, 0))
        self.out = linear(dim, dim)
        self.value_mix = nn.Parameter(torch.empty(())) if has_value_embedding else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform input projection of deviation 1/sqrt(D), zero output projection."""
        bound = (3 / self.qkv.shape[-1]) ** 0.5
        nn.init.uniform_(self.qkv, -bound, bound)
        nn.init.zeros_(self.out.weight)
        if self.value_mix is not None:
            nn.init.constant_(self.value_mix, 0.5)

    def forward(
        self,
        x: Tensor,
        rotary: Tensor,
        value_embedding: Tensor | None,
        cache: KVCache | None,
    ) -> tuple[Tensor, KVCache | None]:
        """x (B,T,D) normalised input; rotary table of these T positions; -> (B,T,D), cache."""
        batch, time, dim = x.shape
        heads = self.num_heads
        qkv = F.linear(x, self.qkv.flatten(0, 1)).view(batch, time, 3 * heads, -1)  # (B,T,3H,K)
        qk, v = qkv[:, :, : 2 * heads], qkv[:, :, 2 * heads :]
        if value_embedding is not None:
            v = torch.addcmul(v, self.value_mix, value_embedding.view_as(v))
        qk = rotate(rms_norm(qk), rotary)  # both at once: half the kernels
        q, k = qk.transpose(1, 2).chunk(2, dim=1)  # (B,H,T,K)
        v = v.transpose(1, 2)
        if cache is not None:
            cache = cache.append(k, v)
            k, v = cache.keys, cache.values
        y = _attend(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, time, dim)), cache


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of the last T positions over all of them."""
    time, total = q.shape[2], k.shape[2]
    if time == total:
        return F.scaled_dot_product_attention(q, k, v, is_causal=time > 1)
    if time == 1:
        return F.scaled_dot_product_attention(q, k, v)
    mask = torch.ones(time, total, dtype=torch.bool, device=q.device).tril(total - time)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
