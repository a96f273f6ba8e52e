"""Saying back what the user said, as ELIZA did (Weizenbaum 1966).

"I had pizza for dinner." is answered with "So you had pizza for dinner." before the question that
follows, and "Do you like tennis?" with "Do I like tennis?" before the answer. A reply in the user's
words stays on the subject, also where the words are new: the echo of what was read knows how they
go on.
"""

import random
import re

TO_YOU = {
    "i": "you", "i'm": "you are", "am": "are", "my": "your", "me": "you", "mine": "yours",
    "we": "you", "our": "your", "us": "you", "myself": "yourself",
}  # fmt: skip
TO_ME = {"you": "I", "your": "my", "are": "am", "me": "you", "my": "your", "yourself": "myself"}
STATEMENT = re.compile(r"(I|I'm|My|We|Our|Today I|Yesterday I|It is|The|There is|Nobody) .*[.!]")
QUESTION = re.compile(r"(Do you|Are you|Can you|Have you|Will you|What do you think) .*[?]")
LEADS = ("So {0}.", "So {0}!", "Oh, {0}!", "I see, {0}.", "{0}?", "{0}, I see.")
WORD = re.compile(r"[A-Za-z']+")


def said_back(asked: str, reply: str, rng: random.Random) -> str:
    """The reply with what was asked before it; the reply alone where that makes no sense."""
    *_, last = re.split(r"(?<=[.!?]) ", reply)
    if STATEMENT.fullmatch(asked) and last.endswith("?") and "you" not in asked.lower():
        said = swapped(asked[:-1], TO_YOU).replace("you was", "you were")
        lead = rng.choice(LEADS).format(said)
        return f"{lead[:1].upper()}{lead[1:]} {last}"
    if QUESTION.fullmatch(asked):
        said = swapped(asked, TO_ME)
        return f"{said[:1].upper()}{said[1:]} {reply}"
    return reply


def swapped(text: str, words: dict[str, str]) -> str:
    """The text with these words replaced, and a small letter at its beginning."""
    text = WORD.sub(lambda match: words.get(match.group().lower(), match.group()), text)
    return text if text.startswith("I ") else text[:1].lower() + text[1:]
