"""Resonant attention: causal, rotary, query-key normed, with an optional window.

    q, k, v = W x                          (B,T,D) -> (B,H,T,K)
    q, k    = s_h e^{i(t f + gamma theta_t)} norm(q), s'_h e^{i(t f + gamma theta_t)} norm(k)
    y       = W_o softmax(q k^T / sqrt(K)) (v + lambda v_e)

Pairs of a head's components are complex numbers, turned by the token's position t (RoPE, Su 2021,
arXiv 2104.09864) and by its oscillators' phases theta: a pair of tokens out of phase by d sees its
match turned by gamma d, so tokens in phase attend to each other. norm is RMS norm over K (query-key
norm, Henry 2020, arXiv 2010.04245); s_h s'_h is a temperature per head; v_e is an optional value
per token from a table (value embeddings, modded-nanogpt); W_o starts at zero, and so does gamma
(`phase_gain`, of the model). With a window w a token sees itself and the
w - 1 tokens before it (Longformer, Beltagy 2020, arXiv 2004.05150).

Shapes: B batch, T time, D width, H heads, K head width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reso_llm.config import ResoLLMConfig
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

    def extended(self, keys: Tensor, values: Tensor, window: int) -> "Extended":
        """All keys and values the (B,H,T,K) new tokens may see, and the cache after them.

        With a window the buffer stays as large as it was made, at least 2 * window tokens to move
        rarely: what no later token can see is dropped.
        """
        time, capacity = keys.shape[2], self.buffer.keys.shape[2]
        if not window or self.length + time <= capacity:
            cache = self.append(keys, values)
            first = max(0, cache.length - (window + time - 1)) if window else 0
            return Extended(cache.keys[:, :, first:], cache.values[:, :, first:], cache)
        seen = slice(max(0, self.length - (window - 1)), None)
        keys = torch.cat((self.keys[:, :, seen], keys), dim=2)
        values = torch.cat((self.values[:, :, seen], values), dim=2)
        batch, heads, _, width = keys.shape
        fresh = KVCache.empty(batch, heads, capacity, width, like=keys)
        kept = slice(max(0, keys.shape[2] - (window - 1)), None)
        return Extended(keys, values, fresh.append(keys[:, :, kept], values[:, :, kept]))

    @property
    def keys(self) -> Tensor:
        return self.buffer.keys[:, :, : self.length]

    @property
    def values(self) -> Tensor:
        return self.buffer.values[:, :, : self.length]


class Extended(NamedTuple):
    """Keys and values (B,H,n,K) that new tokens see, and the cache that holds what is kept."""

    keys: Tensor
    values: Tensor
    cache: KVCache


def rotary_table(start: int, end: int, width: int, base: float) -> Tensor:
    """cos and sin of position * base^(-2i/K) for positions start ... end - 1: (T, K/2, 2).

    base = phi^(K/2) gives the golden ladder: each frequency is 1/phi of the one before, from a turn
    in 6.3 tokens to, for the upper half of a wide head, none at all.
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


class Attention(nn.Module):
    """Multi-head causal attention; see the module's docstring."""

    def __init__(self, config: ResoLLMConfig, has_value_embedding: bool) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads, self.window = config.num_heads, config.attention_window
        # Apart, so that Muon sees three maps; in memory the input comes first, as in `linear`.
        self.qkv = nn.Parameter(torch.empty(dim, 3, dim).permute(1, 2, 0))
        self.out = linear(dim, dim)
        self.value_mix = nn.Parameter(torch.empty(())) if has_value_embedding else None
        resonant = config.resonant_attention.enabled
        self.temperature = nn.Parameter(torch.empty(2 * self.num_heads, 1)) if resonant else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform input projection of deviation 1/sqrt(D), zero output projection."""
        bound = (3 / self.qkv.shape[-1]) ** 0.5
        nn.init.uniform_(self.qkv, -bound, bound)
        nn.init.zeros_(self.out.weight)
        if self.value_mix is not None:
            nn.init.constant_(self.value_mix, 0.5)
        if self.temperature is not None:
            nn.init.ones_(self.temperature)

    def forward(
        self,
        x: Tensor,
        rotary: Tensor,
        value_embedding: Tensor | None,
        cache: KVCache | None,
        hidden: Tensor | None = None,
    ) -> tuple[Tensor, KVCache | None]:
        """Normalised x (B,T,D), the rotary table of its tokens -> (B,T,D), cache.

        hidden (B,P): columns of all tokens so far that a row must not see, its padding.
        """
        batch, time, dim = x.shape
        q, k, v = self._project(x, rotary, value_embedding)
        if cache is not None:
            k, v, cache = cache.extended(k, v, self.window)
        y = _attend(q, k, v, self.window, hidden)
        return self.out(y.transpose(1, 2).reshape(batch, time, dim)), cache

    def write(
        self, x: Tensor, rotary: Tensor, value_embedding: Tensor | None, cache: KVCache
    ) -> KVCache:
        """The cache with keys and values of tokens that skip this layer's attention."""
        k, v = self._project(x, rotary, value_embedding, first=1)
        return cache.extended(k, v, self.window).cache

    def _project(
        self, x: Tensor, rotary: Tensor, value_embedding: Tensor | None, first: int = 0
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values (B,H,T,K), normed and turned; from `first` = 1, no queries."""
        batch, time, _ = x.shape
        heads = self.num_heads
        parts = F.linear(x, self.qkv[first:].flatten(0, 1)).view(
            batch, time, -1, x.shape[-1] // heads
        )
        qk, v = parts[:, :, :-heads], parts[:, :, -heads:]  # (B,T,2H or H,K), (B,T,H,K)
        if value_embedding is not None:
            v = torch.addcmul(v, self.value_mix, value_embedding.view_as(v))
        qk = rms_norm(qk)
        if self.temperature is not None:
            qk = qk * self.temperature[first * heads :]
        qk = rotate(qk, rotary)  # both at once: half the kernels
        return *qk.transpose(1, 2).chunk(2 - first, dim=1), v.transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, window: int, hidden: Tensor | None = None) -> Tensor:
    """Causal attention of the last T positions over all of them, or over `window` of them."""
    time, total = q.shape[2], k.shape[2]
    unlimited = hidden is None and (not window or total <= window)
    if time == 1 and unlimited:
        return F.scaled_dot_product_attention(q, k, v)
    if time == total and unlimited:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = torch.ones(time, total, dtype=torch.bool, device=q.device).tril(total - time)
    if window:
        mask = mask.triu(total - time - window + 1)
    if hidden is not None:  # the keys are the newest columns
        mask = mask & ~hidden[:, None, None, hidden.shape[1] - total :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
