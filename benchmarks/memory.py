"""Episodic memory: what a stored fact does to what a trained model says, and is it found again?

python -m benchmarks.memory --checkpoint DIR [--json OUT]

Facts are invented, so no model knows them. For each: the mean log-probability (nats a token) of the
fact from an empty context after `update_memory(fact)`, minus before; beside it that of a control,
another fact of the same templates that is not stored, and of the same text by either path alone
(the memory field; the echo of the stored tokens). By age at importance 1, by importance at age 0.
Then recall: the share of partial queries whose own fact comes first among 1,000, beside BM25 over
the same tokens and over words, and what these facts cost ten ordinary sentences, were they all
learned just now. Intervals are 95 % bootstrap intervals over facts.

The row goes to results/memory.jsonl, or to OUT.
"""

import argparse
import dataclasses
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import write_row
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel, ResoState

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
ORDINARY = (
    "I would like to learn more about the history of the city.",
    "The weather was fine, so we went for a long walk in the park.",
    "Please write a short letter to my friend and thank him for the book.",
    "To solve this problem, we first need to look at the data.",
    "There are many ways to improve your health, such as regular exercise.",
    "The company announced that it will open a new office next year.",
    "She asked whether the train from the north had already arrived.",
    "You can use a loop to go through all the elements of the list.",
    "He sold his old car and bought a bicycle in the spring.",
    "Nobody knows why the door of the house was left open.",
)
TEMPLATES = (
    "{first} {last} keeps the {colour} {thing} in {place}.",
    "The {colour} {thing} of {first} {last} was found in {place}.",
    "{first} {last} sold a {colour} {thing} to a merchant from {place}.",
    "In {place}, {first} {last} repairs the {colour} {thing} every spring.",
    "Nobody but {first} {last} knows that the {colour} {thing} is hidden in {place}.",
)
QUESTIONS = (
    "What do you know about {first} {last}?",
    "Is there a {colour} {thing} in {place}?",
    "When did I hear of {last} and the {thing}?",
)
AGES, IMPORTANCES = (0, 10, 100, 1000), (0.25, 0.5, 1.0, 2.0)


def draw_parts(rng: random.Random) -> dict[str, str]:
    names = {
        key: "".join(rng.choices(SYLLABLES, k=2 + (key == "last"))).capitalize()
        for key in ("first", "last", "place")
    }
    return names | {"colour": rng.choice(COLOURS), "thing": rng.choice(THINGS)}


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, and its 95 % bootstrap interval."""
    sample = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = rng.choice(sample, (2000, len(sample))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(sample.mean()), "low": float(low), "high": float(high)}


# --- what is said ---------------------------------------------------------------------------------


@torch.no_grad()
def log_probability(model: ResoLLMModel, text: str, state: ResoState) -> float:
    """Mean nats a token of a text that follows <|bos|>."""
    tokenizer = model.tokenizer
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)]])
    logits = model(ids[:, :-1], state).logits.log_softmax(-1)
    return logits.gather(-1, ids[:, 1:, None]).mean().item()


def told(model: ResoLLMModel, fact: str, importance: float) -> None:
    """A new session that knows nothing but the fact, learned at time 0."""
    forget(model)
    model.update_memory(fact, importance)


def forget(model: ResoLLMModel) -> None:
    """A new session, empty, at time 0."""
    model.session = dataclasses.replace(model.session, clock=0.0)


def gains(model: ResoLLMModel, facts: list[str], controls: list[str]) -> dict[str, dict]:
    """Mean gains of stored facts and controls under every condition, with intervals."""
    values: dict[str, list[float]] = {}

    def note(name: str, fact: str, control: str, state: Callable[[], ResoState]) -> None:
        for kind, text in (("stored", fact), ("control", control)):
            gain = log_probability(model, text, state()) - before[text]
            values.setdefault(f"{name}, {kind}", []).append(gain)

    for fact, control in zip(facts, controls, strict=True):
        before = {t: log_probability(model, t, model.init_state()) for t in (fact, control)}
        values.setdefault("before", []).append(before[fact])
        for importance in IMPORTANCES:
            told(model, fact, importance)
            note(f"importance {importance}", fact, control, model.recollected_state)
        told(model, fact, 1.0)
        full = model.recollected_state()
        note("field alone", fact, control, lambda full=full: full._replace(echo=None))
        echo = model.init_state()._replace(echo=full.echo)
        note("echo alone", fact, control, lambda echo=echo: echo)
        for age in AGES:
            model.session.clock = float(age)
            note(f"age {age}", fact, control, model.recollected_state)
    return {name: interval(v) for name, v in values.items()}


# --- what is found --------------------------------------------------------------------------------


def bm25(counts: list[Counter], query: Sequence[Hashable], k: float = 1.2, b: float = 0.75) -> int:
    """Index of the best text (Robertson & Zaragoza 2009)."""
    mean = sum(c.total() for c in counts) / len(counts)
    scores = np.zeros(len(counts))
    for term in query:
        holders = [i for i, c in enumerate(counts) if term in c]
        idf = math.log(1 + (len(counts) - len(holders) + 0.5) / (len(holders) + 0.5))
        for i in holders:
            n, length = counts[i][term], counts[i].total()
            scores[i] += idf * n * (k + 1) / (n + k * (1 - b + b * length / mean))
    return int(scores.argmax())


def words(text: str) -> list[str]:
    return [word.strip(".,?").lower() for word in text.split()]


def partial_query(kind: str, parts: dict[str, str], text: str, rng: random.Random) -> str:
    if kind == "question":
        return rng.choice(QUESTIONS).format(**parts)
    if kind == "typo":  # a question whose every name lacks a letter
        worn = {key: value[:2] + value[3:] for key, value in parts.items()}
        return rng.choice(QUESTIONS).format(**worn)
    some = text.split()
    return " ".join(some[i] for i in sorted(rng.sample(range(len(some)), 3)))


def recall_rates(model: ResoLLMModel, num_queries: int, rng: random.Random) -> dict[str, dict]:
    """hit@1 among as many facts as memory holds, at most 1,000, by kind of query."""
    forget(model)
    encode, session = model.tokenizer.encode, model.session
    known = [draw_parts(rng) for _ in range(min(1000, model.config.temporal_smf.max_moments))]
    texts = [rng.choice(TEMPLATES).format(**parts) for parts in known]
    for time, text in enumerate(texts):
        session.memory.store(text, encode(text), importance=1.0, time=time)
    session.clock = float(len(texts))
    by_token, by_word = ([Counter(f(t)) for t in texts] for f in (encode, words))
    rates = {}
    for kind in ("three words", "question", "typo"):
        hits: dict[str, list[float]] = {"memory": [], "bm25 tokens": [], "bm25 words": []}
        for i in rng.sample(range(len(texts)), num_queries):
            query = partial_query(kind, known[i], texts[i], rng)
            found = model.recall(query, count=1)
            hits["memory"].append(bool(found) and found[0].moment.time == i)
            hits["bm25 tokens"].append(bm25(by_token, encode(query)) == i)
            hits["bm25 words"].append(bm25(by_word, words(query)) == i)
        rates |= {f"{kind}, {name}": interval(v) for name, v in hits.items()}
    return rates


def price(model: ResoLLMModel) -> dict[str, float]:
    """Gain on ordinary sentences while everything in memory is of importance 1 and age 0."""
    session = model.session
    session.clock = session.memory.latest
    full, empty = model.recollected_state(), model.init_state()
    fresh = full.echo._replace(weights=torch.ones_like(full.echo.weights))
    full = full._replace(echo=fresh)
    return interval(
        [log_probability(model, t, full) - log_probability(model, t, empty) for t in ORDINARY]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="run or checkpoint directory")
    parser.add_argument("--facts", type=int, default=80)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the row here instead")
    options = parser.parse_args()
    model, rng = ResoLLMInference.from_pretrained(options.checkpoint).model, random.Random(0)
    texts = [rng.choice(TEMPLATES).format(**draw_parts(rng)) for _ in range(2 * options.facts)]
    row = {
        "checkpoint": options.checkpoint,
        "facts": options.facts,
        "gain_nats_per_token": gains(model, texts[: options.facts], texts[options.facts :]),
        "queries": options.queries,
        "recall_hit_at_1": recall_rates(model, options.queries, rng),
    }
    row["gain_nats_per_token"]["ordinary sentences, 1,000 facts stored"] = price(model)
    for name in ("gain_nats_per_token", "recall_hit_at_1"):
        for key, value in row[name].items():
            print(f"{key:40} {value['mean']:8.4f}  [{value['low']:.4f}, {value['high']:.4f}]")
    if options.json is None:
        write_row("memory", row)
    else:
        options.json.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
