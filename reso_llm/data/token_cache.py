"""The token cache: tokenised once, memory-mapped afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from reso_llm.data.errors import BadRow, BadRows, DataError
from reso_llm.data.readers import file_sha256
from reso_llm.data.sources import OnBadRow, read_source
from reso_llm.data.split import _Part, _Plan, _split_documents, _threshold
from reso_llm.tokenizer import ResoTokenizer

logger = logging.getLogger(__name__)

# Part of the key: raise it whenever parsing, layout or split changes what a cache would hold.
FORMAT_VERSION = 1


SIDES = ("train", "val")


BATCH_DOCUMENTS = 1024


BATCH_CHARS = 1 << 21


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
    """Both sides, the rows that were skipped, and the cache directory they are read from."""

    train: Split
    val: Split
    bad_rows: BadRows
    path: Path


def default_cache_dir() -> Path:
    """`$RESO_CACHE`, else `$XDG_CACHE_HOME/reso_llm`, else `~/.cache/reso_llm`."""
    if own := os.environ.get("RESO_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reso_llm"


def _cache_key(plan: _Plan, tokenizer: ResoTokenizer) -> str:
    try:
        contents = [[[s.kind, file_sha256(s.path)] for s in side] for side in plan[:2]]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
    key = [FORMAT_VERSION, contents, plan.val_fraction, tokenizer.fingerprint]
    return _sha256_json(key)[:32]


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _build(
    final: Path,
    plan: _Plan,
    tokenizer: ResoTokenizer,
    on_bad_row: OnBadRow,
    progress: Progress | None,
) -> None:
    """Write the cache directory `final`, replacing what is there."""
    temporary = Path(tempfile.mkdtemp(prefix=f"{final.name}.", suffix=".tmp", dir=final.parent))
    try:
        _write_cache(temporary, plan, tokenizer, on_bad_row, progress)
        if final.exists():
            os.replace(final, temporary / "old")
        os.replace(temporary / "new", final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_cache(
    temporary: Path,
    plan: _Plan,
    tokenizer: ResoTokenizer,
    on_bad_row: OnBadRow,
    progress: Progress | None,
) -> None:
    threshold = _threshold(plan, on_bad_row)
    report = BadRows()
    directory = temporary / "new"
    directory.mkdir()
    dtype = _token_dtype(tokenizer)
    with contextlib.ExitStack() as stack:
        writers = {side: stack.enter_context(_SideWriter(directory, side, dtype)) for side in SIDES}
        tally = _Tally(progress, compare=bool(plan.val))
        parts = _all_parts(plan, threshold, on_bad_row, report)
        for batch in _batches(tally.watch(parts)):
            _write_batch(batch, tokenizer, writers)
            tally.tell()
    for side in SIDES:
        if not writers[side].num_documents:
            name = "training" if side == "train" else "validation"
            raise DataError(f"{plan.names()}: no {name} data after the split")
    tally.warn_overlap(plan)
    body = {
        "format": FORMAT_VERSION,
        "dtype": np.dtype(dtype).name,
        "tokenizer": tokenizer.fingerprint,
        "sources": [source.name for source in (*plan.train, *plan.val)],
        "bad_rows": [list(row) for row in report.rows],
        **{side: writers[side].summary() for side in SIDES},
    }
    text = json.dumps({"sha256": _sha256_json(body), "body": body}, indent=1)
    (directory / "manifest.json").write_text(text, encoding="utf-8")


def _token_dtype(tokenizer: ResoTokenizer) -> type:
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def _all_parts(
    plan: _Plan, threshold: int, on_bad_row: OnBadRow, report: BadRows
) -> Iterator[_Part]:
    # Validation first: the tally then knows its hashes when the training rows pass.
    for source in plan.val:
        documents = read_source(source, on_bad_row=on_bad_row, report=report)
        yield from _split_documents(documents, 1 << 64, 1.0)
    for source in plan.train:
        documents = read_source(source, on_bad_row=on_bad_row, report=report)
        yield from _split_documents(documents, threshold, plan.val_fraction)


@dataclass
class _Tally:
    """Counts what passes: for the progress display, and validation rows seen in training."""

    progress: Progress | None
    compare: bool
    documents: int = 0
    bytes: int = 0
    overlap: int = 0
    val_hashes: set[int] = field(default_factory=set)

    def watch(self, parts: Iterable[_Part]) -> Iterator[_Part]:
        for part in parts:
            self.documents += part.begins
            self.bytes += part.document.num_bytes
            if self.compare and part.document.file_bytes is None:
                if part.side == "val":
                    self.val_hashes.add(part.digest)
                else:
                    self.overlap += part.digest in self.val_hashes
            yield part

    def tell(self) -> None:
        if self.progress is not None:
            self.progress(self.documents, self.bytes)

    def warn_overlap(self, plan: _Plan) -> None:
        if self.overlap:
            logger.warning(
                "%d training documents are also validation documents of %s: the validation loss "
                "will look too good",
                self.overlap, "+".join(source.name for source in plan.val),
            )  # fmt: skip


def _batches(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    batch: list[_Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += part.document.num_bytes
        del part
        if size >= BATCH_CHARS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Segment(NamedTuple):
    """A text with the control tokens around it; `reply` when an assistant has to produce it."""

    side: str
    text: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    reply: bool


def _segments(part: _Part, tokenizer: ResoTokenizer) -> Iterator[_Segment]:
    """The layout of `ResoTokenizer.encode_conversation`, or <|bos|> and the plain text."""
    bos = (tokenizer.bos_id,) if part.begins else ()
    if part.document.text is not None:
        yield _Segment(part.side, part.document.text, bos, (), False)
    for role, content in part.document.messages:
        before = (*bos, tokenizer.role_id(role))
        reply = role == "assistant"
        yield _Segment(part.side, content, before, (tokenizer.end_id,), reply)
        bos = ()


def _write_batch(
    batch: list[_Part], tokenizer: ResoTokenizer, writers: dict[str, _SideWriter]
) -> None:
    for part in batch:
        writers[part.side].count(part)
    segments = [segment for part in batch for segment in _segments(part, tokenizer)]
    current = -1
    for index, ids in tokenizer.encode_pieces([segment.text for segment in segments]):
        segment = segments[index]
        if index != current:
            if current >= 0:
                _close(segments[current], writers)
            writers[segment.side].write(segment.before, False)
            current = index
        writers[segment.side].write(ids, segment.reply)
    _close(segments[current], writers)


def _close(segment: _Segment, writers: dict[str, _SideWriter]) -> None:
    writers[segment.side].write(segment.after, segment.reply)


class _SideWriter:
    """The three files of one side, appended to."""

    def __init__(self, directory: Path, side: str, dtype: type) -> None:
        self._dtype = dtype
        self._paths = {name: directory / f"{side}.{name}" for name in ("tokens", "mask", "starts")}
        self.num_tokens = self.num_bytes = self.num_documents = 0
        self._starts = array("q")

    def __enter__(self) -> _SideWriter:
        self._tokens = open(self._paths["tokens"], "wb")
        self._mask = open(self._paths["mask"], "wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tokens.close()
        self._mask.close()
        if kind is None:
            self._paths["starts"].write_bytes(self._starts.tobytes())

    def count(self, part: _Part) -> None:
        self.num_documents += part.begins
        self.num_bytes += part.document.num_bytes

    def write(self, ids: Iterable[int] | np.ndarray, reply: bool) -> None:
        ids = np.asarray(ids, dtype=self._dtype)
        if isinstance(ids, np.ndarray) and len(ids):
            if ids[0] == ResoTokenizer.bos_id:
                self._starts.append(self.num_tokens)
            self._tokens.write(ids.tobytes())
            self._mask.write(np.full(len(ids), reply, dtype=np.uint8).tobytes())
            self.num_tokens += len(ids)

    def summary(self) -> dict[str, Any]:
        return {
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "num_documents": self.num_documents,
            "files": {
                path.name: [path.stat().st_size, file_sha256(path)] for path in self._paths.values()
            },
        }


@contextlib.contextmanager
def _build_lock(final: Path) -> Iterator[None]:
    """One process at a time builds or opens `final`; the lock ends with its process."""
    with open(final.with_name(f"{final.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for stale in final.parent.glob(f"{final.name}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


def _open_cache(final: Path, plan: _Plan) -> TokenData | None:
    """The cache, or None when there is none or it is damaged (which is logged)."""
    if not final.exists():
        return None
    try:
        body = _verified_manifest(final)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: damaged token cache (%s), building it again", final, error)
        return None
    names = {old: s.name for old, s in zip(body["sources"], (*plan.train, *plan.val), strict=True)}
    rows = [BadRow(names.get(name, name), line, why) for name, line, why in body["bad_rows"]]
    splits = [_open_split(final, side, body) for side in SIDES]
    return TokenData(splits[0], splits[1], BadRows(rows), final)


def _verified_manifest(final: Path) -> dict[str, Any]:
    manifest = json.loads((final / "manifest.json").read_text(encoding="utf-8"))
    body = manifest["body"]
    if _sha256_json(body) != manifest["sha256"]:
        raise ValueError("manifest.json does not match its own hash")
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
