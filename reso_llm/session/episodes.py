"""Episodic memory: stored texts with time and importance, recalled by resonance.

    weight = importance * exp(-memory_decay_rate * age)
    rank   = resonance * weight, first among the texts of at least 0.8 of the highest resonance

Resonance is the share of a query that a text answers to, by words (`resonance.py`). So a text that
matches better is found at any age; among those that match about as well, the important and the new
come first.
"""

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_core.checks import require
from reso_llm.config import TemporalSMFConfig
from reso_llm.session.resonance import WordIndex

CLOSE = 0.8
"""Share of the highest resonance from which weight decides."""


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
    """A moment that a query reached: its resonance in [0, 1], its age and its weight now.

    asked_for: whether the query asks for it, and not only shares a word with it.
    """

    moment: Moment
    resonance: float
    age: float
    weight: float
    asked_for: bool


def ids_to_remember(text: str, encode: Callable[[str], list[int]]) -> list[int]:
    """Ids of a text to be stored. ValueError for another type and for a text without a token."""
    require(isinstance(text, str), "text", text, "a string")
    ids = encode(text)
    if not ids:
        raise ValueError("text holds no token: expected something to remember")
    return ids


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
        self._words = WordIndex()
        self._next = 0
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
        return moment.importance * self.kept(now - moment.time)

    def kept(self, age: float) -> float:
        """exp(-memory_decay_rate * age): the share of its weight that a moment still has."""
        return math.exp(-self.config.memory_decay_rate * age)

    def field(self, now: float) -> Tensor | None:
        """Sum of the stored fields, each by its weight now; None where there is none."""
        self._check_time(now)
        if not self.config.episodic_tagging:
            return None if self._sum is None else self._sum * self.kept(now - self.latest)
        held = [m for m in self.moments if m.field is not None]
        if not held:
            return None
        weights = held[0].field.new_tensor([self.weight(m, now) for m in held])
        fields = torch.stack([m.field.to(weights) for m in held])  # a model may have moved
        return torch.tensordot(weights, fields, dims=1)

    def recall(self, query: str, *, now: float, count: int = 5) -> list[Recollection]:
        """The moments that resonate with a query, at most `count`, the best first; see `rank`.

        A matching moment is found at any age, until it is forgotten; of equals the newer comes
        first. ValueError without episodic tagging, for a count below 1, and for a time before the
        latest moment.
        """
        self._require_moments("recall")
        require(count >= 1, "count", count, "at least 1")
        self._check_time(now)
        matches = self._words.matches(query)
        close = CLOSE * max((m.resonance for m in matches.values()), default=0.0)

        def rank(number: int) -> tuple[bool, float, int]:
            resonance = matches[number].resonance
            weight = self.weight(self._moments[number], now)
            return resonance >= close, resonance * weight, number

        found = []
        for number in heapq.nlargest(count, matches, rank):
            moment, match = self._moments[number], matches[number]
            age, weight = now - moment.time, self.weight(moment, now)
            found.append(Recollection(moment, match.resonance, age, weight, match.asked_for))
        return found

    def _require_moments(self, purpose: str) -> None:
        if not self.config.episodic_tagging:
            raise ValueError(
                "episodic_tagging = False keeps no record of single moments, only their summed "
                f"field: set temporal_smf.episodic_tagging = True to {purpose}"
            )

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
        self._words.add(self._next, moment.text)
        heapq.heappush(self._lightest, (self._lightness(moment), self._next))
        self._next += 1
        if len(self._moments) > self.config.max_moments:
            self._forget(heapq.heappop(self._lightest)[1])

    def _forget(self, number: int) -> None:
        del self._moments[number]
        self._words.remove(number)

    def _lightness(self, moment: Moment) -> float:
        """Order of the weights at any time: by logarithm, which old age cannot underflow."""
        importance = math.log(moment.importance) if moment.importance else -math.inf
        return importance + self.config.memory_decay_rate * moment.time
