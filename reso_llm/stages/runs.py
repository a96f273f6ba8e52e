"""Sorted runs on disk: the n-grams of each chunk of a text, counted (`counting.py` merges them).

A chunk lies within one fold, so all of a run has one fold.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reso_llm.stages.ngrams import FOLDS, keys_before

CHUNK = 1 << 21  # positions counted at once

RUN = np.dtype([("key", "i8"), ("suffix", "i8"), ("token", "i4"), ("count", "i4")])


class Spool:
    """Records in a file, appended and read back by their numbers."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.dtype, self.length = path, dtype, 0
        path.touch()

    def append(self, records: np.ndarray) -> None:
        """Write the records behind those there are."""
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(records, dtype=self.dtype).data)
        self.length += len(records)

    def read(self, begin: int, end: int) -> np.ndarray:
        """A copy of the records from number begin to before end."""
        at = begin * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, count=end - begin, offset=at)

    def mapped(self) -> np.ndarray:
        """All records, memory-mapped."""
        if not self.length:
            return np.empty(0, self.dtype)
        return np.memmap(self.path, self.dtype, mode="r")


def write_runs(
    tokens: np.ndarray, vocab_size: int, powers: np.ndarray, directory: Path
) -> list[list[tuple[int, Spool]]]:
    """Fold and run of each chunk of the text, for each order."""
    runs: list[list[tuple[int, Spool]]] = [[] for _ in range(powers.shape[1])]
    for number, (fold, begin, end) in enumerate(_chunks(len(tokens))):
        for m, (keys, suffixes) in enumerate(keys_before(tokens, begin, end, powers)):
            run = _run(keys, suffixes, tokens[end - len(keys) : end], vocab_size)
            spool = Spool(directory / f"{m}.{number}.run", RUN)
            spool.append(run)
            runs[m].append((fold, spool))
    return runs


def _chunks(length: int) -> Iterator[tuple[int, int, int]]:
    """(fold, begin, end) of spans of positions 1 ... length - 1, each within one fold."""
    for fold in range(FOLDS):
        first, last = (-(-f * length // FOLDS) for f in (fold, fold + 1))
        for begin in range(max(1, first), last, CHUNK):
            yield fold, begin, min(begin + CHUNK, last)


def _run(keys: np.ndarray, suffixes: np.ndarray, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The contexts of some positions, and the token at each, sorted and counted."""
    order = by_pair(keys, tokens, vocab_size)
    keys, suffixes, tokens = keys[order], suffixes[order], tokens[order]
    first = np.flatnonzero(starts(keys) | starts(tokens) | starts(suffixes))
    run = np.empty(len(first), RUN)
    run["key"], run["suffix"], run["token"] = keys[first], suffixes[first], tokens[first]
    run["count"] = np.diff(first, append=len(keys))
    return run


def by_pair(keys: np.ndarray, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The permutation that sorts by key and token; two sorts of one number beat `lexsort`."""
    by_key = np.argsort(keys)
    context = np.cumsum(starts(keys[by_key]))
    return by_key[np.argsort(context * vocab_size + tokens[by_key])]


def starts(values: np.ndarray) -> np.ndarray:
    """Whether each value differs from the one before it."""
    return np.concatenate((np.ones(min(1, len(values)), bool), values[1:] != values[:-1]))
