"""Modified Kneser-Ney for one order: from counts to evidence and doubt (`ngrams.py`).

Shapes: E entries, C contexts. The first axis of FOLDS + 1 is the fold left out, last none.
"""

from typing import NamedTuple

import numpy as np


class Below(NamedTuple):
    """What the order below says of these entries and contexts."""

    evidence: np.ndarray  # (FOLDS + 1, E)
    unbound: np.ndarray  # (FOLDS + 1, C)
    doubt: np.ndarray  # (FOLDS + 1, C)


class Smoothed(NamedTuple):
    """One order's probabilities, relative to the unigram."""

    kept: np.ndarray  # (E,) bool, among the most frequent of its context
    rank: np.ndarray  # (E,)
    evidence: np.ndarray  # (FOLDS + 1, E) = P / (unbound u), 1 for what no order binds
    increments: np.ndarray  # (FOLDS + 1, E) nats, ln evidence - that of the order below
    unbound: np.ndarray  # (FOLDS + 1, C) = lambda_m ... lambda_1
    doubt: np.ndarray  # (FOLDS + 1, C) nats, the entropy of P


def smooth(
    counts: np.ndarray,
    context: np.ndarray,
    u: np.ndarray,
    slots: int,
    discounts: np.ndarray,
    below: Below,
) -> Smoothed:
    """Discount, keep the most frequent, and leave the rest to the order below.

    counts (FOLDS + 1, E); context (E,): number of each entry's context, ascending from 0; u (E,):
    unigram probability of each entry's token; discounts (4,) for counts of 0, 1, 2, and 3 or more.
    """
    num_contexts = below.unbound.shape[1]
    rank = _ranks(context, counts[-1], num_contexts)
    kept = rank < slots
    discounted = counts - discounts[np.minimum(counts, 3).astype(np.int64)]
    totals = np.maximum(_sums(counts, context, num_contexts), 1)
    share = np.where(kept, discounted / totals[:, context], 0)
    rest = np.maximum(1 - _sums(share, context, num_contexts), 1e-6)
    unbound = rest * below.unbound
    before = below.evidence
    evidence = before + share / (unbound[:, context] * u)
    p, p_before = evidence * unbound[:, context] * u, before * below.unbound[:, context] * u
    # All other tokens have lambda times their probability in the order below.
    other = 1 - _sums(p_before, context, num_contexts)
    doubt = rest * (below.doubt + _sums(p_before * np.log(p_before), context, num_contexts))
    doubt -= rest * np.log(rest) * other + _sums(p * np.log(p), context, num_contexts)
    return Smoothed(kept, rank, evidence, np.log(evidence / before), unbound, doubt)


def entropy(p: np.ndarray) -> float:
    """Entropy of a distribution (V,), in nats."""
    return float(-(p * np.log(p)).sum())


def discounts_of(counts_of_counts: np.ndarray) -> np.ndarray:
    """d(c) for c = 0, 1, 2 and 3 or more, from how many entries have counts 0 to 4 (Chen 1998)."""
    n1, n2, n3, n4 = (max(1, int(n)) for n in counts_of_counts[1:5])
    y = n1 / (n1 + 2 * n2)
    d = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return d.clip([0, 0.1, 0.1, 0.1], [0, 0.95, 1.9, 2.8])


def _sums(values: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    return np.stack([np.bincount(groups, weights=row, minlength=num_groups) for row in values])


def _ranks(context: np.ndarray, total: np.ndarray, num_contexts: int) -> np.ndarray:
    """Place of each entry among those of its context, the most frequent first."""
    order = np.lexsort((-total, context))
    rank = np.empty(len(total), dtype=np.int64)
    start = np.searchsorted(context, np.arange(num_contexts))
    rank[order] = np.arange(len(total)) - start[context[order]]
    return rank
