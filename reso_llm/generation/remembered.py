"""What a reply may use of the stored texts: those that its question asks for, and their wording.

A prompt asks by its last user message, a plain text by its last sentence. At most `MOST` texts are
used, in the order in which they were stored, in two ways:

    context  a system message, after the user's own:  The user told you: <text> <text>
    echo     what the echo reads before the prompt, `times` * importance * exp(-decay * age) times:
             replies that say the text back, "My" being "Your" there

A plain text has no system message, and its echo reads the texts as they are. Nothing here knows a
model: an engine encodes, and says how many times. Matching and ranking are those of `recall`.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from reso_llm.generation.prompt import Prompt, messages_of, with_system
from reso_llm.session.episodes import CLOSE
from reso_llm.session.session import Session
from reso_llm.session.words import STOP_WORDS

TOLD = "The user told you:"
MOST = 3
"""Texts that a reply may use."""

SAID_BACK = {
    "i": "you", "i am": "you are", "i was": "you were", "i'm": "you're", "i've": "you've",
    "i'd": "you'd", "i'll": "you'll", "me": "you", "my": "your", "mine": "yours",
    "myself": "yourself",
}  # fmt: skip
SPEAKER = re.compile(r"\b(?:i['’](?:m|ve|d|ll)|i was|i am|i|me|my|mine|myself)\b", re.IGNORECASE)
END_MARKS = ".!?…"
SENTENCE_END = re.compile(r"(?<=[.!?\n])\s+")


class Memories(NamedTuple):
    """Stored texts that a prompt asks for.

    texts: in the order they were stored. told: those of them that fit into the context.
    echo: ids and weight of each, as the echo reads them.
    """

    texts: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    echo: tuple[tuple[tuple[int, ...], float], ...] = ()


NOTHING = Memories()


def memories_of(
    session: Session,
    query: str,
    encode: Callable[[str], Sequence[int]],
    times: float,
    room: int = 0,
) -> Memories:
    """The texts of a session that a query asks for.

    encode: ids of a text as the echo is to read it, `times` times where it is new and of importance
    1. room: tokens of texts that are told, at most.
    """
    episodes = session.episodes
    if episodes is None or not len(episodes):
        return NOTHING
    found = [r for r in session.recall(query, MOST) if r.asked_for]
    found = [r for r in found if r.resonance >= CLOSE * found[0].resonance]
    found.sort(key=lambda r: episodes.moments.index(r.moment))
    told = []
    for r in found:
        room -= len(r.moment.token_ids) + 1
        if room >= 0:
            told.append(r.moment.text)
    echo = [(tuple(encode(r.moment.text)), times * r.weight) for r in found]
    return Memories(tuple(r.moment.text for r in found), tuple(told), tuple(echo))


def memory_limit(context_length: int) -> int:
    """Tokens of stored texts in a system message, at most; their introduction not counted."""
    return context_length // 8


def query_of(prompt: Prompt) -> str:
    """What a prompt asks by: its last user message, "" without one; the last sentence of a text.

    The sentence may be unfinished. Raises ValueError as `messages_of`.
    """
    if isinstance(prompt, str):
        return SENTENCE_END.split(prompt.strip())[-1]
    asked = [message.content for message in messages_of(prompt) if message.role == "user"]
    return asked[-1] if asked else ""


def with_memories(prompt: Prompt, texts: Sequence[str]) -> Prompt:
    """A conversation with these texts told in its system message; see `with_system`."""
    return with_system(prompt, " ".join([TOLD, *map(_finished, texts)])) if texts else prompt


def _finished(text: str) -> str:
    """The text on one line, with an end mark."""
    line = " ".join(text.split())
    return line if line.endswith(tuple(END_MARKS)) else f"{line}."


def said_back(text: str) -> str:
    """The text as it is said back to who told it: "I" is "you" there, "my" is "your" (English)."""

    def turned(match: re.Match[str]) -> str:
        word = SAID_BACK[match.group().lower().replace("’", "'")]
        begins = (
            not text[: match.start()].strip() or text[: match.start()].rstrip()[-1] in END_MARKS
        )
        return word.capitalize() if begins else word

    return SPEAKER.sub(turned, text)


def replies_of(text: str) -> tuple[str, ...]:
    """Replies that say a text back: by itself, and after two beginnings that replies may have."""
    back = said_back(text)
    first = back.partition(" ")[0]
    begins = back[:1].lower() + back[1:] if first.lower() in STOP_WORDS else back
    return back, f"You told me that {begins}", f"You said: {back}"
