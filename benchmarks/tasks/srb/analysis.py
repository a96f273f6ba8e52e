"""The measures of every arm of a study, and SRB against each of the others.

    arms       the runs as they were: tokens, seconds, quality at the place of their end
    srb_minus  paired differences, SRB minus another arm, by prompt and seed
    matched    the same against cuts of the static replies that keep as many tokens as SRB, random
               and elsewhere exactly, the others as nearly as one number can make it on this half:
                 random     SRB's lengths dealt to the replies by chance
                 elsewhere  the replies that SRB cut, each at the length of another of them
                 fixed      all cut at one length, end_rule at one p(end), the mean being SRB's

The arms were matched on the calibration half, so on this half they keep as many tokens only
roughly; a cut text has other mean nats by its length alone, so `matched` is the fairer word on
quality. `elsewhere` cuts the same replies as SRB, so it is the fairest. random and elsewhere are
means over 200 deals; where a deal gives a reply its own length back, the difference looks smaller
than it is. Intervals are 95 % bootstrap percentiles over prompts, paired (Efron 1979).

Shapes: N replies, P prompts, R deals.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.kit.pretrained import Writer
from benchmarks.kit.statistics import Interval, bootstrap, ratio
from benchmarks.tasks.srb import rules
from benchmarks.tasks.srb.prompts import prompts
from benchmarks.tasks.srb.quality import Measures, cut, measures
from benchmarks.tasks.srb.study import ARMS, OTHERS, Replies, Row

SETTLED = ("settled_nats", "settled_delta_nats", "settled_coherence", "patience")
REPEATED = ("tokens", "seconds", "finished", "own_nats_per_token", "own_end_nats")
REASONS = {"end": "eos_token", "length": "max_tokens", "fixed": "fixed_length",
           "random": "random_stop"}  # fmt: skip
QUALITY = (
    "own_nats_per_token", "own_nats_per_byte", "own_end_nats", "outside_nats_per_byte",
    "outside_end_nats", "rep4", "distinct2", "finished", "code_parses", "steps_met",
)  # fmt: skip
Table = dict[str, np.ndarray]
"""Each measure of N replies: (N,2), numerator and denominator of a mean."""


EVERY = 12  # prompts of a bucket's half
PROMPTS = {prompt.name: prompt for prompt in prompts(1)}
Tables = Mapping[tuple[str, int], Measures]
"""Measures at every cut of the reported static replies, by prompt's name and seed."""


def tables_of(
    replies: Replies, writer: Writer, judge: Writer | None, progress: Callable[[list], Iterable]
) -> Tables:
    return {
        (row["name"], row["seed"]): measures(row, PROMPTS[row["name"]], writer, judge)
        for row in progress([r for r in replies.of(1, "static") if r["name"] in PROMPTS])
    }


class Runs(NamedTuple):
    """Every arm's rows and measures, in the order of `names` (N,), and the static cuts."""

    rows: dict[str, list[Row]]
    names: np.ndarray
    static: list[Measures]
    tables: dict[str, Table]

    def minus(self, arm: str) -> dict[str, Interval | None]:
        """srb minus another arm, in every measure."""
        return summary(self.tables["srb"], self.names, self.tables[arm])


def runs_of(replies: Replies, tables: Tables, seeds: Sequence[int]) -> Runs:
    """The runs of these seeds; replies that lack an arm are left out."""
    rows = complete(replies, seeds)
    names = np.array([row["name"] for row in rows["static"]])
    static = [tables[row["name"], row["seed"]] for row in rows["static"]]
    lengths = _tokens(rows["static"])
    return Runs(rows, names, static, {a: real_run(static, rows[a], lengths) for a in ARMS})


def compared(every: Runs) -> dict[str, Any]:
    """arms, srb_minus and matched of these runs."""
    rows, names, static, runs = every
    cuts = matched_cuts(static, _tokens(rows["static"]), _tokens(rows["srb"]))
    ours = runs["srb"]
    return {
        "replies": len(names),
        "arms": {arm: summary(table, names) for arm, table in runs.items()},
        "srb_minus": {arm: every.minus(arm) for arm in ("static", *OTHERS[1:])},
        "matched": {arm: summary(ours, names, table) for arm, table in cuts.items()},
        "by_bucket": by_bucket(runs, names, [row["bucket"] for row in rows["static"]]),
    }


def public_runs(
    replies: Replies, tables: Tables, writer: Writer, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """All runs as rows of runs_longform.csv, with their seed and quality as further columns."""
    statics = {(row["name"], row["seed"]): row for row in replies.of(1, "static")}
    table = []
    for row in (row for some in complete(replies, seeds).values() for row in some):
        key, k = (row["name"], row["seed"]), row["tokens"]
        prompt, entropy = PROMPTS[row["name"]], statics[key]["entropy_nats"][:k]
        pairs = {name: tables[key][name][k] for name in QUALITY if name in tables[key]}
        quality = {name: round(a / b, 6) if b else None for name, (a, b) in pairs.items()}
        nats = quality["own_nats_per_token"]
        table.append({
            "backend": writer.backend, "model_id": writer.name, "bucket": row["bucket"],
            "name": row["name"], "prompt_ix": prompt.index, "prompt": prompt.text,
            "strategy": row["strategy"], "tokens_emitted": k, "wall_time_s": row["seconds"],
            "avg_entropy": sum(entropy) / k, "final_entropy": entropy[-1],
            "stop_reason": REASONS.get(row["stop_reason"], row["stop_reason"]),
            "response_text": row["text"], "seed": row["seed"],
            "own_perplexity": None if nats is None else round(math.exp(nats), 6), **quality,
        })  # fmt: skip
    return table


def rerun(first: Runs, last: Runs) -> dict[str, Interval]:
    """How far srb minus static of one seed is from that of another, on the same prompts.

    A study that repeats itself has 0 in the interval.
    """
    terms = [(-1, first, "srb"), (1, first, "static"), (1, last, "srb"), (-1, last, "static")]
    return {
        name: contrast([(sign, _by_prompt(r.tables[arm][name], r.names)) for sign, r, arm in terms])
        for name in REPEATED
    }


def complete(replies: Replies, seeds: Sequence[int]) -> dict[str, list[Row]]:
    """The rows of each arm, in the same order, of prompts and seeds that have all arms."""
    keys = [(p, seed) for seed in seeds for p in prompts(1)]
    rows = [[replies.find(1, prompt, seed, arm) for arm in ARMS] for prompt, seed in keys]
    whole = [arms for arms in rows if all(arms)]
    if not whole:
        raise ValueError("no prompt has replies of all arms: let the study run first")
    return {arm: list(column) for arm, column in zip(ARMS, zip(*whole, strict=True), strict=True)}


def real_run(static: Sequence[Measures], rows: Sequence[Row], lengths: np.ndarray) -> Table:
    """Measures (N,2) of an arm's runs: of what they kept, and of the runs themselves."""
    tokens, one = _tokens(rows), np.ones(len(rows))
    pairs = {
        "exits": ([row["stop_reason"] == "srb_settled" for row in rows], one),
        "cut": (tokens < lengths, one),
        "saved": (lengths - tokens, lengths),
        "seconds": ([row["seconds"] for row in rows], one),
    }
    return cut(static, tokens) | {k: np.stack(v, -1).astype(float) for k, v in pairs.items()}


def matched_cuts(
    static: Sequence[Measures], lengths: np.ndarray, stops: np.ndarray
) -> dict[str, Table]:
    """The static replies cut elsewhere, with as many tokens in all as with `stops` (N,)."""
    rng = np.random.default_rng(0)
    cuts = stops < lengths
    elsewhere = np.tile(stops, (rules.DEALS, 1))
    if cuts.any():
        elsewhere[:, cuts] = rules.dealt(stops[cuts], lengths[cuts], rng)
    ends = [table["own_end_nats"][:, 0] for table in static]
    threshold = rules.end_threshold(ends, stops.mean())
    return {
        "random": cut(static, rules.dealt(stops, lengths, rng)),
        "elsewhere": cut(static, elsewhere),
        "fixed": cut(static, rules.fixed_stop(lengths, stops.mean())),
        "end_rule": cut(static, rules.end_stops(ends, threshold)),
    }


def by_bucket(
    runs: Mapping[str, Table], names: np.ndarray, buckets: Sequence[str]
) -> dict[str, Any]:
    """srb minus static of each bucket."""
    summaries = {}
    for bucket in dict.fromkeys(buckets):
        inside = np.array(buckets) == bucket
        ours, theirs = (
            {name: pairs[inside] for name, pairs in runs[arm].items()} for arm in ("srb", "static")
        )
        summaries[bucket] = summary(ours, names[inside], theirs)
    return summaries


def _tokens(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row["tokens"] for row in rows])


# --- means and intervals


def summary(
    table: Mapping[str, np.ndarray],
    names: np.ndarray,
    other: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Interval | None]:
    """Each measure's mean with its interval over prompts, or its difference from another arm's.

    None where there is nothing to measure, such as code in a bucket of essays.
    """
    signed = [(1, table)] if other is None else [(1, table), (-1, other)]
    means = {}
    for name in sorted(set.intersection(*(set(some) for _, some in signed))):
        terms = [(sign, _by_prompt(some[name], names)) for sign, some in signed]
        empty = any(not sums[:, 1].any() for _, sums in terms)
        means[name] = None if empty else contrast(terms)
    return means


def _by_prompt(pairs: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Sums over the seeds of each prompt, (P,2)."""
    return np.stack([pairs[names == name].sum(0) for name in np.unique(names)])


def contrast(terms: Sequence[tuple[int, np.ndarray]]) -> Interval:
    """The sum of signed means of the same prompts, each sums over counts (P,2)."""

    def signed_sum(picks: np.ndarray) -> np.ndarray:
        return sum(sign * ratio(*np.moveaxis(pairs[picks], -1, 0)) for sign, pairs in terms)

    return bootstrap(signed_sum, len(terms[0][1]))
