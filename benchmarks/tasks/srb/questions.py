"""Research questions 1 to 3 of the SRB derivation notes, as numbers that can come out bad.

1. Do (H, ΔH, C+) predict quality and failure modes?
     replies   Spearman's rank correlation over replies between a mean signal (of the whole reply,
               and of its first 32 tokens, which is a prediction) and each outcome
     places    within a reply, between a signal and the nats of ending the turn there: a rule that
               reads the signal can only find good places to end if this is not 0
2. Can they save compute without loss of quality? That is `analysis`: srb_minus and matched.
3. Do collapse curves reveal task-invariant structure? A curve is a reply's entropy over ten equal
   parts of it, divided by its mean. `between` is the share of the curves' variance that lies
   between buckets, beside its mean under permuted buckets and the share p of permutations that
   reach it; `fall` is first part minus last, in units of the mean. If a curve's shape does not
   depend on the task, `between` is at chance. Curves of two models are compared where both are
   recorded.

Intervals are 95 % bootstrap percentiles over prompts. Sources: SRB derivation notes, section 5;
Spearman 1904.

Shapes: N replies, T steps, C = 10 parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.kit.statistics import Interval, bootstrap_groups, groups_of, ratio, spearman
from benchmarks.tasks.srb.quality import Measures
from benchmarks.tasks.srb.study import Row, signals

SIGNALS = ("E", "abs ΔE", "C+")
OUTCOMES = ("truncated", "rep4", "own_nats_per_token", "outside_nats_per_byte", "code_parses",
            "steps_met")  # fmt: skip
EARLY, PARTS = 32, 10
DRAWS, PERMUTATIONS = 500, 2000
SHORTEST = 2 * PARTS  # tokens of a reply with a curve


def answered(
    rows: Sequence[Row], tables: Mapping[tuple[str, int], Measures], seed: int = 0
) -> dict[str, Any]:
    """The answers to 1 and 3 from static replies and their measures."""
    some = [tables[row["name"], row["seed"]] for row in rows]
    names = np.array([row["name"] for row in rows])
    rng = np.random.default_rng(seed)
    return {
        "replies": predicted(rows, some, names),
        "places": placed(rows, names),
        "curves": collapse(rows, rng),
    }


# --- 1: quality and failure


def predicted(rows: Sequence[Row], tables: Sequence[Measures], names: np.ndarray) -> dict[str, Any]:
    """Spearman's rho of every signal and outcome, over whole replies and over their beginnings."""
    outcomes = {name: np.array([_outcome(name, *pair) for pair in zip(rows, tables, strict=True)])
                for name in OUTCOMES if name == "truncated" or name in tables[0]}  # fmt: skip
    rhos = {}
    for reach, tokens in (("whole", None), ("first 32", EARLY)):
        means = np.array([_means(signals(row)[:tokens]) for row in rows])  # (N,3)
        for i, signal in enumerate(SIGNALS):
            for name, values in outcomes.items():
                pair = np.stack([means[:, i], values], -1)
                rhos[f"{signal}, {reach}: {name}"] = correlation(pair, names)
    return rhos


def _means(trace: np.ndarray) -> np.ndarray:
    """Means over time of the defined values of (T,3); a reply of one token has no change, NaN."""
    defined = ~np.isnan(trace)
    return ratio(np.where(defined, trace, 0).T, defined.T)


def _outcome(name: str, row: Row, table: Measures) -> float:
    if name == "truncated":
        return float(row["stop_reason"] == "length")
    above, below = table[name][-1]
    return above / below if below else np.nan


def correlation(pairs: np.ndarray, names: np.ndarray) -> Interval | None:
    """Spearman's rho of pairs (N,2) and its interval; None where either does not vary."""
    defined = ~np.isnan(pairs).any(axis=1)
    pairs, names = pairs[defined], names[defined]
    if len(np.unique(names)) < 4 or (pairs == pairs[:1]).all(axis=0).any():
        return None
    return bootstrap_groups(lambda picks: spearman(pairs[picks]), groups_of(names), DRAWS)


def placed(rows: Sequence[Row], names: np.ndarray) -> dict[str, Any]:
    """Mean over replies of rho between a signal and the nats of ending after the token drawn."""
    rhos = dict(zip(SIGNALS, np.array([_within(row) for row in rows]).T, strict=True))  # (N,) each
    return {
        signal: bootstrap_groups(
            lambda picks, rho=rho: float(np.nanmean(rho[picks])), groups_of(names), DRAWS
        )
        for signal, rho in rhos.items()
    }


def _within(row: Row) -> list[float]:
    trace, ends = signals(row), np.array(row["end_nats"])[1:]
    last = len(trace) - (row["stop_reason"] == "end")  # after the end nothing can end
    both = [np.stack([trace[1:last, i], ends[1:last]], -1) for i in range(3)]
    return [spearman(pair) if len(pair) > 2 else np.nan for pair in both]


# --- 3: collapse curves


def collapse(rows: Sequence[Row], rng: np.random.Generator) -> dict[str, Any]:
    """The mean curve of each bucket, and how much of the curves' variance the buckets explain."""
    long = [row for row in rows if row["tokens"] >= SHORTEST]
    if len(long) < 2:
        return {}
    curves = np.stack([curve(np.array(row["entropy_nats"])) for row in long])  # (N,C)
    names = np.array([row["name"] for row in long])
    buckets = np.array([row["bucket"] for row in long])
    share = between(curves, buckets)
    chance = [between(curves, _permuted(names, buckets, rng)) for _ in range(PERMUTATIONS)]
    fall = curves[:, 0] - curves[:, -1]
    return {
        "replies": len(long),
        "mean": {b: curves[buckets == b].mean(0).round(4).tolist() for b in np.unique(buckets)},
        "between": share,
        "between_by_chance": float(np.mean(chance)),
        "p": (1 + sum(c >= share for c in chance)) / (1 + PERMUTATIONS),
        "fall": bootstrap_groups(lambda picks: float(fall[picks].mean()), groups_of(names), DRAWS),
    }


def curve(entropy_nats: np.ndarray) -> np.ndarray:
    """Entropies (T,) averaged over C equal parts of the reply, in units of their mean, (C,)."""
    parts = [part.mean() for part in np.array_split(entropy_nats, PARTS)]
    return np.array(parts) / max(entropy_nats.mean(), 1e-9)


def between(curves: np.ndarray, buckets: np.ndarray) -> float:
    """Share of the variance of curves (N,C) around their mean that lies between buckets (N,)."""
    centred = curves - curves.mean(0)
    inside = sum(
        ((curves[buckets == b] - curves[buckets == b].mean(0)) ** 2).sum()
        for b in np.unique(buckets)
    )
    return float(1 - inside / (centred**2).sum())


def _permuted(names: np.ndarray, buckets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Buckets dealt anew to prompts: all replies to a prompt stay together."""
    unique, first = np.unique(names, return_index=True)
    dealt = dict(zip(unique, rng.permutation(buckets[first]), strict=True))
    return np.array([dealt[name] for name in names])
