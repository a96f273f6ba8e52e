"""The result of a generation: text, and what was measured while it was written.

Shapes: T tokens, D width.
"""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from entropy_core.signals import Signals
from reso_llm.agency import Focus, Target, pooled
from reso_llm.context import Context
from reso_llm.decoding.row import Event
from reso_llm.generation import RowRun
from reso_llm.model import ResoLLMModel
from reso_llm.session import Session
from reso_llm.tokenizer import SPECIAL_TOKENS, ResoTokenizer

FIRST_WORD = len(SPECIAL_TOKENS)


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """What was generated and how. Traces have one value a token; NaN is "not defined".

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
    """Every goal that steered this text, and how far it got, 0 to 1."""
    attention_summary: tuple[Focus, ...] = ()
    """Words attended to, the most salient first."""
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
    text, readings = run.stream.close(), run.row.readings
    goals = model.session.agency.active_goals if model.session.agency else ()
    achieved = _achieved(model, run.ids) if goals else ()
    return GenerationResult(
        text=text,
        token_ids=tuple(run.ids),
        tokens_generated=len(run.ids),
        prompt_tokens=context.num_prompt[row],
        stop_reason=run.stop_reason,
        seed=run.seed,
        generation_time_ms=(time.perf_counter() - started) * 1000,
        stability=readings[-1].stability_class if readings else "unknown",
        lyapunov=readings[-1].lyapunov_per_token if readings else math.nan,
        entropy_trace=tuple(s.entropy_nats for s in run.row.signals),
        lyapunov_trace=tuple(r.lyapunov_per_token for r in readings),
        temperature_trace=tuple(run.row.temperatures),
        coherence_trace=tuple(run.coherence),
        signals_trace=tuple(run.row.signals),
        layers_trace=tuple(run.layers),
        events=tuple(run.row.events),
        goals_achieved=achieved,
        goal_progress={goal.description: goal.progress for goal in goals},
        attention_summary=_attended(model, tokenizer, context, row, run),
        memories_touched=_touched(model.session, context.ids[row], len(run.ids)),
        warnings=(*context.warnings(row), *_goal_warnings(model.session), *_alarms(run)),
    )


def _achieved(model: ResoLLMModel, ids: list[int]) -> tuple[str, ...]:
    """Descriptions of the goals that this text achieves; the progress of all is updated."""
    vectors = model.embedding.weight[ids].unsqueeze(0)  # (1,T,D)
    text = pooled(vectors, torch.ones_like(vectors[..., 0]))[0]
    return tuple(goal.description for goal in model.session.agency.update_progress(text))


def _attended(
    model: ResoLLMModel, tokenizer: ResoTokenizer, context: Context, row: int, run: RowRun
) -> tuple[Focus, ...]:
    """What the session attends to after this text, and the words of it that it noted."""
    agency = model.session.agency
    if agency is None or not run.surprises:
        return ()
    ids = context.ids[row]
    surprises = [0.0] * (len(ids) - len(run.ids)) + run.surprises
    agency.observe_text(words(model, tokenizer, ids, surprises, context.received(row)))
    return agency.foci


def words(
    model: ResoLLMModel,
    tokenizer: ResoTokenizer,
    ids: Sequence[int],
    surprises: Sequence[float],
    received: np.ndarray,
) -> list[Target]:
    """The words of a text (T,) as targets: attention received is summed, surprise is the largest.

    received belongs to the newest ids; a word that comes again is one target. Vectors are there
    only where a goal may be relevant.
    """
    spans: dict[str, list[int]] = {}
    start = len(ids) - len(received)
    name, members = "", []
    for at in range(start, len(ids) + 1):
        piece = tokenizer.decode([ids[at]]) if at < len(ids) else " "
        if not piece or not piece[0].isalnum():
            if members:
                spans.setdefault(name.strip(), []).extend(members)
            name, members = "", []
        if piece and any(map(str.isalnum, piece)):
            name, members = name + piece, [*members, at]
    goals = model.session.agency.active_goals
    return [
        Target(
            word,
            max(0.0, max(surprises[i] for i in at)),
            model.embedding.weight[[ids[i] for i in at]].sum(0) if goals else None,
            min(1.0, float(sum(received[i - start] for i in at))),
        )
        for word, at in spans.items()
    ]


def _touched(session: Session, ids: list[int], num_new: int) -> tuple[str, ...]:
    """Texts in memory of which three tokens in a row end in this text's `num_new` newest."""
    if session.memory is None or not session.memory.moments:
        return ()
    recent = ids[max(0, len(ids) - num_new - 2) :]
    said = {t for t in zip(recent, recent[1:], recent[2:], strict=False) if t[2] >= FIRST_WORD}
    return tuple(
        m.text
        for m in session.memory.moments
        if not said.isdisjoint(zip(m.token_ids, m.token_ids[1:], m.token_ids[2:], strict=False))
    )


def _goal_warnings(session: Session) -> tuple[str, ...]:
    agency = session.agency
    if agency is None or agency.calibrated or not agency.active_goals:
        return ()
    return ("this model has no goal calibration: progress of goals is not known",)


def _alarms(run: RowRun) -> tuple[str, ...]:
    return run.row.monitor.warnings if run.row.monitor is not None else ()
