"""Prompts: a text to continue, or a conversation to answer, in the spellings that chats use."""

from collections.abc import Mapping, Sequence
from typing import Any

from reso_llm.data.conversation import Message, RowError, read_turns

Prompt = str | Sequence[Message] | Sequence[tuple[str, str]] | Sequence[Mapping[str, Any]]
"""A text to continue, or messages to answer: {"role": ..., "content": ...} or (role, content)."""


def messages_of(prompt: Any) -> list[Message]:
    """The messages of a conversation.

    Raises ValueError for another type, an unknown role, and a message or part of one that the
    tokenizer has no place for, such as a tool's.
    """
    listed = isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes)
    if not listed or any(isinstance(item, str) for item in prompt):
        hint = "; several prompts go to generate_batch" if listed else ""
        raise ValueError(
            f"prompt is {_kind(prompt)}: expected a string, or a list of messages "
            f'{{"role": ..., "content": ...}} or (role, content){hint}'
        )
    try:
        messages, unused = read_turns([_as_mapping(item) for item in prompt], "prompt")
    except RowError as error:
        raise ValueError(f"prompt: {error}") from None
    if unused:
        raise ValueError(f"prompt: no place for {', '.join(dict.fromkeys(unused))}; leave it out")
    return messages


def with_system(prompt: Prompt, addition: str) -> Prompt:
    """A conversation with an addition to its system message, which is made where it has none.

    A plain text stays as it is. Raises ValueError as `messages_of`.
    """
    if isinstance(prompt, str):
        return prompt
    messages = messages_of(prompt)
    if messages and messages[0].role == "system":
        return [Message("system", f"{messages[0].content}\n{addition}"), *messages[1:]]
    return [Message("system", addition), *messages]


def _as_mapping(item: Any) -> Any:
    if isinstance(item, list | tuple) and len(item) == 2:
        return dict(zip(("role", "content"), item, strict=True))
    return item


def _kind(prompt: Any) -> str:
    if isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes):
        return "a list of strings" if all(isinstance(x, str) for x in prompt) else "a mixed list"
    return type(prompt).__name__
