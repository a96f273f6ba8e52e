"""One more token of some rows on a CPU: `ResoNetwork.forward` in compiled pieces, for speed.

Decoding a row is bound by launches: hundreds of small torch kernels a token at 4 to 7 us each,
while all matrix-vector products together take about 0.2 ms. Here the products are numpy's, or
oneDNN's for several rows, and what lies between two of them is one function that numba compiled
(`entropy_core/compiled.py`). The result is the network's up to rounding. `Stepper.step` and
`_trunk` are the diagram of `ResoNetwork` once more, in the same order; each stage's file holds its
one-token form. The network is the specification: prompts, training and everything else run there,
and the states go both ways.

Each row has a state, a length and a cache of its own, so rows may come and go and none is padded.

Shapes: R rows, D width, V vocabulary, L layers.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from entropy_core.compiled import available, compiled, exponential, norm
from reso_llm.generation.states import one_row, stacked_stages
from reso_llm.generation.threads import OneThread
from reso_llm.network import ResoNetwork, ResoState
from reso_llm.stages.arrays import Matrix, view
from reso_llm.stages.block import BlockStep
from reso_llm.stages.cache import CacheStep, Scratch
from reso_llm.stages.prsc import Matches
from reso_llm.stages.rotary import RotaryStep


class Step(NamedTuple):
    """Outputs after one token of R rows; arrays of its own, which later steps do not change.

    logits (R,V) and hidden (R,D), the final normalised x, are float32; coherence (R,) in [0, 1] is
    NaN without oscillators; a token went through layers_used (R,) of L, 1 where it did not go deep.
    """

    logits: ndarray
    hidden: ndarray
    coherence: list[float]
    layers_used: list[int]


class Read(NamedTuple):
    """What the layers make of one token of R rows: x (R,D), coherence (R,), the rows that go deep.

    matches: what the binding memory lists after them, None without one.
    """

    x: ndarray
    coherence: list[float]
    deep: list[int]
    matches: Matches | None


class Stepper:
    """Reads tokens one at a time after those of some states, which it does not change.

    The weights are views: while a stepper is in use the model must not be trained or moved.
    """

    @staticmethod
    def supports(network: ResoNetwork) -> bool:
        """Whether a network is on a CPU, in float32 and eval mode, without stochastic resonance.

        Only where numba is installed.
        """
        return (
            not network.training
            and not network.config.stochastic_resonance.enabled
            and all(p.dtype is torch.float32 and p.is_cpu for p in network.parameters())
            and available()
        )

    @torch.no_grad()
    def __init__(
        self,
        network: ResoNetwork,
        states: Sequence[ResoState],
        goals: Tensor | None = None,
        *,
        attending: bool = False,
    ) -> None:
        """The network, the states of R rows, each of one, and the goals (R,D) that steer them.

        With `attending`, `received` sums up the attention received.
        Raises ValueError for a network that `supports` refuses, a state of several rows or of
        another network, and goals of another shape or without the agency layer.
        """
        if not self.supports(network):
            raise ValueError(
                "a stepper needs a float32 model on a CPU, in eval mode, without "
                "stochastic resonance: use the model itself"
            )
        self._check(network, states)
        c = network.config
        self._config, self._given = c, list(states)
        self._lengths = [state.length for state in states]
        self._recent = [state.tail[0].tolist() for state in states]
        self._rooms = [
            math.inf if c.attention_window else min(state.capacity, c.max_seq_len)
            for state in states
        ]
        self._goals = self._goal_vectors(network, goals)
        before, stages = stacked_stages(states), network.stages()
        steps = {name: stage.stepper(before.get(name)) for name, stage in stages.items()}
        self._steps = {name: step for name, step in steps.items() if step is not None}
        self.embedding = self._steps["prime_embedding"]
        self.prsc, self.kuramoto = self._steps.get("prsc"), self._steps.get("kuramoto")
        self.gate, self.echo = self._steps.get("coherence_gate"), self._steps.get("echo")
        self.field = self._steps.get("temporal_smf")
        self.rotary = RotaryStep(network.rotary, c.rotary_base, network.phase_gain)
        self._received = None
        if attending:
            self._received = [
                np.zeros(max(c.max_seq_len, length), np.float32) for length in self._lengths
            ]
        scratch = Scratch(c, len(states))
        self.blocks = [
            BlockStep(block, [self._cache(state, layer) for state in states], scratch)
            for layer, block in enumerate(network.blocks)
        ]
        plain = c.num_layers - c.num_value_embeddings
        self.value_tables = [None] * plain + [view(t.weight) for t in network.value_tables]
        self._head = Matrix(network.head_weight)

    def step(self, tokens: Sequence[int]) -> Step:
        """Read one more token of each row.

        Raises ValueError for a token beyond the vocabulary, and where no room is left.
        """
        read, c = self.read(tokens), self._config
        with OneThread(), np.errstate(all="ignore"):
            # Head: the network's own logits, bounded.
            logits = self._head(read.x)
            if c.logit_soft_cap:
                soft_cap(logits, np.float32(c.logit_soft_cap))
            # PRSC: evidence of the binding memory, weighed by the final x.
            if self.prsc:
                self.prsc.add(read.matches, read.x, logits)
            # Echo: what was read before, in this text and in stored ones.
            if self.echo:
                self.echo.add(self.echo.read(tokens), read.x, logits)
        layers = [c.num_layers if row in read.deep else 1 for row in range(len(tokens))]
        return Step(logits, read.x, read.coherence, layers)

    def read(self, tokens: Sequence[int]) -> "Read":
        """`step` without its logits: the echo does not hear of the tokens.

        Raises ValueError as `step` does.
        """
        for row, token in enumerate(tokens):
            self._check_token(row, token)
        history = [[*recent, token] for recent, token in zip(self._recent, tokens, strict=True)]
        deep, matches = list(range(len(tokens))), None
        # torch is silent about damaged weights too: they show in the logits.
        with OneThread(), np.errstate(all="ignore"):
            # PRSC: what the binding memory lists after the tokens, and how much it doubts.
            if self.prsc:
                matches, doubts = self.prsc.look_up(history)
            # Coherence gate: the tokens that the memory doubts go past layer 1.
            if self.gate:
                deep = self.gate(doubts)
            x, coherence = self._trunk(tokens, deep)
        self._recent = [ids[1:] for ids in history]
        self._lengths = [length + 1 for length in self._lengths]
        return Read(x, coherence, deep, matches)

    def _trunk(self, tokens: Sequence[int], deep: list[int]) -> tuple[ndarray, list[float]]:
        """Final normalised x (R,D), and coherence (R,)."""
        # Prime token embedding, with a smear of the token before.
        x = self.embedding(tokens)
        # Agency: a goal shifts what every position looks for.
        if self._goals is not None:
            x += self._goals
        # Kuramoto synchronisation: phases turn attention, coherence is read by the monitors.
        theta, coherence = None, [math.nan] * len(x)
        if self.kuramoto:
            theta, r = self.kuramoto(x)
            coherence = r.tolist()
        turn = self.rotary(self._lengths, theta)
        # ResoFormer blocks. The first one reads every token.
        x0, received = x.copy(), self._columns()
        for i, (block, table) in enumerate(zip(self.blocks, self.value_tables, strict=True)):
            value = None if table is None else table[tokens]
            block(x, x0, turn, value, deep if i else range(len(x)), received)
        # Temporal sedenion memory.
        if self.field:
            self.field(x)
        norm(x, x)
        return x, coherence

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens that each row has read."""
        return self._lengths

    @property
    def states(self) -> list[ResoState]:
        """The state of each row after the tokens so far, which the network can continue."""
        carried = {name: self._steps[name].state for name in self._given[0].stages}
        return [self._state(row, carried) for row in range(len(self._given))]

    def _state(self, row: int, carried: dict[str, Any]) -> ResoState:
        given = self._given[row]
        return given._replace(
            length=self._lengths[row],
            tail=given.tail.new_tensor([self._recent[row]]),
            caches=tuple(block.attention.caches[row].value for block in self.blocks),
            stages=one_row(carried, row),
        )

    def _cache(self, state: ResoState, layer: int) -> CacheStep:
        cache, padding = state.caches[layer], 0 if state.padding is None else int(state.padding)
        gone = state.length - cache.length  # tokens that a window has dropped
        return CacheStep(cache, self._config.attention_window, max(0, padding - gone))

    def received(self, row: int) -> ndarray:
        """Attention that each column of a row got from the tokens stepped.

        A sum over tokens, heads and the layers not skipped. ValueError without `attending`.
        """
        if self._received is None:
            raise ValueError("attention received was not summed: use Stepper(..., attending=True)")
        return self._received[row][: self._lengths[row]].copy()

    def _columns(self) -> list[ndarray] | None:
        """Attention received of the columns up to the next tokens'; a window may need more room."""
        if self._received is None:
            return None
        for row, (total, length) in enumerate(zip(self._received, self._lengths, strict=True)):
            if length >= len(total):
                self._received[row] = np.concatenate((total, np.zeros_like(total)))
        return [
            total[: length + 1] for total, length in zip(self._received, self._lengths, strict=True)
        ]

    def _check_token(self, row: int, token: int) -> None:
        if not 0 <= token < self._config.vocab_size:
            raise ValueError(f"token = {token}: expected 0 to {self._config.vocab_size - 1}")
        if self._lengths[row] >= self._rooms[row]:
            raise ValueError(
                f"{self._lengths[row]} + 1 tokens do not fit: the state has room for "
                f"{self._given[row].capacity}, max_seq_len is {self._config.max_seq_len}"
            )

    @staticmethod
    def _check(network: ResoNetwork, states: Sequence[ResoState]) -> None:
        """ValueError unless each is the state of one row of such a network."""
        c, expected = network.config, network.init_state(capacity=1).stages.keys()
        for state in states:
            if len(state.tail) != 1:
                raise ValueError(f"a state has {len(state.tail)} rows: expected one row each")
            cached = [cache.buffer.keys.shape for cache in state.caches]
            shape = (1, c.num_heads, state.capacity, c.head_dim)
            if cached != [shape] * c.num_layers or state.stages.keys() != expected:
                raise ValueError("the state is that of another model: its stages or shapes differ")

    def _goal_vectors(self, network: ResoNetwork, goals: Tensor | None) -> ndarray | None:
        if goals is None:
            return None
        if network.goal is None:
            raise ValueError("a goal needs the agency layer: set agency.enabled=true")
        shape = (len(self._given), network.config.dim)
        if goals.shape != shape:
            raise ValueError(f"goals of shape {tuple(goals.shape)}: expected {shape}")
        return view(network.goal(goals))


@compiled
def soft_cap(logits, cap):
    """cap tanh(z / cap) of logits (R,V), in place."""
    two = np.float32(2)
    for r in range(len(logits)):
        for v in range(logits.shape[1]):
            tail = two / (exponential(logits[r, v] * (two / cap)) + np.float32(1))
            logits[r, v] = cap - cap * tail
