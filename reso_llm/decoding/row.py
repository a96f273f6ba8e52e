"""One row of a generation: its signals, controllers, random streams and recorded events.

    measure logits -> decide -> draw a token -> observe it -> ...

The engine (`reso_llm.generation`) and Hugging Face's `generate` (`reso_llm.hf`) use the same row.
Logits are measured on their own device; a few numbers per token reach the host.

Shapes: B batch, V vocabulary, D embedding width.
"""

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_core.checks import require
from entropy_core.signals import LoopTracker, Signals, SignalTracker
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import (
    Controller,
    Decision,
    Deepen,
    Rewind,
    RowView,
    check_controllers,
    reach_of,
    reads_text,
)
from reso_llm.decoding.draft import Written
from reso_llm.decoding.filters import Mirostat
from reso_llm.decoding.measure import Measure
from reso_llm.decoding.sampling import NO_MARKS, Marks, SamplingOptions, sample
from reso_llm.decoding.stability import StabilityMonitor, StabilityReading
from reso_llm.decoding.text_class import LOOP_WINDOW, MAX_PERIOD

FULL_VOCABULARY = {
    "top_k": 0, "top_p": 1.0, "min_p": 0.0, "top_n_sigma": 0.0, "typical_p": 1.0,
    "xtc_probability": 0.0, "mirostat_tau": 0.0,
}  # fmt: skip
"""Values at which no filter excludes a token."""
NOISE_STREAM = 0x5EED0F5E  # noise has its own random stream, so that it does not shift the draws

Lookahead = Callable[[Tensor, int], Tensor]
"""(candidates (m,), horizon) -> ln p (m,) of `horizon` tokens after each, taken greedily."""


@dataclass(frozen=True, kw_only=True)
class SignalOptions:
    """Options of the averages of signals (`entropy_core.signals`).

    window: embeddings in the mean of C+. ema_weight: weight of the newest token in E. min_prob:
    smallest probability of the effective support, over which entropy is normalised; None takes the
    whole vocabulary. Raises ValueError naming a field out of range.
    """

    window: int = 8
    ema_weight: float = 0.2
    min_prob: float | None = None

    def __post_init__(self) -> None:
        require(self.window >= 1, "window", self.window, "at least 1 token")
        require(0 < self.ema_weight <= 1, "ema_weight", self.ema_weight, "above 0, at most 1")
        p = self.min_prob
        require(p is None or 0 < p < 1, "min_prob", p, "None, or between 0 and 1")


class Event(NamedTuple):
    """One decision of a controller, with the token (from 0) that it was about."""

    step: int
    controller: str
    cause: str
    effect: str


class Draw(NamedTuple):
    """Options of drawing the token of this step.

    A rewind comes first: the token is that of an earlier step. Then deepening excludes all but its
    candidates, noise moves the logits, and `sample` draws. The caller adds the noise in the cache,
    which acts on later tokens.
    """

    sampling: SamplingOptions
    logit_noise: float = 0.0
    cache_noise: CacheNoise | None = None
    deepen: Deepen | None = None
    rewind: Rewind | None = None
    stop: str = ""
    end: bool = False  # stop before this token, which is not drawn

    def changes(self, sampling: SamplingOptions) -> bool:
        """Whether this token is drawn otherwise than `sampling` alone would draw it."""
        acts = (self.deepen, self.rewind)
        return self.sampling != sampling or bool(self.logit_noise) or acts != (None, None)


class _Past(NamedTuple):
    """The attributes of what every token changes, and the loop score, as they once were."""

    states: list[dict[str, Any]]
    loop_score: float


class Row:
    """The state of one row of one generation; the same seed draws the same tokens.

    No other row may use the monitor, which may have read earlier text. `question` and `text` tell
    SRB what was asked and what is written so far. Raises ValueError for StabilityTemperature
    without a monitor, and for an SRB that finishes sentences where nobody tells the text.
    """

    def __init__(
        self,
        sampling: SamplingOptions,
        controllers: Sequence[Controller] = (),
        *,
        seed: int,
        device: torch.device | str = "cpu",
        signals: SignalOptions = SignalOptions(),
        monitor: StabilityMonitor | None = None,
        marks: Marks = NO_MARKS,
        question: str = "",
        text: Callable[[], str] | None = None,
    ) -> None:
        check_controllers(controllers, has_monitor=monitor is not None, has_text=text is not None)
        self.reads_text = reads_text(controllers)
        self.question, self.text = question, text
        self.sampling, self.marks, self.mirostat = sampling, marks, Mirostat()
        self.controllers = [(c.name, c.start()) for c in controllers]
        self.generator = torch.Generator(device).manual_seed(seed)
        self.noise = torch.Generator(device).manual_seed(seed ^ NOISE_STREAM)
        self.tracker = SignalTracker(signals.window, signals.ema_weight)
        self.monitor = monitor
        self.loops = LoopTracker(LOOP_WINDOW, MAX_PERIOD) if monitor is None else None
        self.loop_score = 0.0
        self.reach = reach_of(controllers)
        self.tokens: list[int] = []
        self._past: deque[_Past] = deque(maxlen=self.reach + 1)  # at the last decisions
        self.events: list[Event] = []
        self.signals: list[Signals] = []
        self.temperatures: list[float] = []
        self.readings: list[StabilityReading] = []

    @property
    def step(self) -> int:
        """Number of decisions so far."""
        return len(self.signals)

    def decide(self, measured: Measure, embedding: np.ndarray, end_nats: float = math.inf) -> Draw:
        """Decide how to draw a token: its measured distribution, the embedding (D,) before it.

        `end_nats` is -ln p of ending here, which is asked for where the row `reads_text`. Raises
        FloatingPointError where the logits are no distribution.
        """
        if math.isnan(measured.entropy_nats):
            raise FloatingPointError("the model's logits are not finite: its weights are damaged")
        signals = self.tracker.update(*measured[:2], embedding)
        if self.reach:
            self._past.append(self._remembered())
        draw, written = Draw(self.sampling), None
        if self.reads_text:
            written = Written(self.question, self.text(), self.tokens, end_nats)
        for name, controller in self.controllers:
            view = RowView(
                signals, self.loop_score, draw.sampling.temperature, self.monitor, self.tokens,
                self.signals, written,
            )  # fmt: skip
            decision = controller.decide(view)
            if decision is not None:
                draw, effect = _applied(draw, decision, name)
                back = 0 if draw.rewind is None else draw.rewind.num_tokens
                self.events.append(Event(self.step - back, name, decision.cause, effect))
                if back or draw.end:
                    break  # the others decide about tokens that stay
        if draw.end:
            return draw
        self.signals.append(signals)
        self.temperatures.append(draw.sampling.temperature)
        if draw.rewind is not None:
            self._take_back(draw.rewind.num_tokens)
        return draw

    def _take_back(self, num_tokens: int) -> None:
        """Forget the last tokens: the first of them is to be drawn anew, after the same signals."""
        kept = len(self.tokens) - num_tokens
        temperature = self.temperatures[-1]
        for trace in (self.signals, self.temperatures):
            del trace[kept + 1 :]
        self.temperatures[kept] = temperature
        for trace in (self.tokens, self.readings):
            del trace[kept:]
        for _ in range(num_tokens):
            self._past.pop()
        states, self.loop_score = copy.deepcopy(self._past[-1])
        for part, state in zip(self._moving, states, strict=True):
            vars(part).update(state)

    @property
    def _moving(self) -> list[Any]:
        """What every token changes."""
        parts = (self.tracker, self.mirostat, self.loops, self.monitor)
        return [part for part in parts if part is not None]

    def _remembered(self) -> "_Past":
        return copy.deepcopy(_Past([vars(part) for part in self._moving], self.loop_score))

    def draw(self, logits: Tensor, seen: Tensor, draw: Draw, lookahead: Lookahead) -> int:
        """Draw a token from logits (1,V); the penalties act on the ids `seen` (1,n)."""
        if draw.rewind is not None:
            excluded = torch.tensor([*draw.rewind.excluded], device=logits.device)
            logits = logits.index_fill(-1, excluded, -torch.inf)
        if draw.deepen is not None:
            logits = deepened(logits, draw.deepen, lookahead)
        if draw.logit_noise:
            logits = self._noisy(logits, draw.logit_noise)
        return self.sampled(logits, seen, draw.sampling, self.generator)

    def sampled(
        self, logits: Tensor, seen: Tensor, sampling: SamplingOptions, generator: torch.Generator
    ) -> int:
        """`sample` from logits (1,V), with what the row remembers of its draws."""
        return int(sample(logits, seen, sampling, generator, self.marks, self.mirostat))

    def observe(
        self,
        token: int,
        surprise_nats: float,
        coherence: float | None = None,
    ) -> None:
        """Record the drawn token, its surprise, and the model's order parameter."""
        self.tokens.append(token)
        if self.monitor is None:
            self.loop_score = self.loops.add(token)
            return
        reading = self.monitor.observe(
            self.signals[-1].entropy_nats,
            token,
            surprise_nats=surprise_nats,
            coherence=coherence,
        )
        self.loop_score = reading.repetition
        self.readings.append(reading)

    def _noisy(self, logits: Tensor, amplitude: float) -> Tensor:
        """Logits with noise; excluded tokens (-inf) stay so and do not enter the deviation."""
        possible = logits[logits.isfinite()]
        xi = torch.empty_like(logits).normal_(generator=self.noise)
        return logits + amplitude * possible.std(correction=0) * xi


def _applied(draw: Draw, decision: Decision, name: str) -> tuple[Draw, str]:
    """Apply one more decision to a draw; return the new draw and the effect in words."""
    effects, changes = [], {}
    if decision.temperature is not None:
        changes["temperature"] = decision.temperature
        effects.append(f"temperature {decision.temperature:.3g}")
    if decision.full_vocabulary:
        changes |= FULL_VOCABULARY
        effects.append("full vocabulary")
    if changes:
        draw = draw._replace(sampling=replace(draw.sampling, **changes))
    if decision.logit_noise:
        draw = draw._replace(logit_noise=decision.logit_noise)
        effects.append(f"logit noise {decision.logit_noise:.3g}")
    if decision.cache_noise is not None:
        draw = draw._replace(cache_noise=decision.cache_noise)
        effects.append(f"cache noise {decision.cache_noise.scale:.3g}")
    if decision.deepen is not None:
        draw = draw._replace(deepen=decision.deepen)
        effects.append("compared {} continuations of {} tokens".format(*decision.deepen))
    if decision.rewind is not None:
        draw = draw._replace(rewind=decision.rewind)
        effects.append(f"took back {decision.rewind.num_tokens} tokens")
    if decision.stop or decision.end:
        draw = draw._replace(stop=f"{name}_{decision.cause}", end=decision.end)
        effects.append("stop")
    return draw, ", ".join(effects)


def deepened(logits: Tensor, deepen: Deepen, lookahead: Lookahead) -> Tensor:
    """Logits (1,V): ln p of each candidate and of its continuation; -inf for all other tokens."""
    log_p = logits[0].log_softmax(-1)
    best = log_p.topk(min(deepen.candidates, len(log_p)))
    ids = best.indices[best.values > -torch.inf]  # an excluded token is no candidate
    scores = log_p[ids] + lookahead(ids, deepen.horizon).to(log_p)
    return torch.full_like(logits, -torch.inf).index_copy(-1, ids, scores[None])
