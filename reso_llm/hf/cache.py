"""Noise in the caches of transformers 5: where a layer keeps the tokens of a row.

    slot s of a layer holds token s + (total - held),   held = min(total, slots)

A static layer has more slots than tokens, a sliding window fewer. Padding on the left gets no noise
and does not enter the deviation. The noise itself is `reso_llm.decoding.cache_noise`. A ResoLLM's
cache holds a state (`reso_llm.hf.state_cache`), whose keys and values get the noise that they get
in the engine.

Shapes: B rows of a batch, T tokens, H heads, K head width.
"""

from typing import Any

import torch
from torch import Tensor

from reso_llm.decoding.cache_noise import CacheNoise, noisy_cache
from reso_llm.generation.states import heated


def left_padding(mask: Tensor | None, num_rows: int, *, with_end: bool = False) -> list[int]:
    """Number of masked tokens before each row of a mask (B,T).

    Raises ValueError where a token is masked after an unmasked one; `with_end` allows it at the
    end of a row.
    """
    if mask is None:
        return [0] * num_rows
    if mask.ndim != 2:
        raise ValueError(f"attention mask of shape {tuple(mask.shape)}: expected (rows, tokens)")
    seen = mask != 0
    ends, before = seen[:, :-1] & ~seen[:, 1:], seen.cumsum(1) == 0
    holes = (ends.cumsum(1) > 0) & seen[:, 1:] if with_end else ends
    if holes.any():
        raise ValueError("the attention mask ends with padding or has holes: pad on the left")
    return before.sum(1).tolist()


def kv_layers(cache: Any) -> list[Any]:
    """The layers of a transformers cache whose keys and values are plain tensors.

    A layer that shares the tensors of another one is left out. Raises ValueError for a cache with
    a layer of another kind (quantized, recurrent), for an offloaded one, and for no cache.
    """
    from transformers import cache_utils as c

    plain = {c.DynamicLayer, c.DynamicSlidingWindowLayer}
    plain |= {c.StaticLayer, c.StaticSlidingWindowLayer}
    layers = [x for x in getattr(cache, "layers", ()) if getattr(x, "is_initialized", True)]
    others = sorted({type(x).__name__ for x in layers} - {x.__name__ for x in plain})
    if not layers or others or getattr(cache, "offloading", False):
        got = ", ".join(others) or ("an offloaded one" if layers else type(cache).__name__)
        raise ValueError(f"noise needs a key-value cache, plain or static; got {got}")
    return layers


def takes_noise(cache: Any) -> None:
    """Raise ValueError for a cache without keys and values that noise can be added to."""
    from reso_llm.hf.state_cache import ResoCache

    if not isinstance(cache, ResoCache):
        kv_layers(cache)


def is_recurrent(cache: Any, use_cache: bool) -> bool:
    """Whether a model keeps a state beside keys and values, judged by the cache it generates with.

    Models with a cache class of their own take none from `generate`.
    """
    from transformers import cache_utils as c

    linear = getattr(c, "LinearAttentionCacheLayerMixin", ())  # absent from early transformers 5
    return (use_cache and cache is None) or any(
        isinstance(layer, linear) for layer in getattr(cache, "layers", ())
    )


def add_noise(
    cache: Any, i: int, noise: CacheNoise, num_pads: int, num_new: int, generator: torch.Generator
) -> None:
    """Add noise to row i of a cache, in place.

    num_pads: padding before the row. num_new: tokens at the end that are not part of the prompt.
    """
    from reso_llm.hf.state_cache import ResoCache

    if isinstance(cache, ResoCache):
        num_prompt = cache.get_seq_length() - num_pads - num_new
        cache.state = heated(cache.state, i, noise, num_prompt, generator)
        return
    for layer in kv_layers(cache):
        total = int(layer.get_seq_length())
        held = min(total, layer.keys.shape[-2])  # a sliding window drops the first tokens
        start = max(num_pads - (total - held), 0)
        keys, values = layer.keys[i, :, start:held], layer.values[i, :, start:held]  # (H,T,K)
        num_prompt = max(held - start - num_new, 0)
        noisy = noisy_cache(keys, values, noise, num_prompt, generator)
        keys.copy_(noisy[0])  # a compiled model holds the address
        values.copy_(noisy[1])
