"""One data file: its source, and its bytes as UTF-8, unpacked.

    open_data(path) -> the bytes of a text file, whether it is plain, .gz or .zst

Text may be UTF-8 or, when it begins with a byte order mark, UTF-16 or UTF-32.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from reso_llm.data.errors import DataError
from reso_llm.data.rows import Columns

__all__ = [
    "PIECE_BYTES",
    "ROW_BYTES",
    "Bad",
    "Row",
    "Source",
    "file_sha256",
    "open_data",
    "pyarrow_for",
]

PIECE_BYTES = 1 << 20
ROW_BYTES = 1 << 27  # of one row; a longer one is a bad row
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

Bad = Callable[[int, str], None]
Row = tuple[int, Any]


class Source(NamedTuple):
    """One file to read.

    kind: its suffix without the dot and without .gz or .zst, or "sample".
    columns: the user's names of its columns; None to recognise them.
    left_out: with the first file of a directory or a data set, the data files beside that are not
        read: held-out splits, and the same rows as another kind of file.
    """

    name: str
    path: Path
    kind: str
    columns: Columns | None = None
    left_out: tuple[str, ...] = ()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes, streamed."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(PIECE_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def open_data(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a text file as UTF-8 without a byte order mark, unpacked; DataError."""
    try:
        with _unpacked(path) as file:
            head = file.peek(4)[:4]
            mark, encoding = next((m for m in MARKS if head.startswith(m[0])), (b"", "utf-8"))
            file.read(len(mark))
            yield file if encoding == "utf-8" else io.BufferedReader(_Recoded(file, encoding))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken .gz file: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: invalid {error.encoding}: {error.reason}") from error


@contextmanager
def _unpacked(path: Path) -> Iterator[io.BufferedReader]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        with gzip.open(path) as packed, io.BufferedReader(packed, PIECE_BYTES) as file:
            yield file
    elif suffix == ".zst":
        pyarrow = pyarrow_for(path.name)
        with pyarrow.CompressedInputStream(str(path), "zstd") as packed:
            yield io.BufferedReader(packed, PIECE_BYTES)
    else:
        with open(path, "rb") as file:
            yield file


class _Recoded(io.RawIOBase):
    """The text of a file in another encoding, as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready, self._ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            block = self._file.read(PIECE_BYTES)
            self._ended = not block
            self._ready = self._decoder.decode(block, final=self._ended).encode("utf-8")
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def pyarrow_for(name: str) -> Any:
    """The module pyarrow, which reading the file `name` needs; DataError where it is missing."""
    try:
        import pyarrow
    except ImportError:
        kind = name.rsplit(".", 1)[-1]
        raise DataError(
            f'{name}: reading .{kind} needs pyarrow: pip install "reso-llm[hf]"'
        ) from None
    return pyarrow
