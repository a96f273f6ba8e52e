"""Counts of the n-grams of a long text, on disk.

    text --chunks--> sorted runs on disk --merge, one range of keys at a time--> counts of an order

The orders are merged from the longest to the shortest, as each tells the next in how many contexts
one token longer an entry occurs. Contexts too rare for the tables are counted and not written: no
context that is kept has one of them as its suffix, since a suffix is never rarer.

Memory: some hundred bytes for each of CHUNK positions or MERGED records, and for each context kept;
nothing that grows with the text but a name for each run.

Shapes: E entries, C contexts.
"""

from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reso_llm.stages.ngrams import FOLDS
from reso_llm.stages.runs import Spool, by_pair, starts, write_runs

MERGED = 1 << 20  # records of all runs merged at once, about

LONGER = np.dtype([("key", "i8"), ("token", "i4"), ("contexts", "i4", FOLDS + 1)])
CONTEXT = np.dtype([("key", "i8"), ("suffix", "i8"), ("totals", "i8", FOLDS + 1), ("size", "i8")])
ENTRY = np.dtype([("suffix", "i8"), ("token", "i4"), ("counts", "i8", FOLDS + 1)])


class Order(NamedTuple):
    """The counts of one order, contexts by key and the entries of each by token.

    contexts: of CONTEXT, `totals` by the fold left out (the last none), `size` entries of each.
    entries: of ENTRY; `counts` are what the smoothing takes: how often for the longest order, and
        in how many contexts one token longer for the others. counts_of_counts (5,): how many
        entries there are with each count up to 4, contexts that are not written included.
    token_contexts (V,): in how many contexts each token follows.
    """

    contexts: Spool
    entries: Spool
    counts_of_counts: np.ndarray
    token_contexts: np.ndarray


class Frequent:
    """The most frequent contexts that together have at most `max_entries` entries.

    Among equals those with the smallest keys. The first that does not fit is remembered, since
    nothing rarer may take its place.
    """

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self.keys, self.totals, self.sizes, self.orders = np.empty((4, 0), dtype=np.int64)

    def add(self, order: int, keys: np.ndarray, totals: np.ndarray, sizes: np.ndarray) -> None:
        """Take contexts (C,) of one order into account."""
        orders = np.full(len(keys), order)
        new, old = (keys, totals, sizes, orders), (self.keys, self.totals, self.sizes, self.orders)
        columns = [np.concatenate(pair) for pair in zip(old, new, strict=True)]
        first = np.lexsort((columns[0], -columns[1]))
        first = first[: self._fitting(columns[2][first]) + 1]
        self.keys, self.totals, self.sizes, self.orders = (column[first] for column in columns)

    @property
    def least(self) -> int:
        """Occurrences below which no context can be among them."""
        full = self._fitting(self.sizes) < len(self.sizes)
        return int(self.totals[-1]) if full else 0

    def may_hold(self, keys: np.ndarray, totals: np.ndarray) -> np.ndarray:
        """Which contexts (C,) of those taken into account can still be among them."""
        least = self.least
        return (totals > least) | ((totals == least) & (keys <= self.keys[-1]))

    def of(self, order: int) -> np.ndarray:
        """Keys of those of one order, ascending."""
        fitting = self._fitting(self.sizes)
        return np.sort(self.keys[:fitting][self.orders[:fitting] == order])

    def _fitting(self, sizes: np.ndarray) -> int:
        return int((np.cumsum(sizes) <= self.max_entries).sum())


class Counts(NamedTuple):
    """Counts of all orders, the shortest first, and which contexts are frequent enough to keep."""

    orders: list[Order]
    frequent: Frequent
    collisions: int  # entries of a context that has the key of another


def count(
    tokens: np.ndarray,
    powers: np.ndarray,
    vocab_size: int,
    slots: tuple[int, ...],
    max_entries: int,
    directory: Path,
) -> Counts:
    """Count the n-grams of tokens (N,), at least 2; runs and counts are files in `directory`.

    At most `slots` entries of a context of each order are kept, in all at most `max_entries`.
    """
    num_orders = min(len(slots), len(tokens) - 1)
    runs = write_runs(tokens, vocab_size, powers[:, :num_orders], directory)
    orders: list[Order] = []
    longer: list[Spool] = []
    frequent, collisions = Frequent(max_entries), 0
    for m in reversed(range(num_orders)):
        order = Order(
            Spool(directory / f"{m}.contexts", CONTEXT),
            Spool(directory / f"{m}.entries", ENTRY),
            np.zeros(5, dtype=np.int64),
            np.zeros(vocab_size, dtype=np.int64),
        )
        told: list[Spool] = []  # to the order below
        for records, fold, above in _ranges(runs[m], longer):
            contexts, entries, inside, differing = _merged(records, fold, vocab_size)
            collisions += differing if m else 0
            if m:
                told.append(Spool(directory / f"{m}.{len(told)}.longer", LONGER))
                told[-1].append(_longer(entries, inside, vocab_size))
            if m < num_orders - 1:
                _count_longer(contexts, entries, above, vocab_size)
            _write(order, contexts, entries, m, slots[m], frequent, longest=m == num_orders - 1)
        for spool in (*longer, *(run for _, run in runs[m])):
            spool.path.unlink()
        longer = told
        orders.insert(0, order)
    return Counts(orders, frequent, collisions)


def _ranges(
    runs: list[tuple[int, Spool]], longer: list[Spool]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For ascending ranges of keys: records of all runs, the fold of each, and of `longer`."""
    spools = [run for _, run in runs] + longer
    step = max(1, MERGED // (2 * len(spools)))
    samples = np.sort(np.concatenate([spool.mapped()["key"][::step].copy() for spool in spools]))
    cuts = np.unique(samples[MERGED // step :: max(1, MERGED // step)])
    begins = [0] * len(spools)
    for cut in (*cuts.tolist(), None):
        # Mapped anew for each cut: what was looked at would stay in memory.
        ends = [
            spool.length if cut is None else bisect_left(spool.mapped()["key"], cut)
            for spool in spools
        ]
        parts = [s.read(b, e) for s, b, e in zip(spools, begins, ends, strict=True)]
        folds = np.repeat([fold for fold, _ in runs], [len(part) for part in parts[: len(runs)]])
        above = np.concatenate([np.empty(0, LONGER), *parts[len(runs) :]])
        if len(folds):
            yield np.concatenate(parts[: len(runs)]), folds, above
        begins = ends


def _merged(
    records: np.ndarray, fold: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Contexts and entries of some records, entries' counts, and entries under another's key.

    Counts (FOLDS + 1, E) are also in the entries.
    """
    order = by_pair(records["key"], records["token"], vocab_size)
    records, fold = records[order], fold[order]
    new_context = starts(records["key"])
    new_entry = new_context | starts(records["token"])
    entry, first = np.cumsum(new_entry) - 1, np.flatnonzero(new_entry)
    inside = np.bincount(
        fold * len(first) + entry, weights=records["count"], minlength=FOLDS * len(first)
    )
    inside = inside.reshape(FOLDS, -1).astype(np.int64)
    total = inside.sum(axis=0)
    counts = np.concatenate((total - inside, total[None]))
    entries = np.empty(len(first), ENTRY)
    entries["suffix"], entries["token"] = records["suffix"][first], records["token"][first]
    entries["counts"] = counts.T
    begins = np.flatnonzero(new_context[first])
    contexts = np.empty(len(begins), CONTEXT)
    contexts["key"] = records["key"][first][begins]
    contexts["suffix"] = entries["suffix"][begins]
    contexts["totals"] = np.add.reduceat(counts, begins, axis=1).T
    contexts["size"] = np.diff(begins, append=len(entries))
    own = contexts["suffix"][np.cumsum(new_context) - 1]
    return contexts, entries, counts, int((records["suffix"] != own).sum())


def _longer(entries: np.ndarray, counts: np.ndarray, vocab_size: int) -> np.ndarray:
    """For the order below: in how many contexts of this one each of its entries occurs."""
    order = by_pair(entries["suffix"], entries["token"], vocab_size)
    keys, tokens = entries["suffix"][order], entries["token"][order]
    first = np.flatnonzero(starts(keys) | starts(tokens))
    longer = np.empty(len(first), LONGER)
    longer["key"], longer["token"] = keys[first], tokens[first]
    occurs = (counts > 0)[:, order].astype(np.int32)
    longer["contexts"] = np.add.reduceat(occurs, first, axis=1).T
    return longer


def _count_longer(
    contexts: np.ndarray, entries: np.ndarray, longer: np.ndarray, vocab_size: int
) -> None:
    """Replace the entries' counts by the number of contexts one token longer that they occur in.

    The text's first n-gram has no token before it and counts as one.
    """
    pairs = np.repeat(np.arange(len(contexts)), contexts["size"]) * vocab_size + entries["token"]
    rows = np.searchsorted(contexts["key"], longer["key"])
    at = np.searchsorted(pairs, rows * vocab_size + longer["token"])
    for left_out in range(FOLDS + 1):
        weights = longer["contexts"][:, left_out]
        found = np.bincount(at, weights=weights, minlength=len(entries)).astype(np.int64)
        counts = entries["counts"][:, left_out]
        entries["counts"][:, left_out] = np.maximum(found, counts > 0)


def _write(
    order: Order,
    contexts: np.ndarray,
    entries: np.ndarray,
    m: int,
    slots: int,
    frequent: Frequent,
    longest: bool,
) -> None:
    """Write what can still be kept or end a longer context that is, and count all."""
    counts = entries["counts"][:, FOLDS]
    order.counts_of_counts[:] += np.bincount(counts[counts < 5], minlength=5)
    order.token_contexts[:] += np.bincount(entries["token"], minlength=len(order.token_contexts))
    keys, totals = contexts["key"], contexts["totals"][:, FOLDS]
    can = totals >= frequent.least
    frequent.add(m, keys[can], totals[can], np.minimum(contexts["size"][can], slots))
    can = frequent.may_hold(keys, totals) if longest else totals >= frequent.least
    order.contexts.append(contexts[can])
    order.entries.append(entries[np.repeat(can, contexts["size"])])
