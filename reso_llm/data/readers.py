"""Readers: one file in, its documents out."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from reso_llm.data.conversation import (
    GUANACO_START,
    LLAMA_START,
    Document,
    Message,
    RowError,
    document_from_row,
    document_from_text,
)
from reso_llm.data.errors import DataError

SAMPLE_PACKAGE, SAMPLE_FILE = "chitchat-dataset", "chitchat_dataset/dataset.json"


BOM = codecs.BOM_UTF8


PIECE_BYTES = 1 << 20


PARQUET_ROWS = 256


class Source(NamedTuple):
    """One file to read: `kind` is its suffix without the dot, or "sample"."""

    name: str
    path: Path
    kind: str


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes, streamed."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(PIECE_BYTES):
            digest.update(block)
    return digest.hexdigest()


Bad = Callable[[int, str], None]


def _read_jsonl(source: Source, bad: Bad) -> Iterator[Document]:
    with open(source.path, "rb") as file:
        yield from _json_lines(file, bad)


def _json_lines(file: BinaryIO, bad: Bad) -> Iterator[Document]:
    number = 0
    while line := file.readline():
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        if not line or line.isspace():
            continue
        document = None
        try:
            # Each form is dropped as the next exists: a line may be tens of megabytes.
            line = line.decode("utf-8")
            line = json.loads(line)
            document, reason = _try_document(line)
        except (ValueError, RecursionError) as error:
            reason = _json_reason(error)
        if document is None:
            bad(number, reason or "no document")
            continue
        yield document
        del document


def _json_reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"invalid UTF-8 at byte {error.start} of the line"
    if isinstance(error, RecursionError):
        return "broken JSON: nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} at character {error.pos}"
    return f"broken JSON: {error}"


def _try_document(row: Any) -> tuple[Document | None, str | None]:
    try:
        return document_from_row(row), None
    except RowError as error:
        return None, str(error)


def _read_json(source: Source, bad: Bad) -> Iterator[Document]:
    with open(source.path, "rb") as file:
        first = _first_line(file)
        if not first.startswith(b"[") and _is_json(first):
            yield from _json_lines(file, bad)
            return
        for line, value in _json_values(file, source.name):
            document, reason = _try_document(value)
            if reason is not None:
                bad(line, reason)
            elif document is not None:
                yield document


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _first_line(file: BinaryIO) -> bytes:
    """First non-blank line, at most PIECE_BYTES of it; the file is rewound."""
    line = b" "
    while line and not line.strip():
        line = file.readline(PIECE_BYTES).removeprefix(BOM)
    file.seek(0)
    return line.strip()


def _json_values(file: BinaryIO, name: str) -> Iterator[tuple[int, Any]]:
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
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
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


def _read_parquet(source: Source, bad: Bad) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f'{source.name}: reading .parquet needs pyarrow: pip install "reso-llm[hf]"'
        ) from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for index in range(batch.num_rows):
                    number += 1
                    document, reason = _parquet_document(batch.slice(index, 1))
                    if reason is not None:
                        bad(number, reason)
                    elif document is not None:
                        yield document
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{source.name}: broken parquet file near row {number + 1}: {error}"
        ) from error


def _parquet_document(row: Any) -> tuple[Document | None, str | None]:
    try:
        return _try_document(row.to_pylist()[0])
    except UnicodeDecodeError as error:
        return None, f"invalid UTF-8 at byte {error.start} of the value"


def _read_txt(source: Source, bad: Bad) -> Iterator[Document]:
    with open(source.path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        skipped = len(BOM) if file.read(len(BOM)) == BOM else 0
        file.seek(skipped)
        head = file.read(PIECE_BYTES).lstrip()[:64].decode("utf-8", errors="replace")
        file.seek(skipped)
        if GUANACO_START.match(head) or LLAMA_START.match(head):
            yield from _txt_conversations(file, source, bad)
        else:
            yield from _txt_pieces(file, source, skipped, size - skipped)


def _txt_pieces(
    file: BinaryIO, source: Source, skipped: int, file_bytes: int
) -> Iterator[Document]:
    blank, start, rest = True, 0, b""
    while block := file.read(PIECE_BYTES):
        data = rest + block
        cut = data.rfind(b"\n") + 1 or _character_boundary(data)
        text = _decode_txt(data[:cut], source, skipped + start)
        rest = data[cut:]
        if text:
            blank = blank and text.isspace()
            yield Document((), text, cut, start, file_bytes)
            start += cut
    if rest:
        text = _decode_txt(rest, source, skipped + start)
        blank = blank and text.isspace()
        yield Document((), text, len(rest), start, file_bytes)
    if blank:
        raise DataError(
            f"{source.name}: no text in it: the file is {'blank' if start else 'empty'}"
        )


def _character_boundary(data: bytes) -> int:
    """Where to cut `data` so that its last, perhaps unfinished, character stays whole."""
    for back in range(1, min(4, len(data)) + 1):
        if data[-back] & 0xC0 != 0x80:
            return len(data) - back if data[-back] >= 0xC0 else len(data)
    return len(data)


def _decode_txt(data: bytes, source: Source, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source.name}: invalid UTF-8 at byte {offset + error.start} of the file; "
            "convert it to UTF-8 (iconv -f LATIN1 -t UTF-8)"
        ) from None


def _txt_conversations(file: BinaryIO, source: Source, bad: Bad) -> Iterator[Document]:
    for line, text in _txt_blocks(file, source):
        try:
            yield document_from_text(text)
        except RowError as error:
            bad(line, str(error))


def _txt_blocks(file: BinaryIO, source: Source) -> Iterator[tuple[int, str]]:
    """(line, text) of each conversation, without the line ends around it."""
    lines: list[str] = []
    first, after_blank, inline = 1, True, False
    offset = file.tell()
    for number, data in enumerate(file, start=1):
        line = _decode_txt(data, source, offset)
        offset += len(data)
        if _starts_conversation(line, after_blank, inline) and any(map(str.strip, lines)):
            yield first, "".join(lines).strip("\r\n")
            lines, first, inline = [], number, False
        if not lines and not line.strip():
            first = number + 1
            continue
        lines.append(line)
        after_blank = not line.strip()
        inline = inline or line.find("### Assistant:") > 0
    if any(map(str.strip, lines)):
        yield first, "".join(lines).strip("\r\n")


def _starts_conversation(line: str, after_blank: bool, inline: bool) -> bool:
    if line.startswith("### Human:"):
        return after_blank or inline
    return line.startswith(("<s>[INST]", "<s> [INST]")) or (
        line.startswith("[INST]") and after_blank
    )


def _read_sample(source: Source, bad: Bad) -> Iterator[Document]:
    """Chitchat: turns are lists of utterances; the first speaker is the user.

    The utterances of a turn are joined by line ends, and neighbouring turns of one sender are one
    message, so roles alternate.
    """
    try:
        conversations = json.loads(source.path.read_bytes())
    except ValueError as error:
        raise DataError(f"{source.path}: broken ({error}); reinstall {SAMPLE_PACKAGE}") from None
    for number, conversation in enumerate(conversations.values(), start=1):
        try:
            messages = _alternate(_utterances(conversation))
        except (KeyError, TypeError, AttributeError) as error:
            bad(number, f"not a chitchat conversation ({error!r})")
            continue
        document, reason = _try_document([message._asdict() for message in messages])
        if reason is not None:
            bad(number, reason)
        elif document is not None:
            yield document


def _utterances(conversation: Any) -> list[tuple[str, str]]:
    return [(u["sender"], u["text"]) for turn in conversation["messages"] for u in turn]


def _alternate(utterances: list[tuple[str, str]]) -> list[Message]:
    """Messages of (sender, text) pairs: one per run of the same sender."""
    runs: list[tuple[str, list[str]]] = []
    for sender, text in utterances:
        if not runs or runs[-1][0] != sender:
            runs.append((sender, []))
        runs[-1][1].append(text)
    return [
        Message("user" if sender == runs[0][0] else "assistant", "\n".join(texts))
        for sender, texts in runs
    ]


READERS: dict[str, Callable[[Source, Bad], Iterator[Document]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "parquet": _read_parquet,
    "txt": _read_txt,
    "sample": _read_sample,
}
