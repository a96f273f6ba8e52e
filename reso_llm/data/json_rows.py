"""Rows of JSON files: a value a line, or the elements of an array, read incrementally.

A row of more than `ROW_BYTES` is a bad row, or the end of a .json file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from reso_llm.data.conversation import CONTENT_KEYS, ROLE_KEYS, first_filled
from reso_llm.data.data_file import PIECE_BYTES, ROW_BYTES, Bad, Row, Source, open_data
from reso_llm.data.errors import DataError

__all__ = ["json_rows"]

NESTED_ROWS = ("data", "rows", "train", "examples", "instances")


def json_rows(source: Source, bad: Bad) -> Iterator[Row]:
    """Rows of a JSON file of either suffix, by lines or by values."""
    with open_data(source.path) as file:
        by_lines = _is_by_lines(file, source)
    with open_data(source.path) as file:
        rows = _json_lines(file, bad) if by_lines else _json_values(file, source.name)
        yield from rows if source.kind != "json" else _nested_rows(rows, bad)


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
    if isinstance(row, list):
        return not (row and _is_message(row[0]))
    return not isinstance(row, Mapping) or _is_message(row)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        first_filled(value, keys) is not None for keys in (ROLE_KEYS, CONTENT_KEYS)
    )


def _nested_rows(rows: Iterable[Row], bad: Bad) -> Iterator[Row]:
    """The rows, and those of a list under one of NESTED_ROWS in their place.

    Another list beside it, as of a held-out split, is not read, and is bad.
    """
    for line, row in rows:
        key = first_filled(row, NESTED_ROWS) if isinstance(row, Mapping) else None
        nested = row[key] if key else None
        if _is_list_of_rows(nested):
            for other, value in row.items():
                if other != key and _is_list_of_rows(value):
                    bad(line, f"the rows under {other!r} are not read beside those of {key!r}")
            yield from ((line, item) for item in nested)
        else:
            yield line, row


def _is_list_of_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, Mapping) for x in value)


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
