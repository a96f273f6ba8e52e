"""Session: all that a model keeps between calls of `forward`, in one explicit, mutable object.

    initial state = empty state + sum_k w_k field_k,    w_k = importance_k exp(-decay (now - t_k))

`forward` is pure and never sees it. What the README calls on the model (goals, foci, concepts,
stability, memory) changes a session, and so does the engine; nothing else does. A method that
needs a disabled component raises ValueError naming the key that enables it. The model comes as an
argument, so a session holds no weights and can be copied or pickled by itself.

Shapes: H heads, C channels and S = 16 components of the memory field, D width.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from reso_llm.agency import Agency, Focus, Goal, about
from reso_llm.concepts import Binding, ConceptSpace, Interference, Unbinding
from reso_llm.config import ResoLLMConfig, require
from reso_llm.entanglement import EntanglementNetwork
from reso_llm.episodes import EpisodicMemory, Moment, Recollection
from reso_llm.fused import rms_norm
from reso_llm.stability import StabilityMonitor
from reso_llm.tokenizer import ResoTokenizer, create_default_tokenizer

if TYPE_CHECKING:
    from reso_llm.model import ResoLLMModel

Component = TypeVar("Component")


@dataclass
class Session:
    """One session of a model with this configuration; a disabled component is None.

    clock is the memory's time: how many texts were generated. The engine calls `advance`,
    `agency.observe_text` and `agency.update_progress`, and makes `stability` the monitor of the
    newest text that was asked for alone.
    """

    config: ResoLLMConfig
    clock: float = 0.0
    agency: Agency | None = field(init=False)
    concepts: ConceptSpace | None = field(init=False)
    memory: EpisodicMemory | None = field(init=False)
    stability: StabilityMonitor | None = field(init=False)
    node_id: str | None = field(init=False)

    def __post_init__(self) -> None:
        c = self.config
        self.agency = Agency(c.agency) if c.agency.enabled else None
        self.concepts = ConceptSpace(c.prsc, c.vocab_size) if c.prsc.enabled else None
        self.memory = EpisodicMemory(c.temporal_smf) if c.temporal_smf.enabled else None
        self.stability = StabilityMonitor(c.stability) if c.stability.enabled else None
        self.node_id = c.entanglement.node_id if c.entanglement.enabled else None

    # --- agency

    def create_goal(
        self, model: "ResoLLMModel", description: str, goal_type: str = "exploratory"
    ) -> Goal:
        """Pursue a goal; its vector (D,) is the pooled token embedding of the description.

        Raises ValueError without agency or a tokenizer, and as `Agency.create_goal` does.
        """
        agency = _needed(self.agency, "create_goal", "agency")
        ids = _encode(model, description)
        with torch.no_grad():
            vector = about(model.embedding.weight, ids)
        return agency.create_goal(description, goal_type, vector=vector)

    def get_active_goals(self) -> tuple[Goal, ...]:
        """Goals still pursued, the oldest first. ValueError without agency."""
        return _needed(self.agency, "get_active_goals", "agency").active_goals

    def get_attention_foci(self) -> tuple[Focus, ...]:
        """What is attended to, the most salient first. ValueError without agency."""
        return _needed(self.agency, "get_attention_foci", "agency").foci

    def steering(self) -> Tensor | None:
        """What all active goals together steer towards (D,); None without any."""
        goals = self.agency.active_goals if self.agency else ()
        return rms_norm(torch.stack([goal.vector for goal in goals]).sum(0)) if goals else None

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

    # --- memory

    def advance(self, time: float = 1.0) -> None:
        """Let the clock run on, by default by one text. ValueError for a negative number."""
        require(0 <= time < math.inf, "time", time, "a number of at least 0")
        self.clock += time

    def update_memory(
        self,
        model: "ResoLLMModel",
        text: str,
        importance: float = 1.0,
        time: float | None = None,
    ) -> Moment:
        """Remember a text: what it leaves in the empty memory field, and its tokens.

        time is when it was learned, by default now; the clock runs on to it. Raises ValueError
        without temporal_smf or a tokenizer, for a text without a token, and as
        `EpisodicMemory.store` does.
        """
        memory = _needed(self.memory, "update_memory", "temporal_smf")
        ids = _encode(model, text)
        if not ids:
            raise ValueError("text holds no token: expected something to remember")
        time = self.clock if time is None else time
        left = _field_of(model, ids)
        moment = memory.store(text, ids, importance=importance, time=time, field=left)
        self.clock = max(self.clock, moment.time)
        return moment

    def recall(
        self, model: "ResoLLMModel", query: str, count: int = 5, now: float | None = None
    ) -> list[Recollection]:
        """What was learned that resonates with the query, the best first, each with its time.

        Raises ValueError without temporal_smf or a tokenizer, and as `EpisodicMemory.recall` does.
        """
        memory = _needed(self.memory, "recall", "temporal_smf")
        ids = _encode(model, query)
        if ids:  # within a text the query's first word has other tokens: they include the space
            ids += _encode(model, f" {query.lstrip()}")
        return memory.recall(ids, now=self.clock if now is None else now, count=count)

    def recollected_field(self, now: float | None = None) -> Tensor | None:
        """What all moments left (H,C,S), each by its weight at `now`; None without any."""
        if self.memory is None:
            return None
        return self.memory.field(self.clock if now is None else now)

    def recollected_texts(self, now: float | None = None) -> list[tuple[tuple[int, ...], float]]:
        """Token ids of all moments, oldest first, each with its weight at `now`."""
        if self.memory is None:
            return []
        now = self.clock if now is None else now
        return [(m.token_ids, self.memory.weight(m, now)) for m in self.memory.moments]

    # --- entanglement

    def join(self, network: EntanglementNetwork) -> str:
        """Become a node of a network of agents, and return its name.

        ValueError without entanglement, or where the network has a node of that name.
        """
        node_id = _needed(self.node_id, "join", "entanglement")
        network.add_node(node_id)
        return node_id


def _needed(component: Component | None, method: str, key: str) -> Component:
    if component is None:
        raise ValueError(f"{method} needs {key}.enabled=true")
    return component


@functools.cache
def _default_tokenizer() -> ResoTokenizer:
    return create_default_tokenizer()


def _tokenizer_of(model: "ResoLLMModel") -> ResoTokenizer:
    """The model's tokenizer; the default one where its vocabulary is the model's."""
    if model.tokenizer is not None:
        return model.tokenizer
    default, size = _default_tokenizer(), model.config.vocab_size
    if default.vocab_size != size:
        raise ValueError(
            f"text needs a tokenizer, and the default one has {default.vocab_size} tokens where "
            f"the model has {size}: set model.tokenizer"
        )
    return default


def _encode(model: "ResoLLMModel", text: str) -> list[int]:
    return _tokenizer_of(model).encode(text)


@torch.no_grad()
def _field_of(model: "ResoLLMModel", ids: list[int]) -> Tensor:
    """What the text leaves in the empty memory field (H,C,S).

    A text longer than the context is read in pieces; the field is carried from one to the next.
    """
    state, size = model.init_state(), model.config.max_seq_len - 1
    bos, like = _tokenizer_of(model).bos_id, model.head_weight
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(ids), size):
            piece = torch.tensor([[bos, *ids[start : start + size]]], device=like.device)
            carried = model.init_state()._replace(field=state.field)
            state = model.trunk(piece, carried).state
    finally:
        model.train(was_training)
    return state.field.field[0]


class SessionMethods:
    """What the v2 README calls on the model itself; each is one call of the model's session."""

    session: Session

    def create_goal(self, description: str, goal_type: str = "exploratory") -> Goal:
        """See `Session.create_goal`."""
        return self.session.create_goal(self, description, goal_type)

    def get_active_goals(self) -> tuple[Goal, ...]:
        """See `Session.get_active_goals`."""
        return self.session.get_active_goals()

    def get_attention_foci(self) -> tuple[Focus, ...]:
        """See `Session.get_attention_foci`."""
        return self.session.get_attention_foci()

    def bind_concept(self, name: str, token_id: int) -> Binding:
        """See `ConceptSpace.bind_concept`."""
        return self.session.bind_concept(name, token_id)

    def compose(self, names: Sequence[str]) -> Interference:
        """See `ConceptSpace.compose`."""
        return self.session.compose(names)

    def unbind(self, pattern: Tensor, name: str) -> Unbinding:
        """See `ConceptSpace.unbind`."""
        return self.session.unbind(pattern, name)

    def get_stability(self) -> float:
        """See `Session.get_stability`."""
        return self.session.get_stability()

    def get_suggested_temperature(self, current_temp: float) -> float:
        """See `StabilityMonitor.suggested_temperature`."""
        return self.session.get_suggested_temperature(current_temp)

    def update_memory(
        self, text: str, importance: float = 1.0, time: float | None = None
    ) -> Moment:
        """See `Session.update_memory`."""
        return self.session.update_memory(self, text, importance, time)

    def recall(self, query: str, count: int = 5) -> list[Recollection]:
        """See `Session.recall`."""
        return self.session.recall(self, query, count)
