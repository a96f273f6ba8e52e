"""Chats whose turns are set apart by names: headers such as `### Human:`, and `USER:` or `Human:`.

A text is read as a chat only where that is not in doubt. Headers and Vicuna's names may follow a
preamble, which becomes the system message: at most `PREAMBLE_CHARS` characters of prose that end a
sentence or a line. But for `### Human:` and `### Assistant:` at the very beginning, question and
answer have to take turns. Markers in quotation marks, a colon, headings or code before them, and
more speakers than two, as in a play, leave the text plain.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from reso_llm.data.conversation import Message
from reso_llm.data.markers import (
    Marker,
    contents,
    opens_quotation,
    outside_fences,
    outside_quotations,
    without_ends,
    without_margin,
)

__all__ = ["REPLY_ENDS", "named_messages"]

PREAMBLE_CHARS = 4000
CLOSING = "\"'”’)"
REPLY_ENDS = (
    "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|end|>",
    "<|end_of_turn|>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "\n### End",
)  # fmt: skip
HEADING = re.compile(r"^#{1,6} ", re.MULTILINE)
# Another name before a colon, as a speaker of a play has it: beside its speech, or above it.
SPEAKER = r"^(?!(?:Human|User|Assistant|AI|Bot|System):)[A-Z][{}.' -]{{0,24}}:{}"
DIALOGUE_WORDS = re.compile(r"conversation|dialog|chat|discussion|exchange|transcript", re.I)
ABOUT_LAYOUTS = re.compile(r"format|layout|example|marker|template|syntax|looks? like", re.I)
CODE = re.compile(r"\"\"\"|'''|`|\w\s*=\s|^\s*(?:def|class|import|from|return|const|let) ", re.M)
OPEN_END = re.compile(r"(?:[,;(]|\b(?:and|or|then|with))\s*\Z")


class NamedLayout(NamedTuple):
    """Markers made of names: `gate` and a pattern for each role, within the pattern `around`."""

    gate: str
    around: str
    users: str
    replies: str
    flags: int = re.IGNORECASE
    inputs: str = "(?!)"
    systems: str = "System"
    no_other_headings: bool = False  # as in a Markdown page of questions
    may_be_alone: bool = False  # `### Human:` at the start is a marker without an answer too
    may_be_play: bool = False
    preamble: bool = True


HEADER = r"###[ \t]?(?:{})[ \t]?[:：]"
HEADING_LINE = r"^###[ \t](?:{})[ \t]*$"
AT_LINE_OR_SENTENCE = r"(?:^|(?<=[.!?] ))(?:{})[ ]?:"
NAMED_LAYOUTS = (
    NamedLayout("###", HEADER, "Human|User|Prompter", "Assistant|GPT|ChatGPT|Bot|AI",
                may_be_alone=True),
    NamedLayout("###", HEADER, "Human|User|Prompter", "Response|Answer", inputs="Input|Context"),
    NamedLayout("###", HEADER, "Instruction", "Response|Output|Answer", inputs="Input|Context"),
    NamedLayout("###", HEADER, "Question", "Answer|Response", no_other_headings=True),
    NamedLayout("###", HEADING_LINE, "Human", "Assistant", flags=re.MULTILINE, preamble=False),
    NamedLayout("###", HEADING_LINE, "Instruction|User", "Response|Assistant", flags=re.MULTILINE,
                inputs="Input|Context", preamble=False, no_other_headings=True),
    NamedLayout("ASSISTANT:", r"(?:(?<![^\s])|(?<=</s>))(?:{}):", "USER", "ASSISTANT", flags=0,
                systems="SYSTEM", may_be_play=True),
    NamedLayout("\n\nAssistant:", r"\n\n(?:{}):", "Human", "Assistant", flags=0, preamble=False),
    NamedLayout("Assistant:", AT_LINE_OR_SENTENCE, "Human|User", "Assistant", flags=re.MULTILINE,
                may_be_play=True, preamble=False),
    NamedLayout("AI:", AT_LINE_OR_SENTENCE, "Human|User", "AI", flags=re.MULTILINE,
                may_be_play=True, preamble=False),
    NamedLayout("Bot:", AT_LINE_OR_SENTENCE, "Human|User", "Bot", flags=re.MULTILINE,
                may_be_play=True, preamble=False),
)  # fmt: skip
LONE_MARKER = re.compile(HEADER.format("Human|Assistant"), re.IGNORECASE)


def named_messages(text: str) -> list[Message] | None:
    """The turns of a text with markers made of names; None for another text."""
    for layout in NAMED_LAYOUTS:
        if layout.gate in text and (messages := _layout_messages(text, layout)):
            return messages
    return None


def _layout_messages(text: str, layout: NamedLayout) -> list[Message] | None:
    markers = outside_fences(text, _named_markers(text, layout))
    if not markers:
        return None
    preamble = text[: markers[0].start].strip()
    lone = layout.may_be_alone and not preamble and LONE_MARKER.match(text, markers[0].start)
    if lone:
        markers = outside_quotations(text, markers)
    if not lone and not _is_dialogue(text, markers):
        return None
    if len(markers) == 1 and HEADING.search(text, markers[0].end):  # a heading among others
        return None
    if preamble and not (layout.preamble and _is_preamble(text, markers)):
        return None
    if layout.no_other_headings and len(HEADING.findall(text)) > len(markers):
        return None
    if layout.may_be_play and _is_play(text, markers[0], layout):
        return None
    messages = [Message("system", preamble)] if preamble else []
    for marker, content in contents(text, markers):
        if marker.role == "assistant":
            content = without_ends(content, REPLY_ENDS)
        content = without_margin(content)
        if marker.role != "input":
            messages.append(Message(marker.role, content))
        elif content:
            messages[-1] = Message("user", f"{messages[-1].content}\n\n{content}")
    return messages


def _named_markers(text: str, layout: NamedLayout) -> list[Marker]:
    """The markers of one layout: a system marker only first, an input only after a question."""
    names = {"user": layout.users, "assistant": layout.replies, "input": layout.inputs}
    names["system"] = layout.systems
    pattern = "|".join(f"(?P<{role}>{layout.around.format(name)})" for role, name in names.items())
    markers: list[Marker] = []
    for found in re.finditer(pattern, text, layout.flags):
        role = found.lastgroup
        last = markers[-1].role if markers else None
        if (role == "system" and last is not None) or (role == "input" and last != "user"):
            continue
        markers.append(Marker(found.start(), found.end(), role))
    return markers


def _is_dialogue(text: str, markers: Sequence[Marker]) -> bool:
    """Whether questions and answers alternate, and only the last answer may be missing."""
    roles = [marker.role for marker in markers if marker.role != "input"]
    roles = roles[1:] if roles[0] == "system" else roles
    alternate = all(role == ("user", "assistant")[i % 2] for i, role in enumerate(roles))
    filled = [bool(content.strip()) for _, content in contents(text, markers)]
    return alternate and len(roles) >= 2 and all(filled[:-1]) and not _is_quoted(text, markers)


def _is_quoted(text: str, markers: Sequence[Marker]) -> bool:
    """Whether a marker stands in quotation marks or backticks, as in prose about markers."""
    return any(
        opens_quotation(text, marker.start - 1) or text[marker.end : marker.end + 1] == "`"
        for marker in markers
    )


def _is_play(text: str, first: Marker, layout: NamedLayout) -> bool:
    """Whether the text has more speakers than two."""
    letters = "A-Z" if layout.flags == 0 else "\\w"
    place = r"[ \t]*$" if text[first.end :].lstrip(" \t")[:1] in ("\n", "\r") else r"[ \t]+\S"
    pattern = SPEAKER.format(letters, place)
    others = (m for m in re.finditer(pattern, text, re.MULTILINE))
    return any(not m[0].startswith(("USER:", "ASSISTANT:", "SYSTEM:")) for m in others)


def _is_preamble(text: str, markers: Sequence[Marker]) -> bool:
    """Whether the text before the first marker introduces a conversation."""
    before = text[: markers[0].start]
    prose = before.strip().rstrip(CLOSING) or ","
    margin = before[before.rfind("\n") + 1 :]
    at_line_start = "\n" in before and not margin.strip()
    if at_line_start and len(margin.expandtabs()) >= 4:  # an indented block of code
        return False
    ends = prose[-1] in ".!?" or (at_line_start and prose[-1].isalnum())
    if at_line_start and prose[-1] == ":":
        ends = bool(DIALOGUE_WORDS.search(prose)) and not ABOUT_LAYOUTS.search(prose)
    if len(prose) > PREAMBLE_CHARS or HEADING.search(prose) or CODE.search(prose):
        return False
    asked = [content for _, content in contents(text, markers)][:-1]
    return ends and not any(map(OPEN_END.search, asked))
