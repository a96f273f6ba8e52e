"""Small talk and talk about subjects, with or without a wish which subject."""

import random

from benchmarks.making.dialogues.facts import draw_fact
from benchmarks.making.dialogues.grammar import Slots, expand, message, opening, read_yaml, turn
from benchmarks.making.dialogues.reasoning import question

TOPICS: dict[str, dict[str, list[str]]] = read_yaml("topics.yaml")
NAMED = (
    "[Tell me|Say] something about {topic}.", "[Let us|Let's] talk about {topic}.",
    "I like {topic}.", "What do you think [about|of] {topic}?", "[Do|Don't] you like {topic}?",
    "[Can|Could] we talk about {topic}?", "Say a few words about {topic}.",
)  # fmt: skip
ANYTHING = (
    "[Tell me|Say] something[.|!]", "[Tell me|Say] something [nice|interesting|new][.|!]",
    "What [shall|should|can] we talk about?", "[Talk to me|Just talk|You begin|You start][.|!]",
    "[Choose|Pick] a subject[.| please.]", "What [are you thinking|do you think] about?",
    "[What else|Anything else]?", "[Tell|Teach] me something [I do not know|good].",
)  # fmt: skip
GO_ON = (
    "[Tell me more|Go on|More, please|And then][.|?]", "[Why|Really|Is that so]?",
    "[I see|Interesting|That is nice|I did not know that][.|!]", "[And what else|What else]?",
)  # fmt: skip
GOALS = ("Talk about {topic}.", "Your goal is to talk about {topic}.", "The subject is {topic}.")
AGREED = ("", "", "", "[Gladly!|Of course.|With pleasure.|Yes!|A good subject.|Let us do that.] ")


def small_talk(rng: random.Random) -> list[dict[str, str]]:
    """One of the openings, sometimes with facts that have nothing to do with it before."""
    slots = Slots(rng)
    messages = []
    if rng.random() < 0.08:
        told = " ".join(draw_fact(rng).told for _ in range(rng.choice((1, 1, 2))))
        messages.append(message("system", f"The user told you: {told}"))
    first, more = opening(rng, slots)
    messages += first
    for ask, answer in more[: rng.choice((0, len(more), len(more)))]:
        messages += turn(ask, answer, slots)
    return messages


def about_a_topic(rng: random.Random) -> list[dict[str, str]]:
    """A subject that the user names, a goal names, or nobody names."""
    name = rng.choice(list(TOPICS))
    slots = Slots(rng, topic=name)
    asks = NAMED if (is_named := rng.random() < 0.5) else ANYTHING
    messages = []
    if not is_named and rng.random() < 0.3:
        messages.append(message("system", expand(rng.choice(GOALS), slots)))
    said = rng.sample(TOPICS[name]["say"], 4)
    first = rng.choice(AGREED if is_named else ("",)) + _said(rng, name, said[:2])
    messages += turn(rng.choice(asks), first, slots)
    if rng.random() < 0.5:
        messages += turn(rng.choice(GO_ON), _said(rng, name, said[2:]), slots)
    return messages


def reasoning(rng: random.Random) -> list[dict[str, str]]:
    """One to three questions with a right answer."""
    pairs = [question(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    return [
        message(role, text)
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _said(rng: random.Random, name: str, said: list[str]) -> str:
    parts = said[: rng.choice((1, 1, 2))]
    if rng.random() < 0.6:
        parts = [*parts, rng.choice(TOPICS[name]["ask"])]
    return " ".join(parts)
