"""PRSC in the model: a prime-addressed n-gram binding memory, written by counting.

    g(t, m)  = prod_{k=0}^{m-1} p_{t-k}^(2^k)                Goedel number of the last m tokens
    P_m(v)   = max(c_m(v) - d_m, 0) / n_m + lambda_m P_{m-1}(v)          (Ney 1994)
    e_m(v)   = ln P_m(v) / (lambda_m ... lambda_1 u(v)) - the same of order m - 1
    z_v     += sum_m alpha_m e_m(v),    alpha_m = a_m + w_m . x + b_m ln(1 + n_m)

p_i is the prime of token i, whose exponent in g has its places as binary digits: g is the same for
two n-grams of any lengths only if they are the same (with exponents k + 1, a b b would be b a a).
So one table holds all orders. g is known by its residues modulo two primes, together a number
below 2^62 (exact integers; two of a million n-grams collide with probability 1e-7, and `fit`
counts collisions). A context binds the tokens that followed it in the training text, c_m(v) times
of n_m; e_m is what order m adds to the evidence for v over the unigram u, so a token that a
context does not bind costs nothing and the memory is sparse: a look-up, no matrix product. The
coherence gate alpha reads from the final x how far to trust each order; it makes a product of
experts of network and counts (Hinton 2002), trained together, so the network learns the rest.

In training the memory must not know the text it is read on, or the gate learns to trust what it
will not have. `fit` cuts the text into FOLDS spans; a window reads the counts of the others only
(cross-fitting). The README's and DESIGN's form, learned tables added to the residual stream,
brought nothing here: docs/architecture.md has both numbers.

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
NO_CONTEXT = 2**63 - 1  # a key above all others
DISCOUNTS = (0.75, 0.8, 0.85, 0.9, 0.9, 0.9)


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

        Raises ValueError for a text shorter than two tokens or ids beyond the vocabulary.
        """
        tokens = np.asarray(tokens, dtype=np.int64)
        if len(tokens) < 2 or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise ValueError(
                f"expected at least 2 token ids below {self.vocab_size}, got {len(tokens)}"
            )
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
        """The span of the fitted text that windows starting there are from; None before `fit`."""
        return starts * FOLDS // self.num_fitted if self.num_fitted else None

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
    """One order's contexts and entries; the first axis of floats is folds left out, then none."""

    keys: np.ndarray  # (C,)
    context_of_entry: np.ndarray  # (E,), ascending
    token_of_entry: np.ndarray  # (E,)
    kept: np.ndarray  # (E,) bool, among the most frequent of its context
    rank: np.ndarray  # (E,)
    counts: np.ndarray  # (FOLDS + 1, C)
    increments: np.ndarray  # (FOLDS + 1, E) nats
    evidence: np.ndarray  # (FOLDS + 1, E) = exp of the sum of increments so far
    unbound: np.ndarray  # (FOLDS + 1, C) = lambda_m ... lambda_1
    context_at: np.ndarray  # (n,) context of each position
    entry_at: np.ndarray  # (n,) entry of each position


def count_tables(
    tokens: np.ndarray, vocab_size: int, slots: tuple[int, ...], powers: np.ndarray
) -> tuple[dict[str, np.ndarray], int]:
    """The tables of `BindingMemory` for a text, and the number of colliding n-grams."""
    unigram = np.bincount(tokens, minlength=vocab_size) + 0.5
    unigram /= unigram.sum()
    fold = np.arange(len(tokens), dtype=np.int64) * FOLDS // len(tokens)
    residues = np.ones((len(tokens), 2), dtype=np.int64)
    orders, collisions, below = [], 0, None
    for m in range(min(len(slots), len(tokens) - 1)):
        shifted = tokens[: len(tokens) - m]
        residues = residues[1:] if m else residues
        residues = residues * powers[shifted, m] % np.array(MODULI)
        keys = (residues[:, 0] * MODULI[1] + residues[:, 1])[:-1]
        below, wrong = _count_order(m, keys, tokens, fold[m + 1 :], unigram, slots[m], below)
        orders.append(below)
        collisions += wrong
    return _merged(orders), collisions


def _count_order(
    m: int,
    keys: np.ndarray,
    tokens: np.ndarray,
    fold: np.ndarray,
    unigram: np.ndarray,
    slots: int,
    below: _Order | None,
) -> tuple[_Order, int]:
    """Contexts of m + 1 tokens with the given keys, one a position, and what follows them."""
    V, targets = len(unigram), tokens[m + 1 :]
    unique, first, context_at = np.unique(keys, return_index=True, return_inverse=True)
    same = [(tokens[k : k + len(keys)] == tokens[first[context_at] + k]) for k in range(m + 1)]
    collisions = int((~np.logical_and.reduce(same)).sum())
    pairs, first_entry, entry_at, total = np.unique(
        context_at * V + targets, return_index=True, return_inverse=True, return_counts=True
    )
    context, token = np.divmod(pairs, V)
    inside = np.bincount(fold * len(pairs) + entry_at, minlength=FOLDS * len(pairs))
    counts = np.concatenate((total - inside.reshape(FOLDS, -1), total[None])).astype(np.float64)
    contexts = _sums(counts, context, len(unique))
    rank = _ranks(context, total, len(unique))
    kept = rank < slots
    discounted = np.maximum(counts - DISCOUNTS[m], 0)
    share = np.where(kept, discounted / np.maximum(contexts[:, context], 1), 0)
    unbound = np.maximum(1 - _sums(share, context, len(unique)), 1e-6)
    before = np.ones((FOLDS + 1, len(pairs)))
    if below is not None:  # position j of this order is position j + 1 of the one below
        unbound = unbound * below.unbound[:, below.context_at[first + 1]]
        before = below.evidence[:, below.entry_at[first_entry + 1]]
    evidence = before + share / (unbound[:, context] * unigram[token])
    return _Order(
        unique, context, token, kept, rank, contexts, np.log(evidence / before), evidence, unbound,
        context_at, entry_at,
    ), collisions  # fmt: skip


def _sums(values: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    return np.stack([np.bincount(groups, weights=row, minlength=num_groups) for row in values])


def _ranks(context: np.ndarray, total: np.ndarray, num_contexts: int) -> np.ndarray:
    """Place of each entry among those of its context, the most frequent first."""
    order = np.lexsort((-total, context))
    rank = np.empty(len(total), dtype=np.int64)
    start = np.searchsorted(context, np.arange(num_contexts))
    rank[order] = np.arange(len(total)) - start[context[order]]
    return rank


def _merged(orders: list[_Order]) -> dict[str, np.ndarray]:
    """All orders in one table, sorted by key, its entries by rank."""
    keys = np.concatenate([o.keys for o in orders])
    offsets = np.cumsum([0] + [len(o.keys) for o in orders])
    context = np.concatenate(
        [o.context_of_entry[o.kept] + at for o, at in zip(orders, offsets[:-1], strict=True)]
    )
    rank = np.concatenate([o.rank[o.kept] for o in orders])
    by_key = np.argsort(keys)
    row = np.empty_like(by_key)
    row[by_key] = np.arange(len(keys))
    by_row = np.lexsort((rank, row[context]))
    increments = np.concatenate([o.increments[:, o.kept] for o in orders], axis=1)[:, by_row]
    counts = np.log1p(np.concatenate([o.counts for o in orders], axis=1)[:, by_key])
    tokens = np.concatenate([o.token_of_entry[o.kept] for o in orders])[by_row]
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
