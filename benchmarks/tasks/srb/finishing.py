"""The rule of SRB that finishes, replayed on recorded replies and calibrated on one half of them.

A trace holds what the rule sees before each token of a reply; `stop_of` is `srb_step` on all steps
at once. Calibration climbs: each option in turn takes the best of its values, until nothing gets
better. What it climbs is the score of the cuts,

    finished + code parses + steps met - repeated 4-grams - nats of ending / 10

each a mean over the replies, less 10 for every part of the tokens that SAVED asks for and the cuts
do not save. DESIGNS are rules with fewer parts, calibrated alike.

Shapes: n tokens of a reply, N replies.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.kit.statistics import ratio
from benchmarks.tasks.srb.prompts import Prompt
from benchmarks.tasks.srb.quality import Measures, cut
from benchmarks.tasks.srb.study import Row
from entropy_core.budget import Place
from reso_llm.decoding.controllers import SRB
from reso_llm.decoding.draft import Drafts, Written, kind_of

SAVED = 0.2
GRID = {
    "end_nats": (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    "over_nats": (0.0, 1.0, 2.0, 4.0, 8.0, 16.0),
    "share": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0),
    "loop_nats": (0.0, 2.0, 4.0, 8.0),
    "repeated": (0.2, 0.3, 0.4, 0.5, 0.6, 0.8),
    "patience": (8.0, 16.0, 24.0, 32.0, 48.0),
}
"""Values of each option; a share is that of the mean tokens of a kind of question: its budget."""
QUANTILES = {"settled_nats": (0.25, 0.5, 0.75, 1.0), "settled_delta_nats": (0.25, 0.5, 0.75, 1.0),
             "settled_coherence": (0.0, 0.25, 0.5, 0.75)}  # fmt: skip
"""Options whose values are quantiles of the signals; 1, and 0 for the last, is off."""
START = {"end_nats": 3.0, "over_nats": 4.0, "share": 0.6, "loop_nats": 4.0, "repeated": 0.3,
         "patience": 24.0, "settled_nats": 1.0, "settled_delta_nats": 1.0,
         "settled_coherence": 0.0}  # fmt: skip
SIGNALS_OFF = {"settled_nats": 99.0, "settled_delta_nats": math.inf, "settled_coherence": -1.0}
OFF = {"over_nats": 0.0, "loop_nats": 0.0, "repeated": 1.0, "patience": math.inf}
PLACES = ("end_nats",)
BUDGET = (*PLACES, "over_nats", "share")
LOOPS = (*BUDGET, "loop_nats", "repeated", "patience")
DESIGNS = {
    "p(end) at finished places": PLACES,
    "+ budget by kind": BUDGET,
    "+ loops by repetition": LOOPS,
    "+ loops of low entropy": (*LOOPS, "settled_nats"),
    "+ ΔE and C+ settled": (*LOOPS, *QUANTILES),
}
"""Rules with ever more parts: the options that are calibrated; the others are off."""
RULE = "+ loops of low entropy"
"""The design that SRB has by default."""


@dataclass(frozen=True)
class Trace:
    """What the rule sees before each token of a reply, (n,) each."""

    kind: str
    ema_nats: np.ndarray
    delta_nats: np.ndarray
    coherence: np.ndarray
    end_nats: np.ndarray
    repeated: np.ndarray
    place: np.ndarray
    done: np.ndarray
    progressed: np.ndarray  # whether the structure that was asked for grew since the last token


def traced(row: Row, prompt: Prompt, heads: Sequence[str]) -> Trace:
    """The trace of a static reply; heads are its texts after 0..n tokens."""
    drafts, ids = Drafts(prompt.text, {}), row["ids"]
    seen = [
        drafts.read(Written(prompt.text, heads[k], ids[:k], row["end_nats"][k]))
        for k in range(len(ids))
    ]
    ema = np.array(row["ema_nats"], dtype=float)
    progress = np.array([draft.progress for draft in seen])
    return Trace(
        kind_of(prompt.text),
        ema,
        np.diff(ema, prepend=math.nan),
        np.array(row["coherence"], dtype=float),
        np.array([draft.end_nats for draft in seen]),
        np.array([draft.repeated for draft in seen]),
        np.array([int(draft.place) for draft in seen]),
        np.array([draft.done for draft in seen]),
        np.diff(progress, prepend=0) != 0,
    )


def stop_of(trace: Trace, rule: SRB) -> int:
    """Tokens that the rule lets through, of a reply of n."""
    n = len(trace.ema_nats)
    written = np.arange(n)
    settled = (
        (trace.ema_nats <= rule.settled_nats)
        & (np.abs(trace.delta_nats) <= rule.settled_delta_nats)
        & (trace.coherence >= rule.settled_coherence)
    )
    looping = settled & (trace.repeated >= rule.repeated) & ~trace.progressed
    last = np.maximum.accumulate(np.where(looping, -1, written))  # the last step that did not loop
    run = written - last
    over = np.maximum(0.0, written / rule.budgets.get(trace.kind, math.inf) - 1)
    price = rule.end_nats + rule.over_nats * over + rule.loop_nats * looping
    closing = written >= rule.max_tokens - rule.reserve
    finished = trace.place == Place.FINISHED
    stops = finished & (closing | (trace.done & (trace.end_nats <= price)))
    stops |= (run >= rule.patience) & trace.done & (trace.place >= Place.LINE)
    stops |= (run >= 2 * rule.patience) & (trace.place >= Place.WORD)
    fired = np.flatnonzero(stops)
    spent = min(n, int(min(rule.max_tokens, n)))
    return min(int(fired[0]), spent) if len(fired) else spent


def rule_of(
    chosen: Mapping[str, float], traces: Sequence[Trace], cap: int, parts: Sequence[str]
) -> SRB:
    """The rule of chosen values, quantiles of what these traces say; other parts are off."""
    values = {name: chosen[name] if name in parts else off for name, off in OFF.items()}
    values["end_nats"] = chosen["end_nats"]
    if "share" in parts and values["over_nats"]:
        lengths = {t.kind: [len(u.ema_nats) for u in traces if u.kind == t.kind] for t in traces}
        values["budgets"] = {
            kind: round(chosen["share"] * float(np.mean(some))) for kind, some in lengths.items()
        }
    signals = {"settled_nats": [t.ema_nats for t in traces],
               "settled_delta_nats": [np.abs(t.delta_nats) for t in traces],
               "settled_coherence": [t.coherence for t in traces]}  # fmt: skip
    for name, some in signals.items():
        off = 0.0 if name == "settled_coherence" else 1.0
        quantile = chosen[name] if name in parts else off
        value = round(float(np.nanquantile(np.concatenate(some), quantile)), 3)
        values[name] = value if quantile != off else SIGNALS_OFF[name]
    return SRB(max_tokens=cap, candidates=0, **values)


def score(tables: Sequence[Measures], stops: np.ndarray, lengths: np.ndarray) -> float:
    """How good the cuts (N,) of replies of `lengths` (N,) are; see the head of this file."""
    means = {name: float(ratio(*np.moveaxis(pairs, -1, 0))) for name, pairs in
             cut(tables, stops).items()}  # fmt: skip
    good = means["finished"] + means["code_parses"] + means["steps_met"]
    good -= means["rep4"] + means["own_end_nats"] / 10
    return good - 10 * max(0.0, SAVED - (1 - stops.sum() / lengths.sum()))


def calibrated(
    traces: Sequence[Trace], tables: Sequence[Measures], cap: int, parts: Sequence[str]
) -> SRB:
    """The rule of these parts that climbing finds on traces and measures of N replies."""
    lengths = np.array([len(trace.ema_nats) for trace in traces])

    def value(chosen: Mapping[str, float]) -> float:
        rule = rule_of(chosen, traces, cap, parts)
        return score(tables, np.array([stop_of(trace, rule) for trace in traces]), lengths)

    chosen, best, last = dict(START), value(START), -math.inf
    grid: dict[str, Any] = {**GRID, **QUANTILES}
    while best > last:
        last = best
        for name in parts:
            tried = [(value({**chosen, name: x}), -i, x) for i, x in enumerate(grid[name])]
            top, _, x = max(tried)
            if top > best:
                best, chosen = top, {**chosen, name: x}
    return rule_of(chosen, traces, cap, parts)
