"""Readers: one file in, its documents out.

Rows of tables and JSON become documents in `rows.py`, message trees in `trees.py`. Two kinds of
files have no rows:

.txt    When the file begins with a chat marker it is a file of conversations, when it is one chat
        after a preamble one conversation, else one plain text, read in pieces cut at line ends. In
        a file of conversations the next one begins at a line that starts with `<s>[INST]` or a
        system marker, or that starts with a question's marker after a blank line, or that starts
        with `### Human:` when the conversation has an `### Assistant:` in the middle of a line (one
        conversation per row, as in the guanaco files). Line ends between two conversations belong
        to neither.
sample  The package chitchat-dataset: turns of several utterances each.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from reso_llm.data.containers import rows_of
from reso_llm.data.conversation import Document, Message, RowError, conversation, utf8_length
from reso_llm.data.data_file import PIECE_BYTES, Bad, Source, open_data
from reso_llm.data.errors import DataError
from reso_llm.data.layouts import document_from_text, messages_in, starts_with_marker
from reso_llm.data.rows import document_from_row
from reso_llm.data.trees import (
    is_nested_tree,
    is_tree_message,
    nested_tree_documents,
    tree_documents,
)

__all__ = ["SAMPLE_FILE", "SAMPLE_PACKAGE", "documents_of"]

SAMPLE_PACKAGE, SAMPLE_FILE = "chitchat-dataset", "chitchat_dataset/dataset.json"
# A question's marker at the beginning of a line, as `layouts.py` knows them.
QUESTION_LINE = re.compile(
    r"###[ \t]?(?:Human|User|Instruction|Question|System)[ \t]?:|\[INST\]|(?:USER|Human|User):"
    r"|<\|im_start\|>(?:system|user)|<\|(?:system|user|prompter)\|>|<start_of_turn>user|<human>:"
    r"|<\|start_header_id\|>(?:system|user)|<｜User｜>",
    re.IGNORECASE,
)
INLINE_QUESTION = re.compile(r"###[ \t]?(?:Human|User)[ \t]?:", re.IGNORECASE)
INLINE_ANSWER = re.compile(r"(?<=.)###[ \t]?Assistant[ \t]?:", re.IGNORECASE)
FIRST_LINE = re.compile(
    r"<s> ?\[INST\]|###[ \t]?System[ \t]?:|<\|im_start\|>system|<\|system\|>[ \t]*$"
    r"|(?:<\|begin_of_text\|>)?<\|start_header_id\|>system",
    re.IGNORECASE,
)


def documents_of(source: Source, bad: Bad) -> Iterator[Document]:
    """The documents of one file; `bad(line, reason)` is called for each row that is none."""
    if source.kind == "txt":
        return _txt_documents(source, bad)
    if source.kind == "sample":
        return _sample_documents(source, bad)
    return _row_documents(source, bad)


def _row_documents(source: Source, bad: Bad) -> Iterator[Document]:
    rows = rows_of(source, bad)
    first = next(rows, None)
    if first is None:
        return
    if source.columns is None and is_tree_message(first[1]):
        yield from tree_documents(itertools.chain([first], rows), bad)
        return
    for line, row in itertools.chain([first], rows):
        try:
            if source.columns is None and is_nested_tree(row):
                yield from nested_tree_documents(row, line)
            else:
                yield document_from_row(row, source.columns)._replace(line=line)
        except RowError as error:
            bad(line, str(error))


# -- text files


def _txt_documents(source: Source, bad: Bad) -> Iterator[Document]:
    with open_data(source.path) as file:
        head = file.read(PIECE_BYTES)
        file_bytes = len(head)
        while block := file.read(PIECE_BYTES):
            file_bytes += len(block)
    if file_bytes == len(head) and (document := _one_chat(head)):
        yield document
        return
    chat = _begins_with_marker(head)
    with open_data(source.path) as file:
        if chat:
            yield from _txt_conversations(file, source, bad)
        else:
            yield from _txt_pieces(file, source, file_bytes)


def _one_chat(data: bytes) -> Document | None:
    """The conversation of a small file that is one chat after a preamble."""
    text = data.decode("utf-8", errors="replace")
    messages = messages_in(text) if not _begins_with_marker(data) else None
    if not messages or text.count(messages[0].content) > 1:  # each line may have the preamble
        return None
    return document_from_text(text)._replace(line=1)


def _begins_with_marker(head: bytes) -> bool:
    text = head[: _character_boundary(head)].decode("utf-8", errors="replace")
    return QUESTION_LINE.match(text.lstrip()[:64].removeprefix("<s>").lstrip()) is not None and (
        starts_with_marker(text)
    )


def _txt_pieces(file: BinaryIO, source: Source, file_bytes: int) -> Iterator[Document]:
    blank, start, line, rest = True, 0, 1, b""
    while block := file.read(PIECE_BYTES):
        data = rest + block
        cut = data.rfind(b"\n") + 1 or _character_boundary(data)
        text = _decode_txt(data[:cut], source, start)
        rest = data[cut:]
        if text:
            blank = blank and text.isspace()
            yield Document((), text, cut, start, file_bytes, line=line)
            start += cut
            line += text.count("\n")
    if rest:
        text = _decode_txt(rest, source, start)
        blank = blank and text.isspace()
        yield Document((), text, len(rest), start, file_bytes, line=line)
    if blank:
        raise DataError(
            f"{source.name}: no text in it: the file is {'blank' if start else 'empty'}"
        )


def _character_boundary(data: bytes) -> int:
    """Index at which to cut `data` so that no character is split."""
    for back in range(1, min(4, len(data)) + 1):
        if data[-back] & 0xC0 != 0x80:
            return len(data) - back if data[-back] >= 0xC0 else len(data)
    return len(data)


def _decode_txt(data: bytes, source: Source, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source.name}: invalid UTF-8 at byte {offset + error.start} of the text; "
            "convert it to UTF-8 (iconv -f LATIN1 -t UTF-8)"
        ) from None


def _txt_conversations(file: BinaryIO, source: Source, bad: Bad) -> Iterator[Document]:
    for line, text in _txt_blocks(file, source):
        try:
            yield document_from_text(text)._replace(line=line)
        except RowError as error:
            bad(line, str(error))


def _txt_blocks(file: BinaryIO, source: Source) -> Iterator[tuple[int, str]]:
    """(line, text) of each conversation, without the line ends around it."""
    lines: list[str] = []
    first, after_blank, inline = 1, True, False
    offset = 0
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
        inline = inline or INLINE_ANSWER.search(line) is not None
    if any(map(str.strip, lines)):
        yield first, "".join(lines).strip("\r\n")


def _starts_conversation(line: str, after_blank: bool, inline: bool) -> bool:
    if inline and INLINE_QUESTION.match(line):
        return True
    return FIRST_LINE.match(line) is not None or (
        after_blank and QUESTION_LINE.match(line) is not None
    )


# -- the sample


def _sample_documents(source: Source, bad: Bad) -> Iterator[Document]:
    """Chitchat: turns are lists of utterances; the first speaker is the user.

    The utterances of a turn are joined by line ends, and neighbouring turns of one sender are one
    message, so roles alternate.
    """
    try:
        conversations = json.loads(source.path.read_bytes())
    except ValueError as error:
        raise DataError(f"{source.path}: broken ({error}); reinstall {SAMPLE_PACKAGE}") from None
    for number, turns in enumerate(conversations.values(), start=1):
        try:
            messages = _alternate(_utterances(turns))
            num_bytes = sum(utf8_length(message.content) for message in messages)
            yield conversation(messages, num_bytes)._replace(line=number)
        except (KeyError, TypeError, AttributeError) as error:
            bad(number, f"not a chitchat conversation ({error!r})")
        except RowError as error:
            bad(number, str(error))


def _utterances(turns: Any) -> list[tuple[str, str]]:
    return [(u["sender"], u["text"]) for turn in turns["messages"] for u in turn]


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
