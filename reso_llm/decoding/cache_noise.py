"""Noise in a key-value cache, as a phase slip adds it.

    K' = K + scale * std(K) * xi,    V' = V + scale * std(V) * xi,    xi ~ N(0, 1)

std is the deviation of one row of one layer's tensor. The noise stays in the cache. Source: the
Phase-Slip sampler, whose published scale is 0.03 for keys and values of all tokens.

Shapes: H heads, T tokens in the cache, K head width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_core.checks import require


@dataclass(frozen=True, kw_only=True)
class CacheNoise:
    """Amount of the noise that a cache gets, and its place.

    scale: deviation of the noise, in deviations of the tensor; 0 adds none. values_only: keep the
    keys, and with them the attention weights. protect_prompt: keep the tokens of the prompt.
    window: change only this many of the last tokens; 0 changes all. Raises ValueError naming a
    field out of range.
    """

    scale: float = 0.03
    values_only: bool = False
    protect_prompt: bool = False
    window: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.scale < math.inf, "scale", self.scale, "a finite number of at least 0")
        require(self.window >= 0, "window", self.window, "at least 0 tokens")


def noisy_cache(
    keys: Tensor,
    values: Tensor,
    noise: CacheNoise,
    num_prompt: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """New keys and values (H,T,K) of one layer and row; the first num_prompt tokens are prompt.

    The generator gives the noise of the values first, then that of the keys.
    """
    length = keys.shape[-2]
    first = num_prompt if noise.protect_prompt else 0
    if noise.window:
        first = max(first, length - noise.window)
    heated = _heated(values, noise.scale, first, generator)
    return (keys if noise.values_only else _heated(keys, noise.scale, first, generator)), heated


def _heated(x: Tensor, scale: float, first: int, generator: torch.Generator) -> Tensor:
    """x (H,T,K) with noise on the tokens from `first` on; without such tokens, x itself."""
    if scale == 0 or first >= x.shape[-2]:
        return x
    part = x[..., first:, :]
    xi = torch.randn(part.shape, generator=generator, device=generator.device, dtype=torch.float32)
    deviation = x.float().std(correction=0) * scale
    return torch.cat((x[..., :first, :], part + (deviation * xi.to(x.device)).to(x.dtype)), dim=-2)
