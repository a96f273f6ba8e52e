"""Operations on `ResoState` values: rows side by side, one row many times, noise in a cache.

Rows of different lengths stand right-aligned in one state. A shorter row begins `padding` columns
later. It is read alone from `padded(...)`, so no stage ever sees padding; attention leaves the
columns before the row out, and its positions may count from any column.

Shapes: B batch, H heads, T tokens in the cache, K head width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reso_llm.decoding.cache_noise import CacheNoise, noisy_cache
from reso_llm.network import ResoState
from reso_llm.stages.cache import KVBuffer, KVCache
from reso_llm.stages.echo import EchoState


def padded(state: ResoState, padding: int) -> ResoState:
    """The empty state of a row whose first token will stand in column `padding`."""
    if not padding:
        return state
    # Zeros, as a weight of 0 times uninitialised memory could be NaN.
    caches = []
    for cache in state.caches:
        empty = torch.zeros_like(cache.buffer.keys[:, :, :padding])
        caches.append(cache.append(empty, empty))
    columns = state.tail.new_full((len(state.tail),), padding)
    return state._replace(length=padding, caches=tuple(caches), padding=columns)


def stacked(states: Sequence[ResoState]) -> ResoState:
    """Rows of states of one length as one state. Raises ValueError where lengths differ."""
    first = states[0]
    if len(states) == 1:
        return first
    lengths = {state.length for state in states}
    if len(lengths) > 1:
        raise ValueError(f"states of lengths {sorted(lengths)}: expected one length")
    explicit = [_with_padding(state) for state in states]
    merged = _zip_rows(explicit, _STACKED)
    return merged if merged.padding.any() else merged._replace(padding=None)


def _with_padding(state: ResoState) -> ResoState:
    if state.padding is not None:
        return state
    return state._replace(padding=state.tail.new_zeros(len(state.tail)))


def selected(state: ResoState, rows: Sequence[int]) -> ResoState:
    """The rows of a state by their numbers, in that order; a number may come again."""
    return _zip_rows(
        [state],
        _Rows(
            lambda parts: parts[0][torch.as_tensor(rows, device=parts[0].device)],
            lambda parts: tuple(parts[0][row] for row in rows),
        ),
    )


def stacked_stages(states: Sequence[ResoState]) -> dict[str, Any]:
    """What the stages know of the rows of some states, as one value each."""
    if len(states) == 1:
        return states[0].stages
    return _zip_rows([state.stages for state in states], _STACKED)


def one_row(stages: dict[str, Any], row: int) -> dict[str, Any]:
    """What the stages know of one row."""
    return _zip_rows(
        [stages], _Rows(lambda parts: parts[0][row : row + 1], lambda parts: (parts[0][row],))
    )


def heated(
    state: ResoState, row: int, noise: CacheNoise, num_prompt: int, generator: torch.Generator
) -> ResoState:
    """The state with noise in one row's keys and values, whose first num_prompt tokens are prompt.

    With an attention window only the tokens that the caches still hold get noise.
    """
    padding = 0 if state.padding is None else int(state.padding[row])
    caches = []
    for cache in state.caches:
        gone = state.length - cache.length  # columns a window has dropped
        start = max(0, padding - gone)
        prompt = max(0, padding + num_prompt - gone - start)
        keys, values = cache.keys.clone(), cache.values.clone()
        keys[row, :, start:], values[row, :, start:] = noisy_cache(
            keys[row, :, start:], values[row, :, start:], noise, prompt, generator
        )
        batch, heads, capacity, width = cache.buffer.keys.shape
        fresh = KVCache.empty(batch, heads, capacity, width, like=keys)
        caches.append(fresh.append(keys, values))
    return state._replace(caches=tuple(caches))


class _Rows(NamedTuple):
    """How the rows of some states become those of one: as tensors (B,...), and as tuples of B."""

    tensors: Callable[[list[Tensor]], Tensor]
    tuples: Callable[[list[tuple]], tuple]


_STACKED = _Rows(torch.cat, lambda parts: sum(parts, ()))


def _zip_rows(values: Sequence[Any], rows: _Rows) -> Any:
    """One state of the rows of some; what is not a tensor of theirs is taken from the first."""
    first = values[0]
    if isinstance(first, Tensor):
        return rows.tensors(list(values))
    if isinstance(first, KVCache):
        return _zip_caches(values, rows.tensors)
    if isinstance(first, EchoState):
        return first._replace(rows=rows.tuples([v.rows for v in values]))
    if isinstance(first, dict):
        return {name: _zip_rows([v[name] for v in values], rows) for name in first}
    if isinstance(first, tuple):
        parts = [_zip_rows(column, rows) for column in zip(*values, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return first


def _zip_caches(caches: Sequence[KVCache], function: Callable[[list[Tensor]], Tensor]) -> KVCache:
    """A cache with a buffer of its own, so that no other line writes behind the last token."""
    keys = function([cache.keys for cache in caches])
    values = function([cache.values for cache in caches])
    capacity = max(cache.buffer.keys.shape[2] for cache in caches)
    shape = (keys.shape[0], keys.shape[1], capacity, keys.shape[3])
    return KVCache(KVBuffer(keys.new_empty(shape), values.new_empty(shape)), 0).append(keys, values)
