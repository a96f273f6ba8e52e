"""One decoded row (a JSON value or a table's row) becomes one document.

The first of these that the row holds decides; a key that is present but empty holds nothing:

1. the columns that the user named (`Columns`, from `--columns prompt=question,reply=answer`);
2. a list of turns under one of `LIST_KEYS`, also as a JSON string;
3. a question and its answer in two columns, under the names in `PAIRS`, with `input` or
   `context` added to the question. A question that holds chat markers gives its turns;
4. `chosen` without a question; a text, in any layout of `layouts.py`; turns nested under `data`;
   the only column with a chat in it.

A `system` column becomes the system message of a conversation that has none. Everything else in
the row is named in `Document.unused`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from entropy_core.checks import nearest
from reso_llm.data.conversation import (
    PAIRS,
    ROLE_KEYS,
    SYSTEMS,
    Document,
    EmptyConversation,
    Message,
    RowError,
    conversation,
    document_from_messages,
    first_filled,
    is_empty,
    is_role,
    kind_of,
    named_pair,
    read_turns,
    text_of,
    turns_in,
    utf8_length,
    without_empty_reply,
)
from reso_llm.data.errors import DataError
from reso_llm.data.layouts import document_from_text, messages_in
from reso_llm.data.markers import WHITE, without_ends
from reso_llm.data.named_layouts import REPLY_ENDS

__all__ = ["Columns", "document_from_row", "parse_columns"]

LIST_KEYS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns",
             "contents")  # fmt: skip
NESTED_KEYS = ("data", "dialogue", "conversation")
CONTEXTS = ("input", "context")
TEXTS = ("text", "content")
# A text beside one of these is a question, also without markers.
ANSWERS_OF_A_TEXT = ("completion", "response", "answer", "reply")
HISTORY = "history"
COLUMN_SETS = ({"prompt", "reply"}, {"prompt", "reply", "context"}, {"messages"}, {"text"})
OPEN_REPLY = Message("assistant", "")  # the marker that an answer follows


class Columns(NamedTuple):
    """The user's names of columns, by what they hold; None for one that was not named."""

    prompt: str | None = None
    reply: str | None = None
    system: str | None = None
    context: str | None = None
    messages: str | None = None
    text: str | None = None


def parse_columns(mapping: str) -> Columns:
    """`prompt=question,reply=answer` as Columns; DataError names a role that does not exist."""
    named: dict[str, str] = {}
    for item in filter(None, map(str.strip, mapping.split(","))):
        role, equals, column = (part.strip() for part in item.partition("="))
        if role not in Columns._fields:
            raise DataError(
                f"columns: unknown role {role!r}{nearest(role, list(Columns._fields))}; "
                f"known are {', '.join(Columns._fields)}, as in prompt=question,reply=answer"
            )
        if not equals or not column:
            raise DataError(f"columns: {role} needs the name of a column, as in {role}=name")
        if role in named or column in named.values():
            raise DataError(f"columns: {item} names a role or a column twice; leave one out")
        named[role] = column
    if set(named) - {"system"} not in COLUMN_SETS:
        raise DataError(
            "columns: name prompt and reply, or messages, or text; system, and beside prompt and "
            "reply context, are optional"
        )
    return Columns(**named)


def document_from_row(row: Any, columns: Columns | None = None) -> Document:
    """The document of one row; RowError with the reason when it is none."""
    if isinstance(row, str):
        return document_from_text(row)
    if isinstance(row, list):
        return without_empty_reply(document_from_messages(row))
    if not isinstance(row, Mapping):
        raise RowError(f"expected an object with a text, found {kind_of(row)}")
    filled = {str(key): value for key, value in row.items() if not is_empty(value)}
    document, used = _by_columns(row, filled, columns) if columns else _by_names(row, filled)
    if document.messages and document.messages[0].role != "system":
        system = (columns.system,) if columns and columns.system else SYSTEMS
        document, used = _with_system(document, filled, system, used)
    document = without_empty_reply(document)
    unused = (*document.unused, *(key for key in filled if key not in used))
    return document._replace(unused=tuple(dict.fromkeys(unused)))


def _by_columns(
    row: Mapping[str, Any], filled: Mapping[str, Any], columns: Columns
) -> tuple[Document, set[str]]:
    """The document of the columns that the user named, and these columns."""
    others = [str(key) for key in row if key not in columns]
    for role, name in columns._asdict().items():
        hint = nearest(name, others) if name is not None and name not in row else None
        # A row may lack the system text or the context; a misspelt name is an error.
        if hint or (hint == "" and role not in ("system", "context")):
            known = ", ".join(map(str, row)) or "nothing"
            raise RowError(f"columns: no column {name!r}{hint} (this row has {known})")
    if columns.messages:
        items = turns_in(filled.get(columns.messages))
        return document_from_messages(items, columns.messages), {columns.messages}
    if columns.text:
        return document_from_text(text_of(row[columns.text], f'"{columns.text}"')), {columns.text}
    return _question_and_answer(filled, columns.prompt, columns.reply, columns.context)


def _by_names(row: Mapping[str, Any], filled: Mapping[str, Any]) -> tuple[Document, set[str]]:
    """The document of columns with usual names, and these columns."""
    names = {_plain(key): key for key in filled}
    for key in (names[key] for key in LIST_KEYS if key in names):
        if document := _listed(filled[key], key):
            return document, {key}
    if pair := named_pair(names) or _marked_pair(names, filled):
        question, answer = (names[name] for name in pair)
        context = next((names[name] for name in CONTEXTS if name in names), None)
        return _question_and_answer(filled, question, answer, context)
    for key in (names[key] for key in ("chosen", *TEXTS) if key in names):
        if isinstance(filled[key], list) and isinstance(filled[key][0], Mapping):
            return document_from_messages(filled[key], key), {key}
        return _text_document(filled, key), {key}
    for key in (names[key] for key in NESTED_KEYS if key in names):
        if isinstance(filled[key], Mapping | list):
            return document_from_row(filled[key]), {key}
    chats = [key for key, value in filled.items() if _is_chat(value)]
    if len(chats) == 1 and (document := _listed(filled[chats[0]], chats[0])):
        return document, set(chats)
    raise RowError(_nothing_to_read(row, filled))


def _is_chat(value: Any) -> bool:
    """Whether a column of any name holds a chat: a marked text, or messages with known roles."""
    if isinstance(value, str):
        return messages_in(value) is not None
    first = value[0] if isinstance(value, list) else None
    role_key = first_filled(first, ROLE_KEYS) if isinstance(first, Mapping) else None
    return role_key is not None and isinstance(first[role_key], str) and is_role(first[role_key])


def _listed(value: Any, key: str) -> Document | None:
    """The conversation under the key of a list, None when it holds none."""
    value = turns_in(value)
    if isinstance(value, str) and (messages := messages_in(value)):
        return conversation(messages, utf8_length(value))
    if isinstance(value, list):
        with contextlib.suppress(EmptyConversation):
            return document_from_messages(value, key)
    return None


def _marked_pair(names: Mapping[str, str], filled: Mapping[str, Any]) -> tuple[str, str] | None:
    """`text` and an answer's column, when the text is no chat or its markers leave it open."""
    answer = next((name for name in PAIRS[0][1] if name in names), None)
    text = filled[names["text"]] if "text" in names else None
    if answer is None or not isinstance(text, str):
        return None
    messages = messages_in(text)
    if messages is None:
        return ("text", answer) if answer in ANSWERS_OF_A_TEXT else None
    is_open = messages[-1] == OPEN_REPLY or messages[-1].role == "user"
    return ("text", answer) if is_open else None


def _text_document(filled: Mapping[str, Any], key: str) -> Document:
    """The document of a text's column; RowError for one message of a conversation."""
    for role_key in ROLE_KEYS:
        if isinstance(filled.get(role_key), str) and is_role(filled[role_key]):
            raise RowError(
                f'one message a row ("{role_key}" beside "{key}"): its conversation cannot be put '
                'together without "message_id" and "parent_id"'
            )
    return document_from_text(text_of(filled[key], f'"{key}"'))


def _plain(key: str) -> str:
    return key.strip().lower().replace(" ", "_").replace("-", "_")


def _nothing_to_read(row: Mapping[str, Any], filled: Mapping[str, Any]) -> str:
    known = (*LIST_KEYS, *TEXTS, *PAIRS[0][0], *PAIRS[0][1])
    empty = [key for key in known if key in row]
    if empty and not set(empty) & set(filled):
        value = row[empty[0]]
        kind = "empty" if value is not None and is_empty(value) else kind_of(value)
        return f'nothing to read in this row: "{empty[0]}" is {kind}'
    if pair := named_pair({_plain(str(key)): key for key in row}):
        return f'"{next(name for name in pair if name not in map(_plain, filled))}" is empty'
    found = ", ".join(map(repr, list(filled)[:6])) or "nothing"
    return (
        f'no "text", "messages" or "conversations" in this row (it has {found}); '
        "name its columns, as in --columns prompt=question,reply=answer"
    )


def _question_and_answer(
    filled: Mapping[str, Any], question: str | None, answer: str | None, context: str | None
) -> tuple[Document, set[str]]:
    """Turns of a question, its context and its answer, each a text or a list of turns."""
    for key in (question, answer):
        if key not in filled:
            raise RowError(f'"{key}" is empty')
    used = {question, answer}
    before, marked, unused = _asked(turns_in(filled[question]), question)
    if before and isinstance(filled.get(context), str) and context not in used:
        before[-1] = Message(before[-1].role, f"{before[-1].content}\n\n{filled[context]}")
        used.add(context)
    if isinstance(filled.get(HISTORY), list):
        earlier, left_out = read_turns(filled[HISTORY], HISTORY)
        before, unused = earlier + before, unused + left_out
        used.add(HISTORY)
    after, left_out = _answered(turns_in(filled[answer]), answer, marked)
    if after[: len(before)] == before:  # preference data repeat the question in `chosen`
        before = []
    messages = before + after
    num_bytes = sum(utf8_length(message.content) for message in messages)
    return conversation(messages, num_bytes, unused + left_out), used


def _asked(value: Any, key: str) -> tuple[list[Message], bool, list[str]]:
    """(turns before an answer, whether markers set them apart, names of the parts left out)."""
    if isinstance(value, list):
        messages, unused = read_turns(value, key)
        return messages, False, unused
    messages = messages_in(text_of(value, f'"{key}"'))
    if messages is None:
        return [Message("user", value)], False, []
    if messages[-1] == OPEN_REPLY:
        messages.pop()
    return messages, True, []


def _answered(value: Any, key: str, marked: bool) -> tuple[list[Message], list[str]]:
    """(turns of an answer, names of the parts left out); `marked` when its question had markers."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, list) and isinstance(value[0], Mapping):
        return read_turns(value, key)
    text = text_of(value, f'"{key}"')
    if not marked:
        return [Message("assistant", text)], []
    reply = without_ends(text, REPLY_ENDS).strip(WHITE)
    return messages_in(text) or [Message("assistant", reply)], []


def _with_system(
    document: Document, filled: Mapping[str, Any], names: Sequence[str], used: set[str]
) -> tuple[Document, set[str]]:
    """The conversation with the text of a system column before it."""
    key = first_filled(filled, names)
    if key is None or key in used or not isinstance(filled[key], str) or not filled[key].strip():
        return document, used
    system = Message("system", filled[key])
    num_bytes = document.num_bytes + utf8_length(filled[key])
    messages = (system, *document.messages)
    return document._replace(messages=messages, num_bytes=num_bytes), used | {key}
