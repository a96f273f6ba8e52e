"""What a reply so far is to SRB: where it could end, whether it has what was asked for, and loops.

The kind of a question is read off its words: code, steps, summary, essay, story or other. Steps and
code are structures: five steps are there when the fifth is numbered, code when a fenced block is
closed. A sentence ends with its mark, outside a block; the number of a list item is no sentence.
"""

import math
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from entropy_core.budget import Draft, Place

KINDS = {
    "code": r"\b(python|javascript|java|sql|html|code|function|script|program)\b",
    "steps": r"\b(steps?|instructions|recipe|how to)\b",
    "summary": r"\b(summar\w+|briefly|in short)\b",
    "essay": r"\b(essay|article|report)\b",
    "story": r"\b(story|stories|poem|novel|fable|tale|monologue|dialogue|letter)\b",
}
"""Kinds of questions and the words that tell them, the first that fits."""
OTHER = "other"

FINISHED = re.compile(r"[.!?…。！？][\"'»”)\]*`]*$")
FENCE = "```"
ITEM = re.compile(r"(?:^|\n)[\s*#]*(?:step\s*)?\d+\s*[.):]\W*$", re.IGNORECASE)
STEP = re.compile(r"^[\s*#]*(?:step\s*)?(\d+)\s*[.):]", re.IGNORECASE | re.MULTILINE)
ASKED_STEPS = re.compile(r"\b(\d+)\s+(?:\w+\s+)?steps?\b", re.IGNORECASE)
TAIL = 40  # characters that hold the end of a sentence, or the number of an item


class Written(NamedTuple):
    """What a row has written before a token, and what it was asked."""

    question: str  # the last turn of the prompt, or the text to be continued
    text: str
    ids: Sequence[int]
    end_nats: float  # -ln p of ending here, inf where the row may not end


def kind_of(question: str) -> str:
    """The kind of a question, one of KINDS or OTHER."""
    fits = (name for name, words in KINDS.items() if re.search(words, question, re.IGNORECASE))
    return next(fits, OTHER)


def num_steps(text: str) -> int:
    """Numbered steps at the beginnings of lines, counted 1, 2, 3 ... in order."""
    expected = 1
    for number in STEP.findall(text):
        expected += int(number) == expected
    return expected - 1


class Structure:
    """What a question asks for, and how much of it a text has."""

    def __init__(self, question: str) -> None:
        steps = ASKED_STEPS.search(question)
        self.steps = int(steps.group(1)) if steps else 0
        self.code = kind_of(question) == "code"

    def progress(self, text: str) -> int:
        """Numbered steps and borders of code blocks so far."""
        return num_steps(text) + text.count(FENCE)

    def done(self, text: str) -> bool:
        """Whether all of it is there; where nothing is asked for, always."""
        has_code = not self.code or text.count(FENCE) >= 2
        return has_code and num_steps(text) >= self.steps


def place_of(text: str) -> Place:
    """How good a place the end of a text is to end it; a block of code has lines and no words."""
    whole = text.rstrip()
    in_block = text.count(FENCE) % 2 == 1
    tail = whole[-TAIL:]
    if not in_block and whole and (tail.endswith(FENCE) or _is_sentence(tail)):
        return Place.FINISHED
    if text.rstrip(" ").endswith("\n"):
        return Place.LINE
    return Place.WORD if text[-1:] and not text[-1].isalnum() and not in_block else Place.INSIDE


def _is_sentence(tail: str) -> bool:
    return bool(FINISHED.search(tail)) and not ITEM.search(tail)


class Repeats:
    """Share of the `order`-grams of the last `window` tokens that came before, one id at a time."""

    def __init__(self, order: int = 4, window: int = 32) -> None:
        self.order, self.window = order, window
        self._recent: deque[int] = deque(maxlen=order)
        self._seen: set[tuple[int, ...]] = set()
        self._came: deque[bool] = deque([False] * window, maxlen=window)

    def add(self, ids: Iterable[int]) -> float:
        """The share, 0 to 1, after some more ids."""
        for token in ids:
            self._recent.append(token)
            gram = tuple(self._recent)
            whole = len(gram) == self.order
            self._came.append(whole and gram in self._seen)
            if whole:
                self._seen.add(gram)
        return sum(self._came) / self.window


class Drafts:
    """The drafts of one reply to a question, read in the order in which it is written.

    Tokens may be taken back between two of them.
    """

    def __init__(self, question: str, budgets: Mapping[str, float]) -> None:
        self.structure = Structure(question)
        self.budget = budgets.get(kind_of(question), math.inf)
        self.repeats = Repeats()
        self.ids: list[int] = []

    def read(self, written: Written) -> Draft:
        """The draft of what is written."""
        known = len(self.ids)
        if list(written.ids[:known]) != self.ids:  # some were taken back
            self.repeats, known = Repeats(), 0
        self.ids = list(written.ids)
        repeated = self.repeats.add(self.ids[known:])
        structure, text = self.structure, written.text
        return Draft(
            written.end_nats, repeated, place_of(text), structure.done(text),
            structure.progress(text), self.budget,
        )  # fmt: skip
