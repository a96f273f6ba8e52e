"""SRB, the semantic resonance budget: when a reply stops or deepens, as a pure function of signals.

    settled   E <= θ_H, |ΔE| <= θ_Δ and C+ >= θ_C                   (SRB notes, section 4)
    published stop after τ settled steps

    looping   settled, and the share of repeated n-grams >= θ_r, without progress
    price     θ_end + θ_loop [looping] + θ_over max(0, n / budget - 1)         nats
    stop      at a finished sentence or code block, once what was asked for is there, where
              -ln p(end) <= price; after τ looping steps, then at the end of a line; after 2 τ, at
              the end of a word, whatever was asked for

The published rule reads entropy and coherence alone, and ends replies anywhere. The default one
reads them as a sign of loops, together with repetition, as low entropy alone may be code; it asks
the model itself what an end here would cost, and pays more as the budget is spent. Every row
decides alone and owns its state: numbers in, numbers out. Entropies are in nats. Undefined signals
are NaN (`entropy_core.signals`): a condition must be a comparison that holds, so an undefined
signal never fires, and its streak starts again.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from entropy_core.checks import require_within


class SRBAction(IntEnum):
    """Decision about a token. A STOP ends the row, and its name is the stop reason.

    STOP_FINISHED and STOP_LOOP end it before the token, the other two after it.
    """

    CONTINUE = 0
    DEEPEN = 1
    STOP_SETTLED = 2
    STOP_BUDGET = 3
    STOP_FINISHED = 4
    STOP_LOOP = 5


class Place(IntEnum):
    """How good a place to end the text so far is; a greater one is also the smaller ones."""

    INSIDE = 0  # of a word
    WORD = 1
    LINE = 2
    FINISHED = 3  # a sentence or a code block


class Draft(NamedTuple):
    """What is known of the reply so far, before the next token."""

    end_nats: float  # -ln p of ending here
    repeated: float  # 0 to 1, share of its last n-grams that came before
    place: Place
    done: bool  # what was asked for, such as five steps, is there
    progress: int  # parts of it so far
    budget: float = math.inf  # tokens of a reply to such a prompt


@dataclass(frozen=True, kw_only=True)
class SRBOptions:
    """Thresholds of `srb_step`. Raises ValueError naming a field out of range.

    The defaults are those of SmolLM2-135M-Instruct (`evaluate.py srb --replay`). `finish` False is
    the published rule, which reads only the thresholds of `settled`, deepening and `max_tokens`;
    `published` has its values.
    """

    finish: bool = True
    settled_nats: float = 1.0  # θ_H
    settled_delta_nats: float = math.inf  # θ_Δ
    settled_coherence: float = -1.0  # θ_C
    patience: float = 8  # τ, steps; math.inf for never
    repeated: float = 0.8  # θ_r
    end_nats: float = 4.0  # θ_end
    loop_nats: float = 2.0  # θ_loop
    over_nats: float = 4.0  # θ_over
    reserve: float = 32  # last tokens of max_tokens in which any finished place ends the reply
    deepen_nats: float = 3.5
    deepen_coherence_rise: float = 0.02
    max_tokens: float = 512  # math.inf for no budget

    def __post_init__(self) -> None:
        nats = dict.fromkeys(("end_nats", "loop_nats", "over_nats", "deepen_nats"), (0, math.inf))
        require_within(
            self,
            settled_nats=(0, math.inf),
            settled_delta_nats=(0, math.inf),
            settled_coherence=(-1, 1),
            patience=(1, math.inf),
            repeated=(0, 1),
            reserve=(0, math.inf),
            deepen_coherence_rise=(0, 2),
            max_tokens=(1, math.inf),
            **nats,
        )

    @classmethod
    def published(cls, **changes: float) -> "SRBOptions":
        """The rule of the derivation notes: stop where entropy and coherence have settled."""
        rule = {"settled_nats": 1.0, "settled_delta_nats": 0.05, "settled_coherence": 0.9}
        return cls(**{"finish": False, "patience": 8, **rule, **changes})


class SRBState(NamedTuple):
    """Memory of `srb_step`; its defaults are the state before the first generated token."""

    num_settled: int = 0  # consecutive settled, or looping, steps
    num_spent: int = 0  # tokens of the budget
    coherence: float = math.nan  # the previous C+
    progress: int = 0  # the previous progress


def srb_step(
    state: SRBState,
    ema_nats: float,
    delta_ema_nats: float,
    coherence: float,
    options: SRBOptions,
    draft: Draft | None = None,
) -> tuple[SRBAction, SRBState]:
    """Decide at one generated token, which costs one of the budget: signals -> action, new state.

    The published rule needs no draft. Settled text stops, also when it stops exactly at the budget.
    Deepen asks for more computation on this token: the averaged entropy is high but coherence has
    risen since the last token. The caller adds the cost of deepening to `num_spent`.
    """
    settled = (
        ema_nats <= options.settled_nats
        and abs(delta_ema_nats) <= options.settled_delta_nats
        and coherence >= options.settled_coherence
    )
    progress = draft.progress if options.finish else 0
    if options.finish:
        repeats = draft.repeated >= options.repeated
        settled = settled and repeats and progress == state.progress
    num_settled = state.num_settled + 1 if settled else 0
    after = SRBState(num_settled, state.num_spent + 1, coherence, progress)
    stop = _finished(after, draft, options) if options.finish else _settled(after, options)
    if stop is not SRBAction.CONTINUE:
        return stop, after
    if after.num_spent >= options.max_tokens:
        return SRBAction.STOP_BUDGET, after
    rising = coherence - state.coherence >= options.deepen_coherence_rise
    deepen = ema_nats >= options.deepen_nats and rising
    return (SRBAction.DEEPEN if deepen else SRBAction.CONTINUE), after


def _settled(after: SRBState, options: SRBOptions) -> SRBAction:
    stops = after.num_settled >= options.patience
    return SRBAction.STOP_SETTLED if stops else SRBAction.CONTINUE


def _finished(after: SRBState, draft: Draft, options: SRBOptions) -> SRBAction:
    """Whether a reply ends before the token that `after` counts."""
    written = after.num_spent - 1
    stuck = after.num_settled >= options.patience
    closing = written >= options.max_tokens - options.reserve
    over = max(0.0, written / draft.budget - 1)
    price = options.end_nats + options.over_nats * over
    price += options.loop_nats if after.num_settled else 0.0
    if draft.place is Place.FINISHED and (closing or (draft.done and draft.end_nats <= price)):
        return SRBAction.STOP_FINISHED
    lost = after.num_settled >= 2 * options.patience
    if (stuck and draft.done and draft.place >= Place.LINE) or (lost and draft.place >= Place.WORD):
        return SRBAction.STOP_LOOP
    return SRBAction.CONTINUE
