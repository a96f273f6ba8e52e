"""Keys and values of the tokens before: the cache of one attention layer, in both forms.

Shapes: B batch, T time, H heads, K head width, n tokens in the cache.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reso_llm.config import ResoLLMConfig
from reso_llm.stages.arrays import view


class KVBuffer:
    """Storage behind `KVCache`: keys and values (B,H,capacity,K), and how far it is written."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.written = 0


class KVCache(NamedTuple):
    """Keys and values of the `length` tokens seen so far: a value, safe to keep and to fork.

    Appending writes into the shared buffer only behind its last written token; a cache that was
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
        rarely: tokens that no later token can see are dropped.
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
    """Keys and values (B,H,n,K) that new tokens see, and the cache after them."""

    keys: Tensor
    values: Tensor
    cache: KVCache


class Scratch:
    """Arrays of the one-token form that every layer overwrites, for R rows.

    all: queries, keys and values (R,3D); written: keys and values alone, (R,2D).
    """

    def __init__(self, config: ResoLLMConfig, num_rows: int) -> None:
        D = config.dim
        widths = {"normed": D, "out": D, "mixed": D, "all": 3 * D, "written": 2 * D}
        widths["hidden"] = config.ffn_multiplier * D
        arrays = {name: np.empty((num_rows, width), np.float32) for name, width in widths.items()}
        self.normed, self.out, self.mixed, self.all, self.written, self.hidden = arrays.values()


class CacheStep:
    """One-token form of the `KVCache` of one row, which copies its buffer by the same rule.

    So the state that a stepper began with stays as it was, whichever line goes on with it. The
    first `padding` tokens are hidden from every query.
    """

    def __init__(self, given: KVCache, window: int, padding: int) -> None:
        self._given, self.window, self.padding = given, window, padding
        self.length = given.length
        self._take(given.buffer)

    def _take(self, buffer) -> None:
        self.buffer = buffer
        self.keys, self.values = view(buffer.keys)[0], view(buffer.values)[0]  # (H,capacity,K)

    def grow(self) -> tuple[int, int]:
        """Make room for one more token: its place, and the first place that it sees.

        Without a window the caller checks the capacity.
        """
        full = self.length == self.keys.shape[1]
        if full or self.buffer.written != self.length:
            self._move(self.window - 1 if full else self.length)
        place = self.length
        self.length = self.buffer.written = place + 1
        first = max(self.padding, self.length - self.window) if self.window else self.padding
        return place, first

    def _move(self, kept: int) -> None:
        """Copy the newest `kept` tokens into a buffer of this line's own."""
        old = self._given._replace(buffer=self.buffer, length=self.length)
        seen = slice(self.length - kept, self.length)
        fresh = old.empty(1, *self.keys.shape, like=self.buffer.keys)
        self._take(fresh.buffer)
        self.keys[:, :kept] = view(old.buffer.keys)[0, :, seen]
        self.values[:, :kept] = view(old.buffer.values)[0, :, seen]
        self.padding, self.length = max(0, self.padding - (self.length - kept)), kept

    @property
    def value(self) -> KVCache:
        """The `KVCache` of the tokens so far."""
        return self._given._replace(buffer=self.buffer, length=self.length)
