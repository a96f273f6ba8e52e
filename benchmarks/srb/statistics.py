"""Two arms of a study of replies, compared pair by pair.

A pair is one prompt and seed in both arms. Pairs of a prompt are averaged first, so that prompts
are the independent units (the clusters of the bootstrap) and count alike:

    d_p = mean over the seeds s of (x[p,s,arm] - x[p,s,other])

Mean and median of d_p with 95 % percentile bootstrap intervals over prompts (Efron 1979),
Wilcoxon's signed-rank p of d_p (1945), and exp(mean over p of log ratios), the geometric-mean
ratio. By buckets, p values are also adjusted (Holm 1979). Wall time is tokens times seconds per
token, so

    log ratio of wall time = log ratio of tokens + log ratio of seconds per token

says whether time was saved by shorter replies or by a faster clock.

A run is a mapping with name, bucket, seed (0 where it has none), strategy and numbers. Shapes: N
pairs, P prompts, R draws.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

DRAWS = 10_000
Run = Mapping[str, Any]
Interval = tuple[float, float]


class Pairs(NamedTuple):
    """N prompts and seeds; values (N,2) are of the arm and of the other, NaN where unknown."""

    keys: list[tuple[str, int]]
    buckets: list[str]
    values: np.ndarray

    def only(self, keep: Callable[[tuple[str, int], str], bool]) -> "Pairs":
        """The pairs of which keep(key, bucket) is true."""
        kept = [i for i, two in enumerate(zip(self.keys, self.buckets, strict=True)) if keep(*two)]
        return Pairs(
            [self.keys[i] for i in kept], [self.buckets[i] for i in kept], self.values[kept]
        )


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Arm minus other, in the unit of the measure; the ratios are arm over other.

    Intervals need two prompts and ratios positive values; without them they are None. `dropped`
    counts prompts and seeds that lack one of the two values.
    """

    measure: str
    arm: str
    other: str
    prompts: int
    pairs: int
    dropped: int
    mean: float | None
    mean_interval: Interval | None
    median: float | None
    median_interval: Interval | None
    p: float | None
    p_holm: float | None = None
    ratio: float | None
    ratio_interval: Interval | None


# --- pairs


def value(run: Run, measure: str) -> float:
    """A number of a run, NaN where it has none. seconds_per_token is wall time over tokens."""
    if measure == "seconds_per_token":
        tokens = value(run, "tokens_emitted")
        return value(run, "wall_time_s") / tokens if tokens else math.nan
    found = run.get(measure)
    if isinstance(found, str):
        raise ValueError(f"{measure} is no number: {run['name']} has {found!r}")
    return math.nan if found is None else float(found)


def pair_up(runs: Iterable[Run], measure: str, arm: str, other: str) -> Pairs:
    """All prompts and seeds of either arm, in the order of the runs.

    Raises ValueError where an arm has no run, or two runs of one prompt, seed and arm.
    """
    runs = list(runs)
    found: dict[tuple[str, int], list[float]] = {}
    buckets: dict[tuple[str, int], str] = {}
    seen = set()
    for run in runs:
        if run["strategy"] not in (arm, other):
            continue
        key = (run["name"], run.get("seed", 0))
        if (key, run["strategy"]) in seen:
            raise ValueError(f"{key[0]}, seed {key[1]}: two runs of {run['strategy']!r}")
        seen.add((key, run["strategy"]))
        buckets[key] = run["bucket"]
        pair = found.setdefault(key, [math.nan, math.nan])
        pair[(arm, other).index(run["strategy"])] = value(run, measure)
    for name in (arm, other):
        if name not in {strategy for _, strategy in seen}:
            known = ", ".join(sorted({run["strategy"] for run in runs})) or "none"
            raise ValueError(f"no runs of strategy {name!r}; there are: {known}")
    return Pairs(list(found), [buckets[k] for k in found], np.array([*found.values()]))


def stalls(runs: Iterable[Run], factor: float = 3.0) -> list[tuple[str, int]]:
    """Prompts and seeds during which the machine stood still in some arm, sorted.

    That is, seconds per token above `factor` times the median of the arm. Fit for long replies: in
    one of few tokens, reading the prompt alone may take that long.
    """
    arms: dict[str, list[tuple[tuple[str, int], float]]] = {}
    for run in runs:
        seconds = value(run, "seconds_per_token")
        if not math.isnan(seconds):
            key = (run["name"], run.get("seed", 0))
            arms.setdefault(run["strategy"], []).append((key, seconds))
    found = set()
    for clock in arms.values():
        limit = factor * statistics.median(seconds for _, seconds in clock)
        found |= {key for key, seconds in clock if seconds > limit}
    return sorted(found)


# --- statistics


def paired(
    runs: Iterable[Run], measure: str, arm: str, other: str, draws: int = DRAWS, seed: int = 0
) -> Paired:
    """The difference of two arms in any numeric column, or in seconds_per_token.

    Raises ValueError for an arm without runs, a column without numbers, and runs that occur twice.
    """
    found = pair_up(runs, measure, arm, other)
    if np.isnan(found.values).all():
        raise ValueError(f"no run of {arm!r} or {other!r} has a number in {measure!r}")
    return compared(found, measure, arm, other, draws, seed)


def compared(
    found: Pairs, measure: str, arm: str, other: str, draws: int = DRAWS, seed: int = 0
) -> Paired:
    """Statistics of pairs; all None where none is complete."""
    whole = np.isfinite(found.values).all(1)
    values = found.values[whole]
    names = [name for (name, _), kept in zip(found.keys, whole, strict=True) if kept]
    d = by_prompt(values[:, 0] - values[:, 1], names)
    logs = by_prompt(np.log(values[:, 0] / values[:, 1]), names) if (values > 0).all() else d[:0]
    return Paired(
        measure=measure, arm=arm, other=other, prompts=len(d), pairs=len(values),
        dropped=int((~whole).sum()), mean=_of(np.mean, d), median=_of(np.median, d),
        mean_interval=interval(d, np.mean, draws, seed),
        median_interval=interval(d, np.median, draws, seed), p=wilcoxon_p(d),
        ratio=None if not len(logs) else math.exp(np.mean(logs)),
        ratio_interval=_exp(interval(logs, np.mean, draws, seed)),
    )  # fmt: skip


def by_bucket(
    runs: Iterable[Run], measure: str, arm: str, other: str, draws: int = DRAWS, seed: int = 0
) -> dict[str, Paired]:
    """`paired` in each bucket, in the order of the runs, with p values adjusted for their number.

    A bucket without a complete pair has no p and does not count.
    """
    found = pair_up(runs, measure, arm, other)
    each = {
        bucket: compared(
            found.only(lambda _, b, c=bucket: b == c), measure, arm, other, draws, seed
        )
        for bucket in dict.fromkeys(found.buckets)
    }
    adjusted = holm([one.p for one in each.values()])
    return {
        bucket: replace(one, p_holm=p)
        for (bucket, one), p in zip(each.items(), adjusted, strict=True)
    }


def decomposition(
    runs: Iterable[Run], arm: str, other: str, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Wall time's geometric-mean ratio as that of tokens times that of seconds per token.

    Each is (ratio, low, high), over the same pairs; `tokens_share` is the tokens' part of wall
    time's log ratio (above 1 or below 0 where the two factors pull in opposite directions).
    """
    runs = list(runs)
    found = [pair_up(runs, measure, arm, other) for measure in ("wall_time_s", "tokens_emitted")]
    values = np.stack([pairs.values for pairs in found])  # (2,N,2)
    whole = (values > 0).all((0, 2))  # False for NaN, too
    names = [name for (name, _), kept in zip(found[0].keys, whole, strict=True) if kept]
    if not names:
        raise ValueError(f"no prompt has wall time and tokens of both {arm!r} and {other!r}")
    wall, tokens = (by_prompt(np.log(x[whole, 0] / x[whole, 1]), names) for x in values)
    logs = {"wall_time_s": wall, "tokens_emitted": tokens, "seconds_per_token": wall - tokens}
    edges = {m: _exp(interval(d, np.mean, draws, seed)) or (None, None) for m, d in logs.items()}
    total = float(wall.mean())
    return {
        "prompts": len(wall), "pairs": len(names),
        "tokens_share": float(tokens.mean()) / total if total else None,
        **{measure: (math.exp(d.mean()), *edges[measure]) for measure, d in logs.items()},
    }  # fmt: skip


def by_prompt(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Means (P,) of the values (N,) of each name, in the order of first appearance."""
    groups: dict[str, list[float]] = {}
    for name, one in zip(names, values, strict=True):
        groups.setdefault(name, []).append(float(one))
    return np.array([math.fsum(group) / len(group) for group in groups.values()])


def interval(
    d: np.ndarray, statistic: Callable[..., np.ndarray] = np.mean, draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """95 % percentile bootstrap interval of a statistic of d (P,); None for fewer than two."""
    if len(d) < 2:
        return None
    picks = np.random.default_rng(seed).integers(len(d), size=(draws, len(d)))  # (R,P)
    low, high = np.quantile(statistic(d[picks], axis=1), [0.025, 0.975])
    return float(low), float(high)


def wilcoxon_p(d: np.ndarray) -> float | None:
    """Two-sided signed-rank p of differences (P,): 1 where all are zero, None where none is."""
    from scipy.stats import wilcoxon

    if not np.any(d):
        return 1.0 if len(d) else None
    return float(wilcoxon(d).pvalue)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p values, in the order given; None stays and does not count."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted


def _of(statistic: Callable[..., Any], d: np.ndarray) -> float | None:
    return float(statistic(d)) if len(d) else None


def _exp(edges: Interval | None) -> Interval | None:
    return None if edges is None else (math.exp(edges[0]), math.exp(edges[1]))
