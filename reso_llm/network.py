"""The network: `ResoNetwork.trunk` and `forward` are the architecture diagram.

    ids -> bindings -> gate
    ids -> embedding -> (+ goal) -> phases -> blocks -> field -> norm -> head (+ bindings, + echo)

Everything here is pure: state goes in as an argument and comes out as a value, and `forward`
changes no attribute. A stage that is switched off does not exist; with all of them off the network
is a modern plain decoder.

Shapes: B batch, T time, D width, H heads, K head width, V vocabulary, L layers, N oscillators.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reso_llm.config import ResoLLMConfig
from reso_llm.stages import Stage, register_constants
from reso_llm.stages.attention import AttentionReceived
from reso_llm.stages.block import Block, Shared
from reso_llm.stages.cache import KVCache
from reso_llm.stages.echo import Echo, TargetEvidence
from reso_llm.stages.embedding import TokenEmbedding
from reso_llm.stages.field import SedenionField
from reso_llm.stages.fused import linear, linear_cross_entropy, linear_nats, rms_norm, soft_cap
from reso_llm.stages.gate import CoherenceGate, DeepTokens
from reso_llm.stages.goal import GoalMap
from reso_llm.stages.kuramoto import Synchronisation
from reso_llm.stages.noise import TAIL, FeedForwardNoise, feed_forward_noise
from reso_llm.stages.prsc import BindingMemory, Evidence
from reso_llm.stages.rotary import rotary_table, turned_by_phases


class ResoState(NamedTuple):
    """Everything the network remembers of the tokens before: a value, never changed in place.

    stages holds the state of every stage that has one, by its name in the configuration.
    """

    length: int  # tokens read
    tail: Tensor  # (B,W) ids of the newest tokens, -1 for none
    caches: tuple[KVCache, ...]  # one for each layer
    stages: dict[str, tuple]
    padding: Tensor | None = (
        None  # (B,) of the `length` tokens, the number of padding ones, at the left
    )

    @property
    def capacity(self) -> int:
        """Tokens the caches have room for; more than that only with an attention window."""
        return self.caches[0].buffer.keys.shape[2]

    def with_stage(self, name: str, value: tuple | None) -> "ResoState":
        """The state with another value for one stage, or without that stage's for None."""
        others = {stage: kept for stage, kept in self.stages.items() if stage != name}
        return self._replace(stages=others if value is None else others | {name: value})

    def padded_columns(self, time: int) -> Tensor | None:
        """Which of the columns (B, length + time) are padding; None without padding."""
        if self.padding is None:
            return None
        columns = torch.arange(self.length + time, device=self.padding.device)
        return columns < self.padding.unsqueeze(1)


class Trunk(NamedTuple):
    """Input of the head: normalised x (B,T,D) and the memory's evidence; state and diagnostics."""

    x: Tensor
    evidence: Evidence | None
    state: ResoState | None
    diagnostics: dict[str, Tensor]


class ResoOutput(NamedTuple):
    """Logits (B,T,V), the state after these tokens (None in training), and diagnostics by name.

    coherence (B,T): the Kuramoto order parameter; deep (B,T): whether the coherence gate let the
    token go past layer 1; hidden (B,T,D): the final, normalised x.
    """

    logits: Tensor
    state: ResoState | None
    diagnostics: dict[str, Tensor]


class ResoNetwork(nn.Module):
    """The network of `config`; with every stage disabled, a modern plain decoder."""

    def __init__(self, config: ResoLLMConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embedding = TokenEmbedding(c.vocab_size, c.dim, c.prime_embedding)
        self.prsc = BindingMemory(c.vocab_size, c.dim, c.prsc) if c.prsc.enabled else None
        self.kuramoto = Synchronisation(c.dim, c.oscillators) if c.kuramoto.enabled else None
        gains = torch.empty(c.oscillators.num_oscillators)
        self.phase_gain = nn.Parameter(gains) if c.kuramoto.enabled else None
        self.gate = CoherenceGate(c.coherence_gate) if c.coherence_gate.enabled else None
        self.goal = GoalMap(c.dim) if c.agency.enabled else None
        plain = c.num_layers - c.num_value_embeddings
        self.value_tables = nn.ModuleList(
            nn.Embedding(c.vocab_size, c.dim) for _ in range(c.num_value_embeddings)
        )
        self.blocks = nn.ModuleList(
            Block(c, has_value_embedding=i >= plain) for i in range(c.num_layers)
        )
        self.field = SedenionField(c.dim, c.temporal_smf) if c.temporal_smf.enabled else None
        self.head = None if c.tie_embeddings else linear(c.dim, c.vocab_size)
        self.echo = Echo(c.dim, c.echo) if c.echo.enabled else None
        register_constants(self)
        self.reset_parameters()

    def constants(self) -> dict[str, Tensor]:
        """The rotary table (T,K/2,2) of all positions."""
        c = self.config
        return {"rotary": rotary_table(0, c.max_seq_len, c.head_dim, c.rotary_base)}

    def reset_parameters(self) -> None:
        """Zero the phases' gain, and the head unless it is the embedding; small value tables."""
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
        if self.phase_gain is not None:
            nn.init.zeros_(self.phase_gain)
        for table in self.value_tables:
            nn.init.normal_(table.weight, std=self.config.dim**-0.5)

    def stages(self) -> dict[str, Stage]:
        """The stages of this network by their name in the configuration.

        The token embedding stands for `prime_embedding`, and exists without primes too.
        """
        stages = {
            "prime_embedding": self.embedding,
            "prsc": self.prsc,
            "kuramoto": self.kuramoto,
            "coherence_gate": self.gate,
            "agency": self.goal,
            "temporal_smf": self.field,
            "echo": self.echo,
        }
        return {name: stage for name, stage in stages.items() if stage is not None}

    def init_state(self, batch: int = 1, capacity: int | None = None) -> ResoState:
        """The state before the first token, for up to `capacity` (default max_seq_len) tokens.

        With an attention window the caches hold two windows and never fill up.
        """
        c, like = self.config, self.embedding.table.weight
        room = 2 * c.attention_window or capacity or c.max_seq_len
        shape = (batch, c.num_heads, room, c.head_dim)
        states = {name: stage.init_state(batch, like) for name, stage in self.stages().items()}
        return ResoState(
            length=0,
            tail=torch.full((batch, self.tail_length), -1, device=like.device),
            caches=tuple(KVCache.empty(*shape, like=like) for _ in self.blocks),
            stages={name: state for name, state in states.items() if state is not None},
        )

    def forward(
        self,
        ids: Tensor,
        state: ResoState | None = None,
        goal: Tensor | None = None,
        generator: torch.Generator | None = None,
        fold: Tensor | None = None,
    ) -> ResoOutput:
        """ids (B,T) -> logits (B,T,V), with the state carried on where one is given.

        goal (B,D) is a pooled embedding to steer towards; `generator` is the source of stochastic
        resonance, which is silent without one; fold (B,) is for training, as in `loss`. Raises
        ValueError where the tokens do not fit.
        """
        x, evidence, after, diagnostics = self.trunk(ids, state, goal, generator, fold)
        # Head: the network's own logits, bounded.
        logits = soft_cap(F.linear(x, self.head_weight), self.config.logit_soft_cap)
        # PRSC: evidence of the binding memory, weighed by the final x.
        if evidence is not None:
            values = self.prsc.weigh(evidence, x).to(logits.dtype)
            logits = logits.scatter_add(-1, evidence.ids, values)
        # Echo: what was read before, in this text and in stored ones.
        if self.echo is not None:
            before = None if state is None else state.stages["echo"]
            logits, counts = self.echo(logits, x, ids, before)
            after = None if after is None else after.with_stage("echo", counts)
        return ResoOutput(logits, after, diagnostics | {"hidden": x})

    def trunk(
        self,
        ids: Tensor,
        state: ResoState | None = None,
        goal: Tensor | None = None,
        generator: torch.Generator | None = None,
        fold: Tensor | None = None,
        weight: Tensor | None = None,
        tail: Tensor | None = None,
        received: AttentionReceived | None = None,
    ) -> Trunk:
        """Everything before the head. fold (B,), weight (V,D) and tail (B,W) are for training.

        received: sums up the attention of this pass over one row.
        """
        before = state or self._nothing_before(ids, tail)
        known, after = before.stages, dict(before.stages)
        rotary = self._rotary(before, ids.shape[1], bounded=state is not None)
        # Prime token embedding, with a smear of the token before.
        x, after["prime_embedding"] = self.embedding(ids, known.get("prime_embedding"), weight)
        # PRSC: evidence of the binding memory after each token; `forward` weighs it.
        evidence = None
        if self.prsc is not None:
            evidence = self.prsc(ids, self._newest(before, self.prsc.tail_length), fold)
        # Coherence gate: the tokens that the memory doubts go past layer 1.
        deep = None if self.gate is None else self.gate(evidence.doubt)
        # Agency: a goal shifts what every position looks for.
        if goal is not None:
            x = x + self._mapped(goal).unsqueeze(1)
        # Kuramoto synchronisation: phases turn attention, coherence is read by the monitors.
        coherence = None
        if self.kuramoto is not None:
            x, theta, coherence, after["kuramoto"] = self.kuramoto(x, known.get("kuramoto"))
            rotary = turned_by_phases(rotary, theta, self.phase_gain)
        # ResoFormer blocks.
        noise = self._feed_forward_noise(before.tail, ids, generator)
        padding = before.padded_columns(ids.shape[1])
        shared = Shared(x, rotary, noise, padding, received)
        x, caches = self._run_blocks(ids, x, shared, before.caches, deep)
        # Temporal sedenion memory.
        if self.field is not None:
            x, after["temporal_smf"] = self.field(x, known.get("temporal_smf"))
        measured = {"coherence": coherence, "deep": deep}
        diagnostics = {name: value for name, value in measured.items() if value is not None}
        if state is not None:
            state = ResoState(
                length=before.length + ids.shape[1],
                tail=torch.cat((before.tail, ids), dim=1)[:, ids.shape[1] :],
                caches=tuple(caches),
                stages=after,
                padding=before.padding,
            )
        return Trunk(rms_norm(x), evidence, state, diagnostics)

    def _run_blocks(
        self,
        ids: Tensor,
        x: Tensor,
        shared: Shared,
        before: tuple[KVCache | None, ...],
        deep: Tensor | None,
    ) -> tuple[Tensor, list[KVCache | None]]:
        """The ResoFormer blocks: x and their caches. The first one reads every token."""
        plain = len(self.blocks) - len(self.value_tables)
        tokens = None if deep is None or deep.all() else DeepTokens.of(deep)
        caches = []
        for i, block in enumerate(self.blocks):
            value = self.value_tables[i - plain](ids) if i >= plain else None
            x, cache = block(x, shared, value, before[i], tokens if i else None)
            caches.append(cache)
        return x, caches

    def _feed_forward_noise(
        self, tail: Tensor, ids: Tensor, generator: torch.Generator | None
    ) -> FeedForwardNoise | None:
        """Stochastic resonance of these tokens; None where it is off or nothing repeats."""
        resonance = self.config.stochastic_resonance
        if generator is None or not resonance.enabled:
            return None
        return feed_forward_noise(tail, ids, resonance.noise_amplitude, generator)

    def loss(
        self,
        ids: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        goal: Tensor | None = None,
        fold: Tensor | None = None,
        weight: Tensor | None = None,
        tail: Tensor | None = None,
        evidence: TargetEvidence | None = None,
    ) -> Tensor:
        """Mean nats per target (B,T) where mask (B,T) is set; logits are never held whole.

        fold (B,): which span of the fitted text each row is from (see `prsc.py`). tail (B,W): the
        ids before, -1 for none; evidence: what the echo knows of the targets. Without these two
        nothing is known before the window. weight (V,D): `self.embedding.weight`, where the caller
        has it already.
        """
        weight = self.embedding.weight if weight is None else weight
        x, bindings, _, _ = self.trunk(ids, None, goal, None, fold, weight, tail)
        parts = self._prediction(ids, targets, x, bindings, evidence, weight)
        mask = mask.flatten() if mask is not None else None
        return linear_cross_entropy(**parts, mask=mask)

    @torch.no_grad()
    def nats(
        self,
        ids: Tensor,
        targets: Tensor,
        goal: Tensor | None = None,
        tail: Tensor | None = None,
        evidence: TargetEvidence | None = None,
    ) -> Tensor:
        """Nats (B,T) of every target (B,T); arguments as in `loss`."""
        x, bindings, _, _ = self.trunk(ids, None, goal, tail=tail)
        parts = self._prediction(ids, targets, x, bindings, evidence, self.embedding.weight)
        return linear_nats(**parts).view_as(targets)

    def _prediction(
        self,
        ids: Tensor,
        targets: Tensor,
        x: Tensor,
        bindings: Evidence | None,
        evidence: TargetEvidence | None,
        weight: Tensor,
    ) -> dict[str, Any]:
        """What `linear_nats` needs: head, PRSC and echo, as in `forward`, for the targets alone."""
        sparse = support = None
        if bindings is not None:
            values = self.prsc.weigh(bindings, x)
            sparse = bindings.ids.flatten(0, 1), values.flatten(0, 1)
        if self.echo is not None:
            evidence = evidence or self.echo.window_evidence(ids, targets)
            support = tuple(part.flatten() for part in self.echo.support(x, evidence))
        return {
            "x": x.flatten(0, 1),
            "weight": weight if self.head is None else self.head.weight,
            "targets": targets.flatten(),
            "cap": self.config.logit_soft_cap,
            "sparse": sparse,
            "support": support,
        }

    @torch.no_grad()
    def fit_bindings(self, tokens: np.ndarray, directory: Path | None = None) -> None:
        """Let the binding memory, where there is one, count the training text (N,) of ids.

        What it counts is kept in `directory`, which is of this text alone, for the next time.
        The coherence gate takes its threshold from the memory's doubts about parts of that text.
        """
        if self.prsc is None:
            return
        self.prsc.fit(tokens, directory)
        if self.gate is not None:
            self.gate.fit(self.prsc.doubts_within(tokens))

    @property
    def head_weight(self) -> Tensor:
        """Output map (V,D): the head's, or the token embedding's table where the two are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def tail_length(self) -> int:
        """The number of past ids that the stages read."""
        bindings = self.prsc.tail_length if self.prsc else 0
        return max(bindings, TAIL if self.config.stochastic_resonance.enabled else 0)

    def _nothing_before(self, ids: Tensor, tail: Tensor | None) -> ResoState:
        """The state that training begins with: at most a tail (B,W), and no room in the caches."""
        if tail is None:
            tail = ids.new_full((len(ids), self.tail_length), -1)
        return ResoState(0, tail, (None,) * len(self.blocks), {})

    def _newest(self, before: ResoState, count: int) -> Tensor:
        """Ids (B,count) of the newest tokens."""
        return before.tail[:, before.tail.shape[1] - count :]

    def _mapped(self, goal: Tensor) -> Tensor:
        if self.goal is None:
            raise ValueError("a goal needs the agency layer: set agency.enabled=true")
        return self.goal(goal)

    def _rotary(self, before: ResoState, time: int, bounded: bool) -> Tensor:
        """Rotary table of the next `time` positions; ValueError where they do not fit."""
        end = before.length + time
        if end <= len(self.rotary) and not bounded:
            return self.rotary[:time]
        windowed = self.config.attention_window > 0
        room = before.capacity if bounded else len(self.rotary)
        if end > min(room, len(self.rotary)) and not (windowed and bounded):
            raise ValueError(
                f"{before.length} + {time} tokens do not fit: the state has room for {room}, "
                f"max_seq_len is {len(self.rotary)}"
            )
        if end <= len(self.rotary):
            return self.rotary[before.length : end]
        c = self.config
        table = rotary_table(before.length, end, c.head_dim, c.rotary_base)
        return table.to(self.rotary)
