"""Chat layouts inside one string: which text is a conversation, and what its turns are.

    messages_in("### Human: Hi### Assistant: Hello") -> [Message("user", "Hi"), ...]
    messages_in("any other text") -> None: plain text, kept byte for byte
    marker_position(text) -> where plain text holds something that looks like a marker

Tokens (`token_layouts.py`).  ChatML `<|im_start|>user`, Llama-2 `[INST]`, Llama-3
    `<|start_header_id|>user<|end_header_id|>`, Gemma `<start_of_turn>user`, Zephyr and Phi
    `<|user|>` on a line of its own, Open-Assistant `<|prompter|>`, OpenChatKit `<human>:`, OpenChat
    `GPT4 Correct User:`, DeepSeek.
Headers (`named_layouts.py`).  `### Human:` and `### Assistant:`, `### User:`, `###Human:`,
    `### Instruction:` with `### Input:` and `### Response:`, `### Question:` and `### Answer:`.
Names (`named_layouts.py`).  Vicuna's `USER:` and `ASSISTANT:`; `Human:` or `User:` and `Assistant:`
    or `AI:` at the beginning of lines.

Where it is in doubt whether a text is a chat, it stays plain, and a run warns of the markers in it.
"""

from __future__ import annotations

import re

from reso_llm.data.conversation import (
    Document,
    Message,
    RowError,
    conversation,
    utf8_length,
    without_empty_reply,
)
from reso_llm.data.named_layouts import named_messages
from reso_llm.data.token_layouts import starts_with_token, token_messages

__all__ = ["document_from_text", "marker_position", "messages_in", "starts_with_marker"]

LEFT_GATES = (
    "###", "<|", "[/INST]", "<start_of_turn>", "ssistant:", "ASSISTANT:", "<｜", "<bot>:", "Bot:",
)  # fmt: skip
LEFT_MARKERS = re.compile(
    r"###[ \t]?(?:Human|User|Assistant|Instruction|Response)[ \t]?:|\[/INST\]"
    r"|^###[ \t](?:Human|User|Assistant|Instruction|Response)[ \t]*$"
    r"|<\|\w*(?:im_start|header|user|assistant|prompter|turn|message)\w*\|>|<start_of_turn>"
    r"|<｜Assistant｜>|\bASSISTANT:|^<bot>:|^(?:Assistant|Bot):",
    re.MULTILINE | re.IGNORECASE,
)


def document_from_text(text: str) -> Document:
    """The document a row's text stands for; RowError with the reason when it is none."""
    num_bytes = utf8_length(text)
    if not text or text.isspace():
        raise RowError("the text is empty")
    messages = messages_in(text)
    if messages is None:
        return Document((), text, num_bytes)
    return without_empty_reply(conversation(messages, num_bytes))


def messages_in(text: str) -> list[Message] | None:
    """The turns of a text in one of the chat layouts, None for plain text; RowError."""
    return token_messages(text) or named_messages(text)


def starts_with_marker(text: str) -> bool:
    """Whether a conversation begins at the very beginning of `text`, without a preamble."""
    text = text.lstrip()
    if starts_with_token(text):
        return True
    messages = named_messages(text)
    return bool(messages) and not text.startswith(messages[0].content or "\0")


def marker_position(text: str) -> int | None:
    """Index of the first likely marker in plain text; None without one."""
    if not any(gate in text for gate in LEFT_GATES):  # a fast search first: markers are rare
        return None
    marker = LEFT_MARKERS.search(text)
    return marker.start() if marker else None
