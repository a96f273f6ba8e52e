"""Documents become files of tokens: batches through the tokenizer, one writer for each side.

A side is three files: the tokens (uint16 up to 65,536 ids, else uint32), the reply mask (uint8, as
long) and the starts of the documents (int64). A conversation is laid out as
`ResoTokenizer.encode_conversation` does; a plain text is <|bos|> and its tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from reso_llm.data.data_file import file_sha256
from reso_llm.data.split import SidedDocument
from reso_llm.tokenizer import ResoTokenizer

__all__ = ["SideWriter", "batches_of", "token_dtype", "write_batch"]

BATCH_DOCUMENTS = 1024
BATCH_CHARS = 1 << 21


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
    """The three files of one side, appended to."""

    def __init__(self, directory: Path, side: str, dtype: type) -> None:
        self._dtype = dtype
        self._paths = {name: directory / f"{side}.{name}" for name in ("tokens", "mask", "starts")}
        self.num_tokens = self.num_bytes = self.num_documents = 0
        self._starts = array("q")

    def __enter__(self) -> SideWriter:
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

    def count(self, document: SidedDocument) -> None:
        """Add a document, or a piece of one, to the side's numbers."""
        self.num_documents += document.begins
        self.num_bytes += document.document.num_bytes

    def write(self, ids: Iterable[int] | np.ndarray, reply: bool) -> None:
        """Append tokens; `reply` when an assistant has to produce them."""
        ids = np.asarray(ids, dtype=self._dtype)
        if len(ids):
            if ids[0] == ResoTokenizer.bos_id:
                self._starts.append(self.num_tokens)
            self._tokens.write(ids.tobytes())
            self._mask.write(np.full(len(ids), reply, dtype=np.uint8).tobytes())
            self.num_tokens += len(ids)

    def summary(self) -> dict[str, Any]:
        """The side's numbers, and size and sha256 of each of its files."""
        return {
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "num_documents": self.num_documents,
            "files": {
                path.name: [path.stat().st_size, file_sha256(path)] for path in self._paths.values()
            },
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
