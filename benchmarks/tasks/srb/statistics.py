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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.kit.records import grouped
from benchmarks.kit.statistics import bootstrap, holm, wilcoxon_p

ARM, OTHER = "srb", "static"
DRAWS = 10_000
Run = Mapping[str, Any]
Key = tuple[str, int]  # the name of a prompt, and a seed
Ends = tuple[float, float]  # of an interval


class Pairs(NamedTuple):
    """N prompts and seeds; values (N,2) are of SRB and of the static run, NaN where unknown."""

    keys: list[Key]
    buckets: list[str]
    values: np.ndarray

    def where(self, chosen: np.ndarray) -> "Pairs":
        """The pairs that are marked (N,)."""
        at = np.flatnonzero(chosen)
        return Pairs([self.keys[i] for i in at], [self.buckets[i] for i in at], self.values[at])

    def complete(self) -> "Pairs":
        """The pairs that are known in both arms."""
        return self.where(np.isfinite(self.values).all(1))

    def prompts(self) -> dict[str, str]:
        """The names of the prompts, and the bucket of each."""
        return {name: bucket for (name, _), bucket in zip(self.keys, self.buckets, strict=True)}

    def by_prompt(self, values: np.ndarray) -> np.ndarray:
        """Means (P,) of values (N,) over the seeds of each prompt, in the order of the prompts."""
        groups: dict[str, list[float]] = {}
        for (name, _), one in zip(self.keys, values, strict=True):
            groups.setdefault(name, []).append(float(one))
        return np.array([math.fsum(group) / len(group) for group in groups.values()])

    def log_ratios(self) -> np.ndarray:
        """Means (P,) of the logarithms of SRB over static; (0,) unless all are positive."""
        if not (self.values > 0).all():
            return np.zeros(0)
        return self.by_prompt(np.log(self.values[:, 0] / self.values[:, 1]))


# --- pairs


def value(run: Run, measure: str) -> float:
    """A number of a run, NaN where it has none. seconds_per_token is wall time over tokens."""
    if measure == "seconds_per_token":
        tokens = value(run, "tokens_emitted")
        return value(run, "wall_time_s") / tokens if tokens else math.nan
    number = run.get(measure)
    if isinstance(number, str):
        raise ValueError(f"{measure} is no number: {run['name']} has {number!r}")
    return math.nan if number is None else float(number)


def key_of(run: Run) -> Key:
    return run["name"], run.get("seed", 0)


def by_arm(runs: Iterable[Run]) -> dict[Key, dict[str, Run]]:
    """The runs of SRB and static of each prompt and seed, in the order of the runs.

    Raises ValueError where an arm has no run, or two runs of one prompt, seed and arm.
    """
    pairs: dict[Key, dict[str, Run]] = {}
    strategies = set()
    for run in runs:
        strategies.add(run["strategy"])
        if run["strategy"] not in (ARM, OTHER):
            continue
        arms = pairs.setdefault(key_of(run), {})
        if run["strategy"] in arms:
            name, seed = key_of(run)
            raise ValueError(f"{name}, seed {seed}: two runs of {run['strategy']!r}")
        arms[run["strategy"]] = run
    if missing := {ARM, OTHER} - strategies:
        known = ", ".join(sorted(strategies)) or "none"
        raise ValueError(f"no runs of strategy {missing.pop()!r}; there are: {known}")
    return pairs


def pair_up(runs: Iterable[Run], measure: str) -> Pairs:
    """A measure of all prompts and seeds of either arm."""
    pairs = by_arm(runs)
    values = [
        [value(arms.get(arm, {}), measure) for arm in (ARM, OTHER)] for arms in pairs.values()
    ]
    buckets = [next(iter(arms.values()))["bucket"] for arms in pairs.values()]
    return Pairs(list(pairs), buckets, np.array(values))


def stalls(runs: Iterable[Run], factor: float = 3.0) -> list[Key]:
    """Prompts and seeds during which the machine stood still in some arm, sorted.

    That is, seconds per token above `factor` times the median of the arm. Fit for long replies: in
    one of few tokens, reading the prompt alone may take that long.
    """
    stalled = set()
    for some in grouped(runs, "strategy").values():
        clock = {key_of(run): value(run, "seconds_per_token") for run in some}
        limit = factor * np.median([s for s in clock.values() if s == s] or [math.inf])
        stalled |= {key for key, seconds in clock.items() if seconds > limit}
    return sorted(stalled)


# --- statistics


def paired(runs: Iterable[Run], measure: str, draws: int = DRAWS) -> dict[str, Any]:
    """SRB minus static in any numeric column, or in seconds_per_token; see `compared`.

    Raises ValueError for an arm without runs, a column without numbers, and runs that occur twice.
    """
    pairs = pair_up(runs, measure)
    if np.isnan(pairs.values).all():
        raise ValueError(f"no run of {ARM!r} or {OTHER!r} has a number in {measure!r}")
    return compared(pairs, measure, draws)


def compared(pairs: Pairs, measure: str, draws: int = DRAWS) -> dict[str, Any]:
    """Arm minus other, in the unit of the measure; the ratios are arm over other.

    Intervals need two prompts and ratios positive values; without them they are None. `dropped`
    counts prompts and seeds that lack one of the two values.
    """
    known = pairs.complete()
    d, logs = known.by_prompt(known.values[:, 0] - known.values[:, 1]), known.log_ratios()
    return {
        "measure": measure, "arm": ARM, "other": OTHER, "prompts": len(d),
        "pairs": len(known.keys), "dropped": len(pairs.keys) - len(known.keys),
        "mean": float(d.mean()) if len(d) else None, "mean_interval": ends(d, np.mean, draws),
        "median": float(np.median(d)) if len(d) else None,
        "median_interval": ends(d, np.median, draws), "p": wilcoxon_p(d), "p_holm": None,
        "ratio": math.exp(logs.mean()) if len(logs) else None,
        "ratio_interval": _exp(ends(logs, np.mean, draws)),
    }  # fmt: skip


def by_bucket(runs: Iterable[Run], measure: str, draws: int = DRAWS) -> dict[str, dict[str, Any]]:
    """`paired` in each bucket, in the order of the runs, with p values adjusted for their number.

    A bucket without a complete pair has no p and does not count.
    """
    pairs = pair_up(runs, measure)
    buckets = np.array(pairs.buckets)
    rows = {
        bucket: compared(pairs.where(buckets == bucket), measure, draws)
        for bucket in dict.fromkeys(pairs.buckets)
    }
    for row, p in zip(rows.values(), holm([row["p"] for row in rows.values()]), strict=True):
        row["p_holm"] = p
    return rows


def decomposition(runs: Iterable[Run], draws: int = DRAWS) -> dict[str, Any]:
    """Wall time's geometric-mean ratio as that of tokens times that of seconds per token.

    Each is (ratio, low, high), over the same pairs; `tokens_share` is the tokens' part of wall
    time's log ratio (above 1 or below 0 where the two factors pull in opposite directions).
    """
    runs = list(runs)
    wall, tokens = (pair_up(runs, measure) for measure in ("wall_time_s", "tokens_emitted"))
    known = ((wall.values > 0) & (tokens.values > 0)).all(1)  # False for NaN, too
    if not known.any():
        raise ValueError(f"no prompt has wall time and tokens of both {ARM!r} and {OTHER!r}")
    logs = {"wall_time_s": wall.where(known).log_ratios()}
    logs["tokens_emitted"] = tokens.where(known).log_ratios()
    logs["seconds_per_token"] = logs["wall_time_s"] - logs["tokens_emitted"]
    total, share = (float(logs[m].mean()) for m in ("wall_time_s", "tokens_emitted"))
    intervals = {m: _exp(ends(d, np.mean, draws)) or (None, None) for m, d in logs.items()}
    return {
        "prompts": len(logs["wall_time_s"]), "pairs": int(known.sum()),
        "tokens_share": share / total if total else None,
        **{measure: (math.exp(d.mean()), *intervals[measure]) for measure, d in logs.items()},
    }  # fmt: skip


def ends(
    d: np.ndarray, statistic: Callable[..., np.ndarray] = np.mean, draws: int = DRAWS
) -> Ends | None:
    """Ends of the interval of a statistic of d (P,); None for fewer than two."""
    if len(d) < 2:
        return None
    return bootstrap(lambda picks: statistic(d[picks], axis=1), len(d), draws)[1:]


def _exp(interval: Sequence[float] | None) -> Ends | None:
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
