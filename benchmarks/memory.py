"""Episodic memory: what a stored fact does to what a trained model says, and is it found again?

    gain    mean log-probability of a fact (nats per token) from an empty context after
            `update_memory(fact)`, minus that before; facts are invented, so no model knows them
    control the gain of another fact of the same templates, which is not stored; beside both the
            gain by either path alone (the memory field; the echo of the stored tokens)
    recall  share of partial queries whose own fact comes first among 1,000, beside BM25 (Robertson
            and Zaragoza 2009) over the same tokens and over words

Gains by age at importance 1, and by importance at age 0; and what 1,000 facts cost ten ordinary
sentences, were they all learned just now. A seed draws the facts and the queries. Intervals are
95 % bootstrap intervals over facts, queries or sentences; of several seeds the table gives the mean
of their values and of their intervals' ends, which is as wide as the interval of one seed.
"""

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import Records
from benchmarks.heldout import (
    add_checkpoint_option,
    checkpoint_name,
    engine_with,
    error_bars,
    interval,
    mean_interval,
    shown,
)
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
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
QUERIES = ("question", "three words", "typo")
FINDERS = ("memory", "bm25 tokens", "bm25 words")
AGES, IMPORTANCES = (0, 10, 100, 1000), (0.25, 0.5, 1.0, 2.0)


def draw_parts(rng: random.Random) -> dict[str, str]:
    names = {
        key: "".join(rng.choices(SYLLABLES, k=2 + (key == "last"))).capitalize()
        for key in ("first", "last", "place")
    }
    return names | {"colour": rng.choice(COLOURS), "thing": rng.choice(THINGS)}


def mean_with_interval(values: Sequence[float]) -> list[float]:
    """Mean, and its 95 % bootstrap interval: each value counts once."""
    sample = torch.tensor(values, dtype=torch.float64)
    return list(interval(sample, torch.ones_like(sample)))


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


def gains(
    model: ResoLLMModel, facts: Sequence[str], controls: Sequence[str]
) -> dict[str, list[float]]:
    """Mean gains of stored facts and controls under every condition, with intervals."""
    values: dict[str, list[float]] = {}

    def note(name: str, fact: str, control: str, state: Callable[[], ResoState]) -> None:
        for kind, text in (("stored", fact), ("control", control)):
            gain = log_probability(model, text, state()) - before[text]
            values.setdefault(f"{name}, {kind}", []).append(gain)

    pairs = list(zip(facts, controls, strict=True))
    for fact, control in tqdm(pairs, desc="facts", leave=False):
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
    return {name: mean_with_interval(v) for name, v in values.items()}


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


def recall_rates(
    model: ResoLLMModel, num_queries: int, rng: random.Random
) -> dict[str, list[float]]:
    """hit@1 among as many facts as memory holds, at most 1,000, by kind of query."""
    forget(model)
    encode, session = model.tokenizer.encode, model.session
    known = [draw_parts(rng) for _ in range(min(1000, model.config.temporal_smf.max_moments))]
    texts = [rng.choice(TEMPLATES).format(**parts) for parts in known]
    for time, text in enumerate(texts):
        session.episodes.store(text, encode(text), importance=1.0, time=time)
    session.clock = float(len(texts))
    by_token, by_word = ([Counter(f(t)) for t in texts] for f in (encode, words))
    rates = {}
    for kind in QUERIES:
        hits: dict[str, list[float]] = {finder: [] for finder in FINDERS}
        asked = rng.sample(range(len(texts)), min(num_queries, len(texts)))
        for i in tqdm(asked, desc=kind, leave=False):
            query = partial_query(kind, known[i], texts[i], rng)
            found = model.recall(query, count=1)
            hits["memory"].append(bool(found) and found[0].moment.time == i)
            hits["bm25 tokens"].append(bm25(by_token, encode(query)) == i)
            hits["bm25 words"].append(bm25(by_word, words(query)) == i)
        rates |= {f"{kind}, {name}": mean_with_interval(v) for name, v in hits.items()}
    return rates


def price(model: ResoLLMModel) -> list[float]:
    """Gain on ordinary sentences while everything in memory is of importance 1 and age 0."""
    session = model.session
    session.clock = session.episodes.latest
    full, empty = model.recollected_state(), model.init_state()
    fresh = full.echo._replace(weights=torch.ones_like(full.echo.weights))
    full = full._replace(echo=fresh)
    return mean_with_interval(
        [log_probability(model, t, full) - log_probability(model, t, empty) for t in ORDINARY]
    )


# --- the task ------------------------------------------------------------------------------------


def add_options(parser: Any) -> None:
    add_checkpoint_option(parser)
    parser.add_argument("--facts", type=int, default=80, help="stored; as many more are controls")
    parser.add_argument("--queries", type=int, default=200, help="of each kind")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def run(options: Any) -> list[dict[str, Any]]:
    """One row for each seed. ValueError where nothing is asked, or the checkpoint has no memory."""
    for name in ("facts", "queries"):
        if options[name] < 1:
            raise ValueError(f"--{name} {options[name]}: expected at least 1")
    engine = engine_with(options.checkpoint, "temporal_smf")
    facts, queries = (2, 3) if options.quick else (options.facts, options.queries)
    seeds = options.seeds[:1] if options.quick else options.seeds
    records = Records("memory", options.record)
    rows = []
    for seed in tqdm(seeds, desc="seeds", leave=False):
        key = {"checkpoint": checkpoint_name(options.checkpoint), "seed": seed, "facts": facts,
               "queries": queries}  # fmt: skip
        rows.append(records.row(key, lambda key=key: measured(engine.model, **key)))
    return rows


def measured(
    model: ResoLLMModel, *, checkpoint: str, seed: int, facts: int, queries: int
) -> dict[str, Any]:
    """Gains of a seed's facts, and recall of its queries."""
    rng = random.Random(seed)
    texts = [rng.choice(TEMPLATES).format(**draw_parts(rng)) for _ in range(2 * facts)]
    found = {
        "gain_nats_per_token": gains(model, texts[:facts], texts[facts:]),
        "recall_hit_at_1": recall_rates(model, queries, rng),
        "num_stored": len(model.session.episodes),
    }
    found["gain_nats_per_token"]["ordinary sentences"] = price(model)
    return found


def groups(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by checkpoint."""
    names = dict.fromkeys(row["checkpoint"] for row in rows)
    return {name: [row for row in rows if row["checkpoint"] == name] for name in names}


def mean_of(rows: Sequence[dict[str, Any]], field: str, name: str) -> list[float]:
    return mean_interval([row[field][name] for row in rows])


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Two tables for each checkpoint: gains, and recall."""
    return "\n\n".join(_tables(name, some) for name, some in groups(rows).items())


def _tables(name: str, rows: Sequence[dict[str, Any]]) -> str:
    first, seeds = rows[0], ", ".join(str(row["seed"]) for row in rows)
    gain = "gain_nats_per_token"
    before = shown(mean_of(rows, gain, "before"), 2)
    ordinary = shown(mean_of(rows, gain, "ordinary sentences"), 3)
    conditions = [f"age {a}" for a in AGES] + [f"importance {i}" for i in IMPORTANCES]
    lines = [
        f"**{name}**, {first['facts']} facts for each of seeds {seeds}; before anything is stored "
        f"{before} nats per token", "",
        "| | stored, nats per token | control |", "|---|---|---|",
    ]  # fmt: skip
    for condition in [*conditions, "field alone", "echo alone"]:
        cells = [shown(mean_of(rows, gain, f"{condition}, {k}"), 3) for k in ("stored", "control")]
        lines.append(f"| {condition} | {cells[0]} | {cells[1]} |")
    lines += [
        "", f"Ordinary sentences while {first['num_stored']:,} fresh facts are stored: {ordinary}.",
        "", f"| first among {first['num_stored']:,}, {first['queries']} queries | "
        f"{' | '.join(FINDERS)} |", "|---" * (1 + len(FINDERS)) + "|",
    ]  # fmt: skip
    for kind in QUERIES:
        cells = [shown(mean_of(rows, "recall_hit_at_1", f"{kind}, {f}"), 2) for f in FINDERS]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(rows: Sequence[dict[str, Any]]) -> Any:
    """Gain by age and by importance with its control, and recall beside BM25; first checkpoint."""
    from matplotlib.figure import Figure

    name, rows = next(iter(groups(rows).items()))
    drawn = Figure(figsize=(14, 4.4), layout="constrained")
    by_age, by_importance, recall = drawn.subplots(1, 3)
    _gains(by_age, rows, "age", AGES, "age, texts written since (importance 1)")
    _gains(by_importance, rows, "importance", IMPORTANCES, "importance (age 0)")
    _recall(recall, rows)
    drawn.suptitle(f"Episodic memory of {name}, {len(rows)} seeds, 95 % intervals")
    return drawn


def _gains(axes: Any, rows: Sequence[dict], name: str, values: Sequence, label: str) -> None:
    places = np.arange(len(values))
    styles = (("stored", BLUE, "o-"), ("control", ORANGE, "s--"))
    for kind, color, style in styles:
        gain = [mean_of(rows, "gain_nats_per_token", f"{name} {v}, {kind}") for v in values]
        middle, bars = error_bars(gain)
        axes.errorbar(places, middle, bars, fmt=style, color=color, capsize=3, label=kind)
    axes.set_xticks(places, [f"{v:g}" for v in values])
    axes.set(xlabel=label, ylabel="gain, nats per token", ylim=(min(0, axes.get_ylim()[0]), None))
    axes.axhline(0, color="#555555", lw=0.8)
    axes.legend()


def _recall(axes: Any, rows: Sequence[dict]) -> None:
    places = np.arange(len(QUERIES))
    colors = dict(zip(FINDERS, (BLUE, ORANGE, GREEN), strict=True))
    for i, (finder, color) in enumerate(colors.items()):
        rates = [mean_of(rows, "recall_hit_at_1", f"{kind}, {finder}") for kind in QUERIES]
        middle, bars = error_bars(rates)
        axes.bar(places + 0.27 * (i - 1), middle, 0.25, yerr=bars, capsize=2, color=color,
                 label=finder)  # fmt: skip
    axes.set_xticks(places, QUERIES)
    axes.set(xlabel="partial query", ylabel="share that finds its fact first", ylim=(0, 1.05))
    axes.legend(loc="upper right")  # over the queries with typos, which find least
