"""Replies guided to a goal: do they speak of it, at each strength of the guidance?

Twelve goals times five questions that ask for none of them. A reply speaks of a goal where it holds
one of its content words, inflection aside. The cosine of a reply with its own goal is taken minus
the mean of that with the other goals, the mean reply of strength 0 taken off all of them. The price
is told by repeated 4-grams, replies that end as a sentence does, and, where the text that the model
was trained on is given, replies that hold a word not twice in it. Draws are those of strength 0:
one question has one seed at all strengths.

Shapes: N = 60 replies, G = 12 goals, D width.
"""

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kit.statistics import mean_of
from benchmarks.tasks.talk import words
from reso_llm.decoding.draft import FINISHED
from reso_llm.generation.text_engine import TextEngine
from reso_llm.session.words import content_words, stem

GOALS = (
    "music, bands and songs", "food, cooking and recipes", "dogs, cats and other pets",
    "books and reading", "sports and football", "travel, beaches and the sea",
    "school, exams and teachers", "films and movies", "computers and programming",
    "family, brothers and sisters", "work, jobs and money", "rain, snow and the weather",
)  # fmt: skip
QUESTIONS = (
    "What do you like?", "What did you do today?", "Tell me something.", "What do you think about?",
    "What are you up to?",
)  # fmt: skip
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}  # those of the chat
NEW_TOKENS = 40
NO_WORDS: frozenset[str] = frozenset()


class Replies(NamedTuple):
    """Replies of one strength, goal by goal."""

    texts: list[str]  # N
    vectors: Tensor  # (N,D)


def replies(
    engine: TextEngine, goals: Sequence[str], strength: float, seed: int, new_tokens: int
) -> Replies:
    """A reply to every question towards every goal; the engine's session pursues none after it."""
    texts = []
    for i, description in enumerate(goals):
        goal = engine.create_goal(description, "maintenance")
        try:
            results = engine.generate_batch(
                [[("user", question)] for question in QUESTIONS], new_tokens,
                seed=1000 * seed + len(QUESTIONS) * i, guidance=strength, metrics=False, **SAMPLING,
            )  # fmt: skip
        finally:
            engine.session.agency.drop_goal(goal)
        texts += [result.text for result in results]
    return Replies(texts, torch.stack([engine.text_vector(text).cpu() for text in texts]))


def measures(
    engine: TextEngine, goals: Sequence[str], at: Replies, none: Replies, known: Set[str] = NO_WORDS
) -> dict[str, Any]:
    """The measures of a strength, and their differences from strength 0, with intervals over N.

    known: words of the text that the model was trained on, if it is known.
    """
    own, other = spoken_of(at.texts, goals)
    own_before, _ = spoken_of(none.texts, goals)
    vectors = torch.stack([engine.text_vector(goal).cpu() for goal in goals])
    cosine, before = (nearness(r.vectors, vectors, none.vectors.mean(0)) for r in (at, none))
    return {
        "rows": len(own), "own words": mean_of(own), "others' words": mean_of(other),
        "own words, rise": mean_of(own - own_before), "nearness": mean_of(cosine),
        "nearness, rise": mean_of(cosine - before),
        "repeated 4-grams": mean_of([repeated(text) for text in at.texts]),
        "finished": mean_of([bool(FINISHED.search(text.rstrip())) for text in at.texts]),
    } | ({"non-words": mean_of(unknown(at.texts, known))} if known else {})  # fmt: skip


def unknown(texts: Sequence[str], known: Set[str]) -> list[bool]:
    """Whether each text holds a word that neither `known` nor a goal has."""
    spoken = known.union(*map(words, GOALS))
    return [any(word not in spoken for word in words(text)) for text in texts]


def spoken_of(texts: Sequence[str], goals: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each reply speaks of its own goal, and the share of the others it speaks of, (N,)."""
    wanted = [set(map(stem, content_words(goal))) for goal in goals]
    said = [set(map(stem, content_words(text))) for text in texts]
    spoken = np.array([[not goal.isdisjoint(words) for goal in wanted] for words in said], float)
    own = spoken[np.arange(len(texts)), own_goal(len(texts))]
    return own, (spoken.sum(1) - own) / (len(goals) - 1)


def nearness(texts: Tensor, goals: Tensor, centre: Tensor) -> np.ndarray:
    """Cosine of each reply (N,D) with its own goal (G,D) minus the mean of that with others."""
    matrix = F.normalize(texts - centre, dim=-1) @ F.normalize(goals - centre, dim=-1).mT
    own = matrix[torch.arange(len(texts)), torch.as_tensor(own_goal(len(texts)))]
    return (own - (matrix.sum(1) - own) / (len(goals) - 1)).double().numpy()


def own_goal(count: int) -> np.ndarray:
    """The number of the goal of each reply, (N,)."""
    return np.arange(count) // len(QUESTIONS)


def repeated(text: str) -> float:
    """Share of the 4-grams of a text's words that came before in it."""
    words = text.split()
    grams = list(zip(*(words[i:] for i in range(4)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
