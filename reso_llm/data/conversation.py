"""Conversations and the text formats they come in.

A source row becomes a `Document`: a conversation (messages with roles) or plain text. The rules, in
the order they are tried on a row's text:

Guanaco. The text begins with `### Human:` (or `### Assistant:`). Every later occurrence of one of
    the two markers, anywhere in a line, begins the next message. A marker takes with it the one
    space after its colon; everything else is content, kept as it stands, and may be empty.
    (All 900 rows of guanaco_900.jsonl look like this: `### Human: question### Assistant: answer`.)
Llama-2. The text begins with `[INST]` or `<s>[INST]`. It is a sequence of
    `<s>[INST] <<SYS>>\\nsystem\\n<</SYS>>\\n\\nquestion [/INST] answer </s>`; `<s>`, `</s>`
    and the system part (at the beginning of a question) are optional. One space inside each marker
    belongs to the marker. A question without `[/INST]`, or text between `</s>` and the next turn,
    is an error. A last question without an answer ends the conversation with the question.
Plain text. Everything else.

Rows that hold a list (`messages`, `conversations`, `conversation`) have one mapping per message:
{"role", "content"} or ShareGPT's {"from", "value"}. A row with `prompt` and `completion` strings is
one question and its answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Document", "Message", "RowError", "document_from_row", "document_from_text"]

ROLE_NAMES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
LIST_KEYS = ("messages", "conversations", "conversation")

GUANACO_START = re.compile(r"### (?:Human|Assistant):")
GUANACO_MARKER = re.compile(r"### (Human|Assistant): ?")
LLAMA_START = re.compile(r"(?:<s> ?)?\[INST\]")
LLAMA_TURN = re.compile(r"\s*(?:<s>\s*)?\[INST\] ?")
LLAMA_CLOSE = re.compile(r" ?\[/INST\] ?")
LLAMA_REPLY_END = re.compile(r" ?</s>|(?=<s>\s*\[INST\])")
BLANK_REST = re.compile(r"\s*\Z")
LLAMA_SYSTEM = re.compile(r"<<SYS>>\n?(.*?)\n?<</SYS>>\n{0,2}", re.DOTALL)


class RowError(ValueError):
    """A row that is not a document; the text is the reason, without the place."""


class Message(NamedTuple):
    """One turn: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


class Document(NamedTuple):
    """One training document.

    messages: the conversation; empty for plain text.
    text: the plain text; None for a conversation.
    num_bytes: UTF-8 bytes of the text as it stood in the row, markers such as `### Human: `
        included (control tokens encode them); for lists of messages the bytes of the contents.
    start, file_bytes: only for pieces of a plain text file. The piece begins at byte `start` of
        `file_bytes`, and all pieces of the file are one logical document.
    """

    messages: tuple[Message, ...]
    text: str | None
    num_bytes: int
    start: int = 0
    file_bytes: int | None = None


def document_from_text(text: str) -> Document:
    """The document a row's text stands for; RowError with the reason when it is none."""
    num_bytes = utf8_length(text)
    if not text or text.isspace():
        raise RowError("the text is empty")
    if GUANACO_START.match(text):
        return _conversation(_guanaco_messages(text), num_bytes)
    if LLAMA_START.match(text):
        return _conversation(_llama_messages(text), num_bytes)
    return Document((), text, num_bytes)


def document_from_row(row: Any) -> Document:
    """The document of one decoded JSON value or table row; RowError with the reason."""
    if isinstance(row, str):
        return document_from_text(row)
    if isinstance(row, list):
        return document_from_messages(row)
    if not isinstance(row, Mapping):
        raise RowError(f"expected an object with a text, found {_kind(row)}")
    for key in LIST_KEYS:
        if key in row and not (row[key] is None and "text" in row):
            return document_from_messages(row[key])
    if "text" in row:
        return document_from_text(_string(row["text"], '"text"'))
    if "prompt" in row and "completion" in row:
        pair = [("user", row["prompt"]), ("assistant", row["completion"])]
        return document_from_messages([{"role": r, "content": c} for r, c in pair])
    found = ", ".join(map(repr, list(row)[:6])) or "nothing"
    raise RowError(f'no "text", "messages" or "conversations" in this row (it has {found})')


def document_from_messages(items: Any) -> Document:
    """The conversation of a list of {"role", "content"} or {"from", "value"}; RowError."""
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise RowError(f"expected a list of messages, found {_kind(items)}")
    messages = [_message(item, index) for index, item in enumerate(items)]
    return _conversation(messages, sum(utf8_length(message.content) for message in messages))


def utf8_length(text: str) -> int:
    """UTF-8 bytes of `text`; RowError for a lone surrogate, which has none."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise RowError(
            f"lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
        ) from None


def _conversation(messages: Sequence[Message], num_bytes: int) -> Document:
    if not any(message.content.strip() for message in messages):
        raise RowError("the conversation is empty")
    return Document(tuple(messages), None, num_bytes)


def _guanaco_messages(text: str) -> list[Message]:
    markers = list(GUANACO_MARKER.finditer(text))
    stops = [marker.start() for marker in markers[1:]] + [len(text)]
    return [
        Message("user" if marker[1] == "Human" else "assistant", text[marker.end() : stop])
        for marker, stop in zip(markers, stops, strict=True)
    ]


def _llama_messages(text: str) -> list[Message]:
    messages: list[Message] = []
    position = 0
    while not BLANK_REST.match(text, position):
        turn = LLAMA_TURN.match(text, position)
        if turn is None:
            raise RowError(f"expected [INST] at character {position} of this Llama-2 text")
        close = LLAMA_CLOSE.search(text, turn.end())
        if close is None:
            raise RowError(f"[INST] at character {turn.start()} has no [/INST]")
        messages += _llama_question(text[turn.end() : close.start()])
        end = LLAMA_REPLY_END.search(text, close.end())
        stop, position = (end.start(), end.end()) if end else (len(text), len(text))
        if end or stop > close.end():
            messages.append(Message("assistant", text[close.end() : stop]))
    return messages


def _llama_question(text: str) -> Iterator[Message]:
    system = LLAMA_SYSTEM.match(text)
    if system:
        yield Message("system", system[1])
        text = text[system.end() :]
    yield Message("user", text)


def _message(item: Any, index: int) -> Message:
    if not isinstance(item, Mapping):
        raise RowError(f"message {index}: expected an object, found {_kind(item)}")
    role_key, content_key = ("from", "value") if "from" in item else ("role", "content")
    for key in (role_key, content_key):
        if key not in item:
            raise RowError(f'message {index}: no "{key}"')
    role = _string(item[role_key], f'message {index}: "{role_key}"')
    if role not in ROLE_NAMES:
        known = ", ".join(sorted(ROLE_NAMES))
        raise RowError(f"message {index}: unknown role {role[:40]!r} (known: {known})")
    return Message(
        ROLE_NAMES[role], _string(item[content_key], f'message {index}: "{content_key}"')
    )


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{name} is {_kind(value)}, expected a string")
    return value


def _kind(value: Any) -> str:
    """JSON's name of a value's type, for messages."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "a string", list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)
