"""The split into training and validation, by the hash of a document's content.

A document belongs to validation when the hash of its content, as a fraction of the largest hash, is
below `val_fraction`: independent of order and of other rows, and duplicates stay on one side.
Should that leave a side empty, the one document with the smallest (or largest) hash goes there;
with a single document there is nothing to split, which is an error. A plain text file is cut
instead: the last `val_fraction` of its bytes is validation.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from reso_llm.data.conversation import Document
from reso_llm.data.data_file import Source
from reso_llm.data.errors import DataError
from reso_llm.data.sources import OnBadRow, read_source, resolve

__all__ = ["SidedDocument", "SplitPlan", "content_hash", "plan_split", "split_documents"]

logger = logging.getLogger(__name__)

HASH_CHARS = 1 << 20


class SplitPlan(NamedTuple):
    """The files of both sides; `val` is empty when `train` is to be split by `val_fraction`."""

    train: tuple[Source, ...]
    val: tuple[Source, ...]
    val_fraction: float

    def names(self) -> str:
        """The training files, for messages."""
        return "+".join(source.name for source in self.train)


def plan_split(
    spec: str, val_spec: str | None, val_fraction: float, columns: str | None = None
) -> SplitPlan:
    """The plan for what `spec` and `val_spec` name; DataError."""
    if val_spec is not None:
        return SplitPlan(resolve(spec, columns=columns), resolve(val_spec, columns=columns), 0.0)
    if not 0.0 < val_fraction < 1.0:
        raise DataError(
            f"val_fraction is {val_fraction}, expected a number between 0 and 1 "
            "(or name a validation file)"
        )
    return SplitPlan(resolve(spec, columns=columns), (), float(val_fraction))


class SidedDocument(NamedTuple):
    """A document, or a piece of one, on its side; `begins` when it starts with <|bos|>.

    digest: its content's hash, 0 for a piece of a plain text file.
    """

    side: str
    begins: bool
    document: Document
    digest: int

    def texts(self) -> list[str]:
        """The texts of its messages, or its plain text."""
        messages = self.document.messages
        return [message.content for message in messages] if messages else [self.document.text or ""]


def content_hash(document: Document) -> int:
    """64-bit hash of a document's roles and texts, the same for equal content in any format."""
    digest = hashlib.blake2b(digest_size=8)
    for role, content in document.messages or [("", document.text or "")]:
        digest.update(f"{role}:{len(content)}:".encode())
        for start in range(0, len(content), HASH_CHARS):  # no copy of a huge text
            digest.update(content[start : start + HASH_CHARS].encode("utf-8"))
    return int.from_bytes(digest.digest(), "big")


def split_documents(
    documents: Iterable[Document], threshold: int, val_fraction: float
) -> Iterator[SidedDocument]:
    """Send each document to the side its hash says; cut plain text files by bytes.

    `threshold`: hashes below it are validation. `val_fraction` is for plain text files.
    """
    in_val = False
    for document in documents:
        if document.file_bytes is None:
            digest = content_hash(document)
            yield SidedDocument("val" if digest < threshold else "train", True, document, digest)
            continue
        in_val = in_val and document.start > 0
        for side, piece in _cut_text(document, val_fraction):
            begins = document.start == 0 if side == "train" else not in_val
            in_val = side == "val"
            yield SidedDocument(side, begins, piece, 0)


def validation_threshold(plan: SplitPlan, on_bad_row: OnBadRow) -> int:
    """Hash below which a document is validation, such that neither side is empty.

    Reads only until both sides have a document: all of the data just when it is tiny.
    """
    if plan.val:
        return 0
    threshold = int(plan.val_fraction * 2.0**64)
    hashes: set[int] = set()
    sides: set[str] = set()
    for source in plan.train:
        for document in read_source(source, on_bad_row=on_bad_row):
            if document.file_bytes is not None:
                sides |= {side for side, _ in _cut_text(document, plan.val_fraction)}
            else:
                hashes.add(content_hash(document))
                sides.add("val" if content_hash(document) < threshold else "train")
            if len(sides) == 2:
                return threshold
    return _threshold_of_one(hashes, sides, plan)


def _threshold_of_one(hashes: set[int], sides: set[str], plan: SplitPlan) -> int:
    """The threshold that puts exactly one document on the side that would be empty."""
    missing = "val" if "train" in sides else "train"
    if len(hashes) < 2:
        raise DataError(
            f"{plan.names()}: only one document, which cannot be both training and validation "
            "data; name a validation file or give more rows"
        )
    logger.warning(
        "%s: %g of %d different documents would leave no %s data; one document is put there",
        plan.names(), plan.val_fraction, len(hashes),
        "validation" if missing == "val" else "training",
    )  # fmt: skip
    return min(hashes) + 1 if missing == "val" else max(hashes)


def _cut_text(document: Document, val_fraction: float) -> Iterator[tuple[str, Document]]:
    """A piece of a plain text file as (side, piece): the last `val_fraction` is validation."""
    cut = int(document.file_bytes * (1.0 - val_fraction)) - document.start
    if cut >= document.num_bytes:
        yield "train", document
        return
    data = document.text.encode("utf-8")
    cut = max(0, cut)
    while cut > 0 and data[cut] & 0xC0 == 0x80:
        cut -= 1
    if cut:
        yield "train", document._replace(text=data[:cut].decode("utf-8"), num_bytes=cut)
    yield "val", document._replace(text=data[cut:].decode("utf-8"), num_bytes=len(data) - cut)
