"""Texts with choices and slots: "[Hi|Hello], {name}!" becomes "Hello, Tom!".

A choice may hold other choices. The slots of one dialogue are drawn once, so a word comes back in
later turns; {Slot} is the same word with a capital. `a` becomes `an` before a vowel, and every
sentence begins with a capital.
"""

import random
import re
from pathlib import Path
from typing import Any

import yaml

from benchmarks.kit import told
from benchmarks.making.dialogues.reflection import said_back

HERE = Path(__file__).parent
SAID_BACK = 0.5
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(\w+)\}")


def read_yaml(name: str) -> Any:
    """The content of a YAML file beside this one."""
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))


OPENINGS: list[dict[str, list]] = read_yaml("small_talk.yaml")
TOLD_NAMES = frozenset(told.names())
WORDS: dict[str, list[str]] = read_yaml("words.yaml")


class Slots(dict[str, str]):
    """Words of one dialogue by the name of their slot, drawn from WORDS when first asked for.

    {word2} is another one of the words of {word}.
    """

    def __init__(self, rng: random.Random, **given: str) -> None:
        super().__init__(given)
        self.rng = rng

    def __missing__(self, name: str) -> str:
        others = {self.get(name.removesuffix("2"))}
        self[name] = self.rng.choice([w for w in WORDS[name.removesuffix("2")] if w not in others])
        return self[name]


def expand(text: str, slots: Slots) -> str:
    """The text with its choices made and its slots filled; KeyError for an unknown slot."""
    while match := CHOICE.search(text):
        choice = slots.rng.choice(match.group(1).split("|"))
        text = text[: match.start()] + choice + text[match.end() :]
    return sentences(SLOT.sub(lambda match: _word(match.group(1), slots), text))


def _word(name: str, slots: Slots) -> str:
    """The word of a slot; KeyError for a name that neither WORDS nor the slots have."""
    if name in slots or name.removesuffix("2") in WORDS:
        return slots[name]
    return capital(slots[name.lower()])


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def sentences(text: str) -> str:
    """The text with single spaces, `an` before vowels, and capitals after full stops."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
    text = re.sub(r"(?<=[.?!] )[a-z]", lambda match: match.group().upper(), text)
    return capital(text)


def made_name(rng: random.Random, syllables: int) -> str:
    """A name that nobody has, and no fact of the tests: it can be copied, and not be known."""
    parts = [rng.choice(WORDS["start"]) + rng.choice(WORDS["vowel"]) for _ in range(syllables)]
    name = "".join([*parts, rng.choice(WORDS["end"])]).capitalize()
    return made_name(rng, syllables) if name in TOLD_NAMES else name


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def turn(ask: str, answer: str, slots: Slots) -> list[dict[str, str]]:
    """A user's message and its reply, expanded with the same slots; half of them say it back."""
    asked = expand(ask, slots)
    reply = expand(answer, slots)
    if slots.rng.random() < SAID_BACK:
        reply = said_back(asked, reply, slots.rng)
    return [message("user", asked), message("assistant", reply)]


def opening(rng: random.Random, slots: Slots) -> tuple[list[dict[str, str]], list[list[str]]]:
    """A first exchange of small talk, and the templates of those that may follow it."""
    chosen = rng.choice(OPENINGS)
    first = turn(rng.choice(chosen["ask"]), rng.choice(chosen["answer"]), slots)
    return first, chosen.get("more", [])
