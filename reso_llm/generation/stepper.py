"""One more token of one row on a CPU: `ResoNetwork.forward` in numpy, for speed.

Decoding one row is bound by launches: hundreds of small torch kernels a token at 4 to 7 us each,
while all matrix-vector products together take about 0.35 ms. A small numpy operation costs about
0.5 us, and its product with a single row is no slower than torch's (`benchmarks/`). The result
is the network's up to rounding. `Stepper.step` and `_trunk` are the diagram of `ResoNetwork` once
more, in the same order; each stage's file holds its one-token form. The network is the
specification: prompts, batches, training and everything else run there, and the state goes both
ways.

Shapes: D width, V vocabulary, L layers.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from reso_llm.generation.threads import OneThread
from reso_llm.network import ResoNetwork, ResoState
from reso_llm.stages import arrays
from reso_llm.stages.arrays import matrix, view
from reso_llm.stages.block import BlockStep
from reso_llm.stages.cache import CacheStep, Scratch
from reso_llm.stages.rotary import RotaryStep


class Step(NamedTuple):
    """Outputs after one token; arrays of its own, which later steps do not change.

    logits (V,) and hidden (D,), the final normalised x, are float32; coherence in [0, 1] is NaN
    without oscillators; the token went through layers_used of L, 1 where it did not go deep.
    """

    logits: ndarray
    hidden: ndarray
    coherence: float
    layers_used: int


class Stepper:
    """Reads tokens one at a time after those of a state, which it does not change.

    The weights are views: while a stepper is in use the model must not be trained or moved.
    """

    @staticmethod
    def supports(network: ResoNetwork) -> bool:
        """Whether a network is on a CPU, in float32 and eval mode, without stochastic resonance."""
        return (
            not network.training
            and not network.config.stochastic_resonance.enabled
            and all(p.dtype is torch.float32 and p.is_cpu for p in network.parameters())
        )

    @torch.no_grad()
    def __init__(
        self,
        network: ResoNetwork,
        state: ResoState,
        goal: Tensor | None = None,
        *,
        attending: bool = False,
    ) -> None:
        """The network, the state of one row, and the goal (1,D) that the row is steered towards.

        With `attending`, `received` sums up the attention received.
        Raises ValueError for a network that `supports` refuses, more than one row, a state of
        another network, and a goal of another shape or without the agency layer.
        """
        if not self.supports(network):
            raise ValueError(
                "a stepper needs a float32 model on a CPU, in eval mode, without "
                "stochastic resonance: use the model itself"
            )
        self._check(network, state)
        c = network.config
        self._config, self._given, self._length = c, state, state.length
        self._recent = state.tail[0].tolist()
        self._room = math.inf if c.attention_window else min(state.capacity, c.max_seq_len)
        self._goal = self._goal_vector(network, goal)
        stages = network.stages()
        steps = {name: stage.stepper(state.stages.get(name)) for name, stage in stages.items()}
        self._steps = {name: step for name, step in steps.items() if step is not None}
        self.embedding = self._steps["prime_embedding"]
        self.prsc, self.kuramoto = self._steps.get("prsc"), self._steps.get("kuramoto")
        self.gate, self.echo = self._steps.get("coherence_gate"), self._steps.get("echo")
        self.field = self._steps.get("temporal_smf")
        self.rotary = RotaryStep(network.rotary, c.rotary_base, network.phase_gain)
        self._scratch, padding = Scratch(c), 0 if state.padding is None else int(state.padding)
        self._received = None
        if attending:
            self._received = np.zeros(max(c.max_seq_len, state.length), np.float32)
        self.blocks = [
            BlockStep(block, self._cache(cache, padding), self._scratch)
            for block, cache in zip(network.blocks, state.caches, strict=True)
        ]
        plain = c.num_layers - c.num_value_embeddings
        self.value_tables = [None] * plain + [view(t.weight) for t in network.value_tables]
        self._head = self.embedding.table.T if network.head is None else matrix(network.head)

    def step(self, token: int) -> Step:
        """Read one more token.

        Raises ValueError for a token beyond the vocabulary, and where no room is left.
        """
        self._check_token(token)
        if self._received is not None:
            self._scratch.received = self._columns()
        history = [*self._recent, token]
        # torch is silent about damaged weights too: they show in the logits.
        with OneThread(), np.errstate(all="ignore"):
            # PRSC: what the binding memory lists after the token, and how much it doubts.
            matches = self.prsc.look_up(history) if self.prsc else []
            # Coherence gate: the tokens that the memory doubts go past layer 1.
            deep = self.gate(self.prsc.doubt) if self.gate else True
            x, coherence = self._trunk(token, deep)
            # Head: the network's own logits, bounded.
            logits = np.dot(x, self._head)
            self._soft_cap(logits)
            # PRSC: evidence of the binding memory, weighed by the final x.
            if self.prsc:
                self.prsc.add(matches, x, logits)
            # Echo: what was read before, in this text and in stored ones.
            if self.echo:
                self.echo.add(self.echo.read(token), x, logits)
        self._recent = history[1:]
        self._length += 1
        return Step(logits, x, coherence, len(self.blocks) if deep else 1)

    def _trunk(self, token: int, deep: bool) -> tuple[ndarray, float]:
        """Final normalised x (D,), and coherence."""
        # Prime token embedding, with a smear of the token before.
        x = self.embedding(token)
        # Agency: a goal shifts what every position looks for.
        if self._goal is not None:
            x += self._goal
        # Kuramoto synchronisation: phases turn attention, coherence is read by the monitors.
        theta, coherence = self.kuramoto(x) if self.kuramoto else (None, math.nan)
        turn = self.rotary(self._length, theta)
        # ResoFormer blocks. The first one reads every token.
        x0 = x.copy()
        for i, (block, table) in enumerate(zip(self.blocks, self.value_tables, strict=True)):
            block(x, x0, turn, None if table is None else table[token], deep or i == 0)
        # Temporal sedenion memory.
        if self.field:
            self.field(x)
        return arrays.rms_norm(x, out=x), coherence

    @property
    def state(self) -> ResoState:
        """The state after the tokens so far, which the network or a stepper can continue."""
        given = self._given
        carried = {name: self._steps[name].state for name in given.stages}
        return given._replace(
            length=self._length,
            tail=given.tail.new_tensor([self._recent]),
            caches=tuple(block.attention.cache.value for block in self.blocks),
            stages=carried,
        )

    def _cache(self, cache: tuple, padding: int) -> CacheStep:
        gone = self._length - cache.length  # tokens that a window has dropped
        return CacheStep(cache, self._config.attention_window, max(0, padding - gone))

    @property
    def received(self) -> ndarray:
        """Attention that each column of the state got from the tokens stepped.

        A sum over tokens, heads and the layers not skipped. ValueError without `attending`.
        """
        if self._received is None:
            raise ValueError("attention received was not summed: use Stepper(..., attending=True)")
        return self._received[: self._length].copy()

    def _columns(self) -> ndarray:
        """Attention received of the columns up to the next token's; a window may need more room."""
        if self._length >= len(self._received):
            self._received = np.concatenate((self._received, np.zeros_like(self._received)))
        return self._received[: self._length + 1]

    def _soft_cap(self, logits: ndarray) -> None:
        cap = self._config.logit_soft_cap
        if cap:
            logits *= 1 / cap
            np.tanh(logits, out=logits)
            logits *= cap

    def _check_token(self, token: int) -> None:
        if not 0 <= token < self._config.vocab_size:
            raise ValueError(f"token = {token}: expected 0 to {self._config.vocab_size - 1}")
        if self._length >= self._room:
            raise ValueError(
                f"{self._length} + 1 tokens do not fit: the state has room for "
                f"{self._given.capacity}, max_seq_len is {self._config.max_seq_len}"
            )

    @staticmethod
    def _check(network: ResoNetwork, state: ResoState) -> None:
        """ValueError unless this is the state of one row of such a network."""
        if len(state.tail) != 1:
            raise ValueError(f"a stepper reads one row, the state has {len(state.tail)}")
        c, cached = network.config, [cache.buffer.keys.shape for cache in state.caches]
        shape = (1, c.num_heads, state.capacity, c.head_dim)
        expected = network.init_state(capacity=1).stages.keys()
        if cached != [shape] * c.num_layers or state.stages.keys() != expected:
            raise ValueError("the state is that of another model: its stages or shapes differ")

    @staticmethod
    def _goal_vector(network: ResoNetwork, goal: Tensor | None) -> ndarray | None:
        if goal is None:
            return None
        if network.goal is None:
            raise ValueError("a goal needs the agency layer: set agency.enabled=true")
        dim = network.config.dim
        if goal.shape != (1, dim):
            raise ValueError(f"goal of shape {tuple(goal.shape)}: expected (1, {dim})")
        return view(network.goal(goal)).ravel()
