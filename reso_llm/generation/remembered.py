"""What a reply may use of what the user told: the texts that its question asks for, their wording.

A prompt asks by its last user message, a plain text by its last sentence. It asks among the stored
texts; a question of a conversation asks among what the user stated before it, in earlier messages
or in its own, too, as if each statement had been stored when it was said. At most `MOST` texts are
used, the stored ones first, in the order in which they were told, in two ways:

    context  a system message, after the user's own:  The user told you: <text> <text>
             of stored texts alone; what was said stands in the conversation
    echo     what the echo reads before the prompt, `times` * importance * exp(-decay * age) times:
             replies that say the text back, "My" being "Your" there

A plain text has no system message, and its echo reads the texts as they are. Nothing here knows a
model: an engine encodes, and says how many times. Matching and ranking are those of `recall`.
"""

import re
from collections.abc import Callable, Sequence
from heapq import nlargest
from typing import NamedTuple

from reso_llm.config import TemporalSMFConfig
from reso_llm.generation.prompt import Prompt, messages_of, with_system
from reso_llm.session.episodes import CLOSE, EpisodicMemory, Recollection
from reso_llm.session.session import Session
from reso_llm.session.words import STOP_WORDS, words

TOLD = "The user told you:"
MOST = 3
"""Texts that a reply may use."""

SAID_BACK = {
    "i": "you", "i am": "you are", "i was": "you were", "i'm": "you're", "i've": "you've",
    "i'd": "you'd", "i'll": "you'll", "me": "you", "my": "your", "mine": "yours",
    "myself": "yourself",
}  # fmt: skip
SPEAKER = re.compile(r"\b(?:i['’](?:m|ve|d|ll)|i was|i am|i|me|my|mine|myself)\b", re.IGNORECASE)
_ASKING = """
am are can could did do does how is should was were what when where which who whom whose why would
describe explain give list please remind say show tell write
"""
ASKING = frozenset(_ASKING.split())
"""First words of sentences that ask, or bid the model do something."""
END_MARKS = ".!?…"
SENTENCE_END = re.compile(r"(?<=[.!?\n])\s+")


class Memories(NamedTuple):
    """Stored texts and statements of earlier user messages that a prompt asks for.

    texts: stored ones first, in the order they were told. told: stored ones that fit into the
    context. echo: ids and weight of each text, as the echo reads them. resonance: of the prompt
    with the text that it shares most with, 0 to 1. recency: e^{-decay age} of the newest text.
    """

    texts: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    echo: tuple[tuple[tuple[int, ...], float], ...] = ()
    resonance: float = 0.0
    recency: float = 0.0


NOTHING = Memories()


def memories_of(
    session: Session,
    prompt: Prompt,
    encode: Callable[[str], Sequence[int]],
    times: float,
    room: int = 0,
) -> Memories:
    """The texts of a session, and of the user's earlier messages, that a prompt asks for.

    encode: ids of a text as the echo is to read it, `times` times where it is new and of importance
    1. room: tokens of stored texts that are told, at most. A session that keeps no texts uses none.
    Raises ValueError as `messages_of`.
    """
    episodes = session.episodes
    if episodes is None or not episodes.config.episodic_tagging:
        return NOTHING
    stored = session.recall(query_of(prompt), MOST)
    known = {r.moment.text for r in stored}
    said = [r for r in _said(prompt, episodes.config) if r.moment.text not in known]
    found = [r for r in (*stored, *said) if r.asked_for]
    close = CLOSE * max((r.resonance for r in found), default=0.0)
    found = [r for r in found if r.resonance >= close]
    best = nlargest(MOST, found, key=lambda r: r.resonance * r.weight)
    if not best:
        return NOTHING
    places = {moment: i for i, moment in enumerate(episodes.moments)}
    best.sort(key=lambda r: (places.get(r.moment, len(places)), r.moment.time))
    told = []
    for moment in (r.moment for r in best if r.moment in places):
        room -= len(moment.token_ids) + 1
        if room >= 0:
            told.append(moment.text)
    echo = [(tuple(encode(r.moment.text)), times * r.weight) for r in best]
    return Memories(
        tuple(r.moment.text for r in best),
        tuple(told),
        tuple(echo),
        resonance=max(r.resonance for r in best),
        recency=episodes.kept(min(r.age for r in best)),
    )


def _said(prompt: Prompt, config: TemporalSMFConfig) -> list[Recollection]:
    """The statements of the user that resonate with the questions of the last message after them.

    Their age counts user messages; what was said twice is as old as the last time.
    """
    if isinstance(prompt, str):
        return []
    messages = [_sentences(m.content) for m in messages_of(prompt) if m.role == "user"]
    last = messages.pop() if messages else []
    asked = [sentence for sentence in last if not is_statement(sentence)]
    if not asked:
        return []
    messages.append(last[: last.index(asked[-1])])
    times: dict[str, int] = {}
    for time, sentences in enumerate(messages, start=1):
        for sentence in filter(is_statement, sentences):
            times.pop(sentence, None)
            times[sentence] = time
    heard = EpisodicMemory(config)
    for sentence, time in times.items():
        heard.store(sentence, (), importance=1.0, time=time)
    return heard.recall(" ".join(asked), now=len(messages), count=MOST)


def is_statement(sentence: str) -> bool:
    """Whether a sentence tells something: it asks and bids nothing, by its mark and first word."""
    said = words(sentence)
    return bool(said) and not sentence.endswith("?") and said[0].partition("'")[0] not in ASKING


def _sentences(text: str) -> list[str]:
    """At least one, which may be empty or unfinished."""
    return SENTENCE_END.split(text.strip())


def memory_limit(context_length: int) -> int:
    """Tokens of stored texts in a system message, at most; their introduction not counted."""
    return context_length // 8


def query_of(prompt: Prompt) -> str:
    """What a prompt asks by: its last user message, "" without one; the last sentence of a text.

    The sentence may be unfinished. Raises ValueError as `messages_of`.
    """
    if isinstance(prompt, str):
        return _sentences(prompt)[-1]
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
