"""Noise in the caches of transformers 5: which tensors of a layer are the tokens of a row.

    slot s of a layer holds token s + (total - held),   held = min(total, slots)

A static layer has more slots than tokens, a sliding window fewer. Padding on the left is neither
heated nor counted. The noise itself is `reso_llm.decoding.cache_noise`.

Shapes: B rows of a batch, T tokens, H heads, K head width.
"""

from typing import Any

import torch
from torch import Tensor

from reso_llm.decoding.cache_noise import CacheNoise, noisy_cache


def left_padding(mask: Tensor | None, num_rows: int) -> list[int]:
    """Masked tokens before each row of a mask (B,T). Raises ValueError if there are others."""
    if mask is None:
        return [0] * num_rows
    seen = mask != 0
    if (seen[:, :-1] & ~seen[:, 1:]).any():
        raise ValueError("the attention mask ends with padding or has holes: pad on the left")
    return (~seen).sum(1).tolist()


def kv_layers(cache: Any) -> list[Any]:
    """The layers of a transformers cache that keep keys and values as they are.

    Layers that share those of others keep none. Raises ValueError for any other cache.
    """
    from transformers import cache_utils as c

    plain = {c.DynamicLayer, c.DynamicSlidingWindowLayer}
    plain |= {c.StaticLayer, c.StaticSlidingWindowLayer}
    layers = [x for x in getattr(cache, "layers", ()) if getattr(x, "is_initialized", True)]
    strange = sorted({type(x).__name__ for x in layers} - {x.__name__ for x in plain})
    if not layers or strange or getattr(cache, "offloading", False):
        what = ", ".join(strange) or ("an offloaded one" if layers else type(cache).__name__)
        raise ValueError(f"noise needs a key-value cache it can reach, plain or static; got {what}")
    return layers


def heat(
    cache: Any, i: int, noise: CacheNoise, num_pads: int, num_new: int, generator: torch.Generator
) -> None:
    """Put noise into row i of a cache of which the last num_new tokens are not the prompt's."""
    for layer in kv_layers(cache):
        total = int(layer.get_seq_length())
        held = min(total, layer.keys.shape[-2])  # a sliding window has dropped the first ones
        start = max(num_pads - (total - held), 0)
        keys, values = layer.keys[i, :, start:held], layer.values[i, :, start:held]  # (H,T,K)
        num_prompt = max(held - start - num_new, 0)
        noisy = noisy_cache(keys, values, noise, num_prompt, generator)
        keys.copy_(noisy[0])  # in place: a compiled model knows the address
        values.copy_(noisy[1])
