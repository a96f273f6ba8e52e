"""Which files of a directory or of a hub dataset are data, and which of them are read.

A file is data when its suffix is one of KINDS, text also with .gz or .zst behind it. Files of
"train" are read where a dataset has them, else all but those of a held-out split. A split is a
whole word of a path (`train`, `test`, `validation`), never a part of one (`retrieval`, `contest`).
Hidden files, whose names begin with a dot, are no data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

__all__ = ["KINDS", "PACKED", "Selection", "choose_files", "data_kind", "files_left_out"]

# In the order of preference where a dataset has the same rows in several kinds.
KINDS = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv", ".txt")
PACKED = (".gz", ".zst")
NO_DATA = re.compile(
    r"(^|/)(\.|(README|LICENSE|requirements|dataset_infos?|dataset_dict|state|config)\b[^/]*$)",
    re.IGNORECASE,
)
TRAIN = frozenset({"train", "training"})
VALIDATION = frozenset({"validation", "valid", "val", "dev", "eval", "evaluation"})
TEST = frozenset({"test", "testing"})


class Selection(NamedTuple):
    """A user's choice from a dataset: one file by its name, or a subset, or a split."""

    file: str | None = None
    subset: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        if self.file:
            return f"/{self.file}"
        subset = f":{self.subset}" if self.subset else ""
        split = f"@{self.split}" if self.split else ""
        return subset + split


def data_kind(name: str) -> str | None:
    """A file's kind by its suffix, without the dot and without .gz or .zst; None for no data."""
    name = PurePosixPath(name).name.lower()
    packed = next((suffix for suffix in PACKED if name.endswith(suffix)), "")
    kind = PurePosixPath(name.removesuffix(packed)).suffix
    is_data = kind in KINDS and not (packed and kind in (".parquet", ".arrow"))
    return kind[1:] if is_data else None


def choose_files(
    names: Iterable[str], selection: Selection | None = None, *, of_one_kind: bool = True
) -> list[str]:
    """The files to read among a dataset's, sorted; empty when there are none.

    `of_one_kind`: a hub dataset often has the same rows in several kinds; only the first is read.
    """
    selection = selection or Selection()
    data = _data_files(names, selection)
    if selection.file:
        return [name for name in data if name == selection.file]
    if of_one_kind and data:
        kinds = {data_kind(name) for name in data}
        first = next(kind[1:] for kind in KINDS if kind[1:] in kinds)
        data = [name for name in data if data_kind(name) == first]
    if selection.split:
        wanted = next(
            (words for words in (TRAIN, VALIDATION, TEST) if selection.split.lower() in words),
            {selection.split.lower()},
        )
        return [name for name in data if _words(name) & wanted]
    train = [name for name in data if _words(name) & TRAIN]
    return train or [name for name in data if not _words(name) & (VALIDATION | TEST)] or data


def files_left_out(
    names: Iterable[str], chosen: Iterable[str], selection: Selection | None = None
) -> tuple[str, ...]:
    """The data files that `choose_files` passed over and the user did not: none beside a choice of
    one file or of a split."""
    selection = selection or Selection()
    if selection.file or selection.split:
        return ()
    return tuple(sorted(set(_data_files(names, selection)) - set(chosen)))


def _data_files(names: Iterable[str], selection: Selection) -> list[str]:
    """The data files among `names`, of the subset when one is selected, sorted."""
    data = sorted(name for name in names if data_kind(name) and not NO_DATA.search(name))
    if selection.subset and not selection.file:
        data = [name for name in data if _is_of_subset(name, selection.subset)]
    return data


def _words(name: str) -> set[str]:
    """The words of a path: "data/chat_train-0001.parquet" has data, chat, train and parquet."""
    return {word.lower() for word in re.split(r"[^A-Za-z]+", name)}


def _is_of_subset(name: str, subset: str) -> bool:
    """Whether the subset's name is a directory of the path, or whole words of the file's name."""
    path = PurePosixPath(name)
    folder = f"/{path.parent.as_posix()}/"
    stem = re.escape(subset.lower())
    return f"/{subset}/" in folder or bool(
        re.search(rf"(?<![a-z0-9]){stem}(?![a-z0-9])", path.name.lower())
    )
