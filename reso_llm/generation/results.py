"""The result of a generation: text, and what was measured while it was written.

Shapes: T tokens, D width.
"""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entropy_core.signals import Signals
from reso_llm.decoding.row import Event
from reso_llm.generation.axes import TextMeasures, axes_of
from reso_llm.generation.loop import ModelContext
from reso_llm.generation.row import TextRow
from reso_llm.generation.targets import targets_of
from reso_llm.session.agency import Goal
from reso_llm.session.foci import Focus, summary
from reso_llm.session.session import Session, WrittenText


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """The text of a generation and its measurements. NaN is "not defined".

    Traces have one value a token, and none where nothing was measured (metrics=False).
    text is without the stop string; tokens_generated counts every sampled token. stop_reason is
    "end" (the model ended its turn), "stop" (a stop string), "length", "interrupted", or that of
    a controller, such as "srb_settled". seed repeats the generation.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens_generated: int
    prompt_tokens: int
    stop_reason: str
    seed: int
    generation_time_ms: float

    stability: str = ""
    """Class at the end, prompt included: stable, periodic, chaotic or divergent; "" where nothing
    was measured."""
    lyapunov: float = math.nan
    """Exponent of the model's states, mean over the text, nats per token; 0 in a text too short for
    a measurement (`nudge.py`). Of a model of transformers, that of the entropies."""
    entropy_trace: tuple[float, ...] = ()
    """Nats, of the distribution behind each token, guided to goals, before temperature, filters."""
    lyapunov_trace: tuple[float, ...] = ()
    """Nats per token, as known at each token; 0 before the first measurement."""
    temperature_trace: tuple[float, ...] = ()
    """Temperature each token was drawn at; 0 is greedy."""
    coherence_trace: tuple[float, ...] = ()
    """Kuramoto order parameter of the token before, 0 to 1; none without kuramoto."""
    signals_trace: tuple[Signals, ...] = ()
    """All signals behind each decision: H, dH, d2H, E, dE and C+."""
    layers_trace: tuple[int, ...] = ()
    """Layers that the coherence gate let run; none without the gate."""

    events: tuple[Event, ...] = ()
    """Decisions of the controllers, each with its step and cause."""
    goals_achieved: tuple[str, ...] = ()
    """Goals that this text achieved."""
    goal_progress: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Progress, 0 to 1, of every goal that steered this text."""
    attention_summary: tuple[Focus, ...] = ()
    """Content words of this text, prompt included, the most salient first, each with why."""
    attention_sentence: str = ""
    """The same as a sentence."""
    memories_used: tuple[str, ...] = ()
    """What the user told before and the prompt asked for; the model was therefore told it again."""
    axes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Values of the semantic axes that are tied to a signal, by their names (`axes.AXES`)."""
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON; what is not defined becomes None."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def written_text(context: ModelContext, b: int, goals: Collection[Goal]) -> WrittenText:
    """Row b of a context, steered by these goals, as the model's session notes it.

    Where the context does not know attention, that received is 0.
    """
    row, table = context.rows[b], context.table
    if not (row.options.metrics and row.surprises):
        return WrittenText(row.text, ())
    surprises = [0.0] * (len(row.ids) - len(row.surprises)) + row.surprises  # 0 in the prompt
    received = context.received(b)[: len(row.ids)] if context.attending else [0.0] * len(row.ids)
    vectors = table if goals else None
    targets = targets_of(context.tokenizer, row.ids, surprises, received, vectors, row.num_prompt)
    return WrittenText(row.text, tuple(targets))


def result_of(
    row: TextRow,
    text: WrittenText,
    session: Session,
    goals: Mapping[Goal, bool],
    context_warnings: Sequence[str],
    milliseconds: float,
) -> GenerationResult:
    """The result of a row that has ended. The function changes nothing.

    goals: those that steered the text, each with whether an earlier text had achieved it.
    """
    new_ids, decoded = row.new_ids, row.decoding
    n = len(new_ids) if row.options.metrics else 0  # Ctrl-C may fall between a reading and its id
    readings, agency = decoded.readings[:n], session.agency
    monitor = decoded.monitor if row.options.metrics else None
    foci = agency.foci_of(text.targets, tuple(goals)) if agency else ()
    appraisals = agency.appraise(text.text, tuple(goals)) if agency else []
    progress = {a.goal: a.progress for a in appraisals}  # of no goal for a text without a word
    return GenerationResult(
        text=row.text,
        token_ids=tuple(new_ids),
        tokens_generated=len(new_ids),
        prompt_tokens=row.num_prompt,
        stop_reason=row.stop_reason,
        seed=row.seed,
        generation_time_ms=milliseconds,
        stability=monitor.stability_class if monitor else "",
        lyapunov=monitor.lyapunov if monitor else math.nan,
        entropy_trace=tuple(s.entropy_nats for s in decoded.signals[:n]),
        lyapunov_trace=tuple(r.lyapunov_per_token for r in readings),
        temperature_trace=tuple(decoded.temperatures[:n]),
        coherence_trace=tuple(row.coherence[:n]),
        signals_trace=tuple(decoded.signals[:n]),
        layers_trace=tuple(row.layers[:n]),
        events=tuple(event for event in decoded.events if event.step < len(new_ids)),
        goals_achieved=tuple(
            a.goal.description for a in appraisals if a.achieved and not goals[a.goal]
        ),
        goal_progress={goal.description: progress.get(goal, goal.progress) for goal in goals},
        attention_summary=foci,
        attention_sentence=summary(foci),
        memories_used=row.memories.texts,
        axes=axes_of(_measures(row, n, [a.share for a in appraisals])),
        warnings=(*context_warnings, *_alarms(row)),
    )


def _measures(row: TextRow, n: int, goal_shares: Sequence[float]) -> TextMeasures:
    """What the axes read of the first n tokens that a row wrote."""
    return TextMeasures(
        row.coherence[:n],
        [s.entropy_nats for s in row.decoding.signals[:n]],
        row.surprises[:n],
        [r.warning for r in row.decoding.readings[:n]],
        row.num_prompt,
        goal_shares,
        row.memories.resonance,
        row.memories.recency,
    )


def _alarms(row: TextRow) -> tuple[str, ...]:
    monitor = row.decoding.monitor
    return monitor.warnings if monitor is not None else ()
