"""Chat layouts inside one string: which text is a conversation, and what its turns are.

    messages_in("### Human: Hi### Assistant: Hello") -> [Message("user", "Hi"), ...]
    messages_in("any other text") -> None: plain text, kept byte for byte
    marker_position(text) -> where plain text holds something that looks like a marker

Layouts, in the order they are tried:

Tokens.   ChatML `<|im_start|>user`, Llama-3 `<|start_header_id|>user<|end_header_id|>`, Gemma
    `<start_of_turn>user`, Zephyr and Phi `<|user|>` on a line of its own, Open-Assistant
    `<|prompter|>`, OpenChatKit `<human>:`, OpenChat `GPT4 Correct User:`, DeepSeek. The text
    begins with one.
Llama-2.  `<s>[INST] <<SYS>>\\nsystem\\n<</SYS>>\\n\\nquestion [/INST] answer </s>`, as often as
    there are questions; `<s>`, `</s>` and the system part are optional. The text begins with it. A
    question without `[/INST]`, or text between `</s>` and the next turn, is an error.
Headers.  `### Human:` and `### Assistant:`, `### User:`, `###Human:`, `### Instruction:` with
    `### Input:` and `### Response:`, `### Question:` and `### Answer:`, anywhere in a line.
Names.    Vicuna's `USER:` and `ASSISTANT:` anywhere in a line; `Human:` or `User:` and `Assistant:`
    at the beginning of lines.

White space beside a marker belongs to the marker; only the indentation of a content's first line is
kept. Markers inside a code fence are content when the fence
is closed and the first of them begins a line. Headers and Vicuna's names may follow a
preamble, which becomes the system message: at most `PREAMBLE_CHARS` characters of prose that end a
sentence or a line, then question and answer in turn. Where this is in doubt (a marker in quotation
marks, a colon before it, headings before it, turns that do not alternate) the text stays plain.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from reso_llm.data.conversation import (
    Document,
    Message,
    RowError,
    conversation,
    role_of,
    utf8_length,
    without_empty_reply,
)

__all__ = ["document_from_text", "marker_position", "messages_in", "starts_with_marker"]

PREAMBLE_CHARS = 4000
WHITE = " \t\r\n"
QUOTE_BEFORE, CLOSING = "`\"'“‘(*", "\"'”’)"
BLANK_LINES = re.compile(r"(?:[ \t]*\r?\n)+|[ \t]+")
BEGIN = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>)?\s*"
)
REPLY_ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "\n### End")
FENCE = re.compile(r"^ {0,3}(```+|~~~+)([^`\n]*)$", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} ", re.MULTILINE)
# Another name before a colon, as a speaker of a play has it: beside its speech, or above it.
SPEAKER = r"^(?!(?:Human|User|Assistant|AI|System):)[A-Z][{}.' -]{{0,24}}:{}"
DIALOGUE_WORDS = re.compile(r"conversation|dialog|chat|discussion|exchange|transcript", re.I)
ABOUT_LAYOUTS = re.compile(r"format|layout|example|marker|template|syntax|looks? like", re.I)
CODE = re.compile(r"\"\"\"|'''|`|\w\s*=\s|^\s*(?:def|class|import|from|return|const|let) ", re.M)
OPEN_END = re.compile(r"(?:[,;(]|\b(?:and|or|then|with))\s*\Z")


class Marker(NamedTuple):
    """A marker at text[start:end], and the role of what follows it ("input" adds to the user)."""

    start: int
    end: int
    role: str


class TokenLayout(NamedTuple):
    """A marker with the role as its group, and what may end a turn; `gate` is in each such text."""

    gate: str
    marker: re.Pattern[str]
    ends: tuple[str, ...]


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
    preamble: bool = True


TOKEN_LAYOUTS = (
    TokenLayout("<|im_start|>", re.compile(r"<\|im_start\|>[ ]?(\w+)[ \t]*\r?\n"),
                ("<|im_end|>", "<|endoftext|>")),
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
    TokenLayout("<｜User｜>", re.compile(r"<｜(User|Assistant)｜>"), ("<｜end▁of▁sentence｜>",)),
)  # fmt: skip
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
    NamedLayout("ASSISTANT:", r"(?:(?<![^\s])|(?<=</s>))(?:{}):", "USER", "ASSISTANT", flags=0,
                systems="SYSTEM"),
    NamedLayout("Assistant:", AT_LINE_OR_SENTENCE, "Human|User", "Assistant", flags=re.MULTILINE,
                preamble=False),
    NamedLayout("AI:", AT_LINE_OR_SENTENCE, "Human|User", "AI", flags=re.MULTILINE, preamble=False),
)  # fmt: skip
LONE_MARKER = re.compile(HEADER.format("Human|Assistant"), re.IGNORECASE)

LLAMA_START = re.compile(r"\s*(?:<s>\s*)?\[INST\]")
LLAMA_TURN = re.compile(r"\s*(?:<s>\s*)?\[INST\]")
LLAMA_CLOSE = re.compile(r"\[/INST\]")
LLAMA_REPLY_END = re.compile(r"</s>|(?=<s>\s*\[INST\])|(?=\[INST\])")
LLAMA_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)

LEFT_GATES = ("###", "<|", "[/INST]", "<start_of_turn>", "ssistant:", "ASSISTANT:", "<｜", "<bot>:")
LEFT_MARKERS = re.compile(
    r"###[ \t]?(?:Human|User|Assistant|Instruction|Response)[ \t]?:|<\|im_start\|>|\[/INST\]"
    r"|<\|start_header_id\|>|<start_of_turn>|<\|(?:user|assistant|prompter)\|>|<｜Assistant｜>"
    r"|\bASSISTANT:|^<bot>:|^Assistant:",
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
    for layout in TOKEN_LAYOUTS:
        if layout.gate in text and (messages := _token_messages(text, layout)):
            return messages
    if LLAMA_START.match(text):
        return _llama_messages(text)
    for layout in NAMED_LAYOUTS:
        if layout.gate in text and (messages := _named_messages(text, layout)):
            return messages
    return None


def starts_with_marker(text: str) -> bool:
    """Whether a conversation begins at the very beginning of `text`, without a preamble."""
    text = text.lstrip()
    begin = BEGIN.match(text).end()
    if LLAMA_START.match(text) or any(o.marker.match(text, begin) for o in TOKEN_LAYOUTS):
        return True
    messages = messages_in(text)
    return bool(messages) and not text.startswith(messages[0].content or "\0")


def marker_position(text: str) -> int | None:
    """Where something that looks like a marker stands in plain text; None when nothing does."""
    if not any(gate in text for gate in LEFT_GATES):  # a fast search for what is rare
        return None
    found = LEFT_MARKERS.search(text)
    return found.start() if found else None


# -- tokens


def _token_messages(text: str, layout: TokenLayout) -> list[Message] | None:
    begin = BEGIN.match(text).end()
    if not layout.marker.match(text, begin):
        return None
    found = [(m, role_of(m[1])) for m in layout.marker.finditer(text, begin)]
    markers = [Marker(m.start(), m.end(), role or "") for m, role in found]
    messages = []
    for marker, content in _contents(text, _outside_fences(text, markers)):
        content = _without_ends(content, layout.ends)
        if marker.role:
            messages.append(Message(marker.role, _without_margin(content)))
    return messages


# -- Llama-2


def _llama_messages(text: str) -> list[Message]:
    messages: list[Message] = []
    position, last = 0, len(text.rstrip())
    while position < last:
        turn = LLAMA_TURN.match(text, position)
        if turn is None:
            raise RowError(f"expected [INST] at character {position} of this Llama-2 text")
        close = LLAMA_CLOSE.search(text, turn.end())
        if close is None:
            raise RowError(f"[INST] at character {turn.start()} has no [/INST]")
        messages += _llama_question(text[turn.end() : close.start()])
        end = LLAMA_REPLY_END.search(text, close.end())
        stop, position = (end.start(), end.end()) if end else (len(text), len(text))
        if end or close.end() < last:
            messages.append(Message("assistant", _without_margin(text[close.end() : stop])))
    return messages


def _llama_question(text: str) -> Iterator[Message]:
    system = LLAMA_SYSTEM.match(text)
    if system:
        yield Message("system", _without_margin(system[1]))
        text = text[system.end() :]
    yield Message("user", _without_margin(text))


# -- headers and names


def _named_messages(text: str, layout: NamedLayout) -> list[Message] | None:
    markers = _outside_fences(text, _named_markers(text, layout))
    if not markers:
        return None
    preamble = text[: markers[0].start].strip()
    lone = layout.may_be_alone and not preamble and LONE_MARKER.match(text, markers[0].start)
    if not lone and not _is_dialogue(text, markers):
        return None
    if preamble and not (layout.preamble and _is_preamble(text, markers)):
        return None
    if layout.no_other_headings and len(HEADING.findall(text)) > len(markers):
        return None
    if layout.gate != "###" and _is_play(text, markers[0], layout):
        return None
    messages = [Message("system", preamble)] if preamble else []
    for marker, content in _contents(text, markers):
        if marker.role == "assistant":
            content = _without_ends(content, REPLY_ENDS)
        content = _without_margin(content)
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
    filled = [bool(content.strip()) for _, content in _contents(text, markers)]
    return alternate and len(roles) >= 2 and all(filled[:-1]) and not _is_quoted(text, markers)


def _is_quoted(text: str, markers: Sequence[Marker]) -> bool:
    """Whether a marker stands in quotation marks or backticks, as in prose about markers."""
    return any(
        (marker.start and text[marker.start - 1] in QUOTE_BEFORE)
        or text[marker.end : marker.end + 1] == "`"
        for marker in markers
    )


def _is_play(text: str, first: Marker, layout: NamedLayout) -> bool:
    """Whether the text has more speakers than two; the rows of hh-rlhf begin with "\n\nHuman:"."""
    if text.startswith("\n\nHuman:"):
        return False
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
    contents = [content for _, content in _contents(text, markers)]
    return ends and not any(map(OPEN_END.search, contents[:-1]))


# -- what all layouts share


def _contents(text: str, markers: Sequence[Marker]) -> Iterator[tuple[Marker, str]]:
    stops = [marker.start for marker in markers[1:]] + [len(text)]
    for marker, stop in zip(markers, stops, strict=True):
        yield marker, text[marker.end : stop]


def _without_margin(content: str) -> str:
    """`content` without the white space that belongs to the markers around it."""
    margin = BLANK_LINES.match(content)
    return content[margin.end() if margin else 0 :].rstrip(WHITE)


def _without_ends(content: str, ends: Sequence[str]) -> str:
    """`content` without the tokens that end a turn."""
    bare = content.rstrip(WHITE)
    while end := next((end for end in ends if bare.endswith(end)), ""):
        content = bare = bare.removesuffix(end).rstrip(WHITE)
    return content


def _outside_fences(text: str, markers: Sequence[Marker]) -> list[Marker]:
    """The markers that are not quoted in a code fence.

    Markers are quoted while the fences before them are odd, when the first of them begins a line
    and the message ends its fences.
    """
    if "```" not in text and "~~~" not in text:
        return list(markers)
    fences = [found.start() for found in FENCE.finditer(text)]
    starts = [marker.start for marker in markers] + [len(text)]
    kept: list[Marker] = []
    index = 0 if markers and not _odd(fences, 0, markers[0].start) else len(markers)
    while index < len(markers):
        kept.append(markers[index])
        begin = markers[index].end
        following = index = index + 1
        if following < len(markers) and _starts_line(text, starts[following]):
            while following < len(markers) and _odd(fences, begin, starts[following]):
                following += 1
            if not _odd(fences, begin, starts[following]):
                index = following
    return kept


def _starts_line(text: str, position: int) -> bool:
    return not text[text.rfind("\n", 0, position) + 1 : position].strip()


def _odd(fences: Sequence[int], begin: int, stop: int) -> bool:
    return (bisect_left(fences, stop) - bisect_left(fences, begin)) % 2 == 1
