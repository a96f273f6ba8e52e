"""The token cache: data are tokenised once and memory-mapped afterwards.

A directory per (content of the files, names of columns, tokenizer, split), under `$RESO_CACHE`,
else `$XDG_CACHE_HOME/reso_llm`, else `~/.cache/reso_llm`. It holds the files of both sides (see
`tokenise.py`) and a manifest with the sha256 of each, the tokenizer's fingerprint and the summary
of what was read; all are checked whenever it is opened. It is built under a lock in a directory
KEY.partial and renamed, so it is complete or absent; a build that was killed goes on there. A
process without the right to write reads it as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reso_llm.data.data_file import file_sha256
from reso_llm.data.errors import BadRow, BadRows, DataError
from reso_llm.data.sources import OnBadRow, read_source
from reso_llm.data.split import SidedDocument, SplitPlan, split_documents, validation_threshold
from reso_llm.data.summary import DataSummary
from reso_llm.data.tokenise import token_dtype, write_sides
from reso_llm.tokenizer import ResoTokenizer

__all__ = ["Progress", "Split", "TokenData", "cached_tokens", "default_cache_dir"]

logger = logging.getLogger(__name__)

# Part of the key: raise it whenever parsing, layout or split changes what a cache would hold.
FORMAT_VERSION = 2
SIDES = ("train", "val")

Progress = Callable[[int, int], None]


class Split(NamedTuple):
    """One side of the data, memory-mapped.

    tokens (N,) uint16 or uint32; reply_mask (N,) uint8, 1 where an assistant's token has to be
    predicted; doc_starts (num_documents,) int64, index of each document's <|bos|>; num_bytes, UTF-8
    bytes of the text behind the tokens (what bits per byte divides by).
    """

    tokens: np.ndarray
    reply_mask: np.ndarray
    doc_starts: np.ndarray
    num_tokens: int
    num_bytes: int
    num_documents: int


class TokenData(NamedTuple):
    """Both sides, the rows that were skipped, the cache's directory, and what was read."""

    train: Split
    val: Split
    bad_rows: BadRows
    path: Path
    summary: DataSummary


def default_cache_dir() -> Path:
    """`$RESO_CACHE`, else `$XDG_CACHE_HOME/reso_llm`, else `~/.cache/reso_llm`.

    Raises DataError where it would be in a home directory and there is none.
    """
    try:
        if own := os.environ.get("RESO_CACHE"):
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reso_llm"
    except RuntimeError as error:  # no HOME, and no entry for the user
        raise DataError(
            "there is no home directory for the token cache: set RESO_CACHE to a directory"
        ) from error


def cached_tokens(
    root: Path,
    plan: SplitPlan,
    tokenizer: ResoTokenizer,
    on_bad_row: OnBadRow,
    progress: Progress | None,
) -> TokenData:
    """The tokens of `plan` from the cache below `root`, built when it is not there; DataError."""
    final = root / _cache_key(plan, tokenizer)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _build_lock(final):
            data = _open_cache(final, plan, tokenizer)
            if data is None or (on_bad_row == "error" and data.bad_rows.count):
                _build(final, plan, tokenizer, on_bad_row, progress)
                data = _open_cache(final, plan, tokenizer)
    except OSError as error:
        data = _open_cache(final, plan, tokenizer)  # all that is needed may be there to be read
        if data is None or (on_bad_row == "error" and data.bad_rows.count):
            raise DataError(
                f"{final}: cannot write the token cache ({error}); set RESO_CACHE to a directory "
                "with room, about 3 bytes per token"
            ) from error
    if data is None:
        raise DataError(f"{final}: the token cache changed while it was read; start again")
    return data


def _cache_key(plan: SplitPlan, tokenizer: ResoTokenizer) -> str:
    try:
        contents = [
            [[source.kind, file_sha256(source.path), source.columns] for source in side]
            for side in (plan.train, plan.val)
        ]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
    key = [FORMAT_VERSION, contents, plan.val_fraction, tokenizer.fingerprint]
    return _sha256_json(key)[:32]


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _build_lock(final: Path) -> Iterator[None]:
    """One process at a time builds or opens `final`; the lock ends with its process."""
    with open(final.with_name(f"{final.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for stale in final.parent.glob(f"{final.name}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


# -- build


def _build(
    final: Path,
    plan: SplitPlan,
    tokenizer: ResoTokenizer,
    on_bad_row: OnBadRow,
    progress: Progress | None,
) -> None:
    """Write the cache directory `final`, replacing what is there."""
    partial, old = (final.with_name(f"{final.name}.{end}") for end in ("partial", "old.tmp"))
    try:
        partial.mkdir(exist_ok=True)
        _write_cache(partial, plan, tokenizer, on_bad_row, progress)
        if final.exists():
            os.replace(final, old)
        os.replace(partial, final)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _write_cache(
    directory: Path,
    plan: SplitPlan,
    tokenizer: ResoTokenizer,
    on_bad_row: OnBadRow,
    progress: Progress | None,
) -> None:
    threshold = validation_threshold(plan, on_bad_row)
    report, summary = BadRows(), DataSummary()
    passing = _Passing(progress, compare=bool(plan.val))
    documents = passing.watch(_all_documents(plan, threshold, on_bad_row, report, summary))
    writers = write_sides(directory, documents, tokenizer, SIDES, passing.show_progress)
    for side in SIDES:
        if not writers[side].num_documents:
            name = "training" if side == "train" else "validation"
            raise DataError(f"{plan.names()}: no {name} data after the split")
    passing.warn_overlap(plan)
    body = {
        "format": FORMAT_VERSION,
        "dtype": np.dtype(token_dtype(tokenizer)).name,
        "tokenizer": tokenizer.fingerprint,
        "sources": [source.name for source in (*plan.train, *plan.val)],
        "bad_rows": [list(row) for row in report.rows],
        "summary": summary.to_json(),
        **{side: writers[side].summary() for side in SIDES},
    }
    text = json.dumps({"sha256": _sha256_json(body), "body": body}, indent=1)
    (directory / "manifest.json").write_text(text, encoding="utf-8")


def _all_documents(
    plan: SplitPlan, threshold: int, on_bad_row: OnBadRow, report: BadRows, summary: DataSummary
) -> Iterator[SidedDocument]:
    # Validation first: its hashes are then known when the training rows pass.
    for source in plan.val:
        documents = read_source(source, on_bad_row=on_bad_row, report=report, summary=summary)
        yield from split_documents(documents, 1 << 64, 1.0)
    for source in plan.train:
        documents = read_source(source, on_bad_row=on_bad_row, report=report, summary=summary)
        yield from split_documents(documents, threshold, plan.val_fraction)


@dataclass
class _Passing:
    """Watches documents pass: for the progress display, and for validation rows in training."""

    progress: Progress | None
    compare: bool
    documents: int = 0
    bytes: int = 0
    overlap: int = 0
    val_hashes: set[int] = field(default_factory=set)

    def watch(self, documents: Iterable[SidedDocument]) -> Iterator[SidedDocument]:
        for sided in documents:
            self.documents += sided.begins
            self.bytes += sided.document.num_bytes
            if self.compare and sided.document.file_bytes is None:
                if sided.side == "val":
                    self.val_hashes.add(sided.digest)
                else:
                    self.overlap += sided.digest in self.val_hashes
            yield sided

    def show_progress(self) -> None:
        if self.progress is not None:
            self.progress(self.documents, self.bytes)

    def warn_overlap(self, plan: SplitPlan) -> None:
        if self.overlap:
            logger.warning(
                "%d training documents are also validation documents of %s: the validation loss "
                "will look too good",
                self.overlap, "+".join(source.name for source in plan.val),
            )  # fmt: skip


# -- open


def _open_cache(final: Path, plan: SplitPlan, tokenizer: ResoTokenizer) -> TokenData | None:
    """The cache, or None when there is none or it is damaged (which is logged)."""
    if not final.exists():
        return None
    try:
        body = _verified_manifest(final, tokenizer)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: damaged token cache (%s), building it again", final, error)
        return None
    names = {old: s.name for old, s in zip(body["sources"], (*plan.train, *plan.val), strict=True)}
    rows = [BadRow(names.get(name, name), line, why) for name, line, why in body["bad_rows"]]
    splits = [_open_split(final, side, body) for side in SIDES]
    summary = DataSummary.from_json(body["summary"], names)
    return TokenData(splits[0], splits[1], BadRows(rows), final, summary)


def _verified_manifest(final: Path, tokenizer: ResoTokenizer) -> dict[str, Any]:
    manifest = json.loads((final / "manifest.json").read_text(encoding="utf-8"))
    body = manifest["body"]
    if _sha256_json(body) != manifest["sha256"]:
        raise ValueError("manifest.json does not match its own hash")
    if body["tokenizer"] != tokenizer.fingerprint:
        raise ValueError("it is of another tokenizer")
    for side in SIDES:
        for name, (size, digest) in body[side]["files"].items():
            if (final / name).stat().st_size != size:
                raise ValueError(f"{name} has a wrong size")
            if file_sha256(final / name) != digest:
                raise ValueError(f"{name} does not match its hash")
    return body


def _open_split(final: Path, side: str, body: dict[str, Any]) -> Split:
    def mapped(name: str, dtype: Any) -> np.ndarray:
        return np.memmap(final / f"{side}.{name}", dtype=dtype, mode="r")

    counts = [body[side][name] for name in ("num_tokens", "num_bytes", "num_documents")]
    tokens, mask = mapped("tokens", np.dtype(body["dtype"])), mapped("mask", np.uint8)
    return Split(tokens, mask, mapped("starts", np.int64), *counts)
