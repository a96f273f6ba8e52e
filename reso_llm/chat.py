"""A conversation in the terminal: lines in, streamed replies out.

Context policy. All turns are given to the model as long as they leave room for the reply; then
the oldest turns are forgotten, two by two, and the chat says so.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from reso_llm.conversation import Message
from reso_llm.inference import GenerationResult, ResoLLMInference

# All control characters but newline and tab, and the marks that reorder text on the screen.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
EXIT_WORDS = ("exit", "quit")


def printable(text: str) -> str:
    """Text that cannot move the cursor, change colours or reorder a terminal's line."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


class ChatSession:
    """The turns of one conversation with `engine`; `options` go to its `generate`."""

    def __init__(self, engine: ResoLLMInference, max_length: int = 128, **options: Any) -> None:
        self.engine, self.max_length, self.options = engine, max_length, options
        self.turns: list[Message] = []
        self.forgotten = 0

    def reply(self, text: str, on_text: Callable[[str], None]) -> GenerationResult:
        """Answer one user turn, streaming printable text; an interrupted reply is not kept."""
        turns, dropped = self._fitting([*self.turns, Message("user", text)])
        result = self.engine.generate(
            turns, self.max_length, on_text=lambda piece: on_text(printable(piece)), **self.options
        )
        self.turns = [*turns, Message("assistant", result.text)]
        self.forgotten += dropped
        return result

    def _fitting(self, turns: list[Message]) -> tuple[list[Message], int]:
        """The newest turns that leave room for the reply, and how many are left out."""
        before = len(turns)
        context = self.engine.config.max_seq_len
        room = context - min(self.max_length, context // 2)
        while len(turns) > 2 and len(self.engine.tokenizer.encode_prompt(turns)) > room:
            turns = turns[2:]
        return turns, before - len(turns)


def run_chat(session: ChatSession, lines: Iterable[str], write: Callable[[str], None]) -> None:
    """Answer every line until the lines end or one says exit.

    Ctrl-C during a reply stops the reply; between replies it leaves, as does the end of input.
    """
    told = 0
    for line in lines:
        text = line.strip()
        if text.lower() in EXIT_WORDS:
            return
        if not text:
            continue
        try:
            warnings = session.reply(_encodable(text), write).warnings
        except KeyboardInterrupt:
            warnings = ("stopped; this turn is not remembered",)
        write("\n")
        for warning in warnings:
            write(f"[{warning}]\n")
        if session.forgotten > told:
            told = session.forgotten
            write(f"[the context is full: the {told} oldest turns are forgotten]\n")


def _encodable(text: str) -> str:
    """Undecodable bytes of a terminal or pipe become U+FFFD, as everywhere on a screen."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
