"""ResoLLM: the language model. `ResoLLMModel.forward` is the architecture diagram.

Shapes: B batch, T time, D width, H heads, K head width, V vocabulary, L layers.
"""

from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from reso_llm.attention import KVCache, rotary_table
from reso_llm.block import Block
from reso_llm.checkpoint import load_checkpoint, resolve, save_directory
from reso_llm.config import ResoLLMConfig
from reso_llm.embedding import TokenEmbedding
from reso_llm.fused import linear, linear_cross_entropy, rms_norm, soft_cap


class ResoState(NamedTuple):
    """Everything the model remembers of the tokens before: a value, never changed in place."""

    caches: tuple[KVCache, ...]  # one for each layer
    last_embedding: Tensor | None  # (B,1,D), of the newest token

    @property
    def length(self) -> int:
        """How many tokens have been read."""
        return self.caches[0].length

    @property
    def capacity(self) -> int:
        """How many tokens it has room for."""
        return self.caches[0].buffer.keys.shape[2]


class ResoOutput(NamedTuple):
    """Logits (B,T,V), the state after these tokens (None in training), and diagnostics by name."""

    logits: Tensor
    state: ResoState | None
    diagnostics: dict[str, Tensor]


class ResoLLMModel(nn.Module):
    """The language model of `config`; with every component disabled, a modern plain decoder."""

    def __init__(self, config: ResoLLMConfig) -> None:
        super().__init__()
        _refuse_missing_stages(config)
        self.config = config
        self.embedding = TokenEmbedding(config.vocab_size, config.dim)
        plain = config.num_layers - config.num_value_embeddings
        self.value_tables = nn.ModuleList(
            nn.Embedding(config.vocab_size, config.dim) for _ in range(config.num_value_embeddings)
        )
        self.blocks = nn.ModuleList(
            Block(config, has_value_embedding=i >= plain) for i in range(config.num_layers)
        )
        tied = config.tie_embeddings
        self.head = None if tied else linear(config.dim, config.vocab_size)
        table = rotary_table(config.max_seq_len, config.head_dim, config.rope_base)
        self.register_buffer("rotary", table, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero head, unless the embedding's table is the head; small value tables."""
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
        for table in self.value_tables:
            nn.init.normal_(table.weight, std=self.config.dim**-0.5)

    def init_state(self, batch: int = 1, capacity: int | None = None) -> ResoState:
        """The state before the first token, for up to `capacity` (default max_seq_len) tokens."""
        c, like = self.config, self.embedding.table.weight
        shape = (batch, c.num_heads, capacity or c.max_seq_len, c.head_dim)
        return ResoState(tuple(KVCache.empty(*shape, like=like) for _ in self.blocks), None)

    def forward(
        self, ids: Tensor, state: ResoState | None = None, goal: Tensor | None = None
    ) -> ResoOutput:
        """ids (B,T) -> logits (B,T,V), with the state carried on where one is given."""
        x, state, diagnostics = self.trunk(ids, state, goal)
        logits = soft_cap(F.linear(x, self.head_weight), self.config.logit_soft_cap)
        return ResoOutput(logits, state, diagnostics)

    def trunk(
        self, ids: Tensor, state: ResoState | None = None, goal: Tensor | None = None
    ) -> tuple[Tensor, ResoState | None, dict[str, Tensor]]:
        """Everything before the head: ids (B,T) -> normalised x (B,T,D), state, diagnostics."""
        if goal is not None:
            raise ValueError("a goal needs agency, which this version does not have yet")
        start = state.length if state is not None else 0
        room = state.capacity if state is not None else len(self.rotary)
        if start + ids.shape[1] > min(room, len(self.rotary)):
            raise ValueError(
                f"{start} + {ids.shape[1]} tokens do not fit: the state has room for {room}, "
                f"max_seq_len is {len(self.rotary)}"
            )
        rotary = self.rotary[start : start + ids.shape[1]]
        x, last = self.embedding(ids, state.last_embedding if state is not None else None)
        x0, caches = x, []
        plain = len(self.blocks) - len(self.value_tables)
        for i, block in enumerate(self.blocks):
            value = self.value_tables[i - plain](ids) if i >= plain else None
            x, cache = block(x, x0, rotary, value, state.caches[i] if state else None)
            caches.append(cache)
        return rms_norm(x), ResoState(tuple(caches), last) if state else None, {}

    def loss(self, ids: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean nats per target (B,T) where mask (B,T) is set; logits are never held whole."""
        x, _, _ = self.trunk(ids)
        mask = mask.flatten() if mask is not None else None
        cap = self.config.logit_soft_cap
        return linear_cross_entropy(x.flatten(0, 1), self.head_weight, targets.flatten(), mask, cap)

    @property
    def head_weight(self) -> Tensor:
        """Output map (V,D): the head's, or the token embedding's table where the two are tied."""
        return self.embedding.table.weight if self.head is None else self.head.weight

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
        model = cls(ResoLLMConfig.from_dict(documents["config.json"]))
        model.load_weights(tensors["model"], path)
        return model

    def load_weights(self, weights: dict[str, Tensor], source: str | Path) -> None:
        """Take over weights read from `source`; ValueError naming keys and shapes that differ."""
        own = {name: tuple(t.shape) for name, t in self.state_dict().items()}
        read = {name: tuple(t.shape) for name, t in weights.items()}
        wrong = sorted(n for n in own.keys() | read.keys() if own.get(n) != read.get(n))
        if wrong:
            shown = [f"{n} is {read.get(n)}, not {own.get(n)}" for n in wrong[:3]]
            raise ValueError(f"{source}: weights do not fit the configuration: {'; '.join(shown)}")
        self.load_state_dict(weights)


def _refuse_missing_stages(config: ResoLLMConfig) -> None:
    """A stage that is not built yet is refused: it must never be switched on and do nothing."""
    stages = ("agency", "prsc", "temporal_smf", "stability", "entanglement", "stochastic_resonance")
    missing = [name for name in stages if getattr(config, name).enabled]
    if missing:
        raise ValueError(
            f"config enables {', '.join(missing)}, which this version does not have yet; "
            f"set {missing[0]}.enabled=false"
        )
