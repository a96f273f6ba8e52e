"""One more token of one row on a CPU: `ResoLLMModel.forward` in numpy, for speed.

Decoding one row is bound by launches: some 290 small torch kernels a token at 4 to 7 us each,
while all matrix-vector products together take about 0.35 ms. A small numpy operation costs about
0.5 us, and its product with a single row is no slower than torch's: the small model decodes about
three times as fast as with torch (`benchmarks/speed.py`). The result is the model's up to rounding.
`Stepper.step` is the diagram of `ResoLLMModel.trunk` once more, in the same order;
`reso_llm.stepping` holds its stages. The model is the specification: prompts, batches, training
and everything else run there, and the state goes both ways.

Shapes: D width, V vocabulary, L layers.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from reso_llm.generation.threads import OneThread
from reso_llm.model import ResoLLMModel
from reso_llm.network import ResoState
from reso_llm.stages.arrays import matrix, rms_norm, view
from reso_llm.stages.block import BlockStep
from reso_llm.stages.cache import Cache, Scratch
from reso_llm.stages.echo import MAX_CONTEXT, echoed
from reso_llm.stages.embedding import EmbeddingStep
from reso_llm.stages.field import FieldStep
from reso_llm.stages.kuramoto import SynchronisationStep
from reso_llm.stages.prsc import BindingStep
from reso_llm.stages.rotary import RotaryStep


class Step(NamedTuple):
    """What the model says after a token; arrays of its own, not touched by later steps.

    logits (V,) and hidden (D,), the final normalised x, are float32; coherence in [0, 1] is NaN
    without oscillators; layers_used of L were not skipped by the coherence gate.
    """

    logits: ndarray
    hidden: ndarray
    coherence: float
    layers_used: int


class Stepper:
    """Reads tokens one at a time from where a state left off; the state itself stays as it is.

    The weights are views: while a stepper is in use the model must not be trained or moved.
    """

    @staticmethod
    def supports(model: ResoLLMModel) -> bool:
        """Whether the model is on a CPU, in float32 and eval mode, without stochastic resonance."""
        return (
            not model.training
            and not model.config.stochastic_resonance.enabled
            and all(p.dtype is torch.float32 and p.is_cpu for p in model.parameters())
        )

    @torch.no_grad()
    def __init__(
        self,
        model: ResoLLMModel,
        state: ResoState,
        goal: Tensor | None = None,
        *,
        attending: bool = False,
    ) -> None:
        """The model, the state of one row, and the goal (1,D) that the row is steered towards.

        With `attending`, attention received is summed up in `received`.
        Raises ValueError for a model that `supports` refuses, more than one row, a state of
        another model, and a goal of another shape or without the agency layer.
        """
        if not self.supports(model):
            raise ValueError(
                "a stepper needs a float32 model on a CPU, in eval mode, without "
                "stochastic resonance: use the model itself"
            )
        self._check(model, state)
        c = model.config
        self._config, self._given, self._length = c, state, state.length
        self._recent = state.tail[0].tolist()
        self._room = math.inf if c.attention_window else min(state.capacity, c.max_seq_len)
        self._goal = self._goal_vector(model, goal)
        self.embedding = EmbeddingStep(model.embedding, state.last_embedding)
        self.prsc = BindingStep(model.prsc, self._recent) if model.prsc else None
        self.kuramoto = (
            SynchronisationStep(model.kuramoto, state.phases) if model.kuramoto else None
        )
        self.rotary = RotaryStep(model.rotary, c.rotary_base, model.phase_gain)
        self._scratch, padding = Scratch(c), 0 if state.padding is None else int(state.padding)
        self._received = None
        if attending:
            self._received = np.zeros(max(c.max_seq_len, state.length), np.float32)
        self.blocks = [
            BlockStep(block, self._cache(cache, padding), self._scratch)
            for block, cache in zip(model.blocks, state.caches, strict=True)
        ]
        plain = c.num_layers - c.num_value_embeddings
        self.value_tables = [None] * plain + [view(t.weight) for t in model.value_tables]
        self.memory = FieldStep(model.memory, state.field) if model.memory else None
        self._head = self.embedding.table.T if model.head is None else matrix(model.head)

    def step(self, token: int) -> Step:
        """What the model says after one more token.

        Raises ValueError for a token beyond the vocabulary, and where no room is left.
        """
        self._check_token(token)
        if self._received is not None:
            self._scratch.received = self._columns()
        # torch is silent about damaged weights too: they show in the logits.
        with OneThread(), np.errstate(all="ignore"):
            found = self.prsc.look_up(token) if self.prsc else []
            x, coherence, layers_used = self._trunk(token)
            logits = np.dot(x, self._head)
            self._soft_cap(logits)
            if self.prsc:
                self.prsc.add(found, x, logits)
        history = [*self._recent, token]
        logits = self._echoed(logits, history)
        self._recent = history[1:]
        self._length += 1
        return Step(logits, x, coherence, layers_used)

    def _trunk(self, token: int) -> tuple[ndarray, float, int]:
        """Final normalised x (D,), coherence, and how many layers were used."""
        x = self.embedding(token)
        if self._goal is not None:
            x += self._goal
        theta, coherence = self.kuramoto(x) if self.kuramoto else (None, math.nan)
        turn = self.rotary(self._length, theta)
        x0, left, layers_used = x.copy(), 1.0, 0
        for block, table in zip(self.blocks, self.value_tables, strict=True):
            value = None if table is None else table[token]
            left = block(x, x0, turn, value, coherence, left)
            layers_used += left != 0
        if self.memory:
            self.memory(x)
        return rms_norm(x, out=x), coherence, layers_used

    @property
    def state(self) -> ResoState:
        """The value after the tokens so far, for the model or another stepper to go on with."""
        given = self._given
        return given._replace(
            length=self._length,
            tail=given.tail.new_tensor([self._recent]),
            last_embedding=self.embedding.state if self._length else None,
            phases=self.kuramoto.state if self.kuramoto else None,
            caches=tuple(block.attention.cache.value for block in self.blocks),
            field=self.memory.state if self.memory else None,
        )

    def _cache(self, cache: tuple, padding: int) -> Cache:
        gone = self._length - cache.length  # tokens that a window has dropped
        return Cache(cache, self._config.attention_window, max(0, padding - gone))

    @property
    def received(self) -> ndarray:
        """Attention that each column of the state got from the tokens stepped.

        A sum over tokens, heads and the layers not skipped. ValueError without `attending`.
        """
        if self._received is None:
            raise ValueError("nobody asked for it: expected Stepper(..., attending=True)")
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

    def _echoed(self, logits: ndarray, history: list[int]) -> ndarray:
        """Logits with what the stored texts say next; a text without the newest token is silent."""
        echo = self._given.echo
        if echo is None or not (view(echo.contexts[0]) == history[-1]).any():
            return logits
        newest = torch.tensor([history[len(history) - MAX_CONTEXT :]])
        return echoed(torch.from_numpy(logits)[None, None], echo, newest).numpy().ravel()

    def _check_token(self, token: int) -> None:
        if not 0 <= token < self._config.vocab_size:
            raise ValueError(f"token = {token}: expected 0 to {self._config.vocab_size - 1}")
        if self._length >= self._room:
            raise ValueError(
                f"{self._length} + 1 tokens do not fit: the state has room for "
                f"{self._given.capacity}, max_seq_len is {self._config.max_seq_len}"
            )

    @staticmethod
    def _check(model: ResoLLMModel, state: ResoState) -> None:
        """ValueError unless this is the state of one row of such a model."""
        if len(state.tail) != 1:
            raise ValueError(f"a stepper reads one row, the state has {len(state.tail)}")
        c, cached = model.config, [cache.buffer.keys.shape for cache in state.caches]
        shape = (1, c.num_heads, state.capacity, c.head_dim)
        stages = (model.kuramoto, state.phases), (model.memory, state.field)
        if cached != [shape] * c.num_layers or any((a is None) != (b is None) for a, b in stages):
            raise ValueError("the state is that of another model: its stages or shapes differ")

    @staticmethod
    def _goal_vector(model: ResoLLMModel, goal: Tensor | None) -> ndarray | None:
        if goal is None:
            return None
        if model.goal is None:
            raise ValueError("a goal needs the agency layer: set agency.enabled=true")
        if goal.shape != (1, model.config.dim):
            raise ValueError(f"goal of shape {tuple(goal.shape)}: expected (1, {model.config.dim})")
        return view(model.goal(goal)).ravel()
