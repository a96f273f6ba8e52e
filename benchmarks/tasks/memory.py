"""Episodic memory: what a stored fact does to what a trained model says, and is it found again?

    gain    mean log-probability of a fact (nats per token) as a plain text that asks for itself,
            after `update_memory(fact)`, minus that before; facts are invented, so no model knows
            them
    control the gain of another fact of the same templates, which is not stored; beside both the
            gain by either path alone (the sedenion field; the echo of what is asked for)
    recall  share of partial queries whose own fact comes first among 1,000, beside BM25 (Robertson
            and Zaragoza 2009) over tokens and over words

Gains by age at importance 1, and by importance at age 0; and what 1,000 facts cost ten ordinary
sentences, were they all learned just now. A seed draws the facts and the queries. Intervals are
95 % bootstrap intervals over facts, queries or sentences; of several seeds the table gives the mean
of their values and of their intervals' ends, which is as wide as the interval of one seed.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.kit import heldout
from benchmarks.kit.facts import (
    draw_facts,
    draw_parts,
    forget,
    log_probability,
    sentence,
    tell,
)
from benchmarks.kit.figures import BLUE, GREEN, GREY, ORANGE, error_bars, new_figure
from benchmarks.kit.records import Records, Row, grouped
from benchmarks.kit.statistics import mean_interval, mean_of
from benchmarks.kit.tables import shown, table
from reso_llm.model import ResoLLMModel
from reso_llm.network import ResoState
from reso_llm.tour.probes import recollected

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
QUESTIONS = (
    "What do you know about {first} {last}?",
    "Is there a {colour} {thing} in {place}?",
    "When did I hear of {last} and the {thing}?",
)
QUERIES = ("question", "three words", "typo")
FINDERS = ("memory", "bm25 tokens", "bm25 words")
AGES, IMPORTANCES = (0, 10, 100, 1000), (0.25, 0.5, 1.0, 2.0)


# --- what a stored fact does


def gains(
    model: ResoLLMModel, facts: Sequence[str], controls: Sequence[str]
) -> dict[str, list[float]]:
    """Mean gains of stored facts and controls under every condition, with intervals."""
    values: dict[str, list[float]] = {}

    def note(name: str, fact: str, control: str, state: Callable[[str], ResoState]) -> None:
        for kind, text in (("stored", fact), ("control", control)):
            gain = log_probability(model, text, state(text)) - before[text]
            values.setdefault(f"{name}, {kind}", []).append(gain)

    def full(text: str) -> ResoState:
        return recollected(model, text)

    def echo_alone(text: str) -> ResoState:
        return model.init_state().with_stage("echo", full(text).stages.get("echo"))

    pairs = list(zip(facts, controls, strict=True))
    for fact, control in tqdm(pairs, desc="facts", leave=False, disable=None):
        before = {t: log_probability(model, t, model.init_state()) for t in (fact, control)}
        values.setdefault("before", []).append(before[fact])
        for importance in IMPORTANCES:
            tell(model, fact, importance)
            note(f"importance {importance}", fact, control, full)
        tell(model, fact, 1.0)
        note("field alone", fact, control, lambda _: model.recollected_state())
        note("echo alone", fact, control, echo_alone)
        for age in AGES:
            model.session.clock = float(age)
            note(f"age {age}", fact, control, full)
    return {name: mean_of(v) for name, v in values.items()}


# --- which fact is recalled


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
    texts = [sentence(parts, rng) for parts in known]
    for time, text in enumerate(texts):
        session.episodes.store(text, encode(text), importance=1.0, time=time)
    session.clock = float(len(texts))
    by_token, by_word = ([Counter(f(t)) for t in texts] for f in (encode, words))
    rates = {}
    for kind in QUERIES:
        hits: dict[str, list[float]] = {finder: [] for finder in FINDERS}
        queried = rng.sample(range(len(texts)), min(num_queries, len(texts)))
        for i in tqdm(queried, desc=kind, leave=False, disable=None):
            query = partial_query(kind, known[i], texts[i], rng)
            best = model.recall(query, count=1)
            hits["memory"].append(bool(best) and best[0].moment.time == i)
            hits["bm25 tokens"].append(bm25(by_token, encode(query)) == i)
            hits["bm25 words"].append(bm25(by_word, words(query)) == i)
        rates |= {f"{kind}, {name}": mean_of(v) for name, v in hits.items()}
    return rates


def price(model: ResoLLMModel) -> list[float]:
    """Gain on ordinary sentences while all facts in memory have just been learned."""
    texts = [moment.text for moment in model.session.episodes.moments]
    forget(model)
    for fact in texts:
        ids = model.tokenizer.encode(fact)
        model.session.remember(fact, ids, importance=1.0, time=0.0, field=None)
    full = [log_probability(model, t, recollected(model, t)) for t in ORDINARY]
    empty = [log_probability(model, t, model.init_state()) for t in ORDINARY]
    return mean_of(np.subtract(full, empty))


# --- the task


def add_options(parser: Any) -> None:
    heldout.add_checkpoint_option(parser)
    parser.add_argument("--facts", type=int, default=80, help="stored; as many more are controls")
    parser.add_argument("--queries", type=int, default=200, help="of each kind")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def run(options: Any) -> list[Row]:
    """One row for each seed. ValueError where nothing is asked, or the checkpoint has no memory."""
    for name in ("facts", "queries"):
        if options[name] < 1:
            raise ValueError(f"--{name} {options[name]}: expected at least 1")
    engine = heldout.engine_with(options.checkpoint, "temporal_smf")
    facts, queries = (2, 3) if options.quick else (options.facts, options.queries)
    seeds = options.seeds[:1] if options.quick else options.seeds
    records = Records("memory", options.record)
    rows = []
    for seed in tqdm(seeds, desc="seeds", leave=False, disable=None):
        name = heldout.checkpoint_name(options.checkpoint)
        key = {"checkpoint": name, "seed": seed, "facts": facts, "queries": queries}
        rows.append(records.row(key, lambda key=key: measured(engine.model, **key)))
    return rows


def measured(
    model: ResoLLMModel, *, checkpoint: str, seed: int, facts: int, queries: int
) -> dict[str, Any]:
    """Gains of a seed's facts, and recall of its queries."""
    rng = random.Random(seed)
    texts = draw_facts(2 * facts, rng)
    results = {
        "gain_nats_per_token": gains(model, texts[:facts], texts[facts:]),
        "recall_hit_at_1": recall_rates(model, queries, rng),
        "num_stored": len(model.session.episodes),
    }
    results["gain_nats_per_token"]["ordinary sentences"] = price(model)
    return results


def over_seeds(rows: Sequence[Row], field: str, name: str) -> list[float]:
    return mean_interval([row[field][name] for row in rows])


def text(rows: Sequence[Row]) -> str:
    """Two tables for each checkpoint: gains, and recall."""
    return "\n\n".join(_tables(name, some) for (name,), some in grouped(rows, "checkpoint").items())


def _tables(name: str, rows: Sequence[Row]) -> str:
    first, seeds = rows[0], ", ".join(str(row["seed"]) for row in rows)
    gain = "gain_nats_per_token"
    before = shown(over_seeds(rows, gain, "before"), 2)
    ordinary = shown(over_seeds(rows, gain, "ordinary sentences"), 3)
    conditions = [f"age {a}" for a in AGES] + [f"importance {i}" for i in IMPORTANCES]
    title = (
        f"**{name}**, {first['facts']} facts for each of seeds {seeds}; before anything is stored "
        f"{before} nats per token"
    )
    gains = [
        [c, *(shown(over_seeds(rows, gain, f"{c}, {k}"), 3) for k in ("stored", "control"))]
        for c in (*conditions, "field alone", "echo alone")
    ]
    cost = f"Ordinary sentences while {first['num_stored']:,} fresh facts are stored: {ordinary}."
    rates = [
        [kind, *(shown(over_seeds(rows, "recall_hit_at_1", f"{kind}, {f}"), 2) for f in FINDERS)]
        for kind in QUERIES
    ]
    corner = f"first among {first['num_stored']:,}, {first['queries']} queries"
    return "\n\n".join((
        title, table(("", "stored, nats per token", "control"), gains), cost,
        table((corner, *FINDERS), rates),
    ))  # fmt: skip


def figure(rows: Sequence[Row]) -> Any:
    """Gain by age and by importance with its control, and recall beside BM25; first checkpoint."""
    (name,), rows = next(iter(grouped(rows, "checkpoint").items()))
    drawn = new_figure(14, 4.4)
    by_age, by_importance, recall = drawn.subplots(1, 3)
    _gains(by_age, rows, "age", AGES, "age, texts written since (importance 1)")
    _gains(by_importance, rows, "importance", IMPORTANCES, "importance (age 0)")
    _recall(recall, rows)
    drawn.suptitle(f"Episodic memory of {name}, {len(rows)} seeds, 95 % intervals")
    return drawn


def _gains(axes: Any, rows: Sequence[Row], name: str, values: Sequence, label: str) -> None:
    places = np.arange(len(values))
    for kind, color, style in (("stored", BLUE, "o-"), ("control", ORANGE, "s--")):
        gain = [over_seeds(rows, "gain_nats_per_token", f"{name} {v}, {kind}") for v in values]
        middle, bars = error_bars(gain)
        axes.errorbar(places, middle, bars, fmt=style, color=color, capsize=3, label=kind)
    axes.set_xticks(places, [f"{v:g}" for v in values])
    axes.set(xlabel=label, ylabel="gain, nats per token", ylim=(min(0, axes.get_ylim()[0]), None))
    axes.axhline(0, color=GREY, lw=0.8)
    axes.legend()


def _recall(axes: Any, rows: Sequence[Row]) -> None:
    places = np.arange(len(QUERIES))
    colors = dict(zip(FINDERS, (BLUE, ORANGE, GREEN), strict=True))
    for i, (finder, color) in enumerate(colors.items()):
        rates = [over_seeds(rows, "recall_hit_at_1", f"{kind}, {finder}") for kind in QUERIES]
        middle, bars = error_bars(rates)
        axes.bar(places + 0.27 * (i - 1), middle, 0.25, yerr=bars, capsize=2, color=color,
                 label=finder)  # fmt: skip
    axes.set_xticks(places, QUERIES)
    axes.set(xlabel="partial query", ylabel="share that finds its fact first", ylim=(0, 1.05))
    axes.legend(loc="upper right")  # over the queries with typos, which find least
