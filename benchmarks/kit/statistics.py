"""The bootstrap and the rank statistics of every study.

    interval of s(x_1 .. x_N):  draw N units with replacement, R times; 2.5 and 97.5 % of s

A unit is what was drawn independently: a document, a fact, or a prompt with all its seeds. Paired
samples share their draws, so the interval of a difference is that of one statistic. `draw_nested`
draws seeds within each drawn prompt. A draw that leaves the statistic undefined (NaN) is left out,
which scipy.stats.bootstrap does not do. Sources: Efron 1979; Mann and Whitney 1947; Spearman 1904;
Wilcoxon 1945; Holm 1979.

Shapes: N units, R draws, P prompts, S seeds.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

DRAWS = 2000
ENDS = (0.025, 0.975)

Interval = tuple[float, float, float]  # value, low, high
Statistic = Callable[[np.ndarray], float]


def draw(num: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Indices (1+R,N): the sample itself, then the draws with replacement."""
    picks = np.random.default_rng(seed).integers(num, size=(draws, num))
    return np.concatenate([np.arange(num)[None], picks])


def draw_nested(
    num_prompts: int, num_seeds: int, draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of prompts (1+R,P,1), and of seeds within each (1+R,P,S); the sample comes first."""
    picks = draw(num_prompts, draws, seed)
    seeds = np.random.default_rng(seed + 1).integers(num_seeds, size=(*picks.shape, num_seeds))
    seeds[0] = np.arange(num_seeds)
    return picks[:, :, None], seeds


def summary(values: np.ndarray) -> Interval | None:
    """(value, low, high) of values (1+R,), the sample's first; None where nothing is defined."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(drawn):
        return None
    return (float(values[0]), *np.quantile(drawn, ENDS).tolist())


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], num: int, draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """Interval of a statistic over `num` units; it maps indices (1+R,N) to values (1+R,)."""
    return summary(np.asarray(statistic(draw(num, draws, seed))))


def bootstrap_groups(
    statistic: Statistic, groups: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """Interval of a statistic of observations; whole groups of their indices are drawn."""
    picks = draw(len(groups), draws, seed)
    drawn = (np.concatenate([groups[i] for i in row]) for row in picks)
    return summary(np.array([statistic(indices) for indices in drawn]))


def groups_of(labels: np.ndarray) -> list[np.ndarray]:
    """The indices of each label, in the order of the labels."""
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum of sums / sum of counts over the last axis; NaN where nothing is counted."""
    total = counts.sum(-1)
    return np.divide(
        sums.sum(-1), total, out=np.full(np.shape(total), math.nan), where=np.asarray(total) > 0
    )


def ratio_interval(sums: Sequence[float], counts: Sequence[float], seed: int = 0) -> Interval:
    """Sum of sums (N,) / sum of counts (N,), and its interval over the N."""
    sums, counts = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    return bootstrap(lambda picks: ratio(sums[picks], counts[picks]), len(sums), seed=seed)


def mean_of(values: Sequence[float]) -> Interval:
    """Mean of values (N,), each counted once, and its interval."""
    return ratio_interval(values, np.ones(len(values)))


def mean_interval(intervals: Sequence[Sequence[float]]) -> list[float]:
    """Mean of the values, low and high ends of several seeds: as wide as the one of a seed."""
    return np.mean(intervals, axis=0).tolist()


# --- ranks


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """P(positive > negative) + P(equal) / 2; NaN where one of the two is empty."""
    from scipy.stats import rankdata

    num = len(positive)
    if not num or not len(negative):
        return math.nan
    ranks = rankdata(np.concatenate([positive, negative]))
    return float((ranks[:num].sum() - num * (num + 1) / 2) / (num * len(negative)))


def spearman(pairs: np.ndarray) -> float:
    """Rank correlation of pairs (N,2); NaN where either does not vary."""
    from scipy.stats import rankdata

    ranks = rankdata(pairs, axis=0)
    if (ranks == ranks[:1]).all(axis=0).any():
        return math.nan
    return float(np.corrcoef(ranks.T)[0, 1])


def wilcoxon_p(differences: np.ndarray) -> float | None:
    """Two-sided signed-rank p of (P,): 1 where all are zero, None where there is none."""
    from scipy.stats import wilcoxon

    if not np.any(differences):
        return 1.0 if len(differences) else None
    return float(wilcoxon(differences).pvalue)


def sign_p(differences: Sequence[float]) -> float:
    """One-sided p of a sign test that more than half are above 0; a zero counts against it."""
    from scipy.stats import binomtest

    higher = sum(value > 0 for value in differences)
    return float(binomtest(higher, len(differences), alternative="greater").pvalue)


def student(differences: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean of paired differences (N,), half its 95 % interval t(N-1) s / sqrt(N), two-sided p.

    One pair has no interval and no p; where all are equal, p is 1 for zeros and 0 otherwise.
    """
    from scipy.stats import t

    values = np.asarray(differences, dtype=float)
    mean, num = float(values.mean()), len(values)
    if num < 2:
        return mean, None, None
    deviation = float(values.std(ddof=1)) / math.sqrt(num)
    if deviation == 0:
        return mean, 0.0, float(mean == 0)
    half = float(t.ppf(ENDS[1], num - 1)) * deviation
    return mean, half, float(2 * t.sf(abs(mean) / deviation, num - 1))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p values, in the order given; None stays and does not count."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted
