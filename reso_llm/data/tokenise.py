"""Documents become files of tokens: batches through the tokenizer, one writer for each side.

A side is three files: the tokens (uint16 up to 65,536 ids, else uint32), the reply mask (uint8, as
long) and the starts of the documents (int64). A conversation is laid out as
`ResoTokenizer.encode_conversation` does; a plain text is <|bos|> and its tokens.

A journal beside them says how far they are written: after a kill the documents before are read
again, as the split and the summary need them, but not tokenised.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reso_llm.data.data_file import file_sha256
from reso_llm.data.split import SidedDocument
from reso_llm.tokenizer import ResoTokenizer

__all__ = ["SideWriter", "batches_of", "token_dtype", "write_batch", "write_sides"]

BATCH_DOCUMENTS = 1024
BATCH_CHARS = 1 << 21
JOURNAL, JOURNAL_EVERY = "journal.json", 16  # batches


def token_dtype(tokenizer: ResoTokenizer) -> type:
    """The smallest type of integer that holds every id."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def batches_of(documents: Iterable[SidedDocument]) -> Iterator[list[SidedDocument]]:
    """The documents in lists of about BATCH_CHARS bytes."""
    batch: list[SidedDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.document.num_bytes
        del document
        if size >= BATCH_CHARS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_sides(
    directory: Path,
    documents: Iterable[SidedDocument],
    tokenizer: ResoTokenizer,
    names: Iterable[str],
    after_batch: Callable[[], None],
) -> dict[str, SideWriter]:
    """Write the files of the named sides; the writers, closed.

    Goes on where an earlier call on the same documents, which was killed, had come to.
    """
    written, done = _read_journal(directory)
    documents = iter(documents)
    for _ in batches_of(islice(documents, written)):
        after_batch()
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                SideWriter(directory, name, token_dtype(tokenizer), done.get(name))
            )
            for name in names
        }
        for number, batch in enumerate(batches_of(documents), start=1):
            write_batch(batch, tokenizer, writers)
            written += len(batch)
            if number % JOURNAL_EVERY == 0:
                _write_journal(directory, written, writers)
            after_batch()
    (directory / JOURNAL).unlink(missing_ok=True)
    return writers


def _write_journal(directory: Path, written: int, writers: dict[str, SideWriter]) -> None:
    """Note that so many documents are written, and what that made of each side."""
    done = {name: writer.done() for name, writer in writers.items()}
    new = directory / f"{JOURNAL}.new"
    new.write_text(json.dumps({"written": written, "done": done}), encoding="utf-8")
    os.replace(new, directory / JOURNAL)


def _read_journal(directory: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Number of documents written, and what each side had then; nothing without a whole journal."""
    try:
        journal = json.loads((directory / JOURNAL).read_text(encoding="utf-8"))
        for side in journal["done"].values():
            for name, size in side["sizes"].items():
                if (directory / name).stat().st_size < size:
                    return 0, {}
        return journal["written"], journal["done"]
    except (OSError, ValueError, KeyError):
        return 0, {}


def write_batch(
    batch: list[SidedDocument], tokenizer: ResoTokenizer, writers: dict[str, SideWriter]
) -> None:
    """Encode the documents and append each to the writer of its side."""
    for document in batch:
        writers[document.side].count(document)
    segments = [segment for document in batch for segment in _segments(document, tokenizer)]
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


class SideWriter:
    """The three files of one side, appended to; from nothing, or from what `done` said."""

    def __init__(
        self, directory: Path, side: str, dtype: type, done: dict[str, Any] | None = None
    ) -> None:
        self._dtype = dtype
        self._paths = [directory / f"{side}.{name}" for name in ("tokens", "mask", "starts")]
        counts = done["counts"] if done else (0, 0, 0)
        self.num_tokens, self.num_bytes, self.num_documents = counts
        self._sizes = done["sizes"] if done else {}

    def __enter__(self) -> SideWriter:
        with contextlib.ExitStack() as opened:
            self._files = [opened.enter_context(open(path, "ab")) for path in self._paths]
            self._opened = opened.pop_all()
        for path, file in zip(self._paths, self._files, strict=True):
            file.truncate(self._sizes.get(path.name, 0))
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def done(self) -> dict[str, Any]:
        """What is written, on the disk: counts and sizes of files, to go on from."""
        sizes = {}
        for path, file in zip(self._paths, self._files, strict=True):
            file.flush()
            os.fsync(file.fileno())
            sizes[path.name] = os.fstat(file.fileno()).st_size
        return {"counts": [self.num_tokens, self.num_bytes, self.num_documents], "sizes": sizes}

    def count(self, document: SidedDocument) -> None:
        """Add a document, or a piece of one, to the side's numbers."""
        self.num_documents += document.begins
        self.num_bytes += document.document.num_bytes

    def write(self, ids: Iterable[int] | np.ndarray, reply: bool) -> None:
        """Append tokens; `reply` when an assistant has to produce them."""
        ids = np.asarray(ids, dtype=self._dtype)
        if len(ids):
            tokens, mask, starts = self._files
            if ids[0] == ResoTokenizer.bos_id:
                starts.write(np.int64(self.num_tokens).tobytes())
            tokens.write(ids.tobytes())
            mask.write(np.full(len(ids), reply, dtype=np.uint8).tobytes())
            self.num_tokens += len(ids)

    def summary(self) -> dict[str, Any]:
        """The side's numbers, and size and sha256 of each of its files."""
        return {
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "num_documents": self.num_documents,
            "files": {path.name: [path.stat().st_size, file_sha256(path)] for path in self._paths},
        }


class _Segment(NamedTuple):
    """A text with the control tokens around it; `reply` when an assistant has to produce it."""

    side: str
    text: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    reply: bool


def _segments(sided: SidedDocument, tokenizer: ResoTokenizer) -> Iterator[_Segment]:
    """The layout of `ResoTokenizer.encode_conversation`, or <|bos|> and the plain text."""
    bos = (tokenizer.bos_id,) if sided.begins else ()
    if sided.document.text is not None:
        yield _Segment(sided.side, sided.document.text, bos, (), False)
    for role, content in sided.document.messages:
        before = (*bos, tokenizer.role_id(role))
        reply = role == "assistant"
        yield _Segment(sided.side, content, before, (tokenizer.end_id,), reply)
        bos = ()


def _close(segment: _Segment, writers: dict[str, SideWriter]) -> None:
    writers[segment.side].write(segment.after, segment.reply)
