"""Invented facts, which no model knows, and what a model makes of one that it is told."""

import dataclasses
import random

import torch

from reso_llm.model import ResoLLMModel
from reso_llm.network import ResoState

SYLLABLES = (
    "ma", "ra", "tor", "vik", "quo", "len", "dri", "sa", "bel", "ost", "hav", "rin", "kel", "mun",
    "pa", "zo", "fen", "lir", "gus", "ta",
)  # fmt: skip
COLOURS = (
    "blue", "green", "silver", "copper", "crimson", "ivory", "amber", "violet", "golden", "scarlet",
    "grey", "black",
)  # fmt: skip
THINGS = (
    "ledger", "lantern", "compass", "violin", "teapot", "mirror", "map", "clock", "statue",
    "notebook", "carpet", "bell",
)  # fmt: skip
TEMPLATES = (
    "{first} {last} keeps the {colour} {thing} in {place}.",
    "The {colour} {thing} of {first} {last} was found in {place}.",
    "{first} {last} sold a {colour} {thing} to a merchant from {place}.",
    "In {place}, {first} {last} repairs the {colour} {thing} every spring.",
    "Nobody but {first} {last} knows that the {colour} {thing} is hidden in {place}.",
)


def draw_facts(count: int, rng: random.Random) -> list[str]:
    """Sentences about persons and things that do not exist."""
    return [rng.choice(TEMPLATES).format(**draw_parts(rng)) for _ in range(count)]


def sentence(parts: dict[str, str], rng: random.Random) -> str:
    """A random sentence of these parts."""
    return rng.choice(TEMPLATES).format(**parts)


def draw_parts(rng: random.Random) -> dict[str, str]:
    names = {
        key: "".join(rng.choices(SYLLABLES, k=count)).capitalize()
        for key, count in (("first", 2), ("last", 3), ("place", 2))
    }
    return names | {"colour": rng.choice(COLOURS), "thing": rng.choice(THINGS)}


@torch.no_grad()
def log_probability(model: ResoLLMModel, text: str, state: ResoState) -> float:
    """Mean nats a token of a text that follows <|bos|>."""
    tokenizer = model.tokenizer
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)]])
    logits = model(ids[:, :-1], state).logits.log_softmax(-1)
    return logits.gather(-1, ids[:, 1:, None]).mean().item()


def tell(model: ResoLLMModel, fact: str, importance: float) -> None:
    """A new session that knows nothing but the fact, learned at time 0."""
    forget(model)
    model.update_memory(fact, importance)


def forget(model: ResoLLMModel) -> None:
    """A new session, empty, at time 0."""
    model.session = dataclasses.replace(model.session, clock=0.0)
