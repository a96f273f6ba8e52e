"""Containers: the rows, or the text, that a file holds, streamed.

    rows_of(source, bad) -> (line, value) of each row, for every kind but txt
    open_data(path) -> the file's bytes as UTF-8, unpacked where it is .gz or .zst

.jsonl .ndjson   one JSON value a line; blank lines are no rows; CRLF is accepted. A JSON array of
                 rows, or one value over several lines, is read as .json.
.json            an array of rows, JSON values one after the other, or one object with the rows
                 under `data`, `rows`, `train` or `examples`. Read incrementally.
.csv             a header and a row a line; quoted fields may hold line ends.
.parquet .arrow  the rows of a table, by batches.

Text may be UTF-8 or, when it begins with a byte order mark, UTF-16 or UTF-32. A row of more than
`ROW_BYTES` is a bad row, or the end of a .json file; a table with such columns is refused.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import importlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from reso_llm.data.conversation import CONTENT_KEYS, ROLE_KEYS, first_filled
from reso_llm.data.errors import DataError
from reso_llm.data.rows import Columns

__all__ = ["Bad", "Source", "file_sha256", "open_data", "rows_of"]

PIECE_BYTES = 1 << 20
TABLE_ROWS = 64
ROW_BYTES = 1 << 27
COLUMN_RATIO = 200  # a column of a table that unpacks to more than ROW_BYTES and so many times
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
ARROW_FILE = b"ARROW1"
NESTED_ROWS = ("data", "rows", "train", "examples")

Bad = Callable[[int, str], None]
Row = tuple[int, Any]


class Source(NamedTuple):
    """One file to read.

    kind: its suffix without the dot and without .gz or .zst, or "sample".
    columns: the user's names of its columns; None to recognise them.
    """

    name: str
    path: Path
    kind: str
    columns: Columns | None = None


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes, streamed."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(PIECE_BYTES):
            digest.update(block)
    return digest.hexdigest()


def rows_of(source: Source, bad: Bad) -> Iterator[Row]:
    """(line, value) of each row; `bad(line, reason)` is called for one that cannot be decoded."""
    return READERS[source.kind](source, bad)


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
        pyarrow = _pyarrow(path.name)
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


def _pyarrow(name: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        kind = name.rsplit(".", 1)[-1]
        raise DataError(
            f'{name}: reading .{kind} needs pyarrow: pip install "reso-llm[hf]"'
        ) from None
    return pyarrow


# -- JSON


def _json_rows(source: Source, bad: Bad) -> Iterator[Row]:
    """Rows of a JSON file of either suffix, by lines or by values."""
    with open_data(source.path) as file:
        by_lines = _is_by_lines(file, source)
    with open_data(source.path) as file:
        rows = _json_lines(file, bad) if by_lines else _json_values(file, source.name)
        yield from rows if source.kind != "json" else _nested_rows(rows)


def _is_by_lines(file: BinaryIO, source: Source) -> bool:
    first = _first_line(file)
    if source.kind == "json":
        return not first.startswith(b"[") and _is_json(first)
    if first in (b"[", b"{"):
        return False
    if not first.startswith(b"["):
        return True
    with open_data(source.path) as again:
        values = _json_values(again, source.name)
        try:
            _, row = next(values)
        except (StopIteration, DataError):
            return True
    # A line that is a list of turns is one conversation; a list of rows is a file's array.
    return not isinstance(row, Mapping) or (
        first_filled(row, ROLE_KEYS) is not None and first_filled(row, CONTENT_KEYS) is not None
    )


def _nested_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, and those of a list under one of NESTED_ROWS in their place."""
    for line, row in rows:
        key = first_filled(row, NESTED_ROWS) if isinstance(row, Mapping) else None
        nested = row[key] if key else None
        if isinstance(nested, list) and all(isinstance(item, Mapping) for item in nested):
            yield from ((line, item) for item in nested)
        else:
            yield line, row


def _json_lines(file: BinaryIO, bad: Bad) -> Iterator[Row]:
    number = 0
    while line := file.readline(ROW_BYTES):
        number += 1
        if len(line) == ROW_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(ROW_BYTES)
            bad(number, f"a row of more than {ROW_BYTES >> 20} MB")
            continue
        if line.isspace():
            continue
        try:
            # Each form is dropped as the next exists: a line may be tens of megabytes.
            line = line.decode("utf-8")
            line = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad(number, _json_reason(error))
            continue
        yield number, line
        del line


def _json_reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"invalid UTF-8 at byte {error.start} of the line"
    if isinstance(error, RecursionError):
        return "broken JSON: nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} at character {error.pos}"
    return f"broken JSON: {error}"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _first_line(file: BinaryIO) -> bytes:
    """First non-blank line, at most PIECE_BYTES of it."""
    line = b" "
    while line and not line.strip():
        line = file.readline(PIECE_BYTES)
    return line.strip()


def _json_values(file: BinaryIO, name: str) -> Iterator[Row]:
    """(line, value) of each element of a JSON array, or of each value in a row of values."""
    text = _TextWindow(file, name)
    in_array = text.skip() == "["
    if in_array:
        text.advance(1)
    first = True
    while (character := text.skip()) != "":
        if in_array and character == "]":
            text.advance(1)
            if text.skip() != "":
                text.fail("more text after the end of the array")
            return
        if in_array and not first:
            if character != ",":
                text.fail("expected , or ] here")
            text.advance(1)
            text.skip()
        first = False
        line = text.line
        yield line, text.value()
    if in_array:
        text.fail("the array has no end: the file is cut off")


class _TextWindow:
    """Part of a JSON file as text, read on demand: memory is about one value."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._buffer, self._position, self._ended = "", 0, False
        self._read_bytes = 0
        self.line = 1
        self._json = json.JSONDecoder()

    def skip(self) -> str:
        """Pass white space; the next character, or "" at the end."""
        while True:
            match = re.compile(r"\s*").match(self._buffer, self._position)
            self.advance(match.end() - self._position if match else 0)
            if self._position < len(self._buffer) or not self._more():
                return self._buffer[self._position : self._position + 1]

    def advance(self, count: int) -> None:
        """Pass `count` characters."""
        self.line += self._buffer.count("\n", self._position, self._position + count)
        self._position += count

    def value(self) -> Any:
        """The JSON value that begins here."""
        while True:
            try:
                value, end = self._json.raw_decode(self._buffer, self._position)
            except RecursionError:
                self.fail("nested too deeply")
            except ValueError as error:
                if len(self._buffer) - self._position > ROW_BYTES:
                    self.fail(f"a row of more than {ROW_BYTES >> 20} MB")
                if not self._more():
                    self.fail(getattr(error, "msg", str(error)))
            else:
                self.advance(end - self._position)
                return value

    def fail(self, reason: str) -> None:
        """DataError here: what follows in the file cannot be told apart any more."""
        raise DataError(
            f"{self._name}:{self.line}: broken JSON: {reason}. The rest of a .json file cannot "
            "be read past this point; mend it, or store one row per line as .jsonl"
        )

    def _more(self) -> bool:
        """Read on, at least doubling what is held, so that growing a long value stays linear."""
        if self._ended:
            return False
        held = len(self._buffer) - self._position
        block = self._file.read(max(PIECE_BYTES, held))
        self._ended = not block
        try:
            text = self._decoder.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._name}: invalid UTF-8 near byte {self._read_bytes + error.start}; "
                "convert the file to UTF-8"
            ) from None
        self._read_bytes += len(block)
        self._buffer = self._buffer[self._position :] + text
        self._position = 0
        return True


# -- tables


def _csv_rows(source: Source, bad: Bad) -> Iterator[Row]:
    csv.field_size_limit(ROW_BYTES)
    with open_data(source.path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        reader = csv.DictReader(text)
        try:
            for row in reader:
                if None in row:
                    bad(reader.line_num, f"more fields than the {len(row) - 1} of the header")
                else:
                    yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{source.name}:{reader.line_num}: broken csv: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{source.name}: invalid UTF-8 after line {reader.line_num}; convert it to UTF-8"
            ) from error


def _parquet_rows(source: Source, bad: Bad) -> Iterator[Row]:
    _pyarrow(source.path.name)
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(source.path, buffer_size=PIECE_BYTES) as file:
            _refuse_bomb(file.metadata, source.name)
            yield from file.iter_batches(batch_size=TABLE_ROWS)

    yield from _table_rows(batches(), source, bad)


def _refuse_bomb(metadata: Any, name: str) -> None:
    """DataError for a table with a column that unpacks to far more than it is."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            size, packed = column.total_uncompressed_size, max(1, column.total_compressed_size)
            if size > ROW_BYTES and size > COLUMN_RATIO * packed:
                raise DataError(
                    f"{name}: the column {column.path_in_schema!r} unpacks from {packed:,} to "
                    f"{size:,} bytes at once; write the table with smaller row groups"
                )


def _arrow_rows(source: Source, bad: Bad) -> Iterator[Row]:
    pyarrow = _pyarrow(source.path.name)
    ipc = importlib.import_module("pyarrow.ipc")

    def batches() -> Iterator[Any]:
        with pyarrow.memory_map(str(source.path)) as file:
            # The library `datasets` writes streams, others write files with a footer.
            if file.read(len(ARROW_FILE)) == ARROW_FILE:
                table = ipc.open_file(file)
                yield from map(table.get_batch, range(table.num_record_batches))
            else:
                file.seek(0)
                yield from ipc.open_stream(file)

    yield from _table_rows(batches(), source, bad)


def _table_rows(batches: Iterable[Any], source: Source, bad: Bad) -> Iterator[Row]:
    import pyarrow

    number = 0
    try:
        for batch in batches:
            for index in range(batch.num_rows):
                number += 1
                try:
                    row = batch.slice(index, 1).to_pylist()[0]
                except UnicodeDecodeError as error:
                    bad(number, f"invalid UTF-8 at byte {error.start} of the value")
                else:
                    yield number, row
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{source.name}: broken {source.kind} file near row {number + 1}: {error}"
        ) from error


READERS: dict[str, Callable[[Source, Bad], Iterator[Row]]] = {
    "jsonl": _json_rows,
    "ndjson": _json_rows,
    "json": _json_rows,
    "csv": _csv_rows,
    "parquet": _parquet_rows,
    "arrow": _arrow_rows,
}
