"""Resonant attention: causal, rotary, query-key normed, with an optional window.

    q, k, v = W x                          (B,T,D) -> (B,H,T,K)
    q, k    = s_h e^{i(t f + gamma theta_t)} norm(q), s'_h e^{i(t f + gamma theta_t)} norm(k)
    y       = W_o softmax(q k^T / sqrt(K)) (v + lambda v_e)

Pairs of a head's components are complex numbers, turned by the token's position t (RoPE, Su 2021,
arXiv 2104.09864) and by its oscillators' phases theta (`rotary.py`): two tokens out of phase by d
see their match turned by gamma d, so tokens in phase attend to each other. norm is RMS norm over K
(query-key norm, Henry 2020, arXiv 2010.04245); s_h s'_h is a temperature per head; v_e is an
optional value per token from a table (value embeddings, modded-nanogpt); W_o and gamma start at
zero. With a window w a token sees itself and the w - 1 tokens before it (Longformer, Beltagy 2020,
arXiv 2004.05150). The one-token form has one query: attention is one pass over the cache.

Shapes: B batch, T time, D width, H heads, K head width.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy import ndarray
from torch import Tensor, nn

from entropy_core.compiled import EPS, compiled, exponential
from reso_llm.config import ResoLLMConfig
from reso_llm.stages.arrays import Matrix, view
from reso_llm.stages.cache import CacheStep, KVCache, Scratch
from reso_llm.stages.fused import linear, rms_norm
from reso_llm.stages.gate import DeepTokens
from reso_llm.stages.rotary import rotate


class AttentionReceived:
    """Attention that each column gets from the `num_new` newest tokens of one row.

    A pass over the whole text that is given one adds to `total` (T,), a sum over layers and heads.
    A layer that was skipped for a token adds nothing for it.
    """

    def __init__(self, num_new: int) -> None:
        self.num_new, self.total = num_new, torch.zeros(())

    def add(self, q: Tensor, k: Tensor, window: int, times: Tensor) -> None:
        """Add one layer: queries (1,H,n,K) of the tokens at `times` (n,), keys (1,H,T,K)."""
        new = times >= k.shape[2] - self.num_new
        weights = _weights(q[:, :, new], k, window, times[new]).sum((0, 1, 2))  # (T,)
        self.total = self.total.to(weights.device) + weights


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
        padding: Tensor | None = None,
        received: AttentionReceived | None = None,
    ) -> tuple[Tensor, KVCache | None]:
        """Normalised x (B,T,D), the rotary table of its tokens -> (B,T,D), cache.

        padding (B,P) marks the columns, of all tokens so far, that a row must not see.
        """
        q, k, v = self.project(x, rotary, value_embedding)
        if received is not None:
            received.add(q, k, self.window, torch.arange(q.shape[2], device=q.device))
        if cache is not None:
            k, v, cache = cache.extended(k, v, self.window)
        y = _attend(q, k, v, self.window, padding)
        return self.out(rearrange(y, "b h t k -> b t (h k)")), cache

    def deep(
        self,
        x: Tensor,
        tokens: DeepTokens,
        rotary: Tensor,
        value_embedding: Tensor | None,
        cache: KVCache | None,
        padding: Tensor | None = None,
        received: AttentionReceived | None = None,
    ) -> tuple[Tensor, KVCache | None]:
        """The attention of the deep tokens alone (N,D); all tokens write keys and values."""
        new = x.shape[1]
        k, v = self.project(x, rotary, value_embedding, first=1)
        if cache is not None:
            k, v, cache = cache.extended(k, v, self.window)
        if not len(tokens.flat):
            return x.new_zeros(0, x.shape[2]), cache
        q = self._deep_queries(x, tokens, rotary)  # (B,H,n,K)
        times = tokens.time.new_zeros(len(x), tokens.num_slots)
        times[tokens.row, tokens.slot] = tokens.time
        times += k.shape[2] - new
        if received is not None:
            received.add(q, k, self.window, times[0])
        mask = _seen(times.unsqueeze(-1), k.shape[2], self.window)  # (B,n,T)
        if padding is not None:
            mask = mask & ~padding[:, None, padding.shape[1] - k.shape[2] :]
            mask = mask | ~mask.any(-1, keepdim=True)  # a slot that no token has taken
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(1))
        return self.out(rearrange(y, "b h n k -> b n (h k)")[tokens.row, tokens.slot]), cache

    def _deep_queries(self, x: Tensor, tokens: DeepTokens, rotary: Tensor) -> Tensor:
        """Queries (B,H,n,K) of the deep tokens, zero in slots that no token has taken."""
        heads, D = self.num_heads, x.shape[-1]
        q = F.linear(x.flatten(0, 1)[tokens.flat], self.qkv[0]).view(1, -1, heads, D // heads)
        q = rms_norm(q)
        if self.temperature is not None:
            q = q * self.temperature[:heads]
        turns = rotary[tokens.time] if rotary.ndim == 3 else rotary[tokens.row, tokens.time, 0]
        q = rotate(q, turns)[0]  # (N,H,K)
        slots = q.new_zeros(len(x), tokens.num_slots, heads, D // heads)
        return slots.index_put((tokens.row, tokens.slot), q).transpose(1, 2)

    def project(
        self, x: Tensor, rotary: Tensor, value_embedding: Tensor | None, first: int = 0
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values (B,H,T,K), normed and turned; from `first` = 1, no queries."""
        heads = self.num_heads
        parts = F.linear(x, rearrange(self.qkv[first:], "part out d -> (part out) d"))
        parts = rearrange(parts, "b t (parts k) -> b t parts k", k=x.shape[-1] // heads)
        qk, v = parts[:, :, :-heads], parts[:, :, -heads:]  # (B,T,2H or H,K), (B,T,H,K)
        if value_embedding is not None:
            v = torch.addcmul(v, self.value_mix, value_embedding.view_as(v))
        qk = rms_norm(qk)
        if self.temperature is not None:
            qk = qk * self.temperature[first * heads :]
        qk = rotate(qk, rotary)  # both at once: half the kernels
        qk, v = (rearrange(part, "b t h k -> b h t k") for part in (qk, v))
        return *qk.chunk(2 - first, dim=1), v


def _seen(times: Tensor, total: int, window: int) -> Tensor:
    """Which of `total` columns the tokens at `times` (...,1) see: (...,total) bool."""
    columns = torch.arange(total, device=times.device)
    seen = columns <= times
    return seen & (columns > times - window) if window else seen


def _weights(q: Tensor, k: Tensor, window: int, times: Tensor) -> Tensor:
    """Causal attention weights (1,H,n,T) of the tokens at `times` (n,)."""
    scores = q.float() @ k.float().mT * k.shape[-1] ** -0.5
    seen = _seen(times.unsqueeze(-1), k.shape[2], window)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def _attend(q: Tensor, k: Tensor, v: Tensor, window: int, padding: Tensor | None = None) -> Tensor:
    """Causal attention of the last T positions over all of them, or over `window` of them."""
    time, total = q.shape[2], k.shape[2]
    unlimited = padding is None and (not window or total <= window)
    if time == 1 and unlimited:
        return F.scaled_dot_product_attention(q, k, v)
    if time == total and unlimited:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    times = torch.arange(total - time, total, device=q.device).unsqueeze(-1)
    mask = _seen(times, total, window)
    if padding is not None:  # the keys are the newest columns
        mask = mask & ~padding[:, None, None, padding.shape[1] - total :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class AttentionStep:
    """One-token form of `Attention`: normalised x (R,D) and its turn -> what is added to x."""

    def __init__(self, module: Attention, caches: Sequence[CacheStep], scratch: Scratch) -> None:
        self.heads, self.caches, self.scratch = module.num_heads, caches, scratch
        D = module.qkv.shape[-1]
        qkv = module.qkv.flatten(0, 1)  # (3D,D), a view in the module's layout
        self.project, self.project_kv = (Matrix(module.qkv, part) for part in (qkv, qkv[D:]))
        self.out = Matrix(module.out.weight)
        self.value_mix = np.float32(0 if module.value_mix is None else module.value_mix.item())
        # Scale of a head: its temperature; queries take the 1 / sqrt(K) of attention too.
        self.scale = np.ones(2 * self.heads, np.float32)
        self.scale[: self.heads] = (D // self.heads) ** -0.5
        if module.temperature is not None:
            self.scale *= view(module.temperature)[:, 0]

    def __call__(
        self,
        turn: ndarray,
        value: ndarray | None,
        deep: Sequence[int],
        received: Sequence[ndarray] | None,
    ) -> ndarray | None:
        """Every row of `scratch.normed` writes its keys and values; the `deep` ones attend.

        turn (R,K/2,2), value embedding (R,D). Returns (deep,D), None where none is deep.
        The attention that the columns of a row get is added to the end of its array of `received`.
        """
        s = self.scratch
        if deep:
            projected, scale = self.project(s.normed, out=s.all), self.scale
        else:
            projected, scale = self.project_kv(s.normed, out=s.written), self.scale[self.heads :]
        value = projected[:, :0] if value is None else value
        seen = []
        for row, cache in enumerate(self.caches):
            place, first = cache.grow()
            remember(
                projected[row], scale, turn[row], value[row], self.value_mix,
                cache.keys, cache.values, place,
            )  # fmt: skip
            seen.append((cache, first, place + 1))
        if not deep:
            return None
        for i, row in enumerate(deep):
            cache, first, end = seen[row]
            columns = NO_COLUMNS if received is None else received[row]
            attend(projected[row], cache.keys, cache.values, first, end, s.mixed[i], columns)
        return self.out(s.mixed[: len(deep)], out=s.out[: len(deep)])


NO_COLUMNS = np.empty(0, np.float32)


@compiled
def remember(projected, scale, turn, value, value_mix, keys, values, place):
    """Norm and turn the heads of a token, in place; keep keys and values (H,capacity,K) at place.

    projected: (H,K) of queries, where there are any, of keys and of values; scale one of each head
    but the last H; turn (K/2,2); value embedding (D,), or nothing.
    """
    H, _, K = keys.shape
    turned = len(scale)
    for h in range(turned):
        head = projected[h * K : (h + 1) * K]
        total = np.float32(0)
        for i in range(K):
            total += head[i] * head[i]
        size = scale[h] / np.sqrt(total / np.float32(K) + EPS)
        for i in range(K // 2):
            x, y = head[2 * i] * size, head[2 * i + 1] * size
            head[2 * i] = x * turn[i, 0] - y * turn[i, 1]
            head[2 * i + 1] = x * turn[i, 1] + y * turn[i, 0]
    key, val = projected[(turned - H) * K : turned * K], projected[turned * K :]
    for i in range(len(value)):
        val[i] += value_mix * value[i]
    for h in range(H):
        for i in range(K):
            keys[h, place, i] = key[h * K + i]
            values[h, place, i] = val[h * K + i]


@compiled
def attend(query, keys, values, first, end, mixed, received):
    """Mix the values of the tokens first ... end - 1 for a query: (H,capacity,K) -> mixed (D,).

    The query is the first D of projections. The columns' weights are added to the end of received.
    """
    H, _, K = keys.shape
    n = end - first
    weights = np.empty(n, np.float32)
    for h in range(H):
        q, out = query[h * K : (h + 1) * K], mixed[h * K : (h + 1) * K]
        top = np.float32(-np.inf)
        for t in range(n):
            key, score = keys[h, first + t], np.float32(0)
            for i in range(K):
                score += q[i] * key[i]
            weights[t] = score
            top = max(top, score)
        total = np.float32(0)
        for t in range(n):
            weights[t] = exponential(weights[t] - top)
            total += weights[t]
        for i in range(K):
            out[i] = 0
        for t in range(n):
            value, weight = values[h, first + t], weights[t]
            for i in range(K):
                out[i] += weight * value[i]
        share = np.float32(1) / total
        for i in range(K):
            out[i] *= share
        if len(received):
            columns = received[len(received) - n :]
            for t in range(n):
                columns[t] += weights[t] * share
