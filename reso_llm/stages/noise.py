"""Stochastic resonance: noise in the feed-forward layers while the text repeats itself.

    n = amplitude * rms(z) * xi,    xi ~ N(0, 1),    z = W_1 norm(x) the hidden input (B,T,F)

Weak noise helps a thresholded system over its barrier (Gammaitoni 1998, Rev. Mod. Phys. 70, 223);
here the barrier is the attractor of a loop. The noise acts only on tokens whose own past repeats:
the last `2 * period` tokens or more are one span of `period` <= MAX_PERIOD tokens said again.

Shapes: B batch, T time, F hidden width, W tokens of the tail.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MAX_PERIOD = 8
MIN_REPEATED = 6  # tokens in a row that equal those one period before, at the least
TAIL = MIN_REPEATED + 2 * MAX_PERIOD  # tokens of the past that `repeats` can need, the newest out


class FeedForwardNoise(NamedTuple):
    """Noise of the feed-forward layers: scale (...,1), zero where nothing repeats, xi's source."""

    scale: Tensor
    generator: torch.Generator

    def at(self, row: Tensor, time: Tensor) -> "FeedForwardNoise":
        """The noise of some tokens alone, at row (N,) and time (N,)."""
        return self._replace(scale=self.scale[row, time])

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden (...,F) with noise of `scale` times its root mean square."""
        xi = torch.empty_like(hidden).normal_(generator=self.generator)
        size = hidden.square().mean(-1, keepdim=True).sqrt() * self.scale
        return torch.addcmul(hidden, size, xi)


def repeats(tail: Tensor, ids: Tensor) -> Tensor:
    """Mark tokens up to which the text repeats itself: tail (B,W), ids (B,T) -> (B,T) bool.

    tail holds the ids before; padded with -1, which equals nothing, where there are none.
    """
    history = torch.cat((tail, ids), dim=1)
    repeating = torch.zeros_like(ids, dtype=torch.bool)
    for period in range(1, MAX_PERIOD + 1):
        equal = (history[:, period:] == history[:, :-period]) & (history[:, period:] >= 0)
        needed = max(MIN_REPEATED, period)
        if equal.shape[1] < needed:
            continue
        run = equal.unfold(1, needed, 1).all(-1)  # ends at history index needed - 1 + period + i
        new = run[:, -ids.shape[1] :]
        repeating[:, ids.shape[1] - new.shape[1] :] |= new
    return repeating


def feed_forward_noise(
    tail: Tensor, ids: Tensor, amplitude: float, generator: torch.Generator
) -> FeedForwardNoise | None:
    """The noise of these tokens, or None where no row repeats itself."""
    repeating = repeats(tail, ids)
    if not repeating.any():
        return None
    return FeedForwardNoise(repeating.unsqueeze(-1) * amplitude, generator)
