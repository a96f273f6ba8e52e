"""Conversations: roles, messages, and lists of messages in the spellings of public data sets.

    role_of("ChatGPT") -> "assistant"
    document_from_messages([{"from": "human", "value": "Hi"}, ...]) -> Document

A `Document` is a conversation (messages with the roles system, user and assistant) or plain text.
A list of messages holds one of these per turn:

* a mapping with a role, under one of `ROLE_KEYS`, and a content, under one of `CONTENT_KEYS`; the
  first of each that is not empty counts. The content is a string, a list of parts, or null;
* a mapping with a question and its answer, under the names in `PAIRS`;
* a pair [question, answer];
* a string: the user speaks first, then speakers alternate.

Messages of tools (function calls, observations), parts that are not text, messages with null
content and other keys are left out. `Document.unused` names them, so that a run can count them.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Document", "Message", "RowError", "document_from_messages", "role_of"]

ROLE_NAMES = {
    "system": "system", "developer": "system", "sys": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "ai": "assistant", "chatbot": "assistant", "agent": "assistant",
    "bing": "assistant", "bard": "assistant", "claude": "assistant", "gemini": "assistant",
}  # fmt: skip
TOOL_ROLES = frozenset({
    "tool", "tool_call", "tool_calls", "tool_response", "tool_result", "function", "function_call",
    "function_response", "observation", "environment", "ipython",
})  # fmt: skip
ROLE_KEYS = ("role", "from", "speaker", "sender")
CONTENT_KEYS = ("content", "value", "text", "message", "parts")
# Names of columns, and of keys of a turn, that hold a question and its answer; the first wins.
# A name such as `user` or `target` has another meaning beside other columns.
PAIRS = (
    (("instruction", "prompt", "question", "query", "input", "inputs"),
     ("completion", "response", "output", "answer", "generation", "generated_text",
      "reply", "chosen")),
    (("input", "inputs"), ("target", "targets")),
    (("problem",), ("solution", "answer")),
    (("human", "user"), ("assistant", "bot", "gpt", "ai")),
)  # fmt: skip
SYSTEMS = ("system", "system_prompt", "system_message")

JSON_MESSAGE = re.compile(r"\s*\{\s*[\"'](?:role|from)[\"']\s*:")
EMPTY_REPLY = "empty reply"  # a message that is left out, as an answer would be learnt to be empty


class RowError(ValueError):
    """A row that is not a document; the text is the reason, without the place."""


class EmptyConversation(RowError):
    """The messages hold no text; another field of the row may."""


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
    unused: names of the fields, tool messages and parts of this row that are not trained on.
    line: the line or row of the file where the document begins, counted from 1.
    """

    messages: tuple[Message, ...]
    text: str | None
    num_bytes: int
    start: int = 0
    file_bytes: int | None = None
    unused: tuple[str, ...] = ()
    line: int = 0


def role_of(name: str) -> str | None:
    """ "system", "user" or "assistant" for a role's usual names, in any case; None for a tool.

    Raises RowError for a name that is not known.
    """
    plain = name.strip().lower().replace(" ", "_").replace("-", "_")
    if plain in TOOL_ROLES:
        return None
    if plain not in ROLE_NAMES:
        known = ", ".join(sorted({*ROLE_NAMES, *TOOL_ROLES}))
        raise RowError(f"unknown role {name[:40]!r} (known: {known})")
    return ROLE_NAMES[plain]


def is_role(name: str) -> bool:
    """Whether `name` is one of the roles' usual names."""
    try:
        role_of(name)
    except RowError:
        return False
    return True


def document_from_messages(items: Any, name: str = "messages") -> Document:
    """The conversation of a list of turns, without its empty replies; RowError.

    `name` is how `unused` calls the list.
    """
    messages, unused = read_turns(items, name)
    kept = [m for m in messages if m.role != "assistant" or m.content.strip()]
    unused += [EMPTY_REPLY] * (len(kept) < len(messages))
    return conversation(kept, sum(utf8_length(m.content) for m in kept), unused)


def conversation(
    messages: Sequence[Message], num_bytes: int, unused: Sequence[str] = ()
) -> Document:
    """The document of these messages; RowError when they hold no text."""
    if not any(message.content.strip() for message in messages):
        raise EmptyConversation("the conversation is empty")
    return Document(tuple(messages), None, num_bytes, unused=tuple(dict.fromkeys(unused)))


def without_empty_reply(document: Document) -> Document:
    """The conversation without an empty last reply, which only marks the place of an answer."""
    messages = document.messages
    if not messages or messages[-1].role != "assistant" or messages[-1].content.strip():
        return document
    return document._replace(messages=messages[:-1], unused=(*document.unused, EMPTY_REPLY))


def read_turns(items: Any, name: str = "messages") -> tuple[list[Message], list[str]]:
    """Messages of a list of turns, and the names of what is left out of it; RowError."""
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise RowError(f"expected a list of messages, found {kind_of(items)}")
    if items and all(isinstance(item, str) and JSON_MESSAGE.match(item) for item in items):
        items = [turns_in(item) for item in items]
    if items and all(isinstance(item, str) for item in items):
        return [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(items)], []
    messages: list[Message] = []
    unused: list[str] = []
    for index, item in enumerate(items):
        try:
            messages += _turn(item, name, unused)
        except RowError as error:
            raise RowError(f"message {index}: {error}") from None
    spoken_by = {key for item in items if isinstance(item, Mapping) for key in item}
    if "speaker" in spoken_by and not any(m.role == "assistant" for m in messages):
        # Task dialogues call their two speakers user and system.
        messages = [m._replace(role="user" if m.role == "user" else "assistant") for m in messages]
    return messages, unused


def first_filled(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of `names` under which `row` holds something; None when there is none."""
    return next((name for name in names if not is_empty(row.get(name))), None)


def is_empty(value: Any) -> bool:
    """Whether a field holds nothing: null, NaN, white space, or a list or mapping of nothing."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_empty, value))
    return value is None or value != value


def named_pair(names: Collection[str]) -> tuple[str, str] | None:
    """The names of a question and of its answer among `names`; None without such a pair."""
    for questions, answers in PAIRS:
        question = next((name for name in questions if name in names), None)
        answer = next((name for name in answers if name in names), None)
        if question and answer:
            return question, answer
    return None


def turns_in(value: Any) -> Any:
    """The list of turns, or one turn, in another form: a JSON or Python text, a mapping of lists.

    Any other value as it is.
    """
    if isinstance(value, str) and (
        value.lstrip()[:2] in ("[{", "[[") or JSON_MESSAGE.match(value) is not None
    ):
        for decode in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return decode(value)
    if isinstance(value, Mapping) and len(value) > 1:
        columns = list(value.values())
        if all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
            return [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)]
    return value


def text_of(value: Any, name: str) -> str:
    """`value` when it is a string; RowError that names the field otherwise."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {kind_of(value)}, expected a string")
    return value


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


def kind_of(value: Any) -> str:
    """JSON's name of a value's type, for messages."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "a string", list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)


def _turn(item: Any, name: str, unused: list[str]) -> Iterator[Message]:
    """The messages of one turn; adds to `unused` what is left out."""
    if isinstance(item, list | tuple) and len(item) == 2:
        yield from _pair(dict(zip(("question", "answer"), item, strict=True)))
        return
    if not isinstance(item, Mapping):
        raise RowError(f"expected an object, found {kind_of(item)}")
    role_key, content_key = first_filled(item, ROLE_KEYS), first_filled(item, CONTENT_KEYS)
    if role_key is None:
        used = yield from _pair(item)
        unused += [f"{name}[].{key}" for key in item if key not in used and item[key]]
        return
    role_name = text_of(item[role_key], f'"{role_key}"')
    others = [key for key in item if key not in (role_key, content_key) and not is_empty(item[key])]
    unused += [f"{name}[].{key}" for key in others]
    role = role_of(role_name)
    if role is None:
        unused.append(role_name)
    elif content_key is not None:
        yield Message(role, _content(item[content_key], content_key, unused))
    elif any(isinstance(item.get(key), str) for key in CONTENT_KEYS):
        yield Message(role, "")
    elif any(key in item for key in CONTENT_KEYS):
        unused.append("null content")
    else:
        raise RowError('no "content"')


def _pair(item: Mapping[str, Any]) -> Iterator[Message]:
    """Question and answer of one turn, with its system text; returns the keys it used."""
    system = first_filled(item, SYSTEMS)
    question, answer = named_pair(item) or (None, None)
    if question is None:
        raise RowError('no "role"')
    named = (("system", system), ("user", question), ("assistant", answer))
    for role, key in named:
        if key is not None and item[key] is not None:
            yield Message(role, text_of(item[key], f'"{key}"'))
    return {key for _, key in named}


def _content(value: Any, name: str, unused: list[str]) -> str:
    """The text of a message's content: a string, or a list of parts of which some are text."""
    if isinstance(value, Mapping):
        value = value.get("parts", [value])
    if not isinstance(value, list):
        return text_of(value, f'"{name}"')
    texts = []
    for part in value:
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            texts.append(text)
        else:
            kind = part.get("type") if isinstance(part, Mapping) else None
            unused.append(f"part {kind or kind_of(part)}")
    return "\n".join(texts)
