"""ResoFormer block: pre-norm attention and feed-forward around a residual stream.

    x = a x + b x_0                                       residual_scale a, input_scale b
    x = x + attention(norm x)
    x = x + W_2 relu(W_1 norm x + n)^2

x_0 is what enters the first block (embedding, goal and clocks), mixed back in by two learned
scalars per block (modded-nanogpt); squared ReLU is Primer (So 2021, arXiv 2109.08668). W_2 starts
at zero. n is the noise of stochastic resonance (`noise.py`; none without it). Where the coherence
gate (`gate.py`) lets only some tokens go deep, the layers after the first add nothing to the
others, which write keys and values alone.

Shapes: B batch, T time, N deep tokens of a batch, R rows, D width, F hidden width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from entropy_core.compiled import ONE, compiled, norm
from reso_llm.config import ResoLLMConfig
from reso_llm.stages.arrays import Matrix, view
from reso_llm.stages.attention import Attention, AttentionReceived, AttentionStep
from reso_llm.stages.cache import CacheStep, KVCache, Scratch
from reso_llm.stages.fused import linear, relu_squared, rms_norm
from reso_llm.stages.gate import DeepTokens
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
    """Inputs that all blocks share: x_0 (B,T,D), rotary table, noise, padding.

    received, if given, sums up the attention of all layers.
    """

    x0: Tensor
    rotary: Tensor
    noise: FeedForwardNoise | None
    padding: Tensor | None  # (B,P) columns that a row must not see
    received: AttentionReceived | None = None


class Block(nn.Module):
    """One layer of the model; see the module's docstring."""

    def __init__(self, config: ResoLLMConfig, has_value_embedding: bool) -> None:
        super().__init__()
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
        deep: DeepTokens | None,
    ) -> tuple[Tensor, KVCache | None]:
        """x (B,T,D), value embedding, cache, the tokens that go deep (None: all) -> x, cache."""
        # Mix x_0 back in.
        x = torch.addcmul(self.residual_scale * x, self.input_scale, shared.x0)
        normed = rms_norm(x)
        if deep is not None:
            return self._deep(x, normed, shared, value, cache, deep)
        # Attention, then feed-forward.
        y, cache = self.attention(
            normed, shared.rotary, value, cache, shared.padding, shared.received
        )
        x = x + self._dropped(y)
        return x + self._dropped(self.feed_forward(rms_norm(x), shared.noise)), cache

    def _deep(
        self,
        x: Tensor,
        normed: Tensor,
        shared: Shared,
        value: Tensor | None,
        cache: KVCache | None,
        deep: DeepTokens,
    ) -> tuple[Tensor, KVCache | None]:
        """Attention and feed-forward of the deep tokens alone."""
        y, cache = self.attention.deep(
            normed, deep, shared.rotary, value, cache, shared.padding, shared.received
        )
        if not len(deep.flat):
            return x, cache
        some = x.flatten(0, 1)[deep.flat] + self._dropped(y)  # (N,D)
        noise = None if shared.noise is None else shared.noise.at(deep.row, deep.time)
        some = some + self._dropped(self.feed_forward(rms_norm(some), noise))
        return x.flatten(0, 1).index_copy(0, deep.flat, some).view_as(x), cache

    def _dropped(self, y: Tensor) -> Tensor:
        return F.dropout(y, self.dropout) if self.training and self.dropout else y


class BlockStep:
    """One-token form of `Block`: one layer, which changes x (R,D) in place."""

    def __init__(self, module: Block, caches: Sequence[CacheStep], scratch: Scratch) -> None:
        self.scratch = scratch
        self.attention = AttentionStep(module.attention, caches, scratch)
        maps = module.feed_forward
        self.up, self.down = Matrix(maps.up.weight), Matrix(maps.down.weight)
        self.down_rows = view(maps.down.weight).T  # (F,D)
        self.residual_scale = np.float32(module.residual_scale.item())
        self.input_scale = np.float32(module.input_scale.item())

    def __call__(
        self,
        x: ndarray,
        x0: ndarray,
        turn: ndarray,
        value: ndarray | None,
        deep: Sequence[int],
        received: Sequence[ndarray] | None,
    ) -> None:
        """Change x; keys and values are all that this layer adds to rows that are not `deep`."""
        mix(x, x0, self.residual_scale, self.input_scale, self.scratch.normed)
        y = self.attention(turn, value, deep, received)
        if len(deep) == len(x):
            self._feed_forward(x, y)
        elif deep:
            some = x[deep]
            self._feed_forward(some, y)
            x[deep] = some

    def _feed_forward(self, x: ndarray, y: ndarray) -> None:
        """Add y to x, and the feed-forward of the sum."""
        s, n = self.scratch, len(x)
        normed = s.normed[:n]
        mix(x, y, ONE, ONE, normed)
        hidden = self.up(normed, out=s.hidden[:n])
        if n == 1:
            add_active(hidden[0], self.down_rows, x[0])
        else:
            square_positive(hidden)
            x += self.down(hidden, out=s.out[:n])


@compiled
def mix(x, y, a, b, normed):
    """x = a x + b y, in place, and its norm: all (R,D)."""
    for r in range(len(x)):
        for i in range(x.shape[1]):
            x[r, i] = a * x[r, i] + b * y[r, i]
    norm(x, normed)


@compiled
def square_positive(hidden):
    """max(0, h)^2 of hidden (R,F), in place."""
    for r in range(len(hidden)):
        for i in range(hidden.shape[1]):
            h = hidden[r, i]
            hidden[r, i] = np.float32(0) if h < 0 else h * h  # NaN stays


@compiled
def add_active(hidden, down, x):
    """Add max(0, h)^2 W of one row's hidden (F,) and W (F,D) to x (D,).

    Rows of W whose h is not above 0 are not read: half of them at random, more after training.
    """
    F, D = down.shape
    active, n = np.empty(F, np.int64), 0
    for i in range(F):
        active[n] = i
        n += not hidden[i] <= 0  # NaN counts
    total = np.zeros(D, np.float32)
    for k in range(0, n - 3, 4):
        a, b, c, d = active[k], active[k + 1], active[k + 2], active[k + 3]
        p, q, r, s = hidden[a], hidden[b], hidden[c], hidden[d]
        p, q, r, s = p * p, q * q, r * r, s * s
        for i in range(D):
            total[i] += p * down[a, i] + q * down[b, i] + r * down[c, i] + s * down[d, i]
    for k in range(n - n % 4, n):
        a = active[k]
        for i in range(D):
            total[i] += hidden[a] * hidden[a] * down[a, i]
    for i in range(D):
        x[i] += total[i]
