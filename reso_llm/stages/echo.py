"""Echo: the text read so far, and stored texts, predict the next token beside the network.

    p'(v) = (p(v) + sum_m s_m K_m(v) / N_m) / (1 + sum_m s_m)
    s_m   = exp(a_m + w_m . x + b_m ln N_m + c_m ln U_m),    0 where N_m = 0

p is the network's distribution. K_m(v) says how often v followed the last m tokens in what was read
before, N_m is its sum over v and U_m the number of different v: a context that was often followed
by few tokens is believed more, as in prediction by partial matching (Cleary & Witten 1984). x is
the final hidden state. All contexts of up to M tokens are kept, exactly. A token is scored first
and counted then, so it never reaches its own prediction, and p' sums to 1 because p and every
K_m / N_m do. It is a cache of contexts (Grave 2017, arXiv 1612.04426) whose trust is learned.

Words count by their weight: 1 for what is read, `own_weight` (0) for what the model wrote, and
importance * exp(-decay * age) for a stored text, which is read before the text begins.

`TextCounts` counts. The torch form and the one-token form read all followers; training reads the
target alone, of counts that `text_evidence` takes of a whole text at once. The state of a row is a
`TextCounts`, a value: it forks, saves and batches.

Shapes: B batch, T time, D width, V vocabulary, M orders.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from entropy_core.compiled import compiled, log_sum
from reso_llm.config import EchoConfig
from reso_llm.stages.arrays import view

FIRST_STRENGTHS = 0.2, 0.4
"""s_1 / (N_1 / U_1) of a new model, and the same for longer contexts: measured on held-out
conversations with a network that was trained without the echo."""

MAX_LOG_STRENGTH = 8.0
ID_BITS = 22  # of a token id in the key of a context: those of the largest vocabulary


class Followers:
    """What followed one context: the weight of each token, and of all."""

    __slots__ = ("counts", "total")

    def __init__(self, token: int, weight: float) -> None:
        self.counts = {token: weight}
        self.total = weight

    def add(self, token: int, weight: float) -> None:
        """Count a token once more."""
        self.counts[token] = self.counts.get(token, 0.0) + weight
        self.total += weight


class CountBuffer:
    """Storage behind `TextCounts`: the followers of every context read, by the context's key.

    A key is the context's ids behind a leading 1, so different contexts have different keys.
    contexts are those that the text ends with, shortest first; found are the followers of as many
    of them as have occurred before: where one has not, no longer one has.
    """

    def __init__(self, max_order: int) -> None:
        self.max_order = max_order
        self.log: list[tuple[int, float]] = []  # ids read, with their weights; -1 begins a text
        self.followers: dict[int, Followers] = {}
        self.contexts: list[int] = []
        self.found: list[Followers] = []

    def read(self, token: int, weight: float) -> list[Followers]:
        """Count a token behind its contexts; the followers found after it."""
        self.log.append((token, weight))
        if token < 0:
            self.contexts, self.found = [], []
            return self.found
        if weight:
            for entry in self.found:
                entry.add(token, weight)
            for key in self.contexts[len(self.found) :]:
                self.followers[key] = Followers(token, weight)
        longer = self.contexts[: self.max_order - 1]
        self.contexts = [1 << ID_BITS | token, *(key << ID_BITS | token for key in longer)]
        self.found = []
        for key in self.contexts:
            entry = self.followers.get(key)
            if entry is None:
                break
            self.found.append(entry)
        return self.found


class TextCounts(NamedTuple):
    """Counts of the `length` tokens read: a value, safe to keep and to fork.

    Reading on writes into the shared buffer only behind its last token. A value whose buffer went
    on without it reads its tokens again into a buffer of its own, as `KVCache` copies itself.
    """

    buffer: CountBuffer
    length: int

    @classmethod
    def empty(cls, max_order: int) -> "TextCounts":
        """Nothing read; contexts of up to max_order tokens are kept."""
        return cls(CountBuffer(max_order), 0)

    @classmethod
    def of_texts(cls, texts: Iterable[tuple[Sequence[int], float]], max_order: int) -> "TextCounts":
        """Texts of (ids, weight) read one after the other; no context reaches into the next."""
        buffer = CountBuffer(max_order)
        for ids, weight in texts:
            for token in (*ids, -1):
                buffer.read(token, weight)
        return cls(buffer, len(buffer.log))

    def current(self) -> CountBuffer:
        """A buffer that ends where this value does; other values may not go on with it unseen."""
        if len(self.buffer.log) == self.length:
            return self.buffer
        fresh = CountBuffer(self.buffer.max_order)
        for token, weight in self.buffer.log[: self.length]:
            fresh.read(token, weight)
        return fresh

    def read(self, token: int, weight: float = 1.0) -> "TextCounts":
        """The counts after one more token; -1 begins another text."""
        buffer = self.current()
        buffer.read(token, weight)
        return TextCounts(buffer, self.length + 1)


class EchoState(NamedTuple):
    """What each row has read, and the weight of the words that come next."""

    rows: tuple[TextCounts, ...]
    weight: float = 1.0


class TargetEvidence(NamedTuple):
    """For each token of a text the counts that its next token is predicted from, (B,T,M) each.

    share: K_m / N_m of the next token; total: N_m; kinds: U_m; all 0 where the context is new.
    """

    share: Tensor
    total: Tensor
    kinds: Tensor

    def to(self, device: torch.device) -> "TargetEvidence":
        """The same on another device."""
        return TargetEvidence(*(values.to(device) for values in self))


def text_evidence(ids: Sequence[int] | ndarray, max_order: int) -> ndarray:
    """Share, total and kinds, (3,n-1,M), for the tokens of a text (n,) but the last.

    These are the counts that `TextCounts` has after each token, found by sorting instead.
    """
    tokens = np.asarray(ids, np.int64)
    found = np.zeros((3, max(len(tokens) - 1, 0), max_order), np.float32)
    contexts = np.zeros(len(tokens), np.int64)
    for m in range(min(max_order, found.shape[1])):
        contexts = _numbered(contexts[:-1], tokens[m:-1])  # that of the m + 1 tokens up to each
        found[:, m:, m] = _before(contexts, tokens[m + 1 :])
    return found


def _before(contexts: ndarray, targets: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Share of each target, total and kinds, (n,) each, among the earlier places of its context."""
    total = _earlier(contexts, np.ones_like(contexts))
    same = _earlier(_numbered(contexts, targets), np.ones_like(contexts))
    kinds = _earlier(contexts, (same == 0).astype(np.int64))
    return same / np.maximum(total, 1), total, kinds


def _numbered(a: ndarray, b: ndarray) -> ndarray:
    """Numbers (n,) from 0 on that are equal where the pairs of a and b, both (n,), are."""
    return np.unique(a << ID_BITS | b, return_inverse=True)[1]


def _earlier(groups: ndarray, values: ndarray) -> ndarray:
    """For each place the sum of values (n,) at earlier places of its group (n,)."""
    order = groups.argsort(kind="stable")
    members, sums = groups[order], values[order].cumsum() - values[order]
    begins = np.searchsorted(members, members)
    result = np.empty_like(sums)
    result[order] = sums - sums[begins]
    return result


class Echo(nn.Module):
    """The stage: the trust in what was read, and p' from p; see the module's docstring."""

    def __init__(self, dim: int, config: EchoConfig) -> None:
        super().__init__()
        self.max_order, self.own_weight = config.max_order, config.own_weight
        self.gate = nn.Parameter(torch.empty(self.max_order, dim))
        self.trust = nn.Parameter(torch.empty(self.max_order))
        self.total_scale = nn.Parameter(torch.empty(self.max_order))
        self.kinds_scale = nn.Parameter(torch.empty(self.max_order))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Trust a match by how often its followers came, on average: s = constant * N / U."""
        nn.init.zeros_(self.gate)
        nn.init.ones_(self.total_scale)
        nn.init.constant_(self.kinds_scale, -1.0)
        shortest, longer = FIRST_STRENGTHS
        with torch.no_grad():
            self.trust.fill_(math.log(longer))[0] = math.log(shortest)

    def init_state(self, batch: int, like: Tensor) -> EchoState:
        """Nothing read."""
        return EchoState(tuple(TextCounts.empty(self.max_order) for _ in range(batch)))

    def stepper(self, state: EchoState) -> "EchoStep":
        """The one-token form."""
        return EchoStep(self, state)

    def silence(self) -> None:
        """Believe nothing that was read."""
        nn.init.zeros_(self.gate)
        nn.init.constant_(self.trust, -math.inf)
        nn.init.zeros_(self.total_scale)
        nn.init.zeros_(self.kinds_scale)

    def strengths(self, x: Tensor, total: Tensor, kinds: Tensor) -> Tensor:
        """s (...,M) for the normalised x (...,D) and the counts N and U (...,M); 0 where N is 0."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        weights = self.gate, self.trust, self.total_scale, self.kinds_scale
        gate, trust, total_scale, kinds_scale = (p.to(dtype) for p in weights)
        z = F.linear(x.to(dtype), gate * x.shape[-1] ** -0.5, trust)
        seen = total > 0
        z = torch.addcmul(z, total_scale, torch.where(seen, total, 1).to(dtype).log())
        z = torch.addcmul(z, kinds_scale, torch.where(seen, kinds, 1).to(dtype).log())
        return torch.where(seen, z.clamp_max(MAX_LOG_STRENGTH).exp(), 0)

    def support(self, x: Tensor, evidence: TargetEvidence) -> tuple[Tensor, Tensor]:
        """What is added to p of each target, and to its norm: (B,T) each, both at least 0."""
        s = self.strengths(x, evidence.total, evidence.kinds)
        return (s * evidence.share).sum(-1), s.sum(-1)

    def window_evidence(self, ids: Tensor, targets: Tensor) -> TargetEvidence:
        """The evidence of windows (B,T) that know of nothing before them."""
        rows = torch.cat((ids, targets[:, -1:]), dim=1).cpu().numpy()
        found = np.stack([text_evidence(row, self.max_order) for row in rows], axis=1)
        return TargetEvidence(*torch.from_numpy(found)).to(ids.device)

    def forward(
        self, logits: Tensor, x: Tensor, ids: Tensor, state: EchoState | None
    ) -> tuple[Tensor, EchoState]:
        """Logits (B,T,V) of p', up to a constant, and the state after reading ids (B,T).

        The logits of tokens that followed no context of theirs stay as they are.
        """
        state = self.init_state(len(ids), logits) if state is None else state
        rows, found = [], _Found(self.max_order)
        for tokens, counts in zip(ids.tolist(), state.rows, strict=True):
            buffer = counts.current()
            for token in tokens:
                found.add(buffer.read(token, state.weight))
            rows.append(TextCounts(buffer, len(buffer.log)))
        state = state._replace(rows=tuple(rows))
        if not found.ids:
            return logits, state
        places, orders, followers, shares, total, kinds = found.tensors(logits.device)
        s = self.strengths(x.flatten(0, 1), total, kinds)
        counts = torch.zeros_like(logits.flatten(0, 1)).index_put(
            (places, followers), (s[places, orders] * shares).to(logits), accumulate=True
        )
        counts = counts.view_as(logits)
        return torch.logaddexp(logits, logits.logsumexp(-1, keepdim=True) + counts.log()), state


class _Found:
    """Followers found at one place after another, as flat lists."""

    def __init__(self, max_order: int) -> None:
        self.max_order, self.num_places = max_order, 0
        self.ids: list[int] = []
        self.shares: list[float] = []
        self.entries: list[tuple[int, int, float, int]] = []  # place, order, total, kinds

    def add(self, found: list[Followers]) -> None:
        """Take the followers of the orders found at the next place."""
        for order, entry in enumerate(found):
            self.ids.extend(entry.counts)
            self.shares.extend(entry.counts.values())
            self.entries.append((self.num_places, order, entry.total, len(entry.counts)))
        self.num_places += 1

    def tensors(self, device: torch.device) -> tuple[Tensor, ...]:
        """Place, order, id and share of each follower; N and U (places,M)."""
        place, order, total, kinds = np.array(self.entries).T
        each = kinds.astype(np.int64)
        totals = np.zeros((2, self.num_places, self.max_order), np.float32)
        totals[:, place.astype(np.int64), order.astype(np.int64)] = total, kinds
        shares = np.array(self.shares) / total.repeat(each)
        arrays = (
            place.repeat(each).astype(np.int64), order.repeat(each).astype(np.int64),
            np.array(self.ids), shares.astype(np.float32), *totals,
        )  # fmt: skip
        return tuple(torch.from_numpy(array).to(device) for array in arrays)


class EchoStep:
    """One-token form of `Echo`: reads a token of each row, and changes the logits in place."""

    def __init__(self, module: Echo, state: EchoState) -> None:
        self._given, self.rows = state, list(state.rows)
        self.gate = view(module.gate) * np.float32(module.gate.shape[1] ** -0.5)  # (M,D)
        scales = (module.trust, module.total_scale, module.kinds_scale)
        self.scales = np.stack([view(p) for p in scales])  # (3,M)
        self._support = np.empty(0, np.float32)  # (V,), zero between two calls

    def read(self, tokens: Sequence[int]) -> list[list[Followers]]:
        """Count a token of each row; the followers of the contexts that the rows now end with."""
        weight = self._given.weight
        self.rows = [
            counts.read(token, weight) for counts, token in zip(self.rows, tokens, strict=True)
        ]
        return [counts.buffer.found for counts in self.rows]

    def add(self, found: list[list[Followers]], x: ndarray, logits: ndarray) -> None:
        """Mix what followed into the distributions of the logits (R,V), for the final x (R,D)."""
        for row, entries in enumerate(found):
            if entries:
                self._mix(entries, x[row], logits[row])

    def _mix(self, found: list[Followers], x: ndarray, logits: ndarray) -> None:
        """Mix what followed in one row into its logits (V,)."""
        if len(self._support) != len(logits):
            self._support = np.zeros_like(logits)
        ids, counts, totals, ends = [], [], [], []
        for entry in found:
            ids += entry.counts
            counts += entry.counts.values()
            totals.append(entry.total)
            ends.append(len(ids))
        believe(
            np.array(ids), np.array(counts), np.array(totals), np.array(ends), x, self.gate,
            self.scales, self._support, logits,
        )  # fmt: skip

    @property
    def state(self) -> EchoState:
        """The state after the tokens so far."""
        return self._given._replace(rows=tuple(self.rows))


@compiled
def believe(ids, counts, totals, ends, x, gate, scales, support, logits):
    """Mix followers into logits (V,): those of order m are ids and counts up to ends[m].

    totals (M,), x (D,), gate (M,D), scales (3,M) of trust, totals and kinds; support (V,) is zero
    before and after.
    """
    first = 0
    for m in range(len(ends)):
        kinds, z = ends[m] - first, scales[0, m]
        for i in range(len(x)):
            z += gate[m, i] * x[i]
        log_strength = z + scales[1, m] * np.log(totals[m]) + scales[2, m] * np.log(float(kinds))
        strength = np.exp(min(log_strength, MAX_LOG_STRENGTH)) / totals[m]
        for place in range(first, ends[m]):
            support[ids[place]] += counts[place] * strength
        first = ends[m]
    log_total = log_sum(logits)
    for place in range(first):
        token = ids[place]
        if support[token] != 0:
            a, b = float(logits[token]), log_total + np.log(float(support[token]))
            top = max(a, b)
            logits[token] = top + np.log(np.exp(a - top) + np.exp(b - top))
            support[token] = 0
