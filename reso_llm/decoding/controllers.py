"""Decoding controllers: small objects that see one row's signals and decide how to draw its token.

    SRB                   stop where the reply is finished and its budget says so; deepen when it
                          is undecided but turning
    PhaseSlip             take back a repeat and draw its least sure token anew; as published, draw
                          one token hot and add noise to the key-value cache
    StochasticResonance   add noise to the logits while the text repeats itself
    StabilityTemperature  draw at the temperature that the stability monitor suggests

A controller is a frozen set of options. Its `start()` makes the state of one row of one generation,
so nothing leaks between rows or calls. A decision is taken before a token is drawn, from the
entropy of its distribution and the text so far; a stop takes effect after that token, or before it
(`end`). The pure rules are in `entropy_core`: `budget` and `policies`. Sources: SRB derivation
notes; the Phase-Slip sampler; Gammaitoni 1998, Rev. Mod. Phys. 70, 223.

Shapes: D embedding width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from entropy_core.budget import Draft, SRBAction, SRBOptions, SRBState, srb_step
from entropy_core.checks import require
from entropy_core.policies import PhaseSlipOptions, SlipCause, phase_slip_init, phase_slip_step
from entropy_core.rewinding import RewindOptions, RewindState, rewind_step
from entropy_core.signals import Signals
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.draft import KINDS, OTHER, Drafts, Written
from reso_llm.decoding.stability import StabilityMonitor


class RowView(NamedTuple):
    """The part of a row that a controller sees before a token is drawn."""

    signals: Signals
    loop_score: float  # of the ids so far, 0 to 1
    temperature: float  # the sampler's, as earlier controllers have left it
    monitor: StabilityMonitor | None = None  # the row's stability monitor, if it is on
    tokens: Sequence[int] = ()  # that the row has written
    trace: Sequence[Signals] = ()  # behind each of these tokens
    written: Written | None = None  # None where nobody can read the row's ids as text


class Decision(NamedTuple):
    """Changes to the draw of a token by a controller; a field at its default changes nothing."""

    cause: str
    temperature: float | None = None
    full_vocabulary: bool = False  # without filters
    logit_noise: float = 0.0  # deviation, in units of the deviation of the logits
    cache_noise: CacheNoise | None = None  # into the cache, for the tokens after this one
    deepen: "Deepen | None" = None
    stop: bool = False  # after this token
    end: bool = False  # before this token
    rewind: "Rewind | None" = None


class Deepen(NamedTuple):
    """Compare the `candidates` most probable tokens by the next `horizon` tokens after each."""

    candidates: int
    horizon: int


class Rewind(NamedTuple):
    """Take back the last `num_tokens`, and draw the first of them anew without the `excluded`."""

    num_tokens: int
    excluded: frozenset[int]


class RowController(Protocol):
    """One controller's state in one row."""

    def decide(self, view: RowView) -> Decision | None:
        """Decide about the next token; None changes nothing."""
        ...


class Controller(Protocol):
    """The options of a controller: frozen, comparable, used by any number of rows.

    One that takes tokens back has a `reach` too: how many of the last tokens may be gone.
    """

    @property
    def name(self) -> str:
        """The name under which decisions are recorded."""
        ...

    def start(self) -> RowController:
        """Make the state of a new row."""
        ...


@dataclass(frozen=True, kw_only=True)
class SRB(SRBOptions):
    """Semantic resonance budget: spend `max_tokens` on new tokens and on deepening some of them.

    By default it ends a reply at a finished sentence or code block, where the model itself would
    nearly have ended it, and asks for less of that as the tokens pass `budgets` (by kind of
    question, `decoding.draft.KINDS`; a kind without one has no such limit) and as the text loops.
    `SRB.published()` is the rule of the derivation notes: it stops where entropy and coherence have
    settled.

    Deepening compares `candidates` tokens by continuations of `horizon` tokens and costs their
    product; it does not pay, so it is off by default, with 0 candidates. It happens only where the
    rest of the budget, less the reserve in which any finished place ends the reply, exceeds its
    cost. Raises ValueError naming a field out of range.
    """

    budgets: Mapping[str, float] = field(default_factory=dict, hash=False)
    candidates: int = 0
    horizon: int = 4
    name: str = field(default="srb", init=False)

    @classmethod
    def published(cls, **changes: Any) -> "SRB":
        """The rule of the derivation notes, which deepens, with changes."""
        return super().published(**{"candidates": 4} | changes)

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind, tokens in self.budgets.items():
            known = kind in KINDS or kind == OTHER
            require(known, "budgets", kind, f"one of {', '.join((*KINDS, OTHER))}")
            require(tokens > 0, f"budgets[{kind!r}]", tokens, "tokens above 0")
        some = self.candidates == 0 or self.candidates >= 2
        require(some, "candidates", self.candidates, "at least 2 to compare, or 0 for none")
        require(self.horizon >= 1, "horizon", self.horizon, "at least 1")

    def start(self) -> RowController:
        return _SRBRow(self)


class _SRBRow:
    def __init__(self, options: SRB) -> None:
        self.options, self.state = options, SRBState()
        self.drafts: Drafts | None = None

    def decide(self, view: RowView) -> Decision | None:
        options, signals = self.options, view.signals
        draft = self._draft(view.written) if options.finish else None
        action, self.state = srb_step(
            self.state, signals.ema_nats, signals.delta_ema_nats, signals.coherence, options, draft
        )
        if action in (SRBAction.STOP_FINISHED, SRBAction.STOP_LOOP):
            return Decision(action.name.removeprefix("STOP_").lower(), end=True)
        if action in (SRBAction.STOP_SETTLED, SRBAction.STOP_BUDGET):
            return Decision(action.name.removeprefix("STOP_").lower(), stop=True)
        cost = options.candidates * options.horizon
        kept = options.reserve if options.finish else 0
        affordable = self.state.num_spent + cost < options.max_tokens - kept
        if action is SRBAction.DEEPEN and cost and affordable:
            self.state = self.state._replace(num_spent=self.state.num_spent + cost)
            return Decision("deepen", deepen=Deepen(options.candidates, options.horizon))
        return None

    def _draft(self, written: Written) -> Draft:
        if self.drafts is None:
            self.drafts = Drafts(written.question, self.options.budgets)
        return self.drafts.read(written)


@dataclass(frozen=True, kw_only=True)
class PhaseSlip(RewindOptions, PhaseSlipOptions):
    """Phase-Slip: take a repeat back as soon as it is seen, and go on from where it began.

    Of the last `repeat_length` tokens, if they stood before, the least sure one is drawn anew,
    without those that led into a repeat there. `published()` has the published triggers instead: at
    a spike of entropy, or when nothing has happened for long, one token is drawn hot and noise goes
    into the cache; `loop_patience` adds a trigger on loops. At any of these slips slip_temperature
    is that of the token, over the whole vocabulary, None the sampler's own; a noise scale of 0
    keeps the cache. Raises ValueError naming a field out of range.
    """

    spike_nats: float = math.inf
    stale_steps: float = math.inf
    slip_temperature: float | None = None
    noise: CacheNoise = field(default_factory=lambda: CacheNoise(scale=0.0))
    name: str = field(default="phase_slip", init=False)
    reach: int = field(default=0, init=False)

    @classmethod
    def published(cls, **changes: Any) -> "PhaseSlip":
        """The published sampler, greedy between its slips, with changes."""
        published = PhaseSlipOptions()
        return cls(**{
            "repeat_length": None, "spike_nats": published.spike_nats,
            "stale_steps": published.stale_steps, "slip_temperature": 1.5, "noise": CacheNoise(),
        } | changes)  # fmt: skip

    def __post_init__(self) -> None:
        PhaseSlipOptions.__post_init__(self)
        RewindOptions.__post_init__(self)
        object.__setattr__(self, "reach", self.rewind_tokens if self.repeat_length else 0)
        t = self.slip_temperature
        ok = t is None or 1e-6 <= t < math.inf
        require(ok, "slip_temperature", t, "None, or a finite number from 1e-6 up")

    def start(self) -> RowController:
        return _PhaseSlipRow(self)


class _PhaseSlipRow:
    def __init__(self, options: PhaseSlip) -> None:
        self.options, self.state = options, phase_slip_init(options)
        self.taken_back = RewindState()

    def decide(self, view: RowView) -> Decision | None:
        options = self.options
        rewind = self._rewind(view)
        if rewind is not None:
            return self._slip("repeat", rewind)
        cause, self.state = phase_slip_step(
            self.state, view.signals.entropy_nats, options, view.loop_score
        )
        return None if cause is SlipCause.NONE else self._slip(cause.name.lower())

    def _slip(self, cause: str, rewind: Rewind | None = None) -> Decision:
        options = self.options
        return Decision(
            cause,
            temperature=options.slip_temperature,
            full_vocabulary=options.slip_temperature is not None,
            cache_noise=options.noise if options.noise.scale > 0 else None,
            rewind=rewind,
        )

    def _rewind(self, view: RowView) -> Rewind | None:
        if self.options.repeat_length is None:
            return None
        entropies = [signals.entropy_nats for signals in view.trace]
        place, self.taken_back = rewind_step(self.taken_back, view.tokens, entropies, self.options)
        if place is None:
            return None
        return Rewind(len(view.tokens) - place, self.taken_back.excluded[place])


@dataclass(frozen=True, kw_only=True)
class StochasticResonance:
    """Gaussian noise of `amplitude` deviations of the logits while loop_score is at least `loop`.

    It works with any model. The stage of the same name (`reso_llm.stages.noise`) acts inside a
    ResoLLM. Raises ValueError naming a field out of range.
    """

    amplitude: float = 0.3
    loop: float = 0.9
    name: str = field(default="stochastic_resonance", init=False)

    def __post_init__(self) -> None:
        require(0 <= self.amplitude < math.inf, "amplitude", self.amplitude, "finite, at least 0")
        require(0 < self.loop <= 1, "loop", self.loop, "above 0, at most 1")

    def start(self) -> RowController:
        return self

    def decide(self, view: RowView) -> Decision | None:
        if self.amplitude > 0 and view.loop_score >= self.loop:
            return Decision("loop", logit_noise=self.amplitude)
        return None


@dataclass(frozen=True, kw_only=True)
class StabilityTemperature:
    """The temperature that the stability monitor suggests (`reso_llm.decoding.stability`)."""

    name: str = field(default="stability_temperature", init=False)

    def start(self) -> RowController:
        return self

    def decide(self, view: RowView) -> Decision | None:
        suggested = view.monitor.suggested_temperature(view.temperature)
        if suggested == view.temperature:
            return None
        return Decision(view.monitor.steering_cause, temperature=suggested)


def reach_of(controllers: Sequence[Controller]) -> int:
    """How many of a text's last tokens some controllers may take back."""
    return max((getattr(controller, "reach", 0) for controller in controllers), default=0)


def controllers_by_name(srb: SRB) -> dict[str, Controller]:
    """The controllers that a person switches on by name; `srb` has the checkpoint's thresholds."""
    known = (srb, PhaseSlip(), StochasticResonance(), StabilityTemperature())
    return {controller.name: controller for controller in known}


def check_controllers(
    controllers: Sequence[Controller], *, has_monitor: bool, has_text: bool
) -> None:
    """Raise ValueError for a controller that lacks what it reads: a monitor, or the text."""
    if not has_monitor and any(isinstance(c, StabilityTemperature) for c in controllers):
        raise ValueError("StabilityTemperature follows the stability monitor, which is off")
    if not has_text and reads_text(controllers):
        raise ValueError(
            "SRB ends replies at finished sentences, so it reads the text: give a tokenizer, or "
            "take SRB.published()"
        )


def reads_text(controllers: Sequence[Controller]) -> bool:
    """Whether one of the controllers reads what is written: an SRB that finishes sentences."""
    return any(isinstance(c, SRB) and c.finish for c in controllers)
