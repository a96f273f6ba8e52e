"""PRSC in the model: a prime-addressed n-gram binding memory, written by counting.

    z_v     += sum_m alpha_m e_m(v),    alpha_m = a_m + w_m . x + b_m ln(1 + n_m)

e_m(v) is the evidence for v that order m adds to the lower orders. It comes from the counts of the
training text (`ngrams.py`: prime keys, modified Kneser-Ney). A token without one costs nothing:
the memory is sparse, a look-up and no matrix product. The weight alpha says how far to trust order
m; it depends on the final x and on n_m, how often the context was seen. Network and counts are a
product of experts (Hinton 2002). They are trained together, so the network learns the rest.

In training the memory must not hold the text that it is read on: alpha would learn to trust counts
that new text does not have. So `fit` cuts the text into FOLDS spans, and a window reads the counts
of the other spans only (cross-fitting). Learned tables added to the residual stream gained nothing
(measured in docs/architecture.md). The memory's state is the newest ids: the tail of `ResoState`.

The memory also knows how much it doubts: the entropy of the distribution that its counts alone
give after each context. The coherence gate reads it before the network runs.

Shapes: B batch, T time, D width, V vocabulary, M orders, E entries, C contexts, J slots read for
a token (sum over orders of the entries read at most).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from entropy_core.compiled import compiled
from reso_llm.config import PRSCConfig
from reso_llm.stages import register_constants
from reso_llm.stages.arrays import view
from reso_llm.stages.kept_tables import kept_tables
from reso_llm.stages.ngrams import (
    FOLDS,
    MODULI,
    NO_CONTEXT,
    context_keys,
    prime_powers,
)
from reso_llm.stages.tables import count_tables

MAX_FITTED = 100_000_000  # tokens: counting them takes minutes and some GB of disk
SAMPLES, SAMPLE_LENGTH = 256, 256  # spans of the fitted text whose doubts set the gate


class Evidence(NamedTuple):
    """Evidence after each token: ids (B,T,J), values (B,T,J) in nats, ln counts (B,T,M).

    doubt (B,T) is the entropy, in nats, of the distribution that the counts alone give.
    """

    ids: Tensor
    values: Tensor
    counts: Tensor
    doubt: Tensor


HIGH, LOW = MODULI
TABLES = ("keys", "bounds", "entry_ids", "evidence", "log_counts", "doubts")
FOLD_TABLES = ("fold_evidence", "fold_counts", "fold_doubts")


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
        register_constants(self)
        for name, tensor in _empty_tables().items():
            self.register_buffer(name, tensor)
        self.reset_parameters()

    def constants(self) -> dict[str, Tensor]:
        """Slots (J,) by order and rank, primes' powers, and the counts of folds, none yet."""
        orders = np.repeat(np.arange(self.num_orders), self.slots)
        arrays = {
            "slot_orders": orders,
            "slot_ranks": np.concatenate([np.arange(n) for n in self.slots]),
            # (M,J): a product with it has a fast gradient
            "spread": np.eye(self.num_orders, dtype=np.float32)[orders].T,
            "powers": prime_powers(self.vocab_size, self.num_orders),
        }
        folds = {name: torch.zeros(FOLDS, 1) for name in FOLD_TABLES}
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | folds

    def reset_parameters(self) -> None:
        """Set alpha to 1/2 for every order, token and count."""
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
        longest = self._longest(contexts)
        if fold is None:
            values, counts = self.evidence[entries], self.log_counts[contexts]
            doubt = self.doubts[longest]
        else:
            fold = fold.view(-1, 1, 1)
            values, counts = self.fold_evidence[fold, entries], self.fold_counts[fold, contexts]
            doubt = self.fold_doubts[fold[..., 0], longest]
        return Evidence(self.entry_ids[entries].long(), values, counts, doubt)

    def weigh(self, evidence: Evidence, x: Tensor) -> Tensor:
        """Values (B,T,J) to add to the logits: the gate reads the final, normalised x (B,T,D)."""
        alpha = F.linear(x, self.gate * x.shape[-1] ** -0.5, self.trust)  # (B,T,M)
        alpha = torch.addcmul(alpha, self.count_scale, evidence.counts.to(x.dtype))
        return (alpha @ self.spread.to(alpha.dtype)) * evidence.values.to(x.dtype)

    def _find(self, history: Tensor) -> Tensor:
        """Row of the table for the context of each order; the last row where it is not listed."""
        keys = context_keys(history, self.powers)
        rows = torch.searchsorted(self.keys, keys)
        return torch.where(self.keys[rows] == keys, rows, len(self.keys) - 1)

    def _longest(self, contexts: Tensor) -> Tensor:
        """Row (B,T) of the longest context listed; the last row where none is."""
        last = len(self.keys) - 1
        longest = contexts[..., 0]
        for m in range(1, self.num_orders):
            longest = torch.where(contexts[..., m] < last, contexts[..., m], longest)
        return longest

    @torch.no_grad()
    def doubts_within(self, tokens: np.ndarray) -> Tensor:
        """Doubt (n,) after tokens (N,) of the fitted text, the counts of their own folds left out.

        Of a longer text SAMPLES spans of SAMPLE_LENGTH tokens are read.
        """
        length = min(SAMPLE_LENGTH, len(tokens))
        starts = np.unique(np.linspace(0, len(tokens) - length, SAMPLES).astype(np.int64))
        spans = np.stack([tokens[start : start + length] for start in starts]).astype(np.int64)
        ids, starts = (torch.from_numpy(a).to(self.gate.device) for a in (spans, starts))
        tail = ids.new_full((len(ids), self.tail_length), -1)
        rows = self._longest(self._find(torch.cat((tail, ids), dim=1)))
        return self.fold_doubts[self.fold_of(starts).view(-1, 1), rows].flatten()

    @torch.no_grad()
    def fit(self, tokens: np.ndarray, directory: Path | None = None) -> int:
        """Count the training text (N,) ids; the number of n-grams that collide (0 in practice).

        Of a longer text the first MAX_FITTED tokens are counted. The tables are kept in
        `directory`, which is of this text alone, and taken from there the next time.
        Raises ValueError for a text shorter than two tokens or ids beyond the vocabulary.
        """
        tokens = np.asarray(tokens)
        if len(tokens) < 2 or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise ValueError(
                f"expected at least 2 token ids below {self.vocab_size}, got {len(tokens)}"
            )
        tokens = tokens[:MAX_FITTED]
        powers = self.powers.cpu().numpy()
        settings = self.vocab_size, self.slots, self.max_entries
        count = partial(count_tables, tokens, powers, *settings)
        if directory is None:
            tables, collisions = count()
        else:
            tables, collisions = kept_tables(directory, [len(tokens), *settings], count)
        self.num_fitted = len(tokens)
        device, dtype = self.gate.device, self.gate.dtype
        for name, array in tables.items():
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

    def make_room(self, tables: dict[str, Tensor]) -> None:
        """Resize the tables to the shapes of those about to be loaded; their contents are lost."""
        for name in TABLES:
            if name in tables:
                old = getattr(self, name)
                setattr(self, name, old.new_zeros(tables[name].shape))

    def init_state(self, batch: int, like: Tensor) -> None:
        """The memory keeps no state: the ids before are the network's tail."""

    def stepper(self, state: None) -> "BindingStep":
        """The one-token form."""
        return BindingStep(self)

    def silence(self) -> None:
        """Trust no order."""
        for p in (self.gate, self.trust, self.count_scale):
            nn.init.zeros_(p)


def _empty_tables() -> dict[str, Tensor]:
    """Tables without n-grams: a last context that matches none, a first entry that adds nothing."""
    return {
        "keys": torch.tensor([NO_CONTEXT]),
        "bounds": torch.zeros(1, 2, dtype=torch.int32),
        "entry_ids": torch.zeros(1, dtype=torch.int32),
        "evidence": torch.zeros(1),
        "log_counts": torch.zeros(1),
        "doubts": torch.zeros(1),
    }


class Matches(NamedTuple):
    """Contexts that R rows end with: first and end of their entries (R,M,2), ln(1 + counts) (R,M).

    A context that is not listed has no entries.
    """

    entries: ndarray
    log_counts: ndarray


class BindingStep:
    """One-token form of `BindingMemory`: the contexts that texts end with, and their evidence.

    Only entries that exist are read, so nothing is padded.
    """

    def __init__(self, module: BindingMemory) -> None:
        self.powers, self.keys, self.bounds = map(view, (module.powers, module.keys, module.bounds))
        self.ids, self.evidence, self.log_counts = map(
            view, (module.entry_ids, module.evidence, module.log_counts)
        )
        self.doubts, self.slots = view(module.doubts), np.array(module.slots)
        self.gate = view(module.gate) * np.float32(module.gate.shape[1] ** -0.5)  # (M,D)
        self.trust, self.count_scale = view(module.trust), view(module.count_scale)

    def look_up(self, history: Sequence[Sequence[int]]) -> tuple[Matches, list[float]]:
        """Contexts that R rows end with, and the doubt after each row, in nats.

        history: the last M ids of each row, the newest last, -1 for none.
        """
        R, M = len(history), len(self.slots)
        found = Matches(np.zeros((R, M, 2), np.int64), np.zeros((R, M), np.float32))
        doubts = np.empty(R, np.float32)
        find(
            np.array(history), self.powers, self.keys, self.bounds, self.slots, self.log_counts,
            self.doubts, found.entries, found.log_counts, doubts,
        )  # fmt: skip
        return found, doubts.tolist()

    def add(self, matches: Matches, hidden: ndarray, logits: ndarray) -> None:
        """Add each row's evidence, weighed by its final x (R,D), to its logits (R,V)."""
        add_evidence(
            matches.entries, matches.log_counts, hidden, self.gate, self.trust, self.count_scale,
            self.ids, self.evidence, logits,
        )  # fmt: skip


@compiled
def find(history, powers, keys, bounds, slots, all_counts, all_doubts, entries, counts, doubts):
    """`BindingStep.look_up` of history (R,M): entries (R,M,2), counts (R,M) and doubts (R,)."""
    newest = history.shape[1] - 1
    for r in range(len(history)):
        high, low, longest = 1, 1, -1
        for m in range(len(slots)):
            power = powers[history[r, newest - m], m]
            high, low = high * power[0] % HIGH, low * power[1] % LOW
            key, row, above = high * LOW + low, 0, len(keys) - 1
            while row < above:
                middle = (row + above) // 2
                if keys[middle] < key:
                    row = middle + 1
                else:
                    above = middle
            if keys[row] == key:
                first = bounds[row, 0]
                entries[r, m, 0], entries[r, m, 1] = first, min(bounds[row, 1], first + slots[m])
                counts[r, m], longest = all_counts[row], row
        doubts[r] = all_doubts[longest]


@compiled
def add_evidence(entries, counts, x, gate, trust, count_scale, ids, evidence, logits):
    """`BindingStep.add`: x (R,D), gate (M,D), trust and count_scale (M,), logits (R,V)."""
    R, M, _ = entries.shape
    for r in range(R):
        for m in range(M):
            first, end = entries[r, m]
            if first < end:
                alpha = trust[m] + count_scale[m] * counts[r, m]
                for i in range(x.shape[1]):
                    alpha += x[r, i] * gate[m, i]
                for e in range(first, end):
                    logits[r, ids[e]] += alpha * evidence[e]
