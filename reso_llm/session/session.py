"""Session: the state of a model between calls of `forward`, in one explicit, mutable object.

    initial state = empty state + sum_k w_k field_k,    w_k = importance_k exp(-decay (now - t_k))

`forward` is pure and never sees it. Two things change a session: the methods of the README
(goals, foci, concepts, stability, memory), and `note`, which the engine calls once for each text it
has written. A method that needs a disabled component raises ValueError naming the key that enables
it. Vectors, fields and ids come as values, so a session holds no weights and can be copied or
pickled by itself. Several threads may use one session: what reads or writes its memory, and `note`,
wait for each other.

Shapes: H heads, C channels and S = 16 components of the sedenion field, D width.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from entropy_core.checks import require
from reso_llm.config import (
    AgencyConfig,
    EchoConfig,
    EntanglementConfig,
    PRSCConfig,
    StabilityConfig,
    TemporalSMFConfig,
)
from reso_llm.decoding.stability import StabilityMonitor
from reso_llm.session import saving
from reso_llm.session.agency import Agency, Goal
from reso_llm.session.concepts import Binding, ConceptSpace, Interference, Unbinding
from reso_llm.session.entanglement import EntanglementNetwork
from reso_llm.session.episodes import EpisodicMemory, Moment, Recollection
from reso_llm.session.foci import Focus, Target
from reso_llm.stages.fused import rms_norm
from reso_llm.stages.goal import TRUST

Component = TypeVar("Component")


class WrittenText(NamedTuple):
    """A generated text as a session notes it.

    targets are its words, prompt included; empty where attention was not measured.
    """

    text: str
    targets: tuple[Target, ...]


class SessionConfig(Protocol):
    """The components of a session; `ResoLLMConfig` is one. Vectors are (dim,)."""

    vocab_size: int
    dim: int
    agency: AgencyConfig
    prsc: PRSCConfig
    temporal_smf: TemporalSMFConfig
    echo: EchoConfig
    stability: StabilityConfig
    entanglement: EntanglementConfig


@dataclass
class Session:
    """One session of a model with this configuration; a disabled component is None.

    clock is the memory's time: how many texts were generated. `stability` is the monitor of the
    newest text that was generated alone, and not in a batch.
    """

    config: SessionConfig
    clock: float = 0.0
    agency: Agency | None = field(init=False)
    concepts: ConceptSpace | None = field(init=False)
    episodes: EpisodicMemory | None = field(init=False)
    stability: StabilityMonitor | None = field(init=False)
    node_id: str | None = field(init=False)
    _lock: Any = field(init=False, repr=False, compare=False, default_factory=threading.RLock)

    def __post_init__(self) -> None:
        c = self.config
        self.agency = Agency(c.agency) if c.agency.enabled else None
        self.concepts = ConceptSpace(c.prsc, c.vocab_size) if c.prsc.enabled else None
        remembers = c.temporal_smf.enabled or c.echo.enabled
        self.episodes = EpisodicMemory(c.temporal_smf) if remembers else None
        self.stability = StabilityMonitor(c.stability) if c.stability.enabled else None
        self.node_id = c.entanglement.node_id if c.entanglement.enabled else None

    def __getstate__(self) -> dict[str, Any]:
        """The session without its lock, which belongs to one process."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.RLock()}

    def save(self, path: str | Path) -> None:
        """Write goals, foci, concepts, episodes and clock to a file. Raises as `saving.save`."""
        with self._lock:
            saving.save(self, path)

    @classmethod
    def load(cls, path: str | Path, config: SessionConfig) -> "Session":
        """The session of a file, for a model of this configuration. Raises as `saving.load`."""
        session = cls(config)
        saving.load(session, path)
        return session

    def note(self, text: WrittenText) -> None:
        """Note a written text: update foci, progress of goals, and the clock."""
        with self._lock:
            if self.agency is not None:
                self.agency.observe_text(text.targets)
                self.agency.update_progress(text.text)
            self.advance()

    # --- agency

    def create_goal(self, description: str, goal_type: str, vector: Tensor) -> Goal:
        """Pursue a goal with the vector (D,) of its description.

        Raises ValueError without agency, and as `Agency.create_goal` does.
        """
        agency = _needed(self.agency, "create_goal", "agency")
        return agency.create_goal(description, goal_type, vector=vector)

    def new_goal(self, description: str, goal_type: str, vector: Tensor) -> Goal:
        """A goal that is not pursued by this session. Raises as `create_goal` does."""
        agency = _needed(self.agency, "generate_with_goal", "agency")
        return agency.new_goal(description, goal_type, vector=vector)

    def get_active_goals(self) -> tuple[Goal, ...]:
        """Goals still pursued, the oldest first. ValueError without agency."""
        return _needed(self.agency, "get_active_goals", "agency").active_goals

    def get_attention_foci(self) -> tuple[Focus, ...]:
        """The foci of attention, the most salient first. ValueError without agency."""
        return _needed(self.agency, "get_attention_foci", "agency").foci

    def steered_by(self, goals: Sequence[Goal]) -> Tensor | None:
        """The vector (D,) that the goals together steer towards; None without goals."""
        return TRUST * rms_norm(torch.stack([g.vector for g in goals]).sum(0)) if goals else None

    # --- concepts

    def bind_concept(self, name: str, token_id: int) -> Binding:
        """See `ConceptSpace.bind_concept`. ValueError without prsc."""
        return _needed(self.concepts, "bind_concept", "prsc").bind_concept(name, token_id)

    def compose(self, names: Sequence[str]) -> Interference:
        """See `ConceptSpace.compose`. ValueError without prsc."""
        return _needed(self.concepts, "compose", "prsc").compose(names)

    def unbind(self, pattern: Tensor, name: str) -> Unbinding:
        """See `ConceptSpace.unbind`. ValueError without prsc."""
        return _needed(self.concepts, "unbind", "prsc").unbind(pattern, name)

    # --- stability

    def get_stability(self) -> float:
        """0 (damage expected) to 1; 1 before the first token. ValueError without stability."""
        value = _needed(self.stability, "get_stability", "stability").stability
        return 1.0 if math.isnan(value) else value

    def get_suggested_temperature(self, current_temp: float) -> float:
        """See `StabilityMonitor.suggested_temperature`. ValueError without stability."""
        monitor = _needed(self.stability, "get_suggested_temperature", "stability")
        return monitor.suggested_temperature(current_temp)

    # --- episodes

    def advance(self, time: float = 1.0) -> None:
        """Move the clock on, by default by one text. ValueError for a negative number."""
        require(0 <= time < math.inf, "time", time, "a number of at least 0")
        self.clock += time

    def require_memory(self, method: str) -> EpisodicMemory:
        """What `method` works on. ValueError where temporal_smf and echo are both off."""
        return _needed(self.episodes, method, "temporal_smf")

    def remember(
        self,
        text: str,
        ids: list[int],
        *,
        importance: float,
        time: float | None,
        field: Tensor | None,
        source: str = "",
    ) -> Moment:
        """Store a text with its ids and its field (H,C,S), learned at `time` or now.

        source is the node of a network that told it, "" where nobody else did. The clock moves on
        to that time. Raises as `EpisodicMemory.store` does.
        """
        memory = self.require_memory("remember")
        with self._lock:
            time = self.clock if time is None else time
            moment = memory.store(
                text, ids, importance=importance, time=time, field=field, source=source
            )
            self.clock = max(self.clock, moment.time)
        return moment

    def recall(self, query: str, count: int = 5, now: float | None = None) -> list[Recollection]:
        """The stored texts that resonate with a query, the best first.

        Raises ValueError as `require_memory` and `EpisodicMemory.recall` do.
        """
        memory = self.require_memory("recall")
        require(isinstance(query, str), "query", query, "a string")
        with self._lock:
            return memory.recall(query, now=self.clock if now is None else now, count=count)

    def recollected_field(self, now: float | None = None) -> Tensor | None:
        """Sum of all moments' fields (H,C,S), each times its weight at `now`; None without any."""
        if self.episodes is None:
            return None
        with self._lock:
            return self.episodes.field(self.clock if now is None else now)

    # --- entanglement

    def join(self, network: EntanglementNetwork, node_id: str | None = None) -> str:
        """Become a node of a network of agents, by default that of the configuration; its name.

        ValueError without a name from either, or where the network has a node of that name.
        """
        if node_id is None:
            node_id = _needed(self.node_id, "join(network) without a name", "entanglement")
        network.add_node(node_id)
        self.node_id = node_id
        return node_id

    def own_texts(self) -> list[tuple[str, float]]:
        """The texts that this session was told itself, oldest first, each with its weight now."""
        if self.episodes is None:
            return []
        with self._lock:
            own = [m for m in self.episodes.moments if not m.source]
            return [(m.text, self.episodes.weight(m, self.clock)) for m in own]

    def forget_source(self, source: str) -> None:
        """Forget all that a node of a network told. ValueError as `require_memory`."""
        memory = self.require_memory("forget_source")
        with self._lock:
            memory.forget_source(source)


def _needed(component: Component | None, method: str, key: str) -> Component:
    if component is None:
        raise ValueError(f"{method} needs {key}.enabled=true")
    return component
