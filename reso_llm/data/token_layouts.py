"""Chats whose turns are set apart by tokens: ChatML, Llama-2, Llama-3, Gemma, Zephyr and others.

A text is one of these only when it begins with the layout's first token. A Llama-2 question without
`[/INST]`, or text between `</s>` and the next turn, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from reso_llm.data.conversation import Message, RowError, role_of
from reso_llm.data.markers import Marker, contents, outside_fences, without_ends, without_margin

__all__ = ["starts_with_token", "token_messages"]

BEGIN = re.compile(
    r"\s*(?:<s>|<bos>|<BOS_TOKEN>|<\|begin_of_text\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>)?\s*"
)


class TokenLayout(NamedTuple):
    """A marker with the role as its group, and what may end a turn; `gate` is in each such text."""

    gate: str
    marker: re.Pattern[str]
    ends: tuple[str, ...]


# A turn may go on in the marker's line only where <|im_end|> ends it: prose has no such token.
CHATML = re.compile(
    r"<\|im_start\|>[ ]?(\w+)(?:<\|im_sep\|>|[ \t]*\r?\n|\Z"
    r"|[ ](?=(?:(?!<\|im_start\|>)(?s:.))*?<\|im_end\|>))"
)
TOKEN_LAYOUTS = (
    TokenLayout("<|im_start|>", CHATML, ("<|im_end|>", "<|endoftext|>")),
    TokenLayout("<|start_header_id|>", re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>"),
                ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")),
    TokenLayout("<start_of_turn>", re.compile(r"<start_of_turn>(\w+)[ \t]*\r?\n"),
                ("<end_of_turn>", "<eos>")),
    TokenLayout("<|user|>", re.compile(r"<\|(system|user|assistant)\|>[ \t]*\r?\n"),
                ("</s>", "<|end|>", "<|endoftext|>")),
    TokenLayout("<|prompter|>", re.compile(r"<\|(system|prompter|assistant)\|>"),
                ("<|endoftext|>", "</s>", "<eos>")),
    TokenLayout("<|end_of_turn|>", re.compile(r"GPT4 Correct (User|Assistant):"),
                ("<|end_of_turn|>",)),
    TokenLayout("<human>:", re.compile(r"(?<![^\s])<(human|bot)>:"), ("</s>", "<|endoftext|>")),
    TokenLayout("<|USER_TOKEN|>", re.compile(
                r"<\|START_OF_TURN_TOKEN\|><\|(SYSTEM|USER|CHATBOT)_TOKEN\|>"),
                ("<|END_OF_TURN_TOKEN|>",)),
    TokenLayout("<｜User｜>", re.compile(r"<｜(User|Assistant)｜>"), ("<｜end▁of▁sentence｜>",)),
)  # fmt: skip

LLAMA_TURN = re.compile(r"\s*(?:<s>\s*)?\[INST\]")
LLAMA_CLOSE = re.compile(r"\[/INST\]")
LLAMA_REPLY_END = re.compile(r"</s>|(?=<s>\s*\[INST\])")
LLAMA_BARE_END = re.compile(r"(?=(?:<s>\s*)?\[INST\])")
LLAMA_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


def token_messages(text: str) -> list[Message] | None:
    """The turns of a text that begins with a token of a layout; None for another text; RowError."""
    for layout in TOKEN_LAYOUTS:
        if layout.gate in text and (messages := _layout_messages(text, layout)):
            return messages
    return _llama_messages(text) if LLAMA_TURN.match(text) else None


def starts_with_token(text: str) -> bool:
    """Whether the text begins with a token of a layout, whatever follows."""
    begin = BEGIN.match(text).end()
    markers = [LLAMA_TURN, *(layout.marker for layout in TOKEN_LAYOUTS)]
    return any(marker.match(text, begin) for marker in markers)


def _layout_messages(text: str, layout: TokenLayout) -> list[Message] | None:
    begin = BEGIN.match(text).end()
    if not layout.marker.match(text, begin):
        return None
    matches = [(m, role_of(m[1])) for m in layout.marker.finditer(text, begin)]
    markers = [Marker(m.start(), m.end(), role or "") for m, role in matches]
    messages = []
    for marker, content in contents(text, outside_fences(text, markers)):
        content = without_ends(content, layout.ends)
        if marker.role:
            messages.append(Message(marker.role, without_margin(content)))
    return messages


def _llama_messages(text: str) -> list[Message]:
    messages: list[Message] = []
    position, last = 0, len(text.rstrip())
    # Where no </s> ends the replies, the next question does.
    reply_end = LLAMA_REPLY_END if "</s>" in text else LLAMA_BARE_END
    while position < last:
        turn = LLAMA_TURN.match(text, position)
        if turn is None:
            raise RowError(f"expected [INST] at character {position} of this Llama-2 text")
        close = LLAMA_CLOSE.search(text, turn.end())
        if close is None:
            raise RowError(f"[INST] at character {turn.start()} has no [/INST]")
        messages += _llama_question(text[turn.end() : close.start()])
        end = reply_end.search(text, close.end())
        if end and not end[0] and not LLAMA_CLOSE.search(text, end.end()):
            end = None  # the reply is about [INST]
        stop, position = (end.start(), end.end()) if end else (len(text), len(text))
        if end or close.end() < last:
            messages.append(Message("assistant", without_margin(text[close.end() : stop])))
    return messages


def _llama_question(text: str) -> Iterator[Message]:
    system = LLAMA_SYSTEM.match(text)
    if system:
        yield Message("system", without_margin(system[1]))
        text = text[system.end() :]
    yield Message("user", without_margin(text))
