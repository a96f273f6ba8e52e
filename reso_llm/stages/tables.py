"""The tables of the binding memory (`prsc.py`): counted (`counting.py`), smoothed, pruned, sorted.

Shapes: E entries, C contexts, M orders.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reso_llm.stages.counting import CONTEXT, Counts, count
from reso_llm.stages.ngrams import FOLDS, NO_CONTEXT
from reso_llm.stages.runs import Spool
from reso_llm.stages.smoothing import Below, Smoothed, discounts_of, entropy, smooth

SMOOTHED = 1 << 20  # contexts looked through, or entries smoothed, at once, about

EVIDENCE = np.dtype([("by_fold", "f8", FOLDS + 1)])


def count_tables(
    tokens: np.ndarray,
    powers: np.ndarray,
    vocab_size: int,
    slots: tuple[int, ...],
    max_entries: int,
    directory: Path | None = None,
) -> tuple[dict[str, np.ndarray], int]:
    """The tables of `BindingMemory` for a text (N,), and the number of colliding n-grams.

    Memory grows by some bytes for each context that may be kept; the rest lies in a folder made in
    `directory`, the system's for temporary files by default, and removed at the end.
    """
    with tempfile.TemporaryDirectory(prefix="counting.", dir=directory) as name:
        counts = count(tokens, powers, vocab_size, slots, max_entries, Path(name))
        unigram = counts.orders[0].token_contexts + 0.5
        unigram /= unigram.sum()
        parts = [NO_PART, *_smoothed_parts(counts, slots, unigram, Path(name))]
        return _sorted_by_key(parts, entropy(unigram)), counts.collisions


class _Part(NamedTuple):
    """Contexts of one order that are kept, and their entries."""

    keys: np.ndarray  # (C,)
    totals: np.ndarray  # (FOLDS + 1, C)
    doubt: np.ndarray  # (FOLDS + 1, C)
    sizes: np.ndarray  # (C,)
    tokens: np.ndarray  # (E,) by context, the most frequent first
    increments: np.ndarray  # (FOLDS + 1, E)


_IDS, _VALUES = np.empty(0, np.int64), np.empty((FOLDS + 1, 0))
NO_PART = _Part(_IDS, _VALUES, _VALUES, _IDS, _IDS, _VALUES)


class _Lower:
    """What has been smoothed of one order, to be looked up by the order above."""

    def __init__(self, keys: np.ndarray, vocab_size: int, path: Path) -> None:
        self.keys, self.vocab_size = keys, vocab_size
        self.unbound, self.doubt = np.empty((2, FOLDS + 1, len(keys)))
        self.pairs = Spool(path.with_suffix(".pairs"), np.dtype("i8"))
        self.evidence = Spool(path.with_suffix(".evidence"), EVIDENCE)

    def add(self, first: int, context: np.ndarray, tokens: np.ndarray, new: Smoothed) -> None:
        """Keep contexts from number `first` on and their entries."""
        here = slice(first, first + new.doubt.shape[1])
        self.unbound[:, here], self.doubt[:, here] = new.unbound, new.doubt
        self.pairs.append((first + context) * self.vocab_size + tokens)
        self.evidence.append(np.ascontiguousarray(new.evidence.T).view(EVIDENCE)[:, 0])

    def below(self, contexts: np.ndarray, entries: np.ndarray) -> Below:
        """What is said of the suffixes of contexts (C,) and entries (E,) of the order above."""
        suffix = np.searchsorted(self.keys, contexts["suffix"])
        pairs = np.searchsorted(self.keys, entries["suffix"]) * self.vocab_size + entries["token"]
        at = np.searchsorted(self.pairs.mapped(), pairs)
        evidence = np.ascontiguousarray(self.evidence.mapped()["by_fold"][at].T)
        return Below(evidence, self.unbound[:, suffix], self.doubt[:, suffix])


def _smoothed_parts(
    counts: Counts, slots: tuple[int, ...], unigram: np.ndarray, directory: Path
) -> Iterator[_Part]:
    """Smooth the orders from the shortest on, each where it is kept or a kept one ends with it."""
    lower = None
    for m, (order, needed) in enumerate(zip(counts.orders, _needed(counts), strict=True)):
        discounts = discounts_of(order.counts_of_counts)
        kept = counts.frequent.of(m)
        this = _Lower(needed.contexts["key"], len(unigram), directory / f"{m}")
        for first, contexts, entries in _blocks(order.entries, needed):
            context = np.repeat(np.arange(len(contexts)), contexts["size"])
            below = lower.below(contexts, entries) if lower else _nothing_below(context, unigram)
            u, amounts = unigram[entries["token"]], np.ascontiguousarray(entries["counts"].T)
            new = smooth(amounts, context, u, slots[m], discounts, below)
            this.add(first, context, entries["token"], new)
            yield _kept_part(contexts, entries, context, new, kept)
        lower = this


def _nothing_below(context: np.ndarray, unigram: np.ndarray) -> Below:
    """Below the shortest order is the unigram alone."""
    num_contexts = int(context[-1]) + 1
    ones = np.ones((FOLDS + 1, num_contexts))
    return Below(np.ones((FOLDS + 1, len(context))), ones, ones * entropy(unigram))


class _Needed(NamedTuple):
    """Contexts of one order that are kept or end a needed longer one, by key."""

    contexts: np.ndarray  # (C,) of CONTEXT
    ends: np.ndarray  # (C,) number of the entry behind those of each


def _needed(counts: Counts) -> list[_Needed]:
    """What is needed of each order."""
    needed: list[_Needed] = []
    suffixes = np.empty(0, dtype=np.int64)
    for m in reversed(range(len(counts.orders))):
        wanted = np.sort(np.concatenate((counts.frequent.of(m), suffixes)))
        needed.insert(0, _found(counts.orders[m].contexts, wanted))
        suffixes = needed[0].contexts["suffix"]
    return needed


def _found(contexts: Spool, wanted: np.ndarray) -> _Needed:
    """The contexts with one of the keys, which ascend."""
    found, ends, behind = [np.empty(0, CONTEXT)], [np.empty(0, np.int64)], 0
    for begin in range(0, contexts.length, SMOOTHED):
        some = contexts.read(begin, min(begin + SMOOTHED, contexts.length))
        behind = behind + np.cumsum(some["size"])
        here = _among(some["key"], wanted)
        found.append(some[here])
        ends.append(behind[here])
        behind = behind[-1]
    return _Needed(np.concatenate(found), np.concatenate(ends))


def _among(keys: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which of the keys are in an ascending array; `np.isin` takes several times longer."""
    places = np.searchsorted(ascending, keys)
    return np.append(ascending, NO_CONTEXT)[places] == keys


def _blocks(entries: Spool, needed: _Needed) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(number of the first, contexts, their entries), of about SMOOTHED entries at a time."""
    for first, last in zip(*_spans(needed.ends // SMOOTHED), strict=True):
        contexts, ends = needed.contexts[first:last], needed.ends[first:last]
        sizes = contexts["size"]
        begin = ends[0] - sizes[0]
        ahead = ends - begin - np.cumsum(sizes)  # entries of other contexts
        places = np.arange(sizes.sum()) + np.repeat(ahead, sizes)
        yield first, contexts, entries.read(begin, ends[-1])[places]


def _spans(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last + 1 place of each group of equal neighbours."""
    ends = np.flatnonzero(np.diff(groups, append=-1)) + 1
    return np.concatenate(([0], ends[:-1]))[: len(ends)], ends


def _kept_part(
    contexts: np.ndarray,
    entries: np.ndarray,
    context: np.ndarray,
    new: Smoothed,
    kept: np.ndarray,
) -> _Part:
    """Of a block the contexts that are kept, and of each its most frequent entries."""
    listed = _among(contexts["key"], kept)
    chosen = np.flatnonzero(new.kept & listed[context])
    chosen = chosen[np.lexsort((new.rank[chosen], context[chosen]))]
    sizes = np.bincount(context[chosen], minlength=len(contexts))[listed]
    return _Part(
        contexts["key"][listed], contexts["totals"][listed].T, new.doubt[:, listed], sizes,
        entries["token"][chosen], new.increments[:, chosen],
    )  # fmt: skip


def _sorted_by_key(parts: list[_Part], unigram_doubt: float) -> dict[str, np.ndarray]:
    """All orders in one table, sorted by key."""
    keys, totals, doubts, sizes, tokens, increments = (
        np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)
    )
    by_key = np.argsort(keys)
    row = np.empty_like(by_key)
    row[by_key] = np.arange(len(keys))
    by_row = np.argsort(np.repeat(row, sizes), kind="stable")
    increments = np.pad(increments[:, by_row], ((0, 0), (1, 0)))  # the entry without evidence
    counts = np.pad(np.log1p(totals[:, by_key]), ((0, 0), (0, 1)))  # a context equal to no n-gram
    doubts = np.pad(doubts[:, by_key], ((0, 0), (0, 1)), constant_values=unigram_doubt)
    ends = 1 + np.cumsum(np.append(sizes[by_key], 0))  # behind entry 0
    starts = np.concatenate(([1], ends[:-1]))
    return {
        "keys": np.append(keys[by_key], NO_CONTEXT),
        "bounds": np.stack((starts, ends), axis=1).astype(np.int32),
        "entry_ids": np.concatenate(([0], tokens[by_row])).astype(np.int32),
        "evidence": increments[FOLDS],
        "log_counts": counts[FOLDS],
        "doubts": doubts[FOLDS],
        "fold_evidence": increments[:FOLDS],
        "fold_counts": counts[:FOLDS],
        "fold_doubts": doubts[:FOLDS],
    }
