"""Dialogues about facts: told in the system message or in an earlier turn, asked about, answered.

The answer repeats the fact's own words, so that the echo of what was read can fill in its names.
The system message has the wording by which remembered texts enter a conversation
(`The user told you: <text> <text>`).
"""

import random
from typing import NamedTuple

from benchmarks.making.dialogues.grammar import (
    Slots,
    expand,
    made_name,
    message,
    opening,
    read_yaml,
    sentences,
)

RELATIONS: list[dict[str, object]] = read_yaml("facts.yaml")
MAX_FACTS = 4
MADE_SHARE = 0.7  # of names and towns that are made of syllables
OPEN_SHARE = 0.15  # of the questions about a person
OPEN_QUESTIONS = (
    "What do you know about {who}?", "What did I tell you about {who}?", "Tell me about {who}.",
    "What [was|is] it about {who}?", "Do you remember {who}?", "What about {who}?",
)  # fmt: skip
ORDINALS = {1: "1st", 2: "2nd", 3: "3rd", 21: "21st", 22: "22nd", 23: "23rd"}
ANSWERS = (
    "{fact}.", "{fact}.", "{fact}.", "You told me that {fact}.", "{fact}, as you told me.",
    "I remember that {fact}.", "As far as I know, {fact}.", "I think that {fact}.",
    "If I remember right, {fact}.", "That is easy: {fact}.", "{fact}. You told me so.",
    "{fact}, I remember that.", "{fact}, is that right?",
)  # fmt: skip
NAMING = (
    "You told me: {fact}.", "I remember: {fact}.", "I was told: {fact}.", "{fact}.",
    "You said: {fact}.", "My memory says: {fact}.",
)  # fmt: skip
"""Answers that begin with a name: after a colon the echo knows it, as it stood after one before."""

TAKEN = (
    "[I will remember that|Thank you, I will remember that|It is good to know that|I see, so]"
    " {fact}.",
    "[Good to know!|Thank you for telling me.|I will keep that in mind.|I have made a note of it.]",
    "[All right|Got it|Okay], {fact}. [I will remember it.|You can ask me later.|Is there more?|]",
)
UNKNOWN = (
    "[I do not know|I don't know|Sorry, I do not know|I am sorry, I do not know] {about}.",
    "[You have not told me|You did not tell me|Nobody has told me] {about}.",
    "I don't know {about}. [You have not told me.|Please tell me.|Can you tell me?]",
)
TELLING = (
    "{fact}", "{fact}", "Please remember: {fact}", "Remember this: {fact}", "Did you know? {fact}",
    "I want to tell you something. {fact}", "Note this: {fact}", "By the way: {fact}",
)  # fmt: skip


class Fact(NamedTuple):
    """A fact as the user tells it and as it is told back, its questions, and what it is about."""

    told: str
    fact: str  # without a full stop, from the model's side, no capital
    ask: str
    about: str


def draw_fact(rng: random.Random) -> Fact:
    relation = rng.choice(RELATIONS)
    slots = Slots(
        rng,
        name=_name(rng, 2),
        age=str(rng.randint(3, 95)),
        hour=str(rng.randint(1, 12)),
        nth=_ordinal(rng.randint(1, 28)),
        code=str(rng.randint(100, 9999)),
    )
    if rng.random() < MADE_SHARE:
        slots["town"] = made_name(rng, rng.choice((1, 2, 2, 3)))
    who = _person(rng, slots)
    users = Slots(rng, **slots | {"who": who.format(my="my"), "my": "my", "I": "I"})
    told = expand(relation["told"], users)
    about_who = "{who}" in relation["told"] and rng.random() < OPEN_SHARE
    ask = expand(rng.choice(OPEN_QUESTIONS if about_who else relation["asks"]), users)
    ours = Slots(rng, **users | {"who": who.format(my="your"), "my": "your", "I": "you"})
    fact = _without_capital(expand(relation["told"], ours).removesuffix("."))
    return Fact(told, fact, ask, _without_capital(expand(relation["about"], ours)))


def told_by_system(rng: random.Random) -> list[dict[str, str]]:
    """Facts in the system message; the question is about one of them, or about none."""
    facts = [draw_fact(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, MAX_FACTS)))]
    messages = [message("system", "The user told you: " + " ".join(fact.told for fact in facts))]
    if rng.random() < 0.15:
        messages += opening(rng, Slots(rng))[0]
    return messages + asked(rng, facts)


def told_by_user(rng: random.Random) -> list[dict[str, str]]:
    """Facts in user turns, with other turns between telling and asking."""
    facts = [draw_fact(rng) for _ in range(rng.choice((1, 1, 2)))]
    messages = []
    for fact in facts:
        telling = rng.choice(TELLING).format(fact=fact.told)
        taken = sentences(_filled(rng, TAKEN, fact))
        messages += [message("user", telling), message("assistant", taken)]
    for _ in range(rng.choice((0, 0, 1, 2))):
        messages += opening(rng, Slots(rng))[0]
    return messages + asked(rng, facts)


def never_told(rng: random.Random) -> list[dict[str, str]]:
    """A question about what nobody told."""
    return asked(rng, [])


def asked(rng: random.Random, facts: list[Fact]) -> list[dict[str, str]]:
    """A question and its answer; one in seven is about what was not told."""
    known = bool(facts) and rng.random() < 6 / 7
    fact = rng.choice(facts) if known else draw_fact(rng)
    answer = _answer(rng, fact) if known else _filled(rng, UNKNOWN, fact)
    answers = [message("user", fact.ask), message("assistant", sentences(answer))]
    others = [other for other in facts if other is not fact]
    if known and others and rng.random() < 0.4:
        other = rng.choice(others)
        again = sentences(_answer(rng, other))
        answers += [message("user", other.ask), message("assistant", again)]
    return answers


def _answer(rng: random.Random, fact: Fact) -> str:
    return rng.choice(NAMING if fact.fact[0].isupper() else ANSWERS).format(fact=fact.fact)


def _filled(rng: random.Random, texts: tuple[str, ...], fact: Fact) -> str:
    return expand(rng.choice(texts), Slots(rng, fact=fact.fact, about=fact.about))


def _person(rng: random.Random, slots: Slots) -> str:
    kind = rng.random()
    first = _name(rng, 2)
    if kind < 0.35:
        return f"{{my}} {slots['relative']} {first}"
    if kind < 0.5:
        return f"{{my}} {slots['relative']}"
    return first if kind < 0.75 else f"{first} {made_name(rng, rng.choice((2, 3)))}"


def _name(rng: random.Random, syllables: int) -> str:
    return made_name(rng, syllables) if rng.random() < MADE_SHARE else Slots(rng)["family"]


def _ordinal(number: int) -> str:
    return ORDINALS.get(number, f"{number}th")


def _without_capital(text: str) -> str:
    """The text with a small first letter where the first word is no name."""
    small = (
        "The ",
        "Your ",
        "You ",
        "When ",
        "Where ",
        "What ",
        "Who ",
        "How ",
        "Which ",
        "Whose ",
    )
    return text[:1].lower() + text[1:] if text.startswith(small) else text
