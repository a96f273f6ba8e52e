"""Episodic memory: stored texts with time and importance, recalled by resonance.

    resonance(q, m) = sum_{f in q, m} w_f n_f / (n_f + k l_m)  /  sum_{f in q} w_f       in [0, 1)
    l_m = 1 - b + b |m| / mean |m|,      w_f = ln(1 + (N - N_f + 1/2) / (N_f + 1/2))

A text is a bag of features f: its tokens, token i being the i-th prime p_i, and its adjacent pairs
of tokens, as Goedel numbers p_i p_j^2. Factorisation is unique, so the shared features are the
common factors of two products; the store keeps the exponents n_f, not the products (see
`tokenizer.bag`). w_f is the information in nats of finding f, which N_f of N moments hold; n_f
saturates at the scale k; l_m corrects for the length |m| of the moment.

Source: Okapi BM25 (Robertson & Zaragoza, "The Probabilistic Relevance Framework", 2009), divided
by its bound. The pairs find words that span tokens: with them real sentences come first more often
than by BM25 on tokens. A moment weighs importance * exp(-memory_decay_rate * age).
"""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from entropy_core.checks import require
from reso_llm.config import TemporalSMFConfig

SATURATION = 1.2  # k
LENGTH_SHARE = 0.75  # b


@dataclass(frozen=True, eq=False)
class Moment:
    """One stored text. `field` is the text's contribution to the sedenion field, if kept.

    `source` is the node of a network that told it; "" for a text that the session was told itself.
    """

    text: str
    token_ids: tuple[int, ...]
    time: float
    importance: float
    field: Tensor | None
    source: str = ""


@dataclass(frozen=True, eq=False)
class Recollection:
    """A moment that a query reached: its resonance in [0, 1), its age and its weight now."""

    moment: Moment
    resonance: float
    age: float
    weight: float


def features(token_ids: Iterable[int]) -> Counter[Hashable]:
    """Exponents n_f of the tokens and of the adjacent pairs of tokens."""
    ids = list(token_ids)
    return Counter([*ids, *pairwise(ids)])


class EpisodicMemory:
    """The moments of a session, at most `config.max_moments`; the lightest is forgotten first.

    Time is a number of the caller's own unit that never runs backwards; `memory_decay_rate` is per
    that unit. Without `config.episodic_tagging` only the sum of the fields is kept, and it decays
    as the moments would: nothing can be recalled and nothing is forgotten at once.
    """

    def __init__(self, config: TemporalSMFConfig) -> None:
        self.config = config
        self.latest = -math.inf
        self._moments: dict[int, Moment] = {}
        self._lightest: list[tuple[float, int]] = []  # heap of (lightness, number)
        self._shape: torch.Size | None = None  # of the stored fields
        self._index: defaultdict[Hashable, dict[int, int]] = defaultdict(dict)
        self._next, self._num_tokens = 0, 0
        self._sum: Tensor | None = None  # without tagging: the field at time `latest`

    def __len__(self) -> int:
        return len(self._moments)

    @property
    def moments(self) -> tuple[Moment, ...]:
        """All moments, oldest first. A session saves these, and stores them again when it loads."""
        return tuple(self._moments.values())

    @property
    def summed_field(self) -> Tensor | None:
        """Without tagging, the sum of the fields at time `latest`; None with it, or without any."""
        return self._sum

    def store(
        self,
        text: str,
        token_ids: Iterable[int],
        *,
        importance: float,
        time: float,
        field: Tensor | None = None,
        source: str = "",
    ) -> Moment:
        """Store a text; `field` is its contribution to the sedenion field, `source` who told it.

        Raises ValueError for an importance below 0 or not finite, a time before the latest one, a
        field of another shape, and a missing field where nothing else would be kept.
        """
        require(0 <= importance < math.inf, "importance", importance, "a finite number >= 0")
        self._check_time(time)
        if field is not None:
            field = self._checked(field).detach().clone()
        ids = tuple(int(i) for i in token_ids)
        moment = Moment(text, ids, float(time), float(importance), field, source)
        if self.config.episodic_tagging:
            self.latest = moment.time
            self._add(moment)
        else:
            if field is None:
                raise ValueError("episodic_tagging = False keeps fields only: pass field=")
            kept = self.field(time)
            self._sum = importance * field if kept is None else kept + importance * field.to(kept)
            self.latest = moment.time
        return moment

    def forget_source(self, source: str) -> None:
        """Forget all that a node told. ValueError without episodic tagging."""
        self._require_moments("hear other agents")
        for number in [n for n, m in self._moments.items() if m.source == source]:
            self._forget(number)
        self._lightest = [(self._lightness(m), n) for n, m in self._moments.items()]
        heapq.heapify(self._lightest)

    def weight(self, moment: Moment, now: float) -> float:
        """importance * exp(-memory_decay_rate * age)."""
        return moment.importance * self._kept(now - moment.time)

    def field(self, now: float) -> Tensor | None:
        """Sum of the stored fields, each by its weight now; None where there is none."""
        self._check_time(now)
        if not self.config.episodic_tagging:
            return None if self._sum is None else self._sum * self._kept(now - self.latest)
        held = [m for m in self.moments if m.field is not None]
        if not held:
            return None
        weights = held[0].field.new_tensor([self.weight(m, now) for m in held])
        fields = torch.stack([m.field.to(weights) for m in held])  # a model may have moved
        return torch.tensordot(weights, fields, dims=1)

    def recall(self, query_ids: Iterable[int], *, now: float, count: int = 5) -> list[Recollection]:
        """The moments that resonate most with a query, at most `count`, without those at 0.

        Ranked by resonance alone: a matching moment is found at any age, until it is
        forgotten. Weight, then recency, decide between equals. ValueError without episodic
        tagging, for a count below 1, and for a time before the latest moment.
        """
        self._require_moments("recall")
        require(count >= 1, "count", count, "at least 1")
        self._check_time(now)
        scores = self._resonances(query_ids)
        candidates = [(scores[i], self.weight(self._moments[i], now), i) for i in scores]
        return [
            Recollection(self._moments[i], resonance, now - self._moments[i].time, weight)
            for resonance, weight, i in heapq.nlargest(count, candidates)
        ]

    def when(self, query_ids: Iterable[int], *, now: float) -> float | None:
        """The time of the moment that `recall` puts first for a query; None without one."""
        recalled = self.recall(query_ids, now=now, count=1)
        return recalled[0].moment.time if recalled else None

    def _require_moments(self, purpose: str) -> None:
        if not self.config.episodic_tagging:
            raise ValueError(
                "episodic_tagging = False keeps no record of single moments, only their summed "
                f"field: set temporal_smf.episodic_tagging = True to {purpose}"
            )

    def _kept(self, age: float) -> float:
        return math.exp(-self.config.memory_decay_rate * age)

    def _check_time(self, time: float) -> None:
        require(math.isfinite(time), "time", time, "a finite number")
        require(time >= self.latest, "time", time, f"not before the latest, {self.latest}")

    def _checked(self, field: Tensor) -> Tensor:
        """The field, if its shape is that of the stored ones."""
        self._shape = self._shape or field.shape
        if field.shape != self._shape:
            raise ValueError(f"field {tuple(field.shape)}: expected {tuple(self._shape)}")
        return field

    def _add(self, moment: Moment) -> None:
        self._moments[self._next] = moment
        for feature, exponent in features(moment.token_ids).items():
            self._index[feature][self._next] = exponent
        heapq.heappush(self._lightest, (self._lightness(moment), self._next))
        self._next += 1
        self._num_tokens += len(moment.token_ids)
        if len(self._moments) > self.config.max_moments:
            self._forget(heapq.heappop(self._lightest)[1])

    def _lightness(self, moment: Moment) -> float:
        """Order of the weights at any time: by logarithm, which old age cannot underflow."""
        importance = math.log(moment.importance) if moment.importance else -math.inf
        return importance + self.config.memory_decay_rate * moment.time

    def _forget(self, number: int) -> None:
        moment = self._moments.pop(number)
        self._num_tokens -= len(moment.token_ids)
        for feature in features(moment.token_ids):
            del self._index[feature][number]
            if not self._index[feature]:
                del self._index[feature]

    def _resonances(self, query_ids: Iterable[int]) -> dict[int, float]:
        """Resonance of every moment that shares a feature with the query, by its number."""
        scores: defaultdict[int, float] = defaultdict(float)
        total, num_moments = 0.0, len(self._moments)
        flat = SATURATION * (1 - LENGTH_SHARE)
        slope = SATURATION * LENGTH_SHARE * num_moments / max(1, self._num_tokens)
        for feature in features(query_ids):
            holders = self._index.get(feature, {})
            information = math.log1p((num_moments - len(holders) + 0.5) / (len(holders) + 0.5))
            total += information
            for number, exponent in holders.items():
                length = len(self._moments[number].token_ids)
                scores[number] += information * exponent / (exponent + flat + slope * length)
        return {number: score / total for number, score in scores.items()}
