"""The result of a generation: text, and what was measured while it was written.

Shapes: T tokens, D width.
"""

import dataclasses
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entropy_core.signals import Signals
from reso_llm.decoding.row import Event
from reso_llm.generation.context import Context
from reso_llm.generation.loop import RowRun
from reso_llm.model import ResoLLMModel
from reso_llm.session.agency import Focus, Goal, Target
from reso_llm.session.session import Session
from reso_llm.stages.goal import text_vector
from reso_llm.tokenizer import SPECIAL_TOKENS, ResoTokenizer

FIRST_WORD = len(SPECIAL_TOKENS)
EDGES = re.compile(r"^\W+|\W+$")  # what is around a word


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """What was generated and how. NaN is "not defined".

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

    stability: str = "unknown"
    """Class at the end: stable, periodic, chaotic, divergent, or unknown (no claim)."""
    lyapunov: float = math.nan
    """Exponent at the end, nats per token."""
    entropy_trace: tuple[float, ...] = ()
    """Nats, of the distribution behind each token, before temperature and filters."""
    lyapunov_trace: tuple[float, ...] = ()
    """Nats per token."""
    temperature_trace: tuple[float, ...] = ()
    """What each token was drawn at; 0 is greedy."""
    coherence_trace: tuple[float, ...] = ()
    """Kuramoto order parameter of the token before, 0 to 1."""
    signals_trace: tuple[Signals, ...] = ()
    """All signals behind each decision: H, dH, d2H, E, dE and C+."""
    layers_trace: tuple[int, ...] = ()
    """Layers that the coherence gate let run."""

    events: tuple[Event, ...] = ()
    """Decisions of the controllers, each with its step and cause."""
    goals_achieved: tuple[str, ...] = ()
    """Goals that this text achieved."""
    goal_progress: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Every goal that steered this text, and how far it got, 0 to 1; NaN without calibration."""
    attention_summary: tuple[Focus, ...] = ()
    """Words of this text, prompt included, that it attended to, the most salient first."""
    memories_touched: tuple[str, ...] = ()
    """Texts in memory that share three tokens in a row with this one."""
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


def summarised(
    model: ResoLLMModel,
    tokenizer: ResoTokenizer,
    context: Context,
    row: int,
    run: RowRun,
    started: float,
) -> GenerationResult:
    """The result of a row that has ended; the session notes its foci and the progress of goals."""
    n = len(run.ids) if run.options.metrics else 0  # Ctrl-C may fall between a reading and its id
    readings, decoded = run.row.readings[:n], run.row
    goals = model.session.agency.active_goals if model.session.agency else ()
    achieved = _achieved(model, run.ids) if goals else ()
    ids = [*context.ids[row][: context.num_prompt[row]], *run.ids]
    return GenerationResult(
        text=run.stream.close(),
        token_ids=tuple(run.ids),
        tokens_generated=len(run.ids),
        prompt_tokens=context.num_prompt[row],
        stop_reason=run.stop_reason,
        seed=run.seed,
        generation_time_ms=(time.perf_counter() - started) * 1000,
        stability=readings[-1].stability_class if readings else "unknown",
        lyapunov=readings[-1].lyapunov_per_token if readings else math.nan,
        entropy_trace=tuple(s.entropy_nats for s in decoded.signals[:n]),
        lyapunov_trace=tuple(r.lyapunov_per_token for r in readings),
        temperature_trace=tuple(decoded.temperatures[:n]),
        coherence_trace=tuple(run.coherence[:n]),
        signals_trace=tuple(decoded.signals[:n]),
        layers_trace=tuple(run.layers[:n]),
        events=tuple(event for event in decoded.events if event.step < len(run.ids)),
        goals_achieved=achieved,
        goal_progress={goal.description: _progress(model.session, goal) for goal in goals},
        attention_summary=_attended(model, tokenizer, context, row, ids, run.surprises[:n]),
        memories_touched=_touched(model.session, ids, len(run.ids)),
        warnings=(*context.warnings(row), *_goal_warnings(model.session, goals), *_alarms(run)),
    )


def _achieved(model: ResoLLMModel, ids: list[int]) -> tuple[str, ...]:
    """Descriptions of the goals that this text achieves; the progress of all is updated."""
    text = text_vector(model.embedding.weight, [i for i in ids if i >= FIRST_WORD])
    return tuple(goal.description for goal in model.session.agency.update_progress(text))


def _attended(
    model: ResoLLMModel,
    tokenizer: ResoTokenizer,
    context: Context,
    row: int,
    ids: list[int],
    surprises: list[float],
) -> tuple[Focus, ...]:
    """What this text attends to; the session takes note of it."""
    if not (context.attending and surprises):
        return ()
    unsurprising = [0.0] * (len(ids) - len(surprises))  # the prompt
    received = context.received(row)[: len(ids)]
    targets = words(model, tokenizer, ids, [*unsurprising, *surprises], received)
    return model.session.agency.observe_text(targets)


def words(
    model: ResoLLMModel,
    tokenizer: ResoTokenizer,
    ids: Sequence[int],
    surprises: Sequence[float],
    received: Sequence[float],
) -> list[Target]:
    """The words of a text (T,) as targets: attention received is summed, surprise is the largest.

    A word that comes again is one target. Vectors are there only where a goal may be relevant.
    """
    table = model.embedding.weight if model.session.agency.active_goals else None
    return [
        Target(
            word,
            max(0.0, max(surprises[i] for i in at)),
            None if table is None else table[[ids[i] for i in at]].sum(0),
            min(1.0, float(sum(received[i] for i in at))),
        )
        for word, at in word_places(tokenizer, ids).items()
    ]


def word_places(tokenizer: ResoTokenizer, ids: Sequence[int]) -> dict[str, list[int]]:
    """The words of a text and the places of their tokens.

    A word ends before a token that begins with neither a letter nor a digit.
    """
    decoder = tokenizer.stream_decoder()
    places: dict[str, list[int]] = {}
    name, members = "", []
    for at, token in enumerate([*ids, tokenizer.bos_id]):
        piece = decoder.feed(token)  # "" where a character is not complete yet
        if token < FIRST_WORD or (piece and not piece[0].isalnum()):
            word = EDGES.sub("", name)
            if word:
                places.setdefault(word, []).extend(members)
            name, members = "", []
        if token >= FIRST_WORD:
            name, members = name + piece, [*members, at]
    return places


def _touched(session: Session, ids: list[int], num_new: int) -> tuple[str, ...]:
    """Texts in memory of which three tokens in a row end in this text's `num_new` newest."""
    if session.episodes is None or not session.episodes.moments:
        return ()
    recent = ids[max(0, len(ids) - num_new - 2) :]
    said = {t for t in zip(recent, recent[1:], recent[2:], strict=False) if t[2] >= FIRST_WORD}
    return tuple(
        m.text
        for m in session.episodes.moments
        if not said.isdisjoint(zip(m.token_ids, m.token_ids[1:], m.token_ids[2:], strict=False))
    )


def _progress(session: Session, goal: Goal) -> float:
    return goal.progress if session.agency.calibrated else math.nan


def _goal_warnings(session: Session, goals: Sequence[Goal]) -> tuple[str, ...]:
    if not goals or session.agency.calibrated:
        return ()
    return ("this model has no goal calibration: progress of goals is not known",)


def _alarms(run: RowRun) -> tuple[str, ...]:
    return run.row.monitor.warnings if run.row.monitor is not None else ()
