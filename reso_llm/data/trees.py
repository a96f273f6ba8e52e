"""Message trees: one message a row, as in Open-Assistant's files; one conversation a path.

A message names itself (`message_id`) and the one it answers (`parent_id`, null for the first). Each
path from a first message to one without an answer is a conversation. The rows of a file are held
together in memory, in any order. A message marked `deleted` is left out, and all that answers it;
`Document.unused` names it. Nested trees (`{"prompt": {"text", "role", "replies": [...]}}`)
hold the same in one row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from reso_llm.data.conversation import (
    CONTENT_KEYS,
    Document,
    Message,
    RowError,
    conversation,
    first_filled,
    is_empty,
    role_of,
    text_of,
    utf8_length,
)

__all__ = ["is_nested_tree", "is_tree_message", "nested_tree_documents", "tree_documents"]

DELETED = "deleted message"


class TreeMessage(NamedTuple):
    """One message of a tree: a `message` of None is a tool's, which is left out."""

    parent: Any
    message: Message | None
    unused: tuple[str, ...]
    line: int
    deleted: bool = False


def is_tree_message(row: Any) -> bool:
    """Whether a row is one message that names itself and the message it answers."""
    return (
        isinstance(row, Mapping)
        and {"message_id", "role"} <= set(row)
        and first_filled(row, CONTENT_KEYS) is not None
    )


def is_nested_tree(row: Any) -> bool:
    """Whether a row is a whole tree, its first message under `prompt`."""
    prompt = row.get("prompt") if isinstance(row, Mapping) else None
    return isinstance(prompt, Mapping) and {"text", "role", "replies"} <= set(prompt)


def tree_documents(
    rows: Iterable[tuple[int, Any]], bad: Callable[[int, str], None]
) -> Iterator[Document]:
    """One conversation a path of the trees in `rows`; rows without a place in one are bad."""
    messages: dict[Any, TreeMessage] = {}
    for line, row in rows:
        try:
            name, message = _tree_message(row, line)
            if name in messages:
                raise RowError(f"a second message with the message_id {name!r}")
            messages[name] = message
        except RowError as error:
            bad(line, str(error))
    if messages and all(message.parent is None for message in messages.values()):
        for message in messages.values():
            bad(message.line, 'one message a row, and no "parent_id" that says what it answers')
        return
    answers: dict[Any, list[Any]] = {}
    for name, message in messages.items():
        if message.parent is not None and message.parent not in messages:
            bad(message.line, f"its parent_id {message.parent!r} is not in the file")
        if not message.deleted:
            answers.setdefault(message.parent, []).append(name)
        elif message.parent is None:
            bad(message.line, "the first message of this tree is deleted")
        elif message.parent in messages:
            above = messages[message.parent]
            messages[message.parent] = above._replace(unused=(*above.unused, DELETED))
    reached = {name for name, message in messages.items() if message.deleted}
    for path in itertools.chain.from_iterable(_paths(answers, name) for name in list(reached)):
        reached.update(path)
    for path in _paths(answers, None):
        reached.update(path)
        document = _path_document([messages[name] for name in path])
        if document is None:
            bad(messages[path[-1]].line, "the conversation is empty")
        else:
            yield document
    for name, message in messages.items():
        if name not in reached and message.parent in messages:
            bad(message.line, f"no first message leads to the message {name!r}")


def nested_tree_documents(row: Mapping[str, Any], line: int) -> Iterator[Document]:
    """One conversation a path of a tree that is nested in one row; RowError."""
    todo: list[tuple[Any, list[TreeMessage]]] = [(row["prompt"], [])]
    while todo:
        node, path = todo.pop()
        if not isinstance(node, Mapping) or not isinstance(node.get("role"), str):
            raise RowError('a message of the tree has no "role"')
        replies = node.get("replies") or []
        kept = [reply for reply in replies if not _is_deleted(reply)]
        message = _message_of(node, None, line)
        if len(kept) < len(replies):
            message = message._replace(unused=(*message.unused, DELETED))
        path, replies = [*path, message], kept
        if not replies and (document := _path_document(path)):
            yield document
        todo += [(reply, path) for reply in reversed(replies)]


def _tree_message(row: Any, line: int) -> tuple[Any, TreeMessage]:
    if not is_tree_message(row):
        raise RowError('expected one message with "message_id", "role" and a text')
    name, parent = row["message_id"], row.get("parent_id")
    if not isinstance(name, str | int) or not isinstance(parent, str | int | None):
        raise RowError("message_id and parent_id: expected a string or a number")
    return name, _message_of(row, None if is_empty(parent) else parent, line)


def _message_of(row: Mapping[str, Any], parent: Any, line: int) -> TreeMessage:
    key = first_filled(row, CONTENT_KEYS)
    text = text_of(row.get(key) if key else None, f'"{key or "text"}"')
    utf8_length(text)
    role = role_of(text_of(row["role"], '"role"'))
    used = {key, "role", "message_id", "parent_id", "replies", "deleted"}
    unused = [name for name, value in row.items() if name not in used and not is_empty(value)]
    if role is None:
        unused.append(row["role"])
    message = None if role is None else Message(role, text)
    return TreeMessage(parent, message, tuple(unused), line, _is_deleted(row))


def _is_deleted(row: Any) -> bool:
    return isinstance(row, Mapping) and row.get("deleted") is True


def _paths(answers: Mapping[Any, list[Any]], start: Any) -> Iterator[list[Any]]:
    """The names on each path from an answer to `start` to a message without an answer."""
    path: list[Any] = []
    todo = [(name, 0) for name in reversed(answers.get(start, []))]
    while todo:
        name, depth = todo.pop()
        del path[depth:]
        path.append(name)
        following = answers.get(name, [])
        todo += [(answer, depth + 1) for answer in reversed(following)]
        if not following:
            yield list(path)


def _path_document(path: list[TreeMessage]) -> Document | None:
    messages = [node.message for node in path if node.message is not None]
    unused = [name for node in path for name in node.unused]
    num_bytes = sum(utf8_length(message.content) for message in messages)
    try:
        return conversation(messages, num_bytes, unused)._replace(line=path[0].line)
    except RowError:
        return None
