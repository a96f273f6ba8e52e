"""Counts of n-grams under prime keys: the tables of the binding memory (`prsc.py`).

    g(t, m)  = prod_{k=0}^{m-1} p_{t-k}^(2^k)                Goedel number of the last m tokens
    P_m(v)   = (c_m(v) - d(c_m(v))) / n_m + lambda_m P_{m-1}(v),    P_0 = u
    e_m(v)   = ln P_m(v) / (lambda_m ... lambda_1 u(v)) - the same of order m - 1

p_i is the prime of token i. The binary digits of its exponent in g are the places of the token, so
different n-grams of any lengths have different g (with exponents k + 1, a b b would equal b a a).
So one table holds all orders. The key of g is its residues modulo two primes, together a number
below 2^62 (exact integers; two of a million n-grams collide with probability 1e-7, and collisions
are counted). P is modified Kneser-Ney (Chen & Goodman 1998): c_m(v) is how often v followed for the
longest order, and in how many contexts one token longer for the others; d is a discount for c = 1,
2, 3 or more; lambda is the mass left over, here also by all but the most frequent. e_m is what
order m adds to the evidence for v over the unigram u. The doubt after a context is the entropy of
its P_m.

Every count is kept once for each of FOLDS spans of the text left out, and once for the whole.

Shapes: B batch, T time, V vocabulary, M orders, E entries, C contexts, n positions of the text.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_core.primes import first_primes

MODULI = (2147483647, 2147483629)  # the two largest primes below 2^31: products fit an int64
FOLDS = 5
NO_CONTEXT = 2**63 - 1  # a key above all others


def prime_powers(vocab_size: int, num_orders: int) -> np.ndarray:
    """p_i^(2^k) modulo both MODULI, (V+1, M, 2) int64; the last row, for "no token", is zero.

    A residue of zero makes the whole product zero, which is the key of no n-gram.
    """
    primes = np.array(first_primes(vocab_size), dtype=np.int64)
    powers = np.zeros((vocab_size + 1, num_orders, 2), dtype=np.int64)
    for h, modulus in enumerate(MODULI):
        power = primes
        for k in range(num_orders):
            powers[:-1, k, h] = power
            power = power * power % modulus
    return powers


def context_keys(history: Tensor, powers: Tensor) -> Tensor:
    """Keys of the contexts of orders 1 ... M of the last T tokens: (B,T+M-1) -> (B,T,M).

    history holds ids, -1 for no token; a key is (g mod M_1) M_2 + (g mod M_2), or 0.
    """
    M = powers.shape[1]
    T = history.shape[1] - M + 1
    factors = powers[history]  # (B,T+M-1,M,2); row -1 is that of "no token"
    moduli = torch.tensor(MODULI, device=history.device)
    residues = [factors[:, M - 1 :, 0]]
    for k in range(1, M):
        residues.append(residues[-1] * factors[:, M - 1 - k : M - 1 - k + T, k] % moduli)
    high, low = torch.stack(residues, dim=2).unbind(-1)  # (B,T,M)
    return torch.add(low, high, alpha=MODULI[1])


# --- tables: counting -----------------------------------------------------------------------------


class _Order(NamedTuple):
    """The counts of one order. The first axis of `counts` is the fold left out, last none."""

    keys: np.ndarray  # (C,), ascending
    context_of_entry: np.ndarray  # (E,), ascending
    token_of_entry: np.ndarray  # (E,)
    counts: np.ndarray  # (FOLDS + 1, E)
    context_at: np.ndarray  # (n,) context of each position
    entry_at: np.ndarray  # (n,) entry of each position
    first_context: np.ndarray  # (C,) first position of each context
    first_entry: np.ndarray  # (E,)
    collisions: int


class _Smoothed(NamedTuple):
    """One order's probabilities, relative to the unigram."""

    kept: np.ndarray  # (E,) bool, among the most frequent of its context
    rank: np.ndarray  # (E,)
    evidence: np.ndarray  # (FOLDS + 1, E) = P / (unbound u), 1 for what no order binds
    increments: np.ndarray  # (FOLDS + 1, E) nats, ln evidence - that of the order below
    unbound: np.ndarray  # (FOLDS + 1, C) = lambda_m ... lambda_1
    doubt: np.ndarray  # (FOLDS + 1, C) nats, the entropy of P


def count_tables(
    tokens: np.ndarray, vocab_size: int, slots: tuple[int, ...], powers: np.ndarray
) -> tuple[dict[str, np.ndarray], int]:
    """The tables of `BindingMemory` for a text, and the number of colliding n-grams."""
    fold = np.arange(len(tokens), dtype=np.int64) * FOLDS // len(tokens)
    residues = np.ones((len(tokens), 2), dtype=np.int64)
    orders = []
    for m in range(min(len(slots), len(tokens) - 1)):
        residues = residues[1:] if m else residues
        residues = residues * powers[tokens[: len(tokens) - m], m] % np.array(MODULI)
        keys = (residues[:, 0] * MODULI[1] + residues[:, 1])[:-1]
        orders.append(_count_order(m, keys, tokens, fold[m + 1 :], vocab_size))
    unigram = np.bincount(orders[0].token_of_entry, minlength=vocab_size) + 0.5
    unigram /= unigram.sum()
    smoothed = []
    for m, order in enumerate(orders):
        counts = order.counts if m == len(orders) - 1 else _predecessors(order, orders[m + 1])
        below = (orders[m - 1], smoothed[-1]) if m else None
        smoothed.append(_smooth(order, counts, slots[m], unigram, below))
    return _merged(orders, smoothed, _entropy(unigram)), sum(order.collisions for order in orders)


def _count_order(
    m: int, keys: np.ndarray, tokens: np.ndarray, fold: np.ndarray, vocab_size: int
) -> _Order:
    """Contexts of m + 1 tokens with the given keys, one a position, and the tokens that follow."""
    unique, context_at = np.unique(keys, return_inverse=True)
    first = _first_places(context_at, len(unique))
    same = [tokens[k : k + len(keys)] == tokens[first[context_at] + k] for k in range(m + 1)]
    followed = context_at * vocab_size + tokens[m + 1 :]
    pairs, entry_at, total = np.unique(followed, return_inverse=True, return_counts=True)
    context, token = np.divmod(pairs, vocab_size)
    inside = np.bincount(fold * len(pairs) + entry_at, minlength=FOLDS * len(pairs))
    counts = np.concatenate((total - inside.reshape(FOLDS, -1), total[None]))
    collisions = int((~np.logical_and.reduce(same)).sum())
    return _Order(
        unique, context, token, counts, context_at, entry_at, first,
        _first_places(entry_at, len(pairs)), collisions,
    )  # fmt: skip


def _first_places(group_at: np.ndarray, num_groups: int) -> np.ndarray:
    """First position of each group; np.unique's own `return_index` sorts four times slower."""
    first = np.empty(num_groups, dtype=np.int64)
    first[group_at[::-1]] = np.arange(len(group_at) - 1, -1, -1)
    return first


def _predecessors(order: _Order, above: _Order) -> np.ndarray:
    """In how many different contexts one token longer each entry occurs: (FOLDS + 1, E).

    Position j of the order above is position j + 1 of this one. The text's first n-gram has no
    token before it and counts as one.
    """
    shorter = order.entry_at[above.first_entry + 1]
    num_contexts = _sums(above.counts > 0, shorter, order.counts.shape[1])
    return np.maximum(num_contexts, order.counts > 0)


def _smooth(
    order: _Order,
    counts: np.ndarray,
    slots: int,
    unigram: np.ndarray,
    below: tuple[_Order, _Smoothed] | None,
) -> _Smoothed:
    """Discount, keep the most frequent, and leave the rest to the order below."""
    context, num_contexts = order.context_of_entry, len(order.keys)
    rank = _ranks(context, counts[FOLDS], num_contexts)
    kept = rank < slots
    discounted = counts - _discounts(counts[FOLDS])[np.minimum(counts, 3).astype(np.int64)]
    totals = np.maximum(_sums(counts, context, num_contexts), 1)
    share = np.where(kept, discounted / totals[:, context], 0)
    unbound = rest = np.maximum(1 - _sums(share, context, num_contexts), 1e-6)
    before, unbound_before = np.ones_like(share), np.ones_like(rest)
    doubt_before = np.full_like(rest, _entropy(unigram))
    if below is not None:
        shorter, smoothed = below
        suffix = shorter.context_at[order.first_context + 1]
        unbound_before, doubt_before = smoothed.unbound[:, suffix], smoothed.doubt[:, suffix]
        unbound = rest * unbound_before
        before = smoothed.evidence[:, shorter.entry_at[order.first_entry + 1]]
    u = unigram[order.token_of_entry]
    evidence = before + share / (unbound[:, context] * u)
    p, p_before = evidence * unbound[:, context] * u, before * unbound_before[:, context] * u
    # All other tokens have lambda times their probability in the order below.
    other = 1 - _sums(p_before, context, num_contexts)
    doubt = rest * (doubt_before + _sums(p_before * np.log(p_before), context, num_contexts))
    doubt -= rest * np.log(rest) * other + _sums(p * np.log(p), context, num_contexts)
    return _Smoothed(kept, rank, evidence, np.log(evidence / before), unbound, doubt)


def _entropy(p: np.ndarray) -> float:
    """Entropy of a distribution (V,), in nats."""
    return float(-(p * np.log(p)).sum())


def _discounts(counts: np.ndarray) -> np.ndarray:
    """d(c) for c = 0, 1, 2 and 3 or more, from how many entries have counts 1 to 4 (Chen 1998)."""
    n1, n2, n3, n4 = (max(1, int((counts == c).sum())) for c in (1, 2, 3, 4))
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


def _merged(
    orders: list[_Order], smoothed: list[_Smoothed], unigram_doubt: float
) -> dict[str, np.ndarray]:
    """All orders in one table, sorted by key, its entries by rank."""
    keys = np.concatenate([o.keys for o in orders])
    offsets = np.cumsum([0] + [len(o.keys) for o in orders[:-1]])
    kept = np.concatenate([s.kept for s in smoothed])
    context = np.concatenate(
        [o.context_of_entry + at for o, at in zip(orders, offsets, strict=True)]
    )
    context, rank = context[kept], np.concatenate([s.rank for s in smoothed])[kept]
    totals = [_sums(o.counts, o.context_of_entry, len(o.keys)) for o in orders]
    by_key = np.argsort(keys)
    row = np.empty_like(by_key)
    row[by_key] = np.arange(len(keys))
    by_row = np.lexsort((rank, row[context]))
    increments = np.concatenate([s.increments for s in smoothed], axis=1)[:, kept][:, by_row]
    counts = np.log1p(np.concatenate(totals, axis=1)[:, by_key])
    tokens = np.concatenate([o.token_of_entry for o in orders])[kept][by_row]
    sizes = np.append(np.bincount(row[context], minlength=len(keys)), 0)
    increments = np.pad(increments, ((0, 0), (1, 0)))  # the entry without evidence
    counts = np.pad(counts, ((0, 0), (0, 1)))  # a context that equals no n-gram
    doubts = np.concatenate([s.doubt for s in smoothed], axis=1)[:, by_key]
    doubts = np.pad(doubts, ((0, 0), (0, 1)), constant_values=unigram_doubt)
    return {
        "keys": np.append(keys[by_key], NO_CONTEXT),
        "bounds": _bounds(sizes),
        "entry_ids": np.concatenate(([0], tokens)).astype(np.int32),
        "evidence": increments[FOLDS],
        "log_counts": counts[FOLDS],
        "doubts": doubts[FOLDS],
        "fold_evidence": increments[:FOLDS],
        "fold_counts": counts[:FOLDS],
        "fold_doubts": doubts[:FOLDS],
    }


def _bounds(sizes: np.ndarray) -> np.ndarray:
    """First entry and the one after the last of each context, behind entry 0: (C,) -> (C,2)."""
    ends = 1 + np.cumsum(sizes)
    return np.stack((ends - sizes, ends), axis=1).astype(np.int32)


def pruned(tables: dict[str, np.ndarray], max_entries: int) -> dict[str, np.ndarray]:
    """The tables with the most frequent contexts only, where they hold too many entries."""
    sizes = tables["bounds"][:, 1] - tables["bounds"][:, 0]
    by_count = np.argsort(-tables["log_counts"], kind="stable")
    fits = np.cumsum(sizes[by_count]) <= max_entries
    if fits.all():
        return tables
    keep = np.zeros(len(sizes), dtype=bool)
    keep[by_count[fits]] = keep[-1] = True
    entries = np.concatenate(([True], np.repeat(keep, sizes)))
    return {
        "keys": tables["keys"][keep],
        "bounds": _bounds(sizes[keep]),
        "entry_ids": tables["entry_ids"][entries],
        "evidence": tables["evidence"][entries],
        "log_counts": tables["log_counts"][keep],
        "doubts": tables["doubts"][keep],
        "fold_evidence": tables["fold_evidence"][:, entries],
        "fold_counts": tables["fold_counts"][:, keep],
        "fold_doubts": tables["fold_doubts"][:, keep],
    }
