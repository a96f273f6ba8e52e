"""PRSC in the model: a prime-addressed n-gram binding memory, written by counting.

    g(t, m)  = prod_{k=0}^{m-1} p_{t-k}^(2^k)                Goedel number of the last m tokens
    P_m(v)   = (c_m(v) - d(c_m(v))) / n_m + lambda_m P_{m-1}(v),    P_0 = u
    e_m(v)   = ln P_m(v) / (lambda_m ... lambda_1 u(v)) - the same of order m - 1
    z_v     += sum_m alpha_m e_m(v),    alpha_m = a_m + w_m . x + b_m ln(1 + n_m)

p_i is the prime of token i, whose exponent in g has its places as binary digits: g is the same for
two n-grams of any lengths only if they are the same (with exponents k + 1, a b b would be b a a).
So one table holds all orders. g is known by its residues modulo two primes, together a number
below 2^62 (exact integers; two of a million n-grams collide with probability 1e-7, and `fit`
counts collisions). A context binds the tokens that followed it in the training text. P is modified
Kneser-Ney (Chen & Goodman 1998): c_m(v) is how often v followed for the longest order, and in how
many contexts one token longer for the others; d is a discount for c = 1, 2, 3 or more; lambda is
the mass left over, here also by all but the most frequent. e_m is what order m adds to the
evidence for v over the unigram u, so a token that no context binds costs nothing and the memory
is sparse: a look-up, no matrix product. The coherence gate alpha reads from the final x, and from
how often the context was seen, how far to trust each order; network and counts are a product of
experts (Hinton 2002), trained together, so the network learns the rest.

In training the memory must not know the text it is read on, or the gate learns to trust what it
will not have. `fit` cuts the text into FOLDS spans; a window reads the counts of the others only
(cross-fitting). Learned tables added to the residual stream had brought nothing:
docs/architecture.md has the number.

Shapes: B batch, T time, D width, V vocabulary, M orders, E entries, C contexts, J slots read for
a token (sum over orders of the entries read at most).
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reso_llm.config import PRSCConfig
from reso_llm.primes import first_primes

MODULI = (2147483647, 2147483629)  # the two largest primes below 2^31: products fit an int64
FOLDS = 5
MAX_FITTED = 10_000_000  # tokens: counting them takes some GB and half a minute
NO_CONTEXT = 2**63 - 1  # a key above all others


class Evidence(NamedTuple):
    """What the memory says after each token: ids (B,T,J), values (B,T,J) nats, counts (B,T,M)."""

    ids: Tensor
    values: Tensor
    counts: Tensor


TABLES = ("keys", "bounds", "entry_ids", "evidence", "log_counts")


class BindingMemory(nn.Module):
    """The memory and its gate; empty, and without effect, until `fit` has read a text."""

    def __init__(self, vocab_size: int, dim: int, config: PRSCConfig) -> None:
        super().__init__()
        self.vocab_size, self.num_orders = vocab_size, config.max_order
        self.max_entries, self.num_fitted = config.max_entries, 0
        self.slots = tuple(max(8, config.max_slots >> m) for m in range(self.num_orders))
        self.gate = nn.Parameter(torch.empty(self.num_orders, dim))
        self.trust = nn.Parameter(torch.empty(self.num_orders))
        self.count_scale = nn.Parameter(torch.empty(self.num_orders))
        for name, tensor in self._constants().items():
            self.register_buffer(name, tensor, persistent=False)
        for name, tensor in _empty_tables().items():
            self.register_buffer(name, tensor, persistent=name in TABLES)
        self.reset_parameters()

    def _constants(self) -> dict[str, Tensor]:
        orders = torch.arange(self.num_orders).repeat_interleave(torch.tensor(self.slots))
        ranks = torch.cat([torch.arange(n) for n in self.slots])
        powers = torch.from_numpy(prime_powers(self.vocab_size, self.num_orders))
        spread = F.one_hot(orders).T.float()  # (M,J): a product with it has a fast gradient
        return {"slot_orders": orders, "slot_ranks": ranks, "spread": spread, "powers": powers}

    def reset_parameters(self) -> None:
        """Half of what the counts say, whatever the token."""
        nn.init.zeros_(self.gate)
        nn.init.constant_(self.trust, 0.5)
        nn.init.zeros_(self.count_scale)

    @property
    def tail_length(self) -> int:
        """Tokens before the first that the memory needs."""
        return self.num_orders - 1

    def forward(self, ids: Tensor, tail: Tensor, fold: Tensor | None = None) -> Evidence:
        """Evidence after each token of ids (B,T), given the tail (B,M-1) before, -1 for nothing.

        fold (B,): the span of the fitted text that each row comes from, whose counts are left out.
        """
        contexts = self._find(torch.cat((tail, ids), dim=1))  # (B,T,M)
        first, end = self.bounds[contexts][..., self.slot_orders, :].unbind(-1)  # (B,T,J)
        entries = first + self.slot_ranks
        entries = torch.where(entries < end, entries, 0)
        if fold is None:
            values, counts = self.evidence[entries], self.log_counts[contexts]
        else:
            fold = fold.view(-1, 1, 1)
            values, counts = self.fold_evidence[fold, entries], self.fold_counts[fold, contexts]
        return Evidence(self.entry_ids[entries].long(), values, counts)

    def weigh(self, evidence: Evidence, x: Tensor) -> Tensor:
        """Values (B,T,J) to add to the logits: the gate reads the final, normalised x (B,T,D)."""
        alpha = F.linear(x, self.gate * x.shape[-1] ** -0.5, self.trust)  # (B,T,M)
        alpha = torch.addcmul(alpha, self.count_scale, evidence.counts.to(x.dtype))
        return (alpha @ self.spread) * evidence.values.to(x.dtype)

    def _find(self, history: Tensor) -> Tensor:
        """Rows of the table for the contexts of each order, the last row for what is not there."""
        keys = context_keys(history, self.powers)
        rows = torch.searchsorted(self.keys, keys)
        return torch.where(self.keys[rows] == keys, rows, len(self.keys) - 1)

    @torch.no_grad()
    def fit(self, tokens: np.ndarray) -> int:
        """Count the training text (N,) ids; the number of n-grams that collide (0 in practice).

        Of a longer text the first MAX_FITTED tokens are counted.
        Raises ValueError for a text shorter than two tokens or ids beyond the vocabulary.
        """
        tokens = np.asarray(tokens, dtype=np.int64)
        if len(tokens) < 2 or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise ValueError(
                f"expected at least 2 token ids below {self.vocab_size}, got {len(tokens)}"
            )
        tokens = tokens[:MAX_FITTED]
        tables, collisions = count_tables(
            tokens, self.vocab_size, self.slots, prime_powers(self.vocab_size, self.num_orders)
        )
        self.num_fitted = len(tokens)
        device, dtype = self.gate.device, self.gate.dtype
        for name, array in _pruned(tables, self.max_entries).items():
            tensor = torch.from_numpy(array).to(device)
            setattr(self, name, tensor.to(dtype) if tensor.is_floating_point() else tensor)
        return collisions

    def fold_of(self, starts: Tensor) -> Tensor | None:
        """The span of the fitted text that windows starting there are from; None before `fit`.

        Text beyond what was counted is in no span: which one is left out for it does not matter.
        """
        if not self.num_fitted:
            return None
        return (starts * FOLDS // self.num_fitted).clamp_max(FOLDS - 1)

    def make_room(self, shapes: dict[str, Tensor]) -> None:
        """Give the tables the shapes of those about to be loaded; what they held is lost."""
        for name in TABLES:
            if name in shapes:
                old = getattr(self, name)
                setattr(self, name, old.new_zeros(shapes[name].shape, dtype=shapes[name].dtype))


def _empty_tables() -> dict[str, Tensor]:
    """What every table has: a last context that no n-gram is, a first entry that says nothing."""
    return {
        "keys": torch.tensor([NO_CONTEXT]),
        "bounds": torch.zeros(1, 2, dtype=torch.int32),
        "entry_ids": torch.zeros(1, dtype=torch.int32),
        "evidence": torch.zeros(1),
        "log_counts": torch.zeros(1),
        "fold_evidence": torch.zeros(FOLDS, 1),
        "fold_counts": torch.zeros(FOLDS, 1),
    }


# --- keys: exact integers -------------------------------------------------------------------------


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
    """What one order counts; the first axis of counts is the fold left out, then none."""

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
    return _merged(orders, smoothed), sum(order.collisions for order in orders)


def _count_order(
    m: int, keys: np.ndarray, tokens: np.ndarray, fold: np.ndarray, vocab_size: int
) -> _Order:
    """Contexts of m + 1 tokens with the given keys, one a position, and what follows them."""
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
    found = _sums(above.counts > 0, shorter, order.counts.shape[1])
    return np.maximum(found, order.counts > 0)


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
    unbound = np.maximum(1 - _sums(share, context, num_contexts), 1e-6)
    before = np.ones_like(share)
    if below is not None:
        shorter, smoothed = below
        unbound = unbound * smoothed.unbound[:, shorter.context_at[order.first_context + 1]]
        before = smoothed.evidence[:, shorter.entry_at[order.first_entry + 1]]
    evidence = before + share / (unbound[:, context] * unigram[order.token_of_entry])
    return _Smoothed(kept, rank, evidence, np.log(evidence / before), unbound)


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


def _merged(orders: list[_Order], smoothed: list[_Smoothed]) -> dict[str, np.ndarray]:
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
    increments = np.pad(increments, ((0, 0), (1, 0)))  # the entry that says nothing
    counts = np.pad(counts, ((0, 0), (0, 1)))  # the context that no n-gram is
    return {
        "keys": np.append(keys[by_key], NO_CONTEXT),
        "bounds": _bounds(sizes),
        "entry_ids": np.concatenate(([0], tokens)).astype(np.int32),
        "evidence": increments[FOLDS],
        "log_counts": counts[FOLDS],
        "fold_evidence": increments[:FOLDS],
        "fold_counts": counts[:FOLDS],
    }


def _bounds(sizes: np.ndarray) -> np.ndarray:
    """First entry and the one after the last of each context, behind entry 0: (C,) -> (C,2)."""
    ends = 1 + np.cumsum(sizes)
    return np.stack((ends - sizes, ends), axis=1).astype(np.int32)


def _pruned(tables: dict[str, np.ndarray], max_entries: int) -> dict[str, np.ndarray]:
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
        "fold_evidence": tables["fold_evidence"][:, entries],
        "fold_counts": tables["fold_counts"][:, keep],
    }
