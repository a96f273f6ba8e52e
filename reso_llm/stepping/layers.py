"""The ResoFormer block for one more token: `reso_llm.block`, `attention` and `gate` in numpy.

    y = W_o softmax(q K^T / sqrt(K)) V          one query, so two products over the cache

The equations are those of the torch modules, which are the twins of the tests. All layers run in
turn in one `Scratch`; x (D,) is changed in place.

Shapes: D width, H heads, K head width, F hidden width, n tokens in the cache.
"""

import math

import numpy as np
from numpy import ndarray
from torch import nn

from reso_llm.config import ResoLLMConfig
from reso_llm.stepping.arrays import EPS, matrix, rms_norm, row_squares, scalar, view

ZERO = scalar(0.0)


class Scratch:
    """Arrays that every layer writes anew, and their views."""

    def __init__(self, config: ResoLLMConfig) -> None:
        D, H, K = config.dim, config.num_heads, config.head_dim
        self.normed, self.out = np.empty(D, np.float32), np.empty(D, np.float32)
        self.hidden = np.empty(config.ffn_multiplier * D, np.float32)
        self.qkv = np.empty(3 * D, np.float32)
        self.qk, self.v = self.qkv[: 2 * D].reshape(2 * H, K), self.qkv[2 * D :]
        self.k = self.qk[H:]
        self.pairs = self.qk.view(np.complex64)  # (2H,K/2)
        self.query = self.qk[:H, None, :]  # (H,1,K)
        self.value = self.v.reshape(H, K)
        self.mixed = np.empty(D, np.float32)
        self.heads = self.mixed.reshape(H, 1, K)
        # Attention received by the columns up to the newest one, where somebody wants to know.
        self.received: ndarray | None = None


class Cache:
    """`KVCache` with the same rules: write where nobody has written yet, or copy first.

    So the state that a stepper began with stays as it was, whoever goes on with it. The first
    `hidden` tokens are padding, which no query sees.
    """

    def __init__(self, given: tuple, window: int, hidden: int) -> None:
        self._given, self.window, self.hidden = given, window, hidden
        self.length = given.length
        self._take(given.buffer)

    def _take(self, buffer) -> None:
        self.buffer = buffer
        self.keys, self.values = view(buffer.keys)[0], view(buffer.values)[0]  # (H,capacity,K)
        self.turned_keys = self.keys.transpose(0, 2, 1)  # (H,K,capacity)

    def append(self, key: ndarray, value: ndarray) -> None:
        """Take (H,K) of one more token; without a window the caller checks the capacity."""
        full = self.length == self.keys.shape[1]
        if full or self.buffer.written != self.length:
            self._move(self.window - 1 if full else self.length)
        self.keys[:, self.length], self.values[:, self.length] = key, value
        self.length += 1
        self.buffer.written = self.length

    def _move(self, kept: int) -> None:
        """To memory of its own, with the newest `kept` tokens."""
        old = self._given._replace(buffer=self.buffer, length=self.length)
        seen = slice(self.length - kept, self.length)
        fresh = old.empty(1, *self.keys.shape, like=self.buffer.keys)
        self._take(fresh.buffer)
        self.keys[:, :kept] = view(old.buffer.keys)[0, :, seen]
        self.values[:, :kept] = view(old.buffer.values)[0, :, seen]
        self.hidden, self.length = max(0, self.hidden - (self.length - kept)), kept

    @property
    def first(self) -> int:
        """The oldest token that the newest one sees."""
        return max(self.hidden, self.length - self.window) if self.window else self.hidden

    @property
    def value(self) -> tuple:
        """The `KVCache` of the tokens so far."""
        return self._given._replace(buffer=self.buffer, length=self.length)


class AttentionStep:
    """`Attention` of one query: normalised x and its turn -> what is added to x."""

    def __init__(self, module: nn.Module, cache: Cache, scratch: Scratch) -> None:
        self.scratch, self.heads, self.cache = scratch, module.num_heads, cache
        qkv = view(module.qkv)  # (3,D,D): which, out, in
        D = qkv.shape[-1]
        self.project = qkv.transpose(2, 0, 1).reshape(D, 3 * D)  # a view in the module's layout
        self.project_kv = self.project[:, D:]
        self.out = matrix(module.out)
        self.value_mix = None if module.value_mix is None else view(module.value_mix)
        # Scale of a head: temperature / rms, where rms = sqrt(sum of squares + K eps) / sqrt(K);
        # queries take the 1 / sqrt(K) of attention too.
        K = D // self.heads
        self.scale = np.ones((2 * self.heads, 1), np.float32)
        self.scale[self.heads :] = math.sqrt(K)
        if module.temperature is not None:
            self.scale *= view(module.temperature)
        self.eps = scalar(K * EPS)

    def __call__(self, turn: ndarray, value: ndarray | None) -> ndarray:
        """Attend with `scratch.normed`; turn (K/2,) complex, value embedding (D,)."""
        s = self.scratch
        np.dot(s.normed, self.project, out=s.qkv)
        self._remember(s.qk, s.pairs, self.scale, turn, value)
        cache = self.cache
        seen = slice(cache.first, cache.length)
        scores = np.matmul(s.query, cache.turned_keys[:, :, seen])  # (H,1,n)
        scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        np.matmul(scores, cache.values[:, seen], out=s.heads)
        total = np.add.reduce(scores, axis=-1, keepdims=True)
        s.heads /= total
        if s.received is not None:
            s.received[-scores.shape[-1] :] += np.dot(
                1 / total.ravel(), scores.reshape(self.heads, -1)
            )
        return np.dot(s.mixed, self.out, out=s.out)

    def write(self, turn: ndarray, value: ndarray | None) -> None:
        """Keys and values alone, for a token that skips this layer."""
        s, heads = self.scratch, self.heads
        np.matmul(s.normed, self.project_kv, out=s.qkv[len(s.normed) :])
        self._remember(s.k, s.pairs[heads:], self.scale[heads:], turn, value)

    def _remember(
        self, rows: ndarray, pairs: ndarray, scale: ndarray, turn: ndarray, value: ndarray | None
    ) -> None:
        """Norm and turn rows of queries and keys in place; keys and values go to the cache."""
        s = self.scratch
        rows *= scale / np.sqrt(row_squares(rows) + self.eps)
        pairs *= turn
        if value is not None:
            s.v += self.value_mix * value
        self.cache.append(s.k, s.value)


class GateStep:
    """`CoherenceGate` in floats: what is left of a layer, 0 where it is skipped."""

    def __init__(self, module: nn.Module) -> None:
        self.weight = view(module.halting.weight)[0]
        self.bias = module.halting.bias.item()
        scale = module.coherence_scale
        self.coherence_scale = None if scale is None else scale.item()
        self.threshold, self.skip_below = module.threshold, module.skip_below

    def __call__(self, normed: ndarray, coherence: float, left: float) -> float:
        z = float(self.weight.dot(normed)) + self.bias
        if self.coherence_scale is not None:
            z += self.coherence_scale * coherence
        left -= (0.5 + 0.5 * math.tanh(0.5 * z)) / self.threshold
        return 0.0 if left <= self.skip_below else left  # NaN stays: damage must show


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
        rms_norm(x, out=s.normed)
        if self.gate is not None:
            left = self.gate(s.normed, coherence, left)
            if left == 0:
                self.attention.write(turn, value)
                return left
        self._add(x, self.attention(turn, value), left)
        rms_norm(x, out=s.normed)
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
