"""ResoLLM: the network with its session and tokenizer, and the methods of the v2 README.

`network.py` is the architecture; `session/` keeps goals, foci, concepts and episodes. The methods
here turn texts into the values that a session keeps. A method that needs a disabled component
raises ValueError naming the key that enables it.

Shapes: D width, H heads, C channels and S = 16 components of the field.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from reso_llm.config import ResoLLMConfig
from reso_llm.network import ResoNetwork, ResoState
from reso_llm.session.agency import Goal
from reso_llm.session.concepts import Binding, Interference, Unbinding
from reso_llm.session.episodes import Moment, Recollection, ids_to_remember
from reso_llm.session.foci import Focus
from reso_llm.session.session import Session
from reso_llm.stages.echo import EchoState, TextCounts
from reso_llm.stages.goal import text_vector
from reso_llm.stages.prsc import TABLES
from reso_llm.tokenizer import ResoTokenizer, create_default_tokenizer
from run_core.checkpoint import get_document, load_checkpoint, save_directory
from run_core.run import resolve


class ResoLLMModel(ResoNetwork):
    """The network with its session and tokenizer, and the methods of the v2 README."""

    def __init__(self, config: ResoLLMConfig) -> None:
        super().__init__(config)
        self.tokenizer: ResoTokenizer | None = None
        self.session = Session(config)

    def recollected_state(
        self,
        texts: Sequence[tuple[Sequence[int], float]] = (),
        batch: int = 1,
        capacity: int | None = None,
    ) -> ResoState:
        """The state that a generation starts from: `init_state` with the field of all episodes.

        texts: stored texts, as ids and weight, that the echo reads first
        (`reso_llm.generation.remembered`).
        """
        state = self.init_state(batch, capacity)
        field = self.session.recollected_field()
        if field is not None and self.field is not None:
            own = state.stages["temporal_smf"]
            recollected = own._replace(field=field.to(own.field).expand_as(own.field))
            state = state.with_stage("temporal_smf", recollected)
        if self.echo is not None and texts:
            counts = TextCounts.of_texts(texts, self.echo.max_order)
            state = state.with_stage("echo", EchoState((counts,) * batch))
        return state

    def save_pretrained(self, directory: str | Path) -> None:
        """Write weights (safetensors) and configuration, with a sha256 manifest, to a directory.

        Raises CheckpointError when the disk refuses, ValueError for non-finite weights.
        """
        directory = Path(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        save_directory(
            directory,
            tensors={"model": self.state_dict()},
            documents={"config.json": self.config.to_dict()},
        )

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "ResoLLMModel":
        """The model of a `save_pretrained` directory, a checkpoint, or a run (its best one).

        Every byte is verified first. Raises CheckpointError (missing, damaged) or ValueError (a
        configuration this version does not read, weights that do not fit it).
        """
        path = resolve(directory)
        tensors, documents = load_checkpoint(path)
        config = ResoLLMConfig.from_dict(get_document(documents, path, "config.json"))
        return cls.from_weights(config, tensors["model"], path)

    @classmethod
    def from_weights(
        cls, config: ResoLLMConfig, weights: dict[str, Tensor], source: str | Path
    ) -> "ResoLLMModel":
        """The model of a configuration with weights read from `source`.

        Nothing is built for a configuration that needs more numbers than `weights` holds. Raises
        ValueError as `load_weights` does.
        """
        held = sum(tensor.numel() for tensor in weights.values())
        if config.least_parameters > held:
            raise ValueError(
                f"{source}: weights do not fit the configuration: it needs at least "
                f"{config.least_parameters:,} numbers, and there are {held:,}"
            )
        with _Undrawn():
            model = cls(config)
        model.load_weights(weights, source)
        return model

    def load_weights(self, weights: dict[str, Tensor], source: str | Path) -> None:
        """Take over weights read from `source`.

        Raises ValueError naming keys and shapes that differ, weights that are not floating point
        and tables that are.
        """
        own = {name: tuple(t.shape) for name, t in self.state_dict().items()}
        read = {name: tuple(t.shape) for name, t in weights.items()}
        if self.prsc is not None:  # its size depends on the text it was fitted to
            own |= {n: read[n] for n in map("prsc.{}".format, TABLES) if n in read}
        wrong = sorted(n for n in own.keys() | read.keys() if own.get(n) != read.get(n))
        if wrong:
            shown = [f"{n} is {read.get(n)}, not {own.get(n)}" for n in wrong[:3]]
            raise ValueError(f"{source}: weights do not fit the configuration: {'; '.join(shown)}")
        mine = self.state_dict()
        for name, tensor in weights.items():
            if tensor.is_floating_point() != mine[name].is_floating_point():
                kinds = f"of type {tensor.dtype}, not {mine[name].dtype}"
                raise ValueError(f"{source}: weights do not fit: {name} is {kinds}")
        if self.prsc is not None:
            self.prsc.make_room({n.removeprefix("prsc."): t for n, t in weights.items()})
        self.load_state_dict(weights)

    # --- agency

    def create_goal(self, description: str, goal_type: str = "exploratory") -> Goal:
        """Pursue a goal; its vector (D,) is the pooled token embedding of the description.

        Raises ValueError without agency or a tokenizer, and as `Agency.create_goal` does.
        """
        return self.session.create_goal(description, goal_type, self.text_vector(description))

    def get_active_goals(self) -> tuple[Goal, ...]:
        """Goals still pursued, the oldest first. ValueError without agency."""
        return self.session.get_active_goals()

    def get_attention_foci(self) -> tuple[Focus, ...]:
        """The foci of attention, the most salient first. ValueError without agency."""
        return self.session.get_attention_foci()

    # --- concepts

    def bind_concept(self, name: str, token_id: int) -> Binding:
        """See `ConceptSpace.bind_concept`. ValueError without prsc."""
        return self.session.bind_concept(name, token_id)

    def compose(self, names: Sequence[str]) -> Interference:
        """See `ConceptSpace.compose`. ValueError without prsc."""
        return self.session.compose(names)

    def unbind(self, pattern: Tensor, name: str) -> Unbinding:
        """See `ConceptSpace.unbind`. ValueError without prsc."""
        return self.session.unbind(pattern, name)

    # --- stability

    def get_stability(self) -> float:
        """0 (damage expected) to 1; 1 before the first token. ValueError without stability."""
        return self.session.get_stability()

    def get_suggested_temperature(self, current_temp: float) -> float:
        """See `StabilityMonitor.suggested_temperature`. ValueError without stability."""
        return self.session.get_suggested_temperature(current_temp)

    # --- memory

    def update_memory(
        self, text: str, importance: float = 1.0, time: float | None = None, source: str = ""
    ) -> Moment:
        """Store a text: its tokens, and its field.

        time is when the text was learned, by default now; the clock moves on to it. source is the
        node of a network that told it. Raises
        ValueError where temporal_smf and echo are both off, without a tokenizer, for a text without
        a token, and as `EpisodicMemory.store` does.
        """
        self.session.require_memory("update_memory")
        ids = ids_to_remember(text, self._encode)
        field = self._field_after(ids)
        return self.session.remember(
            text, ids, importance=importance, time=time, field=field, source=source
        )

    def recall(self, query: str, count: int = 5, now: float | None = None) -> list[Recollection]:
        """The stored texts that resonate with the query, the best first, each with its time.

        Raises ValueError where temporal_smf and echo are both off, and as `EpisodicMemory.recall`
        does.
        """
        return self.session.recall(query, count, now)

    # --- texts as values

    def _encode(self, text: str) -> list[int]:
        """Ids of a text, by the model's tokenizer or by the default one where that fits."""
        return self._text_tokenizer().encode(text)

    def _text_tokenizer(self) -> ResoTokenizer:
        if self.tokenizer is not None:
            return self.tokenizer
        default, size = _default_tokenizer(), self.config.vocab_size
        if default.vocab_size != size:
            raise ValueError(
                f"text needs a tokenizer, and the default one has {default.vocab_size} tokens "
                f"where the model has {size}: set model.tokenizer"
            )
        return default

    @torch.no_grad()
    def text_vector(self, text: str) -> Tensor:
        """The pooled token embedding of a text (D,). ValueError without a tokenizer that fits."""
        return text_vector(self.embedding.weight, self._encode(text))

    @torch.no_grad()
    def _field_after(self, ids: list[int]) -> Tensor | None:
        """The field (H,C,S) after reading a text from the empty one; None without that stage.

        A text longer than the context is read in pieces; the field is carried from one to the next.
        """
        if self.field is None:
            return None
        empty, size = self.init_state(), self.config.max_seq_len - 1
        carried, field = empty, empty.stages["temporal_smf"]
        bos, device = self._text_tokenizer().bos_id, self.head_weight.device
        was_training = self.training
        self.eval()
        try:
            for start in range(0, len(ids), size):
                piece = torch.tensor([[bos, *ids[start : start + size]]], device=device)
                field = self.trunk(piece, carried).state.stages["temporal_smf"]
                carried = empty.with_stage("temporal_smf", field)
        finally:
            self.train(was_training)
        return field.field[0]


class _Undrawn(TorchFunctionMode):
    """Meanwhile `torch.nn.init` leaves tensors as they are: weights to be read need no drawing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


@functools.cache
def _default_tokenizer() -> ResoTokenizer:
    return create_default_tokenizer()
