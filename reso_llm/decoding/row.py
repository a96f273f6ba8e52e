"""One row of a generation: its signals, its controllers, its randomness, and what they did.

    measure logits -> decide -> draw a token -> observe it -> ...

The same row serves `ResoLLMInference` and, in Hugging Face's `generate`, any other causal LM
(`reso_llm.hf`). Logits are measured where they are; per token a few numbers reach the host.

Shapes: B batch, V vocabulary, D embedding width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_core.checks import require
from entropy_core.information import entropy_nats, normalised_entropy
from entropy_core.signals import LoopTracker, Signals, SignalTracker
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import (
    Controller,
    Decision,
    Deepen,
    Reading,
    StabilityTemperature,
)
from reso_llm.decoding.sampling import SamplingOptions, sample
from reso_llm.decoding.stability import LOOP_WINDOW, MAX_PERIOD, StabilityMonitor
from reso_llm.decoding.stability import Reading as StabilityReading

NOISE_STREAM = 0x5EED0F5E  # the noise has a stream of its own: without effect, it moves no draw


Lookahead = Callable[[Tensor, int], Tensor]
"""(candidates (m,), horizon) -> ln p (m,) of `horizon` tokens after each, taken greedily."""


@dataclass(frozen=True, kw_only=True)
class SignalOptions:
    """How signals average: C+ over `window` embeddings, E with ema_weight (`entropy_core.signals`).

    min_prob is the least probability of the effective support that normalises entropy; None takes
    the whole vocabulary. Raises ValueError naming a field out of range.
    """

    window: int = 8
    ema_weight: float = 0.2
    min_prob: float | None = None

    def __post_init__(self) -> None:
        require(self.window >= 1, "window", self.window, "at least 1 token")
        require(0 < self.ema_weight <= 1, "ema_weight", self.ema_weight, "above 0, at most 1")
        p = self.min_prob
        require(p is None or 0 < p < 1, "min_prob", p, "None, or between 0 and 1")


class Measure(NamedTuple):
    """Numbers of one row's logits: entropies, and ln sum exp(logits)."""

    entropy_nats: float
    normalised_entropy: float
    log_total: float


class Event(NamedTuple):
    """One decision of a controller: at which token (counted from 0), and what it did."""

    step: int
    controller: str
    cause: str
    effect: str


class Draw(NamedTuple):
    """How to draw the token of this step.

    In this order: deepening excludes all but its candidates, noise moves the logits, `sample`
    draws. Noise in the cache is the caller's to add; it is for the tokens after this one.
    """

    sampling: SamplingOptions
    logit_noise: float = 0.0
    cache_noise: CacheNoise | None = None
    deepen: Deepen | None = None
    stop: str = ""


def measure(logits: Tensor, min_prob: float | None = None) -> list[Measure]:
    """The numbers of each row of logits (B,V), in one pass where they are, and one transfer.

    A row without a distribution (NaN or +inf among its logits, or all of them -inf) has entropy
    NaN, here and in `measure_row`.
    """
    with torch.inference_mode():
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        parts = entropy_nats(logits), normalised_entropy(logits, min_prob), logits.logsumexp(-1)
        return [Measure(*row) for row in torch.stack(parts, dim=1).tolist()]


def measure_row(logits: np.ndarray, min_prob: float | None = None) -> Measure:
    """`measure` of one row (V,) on the host, in a third of the time."""
    if min_prob is not None:
        return measure(torch.from_numpy(logits)[None], min_prob)[0]
    top = float(logits.max())
    if not math.isfinite(top):
        return Measure(math.nan, math.nan, top)
    shifted = np.maximum(logits - logits.dtype.type(top), -700.0)  # as 0 times -inf is not 0
    p = np.exp(shifted)
    total = float(p.sum())
    entropy = max(math.log(total) - float(p.dot(shifted)) / total, 0.0)
    normalised = entropy / math.log(len(logits)) if len(logits) > 1 else 0.0
    return Measure(entropy, normalised, top + math.log(total))


class Row:
    """The state of one row of one generation; the same seed draws the same.

    The monitor is the row's own, and may have read earlier text. Raises ValueError where
    StabilityTemperature has no monitor to follow.
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
    ) -> None:
        follows = any(isinstance(c, StabilityTemperature) for c in controllers)
        if follows and monitor is None:
            raise ValueError("StabilityTemperature follows the stability monitor, which is off")
        self.sampling = sampling
        self.controllers = [(c.name, c.start()) for c in controllers]
        self.generator = torch.Generator(device).manual_seed(seed)
        self.noise = torch.Generator(device).manual_seed(seed ^ NOISE_STREAM)
        self.tracker = SignalTracker(signals.window, signals.ema_weight)
        self.monitor = monitor
        self.loops = LoopTracker(LOOP_WINDOW, MAX_PERIOD) if monitor is None else None
        self.loop_score = 0.0
        self.events: list[Event] = []
        self.signals: list[Signals] = []
        self.temperatures: list[float] = []
        self.readings: list[StabilityReading] = []

    @property
    def step(self) -> int:
        """Tokens decided about."""
        return len(self.signals)

    def decide(self, measured: Measure, embedding: np.ndarray) -> Draw:
        """How to draw the next token: its distribution measured, the newest embedding (D,).

        Raises FloatingPointError where the logits are no distribution.
        """
        if math.isnan(measured.entropy_nats):
            raise FloatingPointError("the model's logits are not finite: its weights are damaged")
        signals = self.tracker.update(*measured[:2], embedding)
        draw = Draw(self.sampling)
        for name, controller in self.controllers:
            temperature = draw.sampling.temperature
            reading = Reading(signals, self.loop_score, temperature, self.monitor)
            decision = controller.decide(reading)
            if decision is not None:
                draw, effect = _applied(draw, decision, name)
                self.events.append(Event(self.step, name, decision.cause, effect))
        self.signals.append(signals)
        self.temperatures.append(draw.sampling.temperature)
        return draw

    def draw(self, logits: Tensor, seen: Tensor, draw: Draw, lookahead: Lookahead) -> int:
        """The token drawn from logits (1,V); the repetition penalty knows the ids `seen` (1,n)."""
        if draw.deepen is not None:
            logits = deepened(logits, draw.deepen, lookahead)
        if draw.logit_noise:
            logits = self._noisy(logits, draw.logit_noise)
        return int(sample(logits, seen, draw.sampling, self.generator))

    def observe(
        self,
        token: int,
        surprise_nats: float,
        coherence: float | None = None,
        hidden: np.ndarray | None = None,
    ) -> None:
        """Take note of the drawn token, its surprise, and what the model says of itself."""
        if self.monitor is None:
            self.loop_score = self.loops.add(token)
            return
        reading = self.monitor.observe(
            self.signals[-1].entropy_nats,
            token,
            surprise_nats=surprise_nats,
            coherence=coherence,
            hidden=hidden,
        )
        self.loop_score = reading.repetition
        self.readings.append(reading)

    def _noisy(self, logits: Tensor, amplitude: float) -> Tensor:
        """Logits with noise; what is excluded (-inf) stays so and does not count."""
        kept = logits[logits.isfinite()]
        xi = torch.empty_like(logits).normal_(generator=self.noise)
        return logits + amplitude * kept.std(correction=0) * xi


def _applied(draw: Draw, decision: Decision, name: str) -> tuple[Draw, str]:
    """The draw with one more decision in it, and the effect in words; later decisions win."""
    effects, changes = [], {}
    if decision.temperature is not None:
        changes["temperature"] = decision.temperature
        effects.append(f"temperature {decision.temperature:.3g}")
    if decision.full_vocabulary:
        changes |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
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
    if decision.stop:
        draw = draw._replace(stop=f"{name}_{decision.cause}")
        effects.append("stop")
    return draw, ", ".join(effects)


def deepened(logits: Tensor, deepen: Deepen, lookahead: Lookahead) -> Tensor:
    """Logits (1,V) of the candidates alone: ln p of each and of how it would go on; others -inf."""
    log_p = logits[0].log_softmax(-1)
    best = log_p.topk(min(deepen.candidates, len(log_p)))
    ids = best.indices[best.values > -torch.inf]  # what is excluded is not read either
    scores = log_p[ids] + lookahead(ids, deepen.horizon).to(log_p)
    return torch.full_like(logits, -torch.inf).index_copy(-1, ids, scores[None])
