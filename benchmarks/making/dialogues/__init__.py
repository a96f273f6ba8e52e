"""Dialogues made of templates, for the model that ships: small talk, facts told and asked, numbers.

    python -m benchmarks.making.dialogues --count 20000 --seed 0 --out dialogues.jsonl

A dialogue is composed of parts, so most are written once. What the parts say is in the YAML files
of this folder. No template says a question that the model is scored on
(`benchmarks/kit/first_questions.py`), and no name is one it is told (`benchmarks/kit/told.py`).
"""

import random
from collections.abc import Iterator

from benchmarks.making.dialogues import facts, talk

SHARES = {
    talk.small_talk: 0.5,
    facts.told_by_system: 0.17,
    facts.told_by_user: 0.1,
    facts.never_told: 0.03,
    talk.about_a_topic: 0.13,
    talk.reasoning: 0.07,
}


def make(count: int, seed: int) -> Iterator[list[dict[str, str]]]:
    """`count` dialogues, each a list of messages with role and content."""
    rng = random.Random(seed)
    for kind in rng.choices(list(SHARES), list(SHARES.values()), k=count):
        yield kind(rng)
