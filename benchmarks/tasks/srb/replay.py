"""Stop rules replayed on one set of recorded replies: SRB as it is by default, and against others.

    static     the reply as it was written, until the model ended it or the cap
    srb        the rule that finishes (finishing.py), calibrated on the calibration half
    published  the rule of the derivation notes, calibrated there to end half of the replies
    end_rule   before the first token at which p(end) is large enough, as many tokens there as srb

An arm that only stops keeps a prefix of the static reply, so nothing is written again, and nats of
a token are no measure of it: every arm keeps tokens of the same texts, and a loop is cheap. Quality
is how the text ends, what was asked for, and how often it repeats itself; `GOOD` has each measure's
better side. `matched` compares with cuts that keep as many tokens on the reported half
(analysis.py). `designs` are rules with fewer parts, calibrated alike.

The bar: at least 20 % of the tokens saved and less repetition; the lower bound of every share's
difference from static above -.05, and no nats worse beyond their interval; against every matched
rule better in half of the measures that differ, worse in none.

Replies that are missing are written first; those of a model of transformers in batches.

Shapes: N replies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.kit.batched import traced_replies
from benchmarks.kit.pretrained import PretrainedWriter, Writer
from benchmarks.kit.statistics import Interval
from benchmarks.tasks.srb import analysis, finishing, rules, study
from benchmarks.tasks.srb.prompts import Prompt, prompts
from benchmarks.tasks.srb.quality import Measures, cut, measures
from reso_llm.decoding.controllers import SRB

GOOD = {
    "finished": 1, "mid_word": -1, "rep4": -1, "distinct2": 1, "code_parses": 1, "steps_met": 1,
    "own_end_nats": -1, "outside_end_nats": -1,
}  # fmt: skip
"""Measures of quality, and the sign of their better side."""
LEAST_SAVED, MOST_LOST, BATCH = 0.2, 0.05, 30
COLUMNS = ("entropy_nats", "ema_nats", "coherence", "surprise_nats", "end_nats")


def write_missing(
    writer: Writer, replies: study.Replies, half: int, chosen: Sequence[Prompt], seed: int, cap: int
) -> None:
    """Write the static replies of one seed that are not there yet."""
    missing = [p for p in chosen if replies.find(half, p, seed, "static") is None]
    if not isinstance(writer, PretrainedWriter):
        for prompt in missing:
            study.static(writer, replies, half, prompt, seed, cap)
        return
    for first in range(0, len(missing), BATCH):
        some = missing[first : first + BATCH]
        seeds = [study.draws(prompt, seed) for prompt in some]
        written = traced_replies(writer, [prompt.text for prompt in some], seeds, cap)
        for prompt, reply in zip(some, written, strict=True):
            columns = {name: getattr(reply, name) for name in COLUMNS}
            replies.add(study.record(half, prompt, seed, "static", reply, columns))


def replay(
    writer: Writer, judge: Writer | None, replies: study.Replies, protocol: study.Protocol
) -> dict[str, Any]:
    """The values of a row."""
    turns = [(0, study.CALIBRATION_SEED), *((1, seed) for seed in protocol.seeds)]
    rows: tuple[list[study.Row], list[study.Row]] = ([], [])
    for half, seed in tqdm(turns, desc="replies", leave=False, disable=None):
        chosen = prompts(half, protocol.per_bucket)
        write_missing(writer, replies, half, chosen, seed, protocol.cap)
        rows[half].extend(replies.find(half, p, seed, "static") for p in chosen)
    fitted, reported = rows
    traces, tables = read(writer, None, fitted)
    seen, statics = read(writer, judge, reported)
    found = {name: finishing.calibrated(traces, tables, protocol.cap, parts)
             for name, parts in finishing.DESIGNS.items()}  # fmt: skip
    published = rules.calibrated(
        [study.signals(row) for row in fitted],
        [np.array(row["end_nats"]) for row in fitted],
        protocol.target,
    )
    lengths = np.array([row["tokens"] for row in reported])
    mean = np.mean([finishing.stop_of(trace, found[finishing.RULE]) for trace in traces])
    likely = rules.end_threshold([np.array(row["end_nats"]) for row in fitted], float(mean))
    old = np.array([rules.exit_after(study.signals(row), published) for row in reported])
    stops = {name: np.array([finishing.stop_of(t, rule) for t in seen])
             for name, rule in found.items()}  # fmt: skip
    names = np.array([row["name"] for row in reported])
    arms = {
        "static": lengths, "srb": stops[finishing.RULE], "published": old,
        "end_rule": rules.end_stops([np.array(row["end_nats"]) for row in reported], likely),
    }  # fmt: skip
    cuts = {name: measured(statics, kept, lengths) for name, kept in arms.items()}
    matched = analysis.matched_cuts(statics, lengths, arms["srb"])
    row = {
        "replies": len(reported), "rule": plain(found[finishing.RULE]),
        "arms": {name: analysis.summary(table, names) for name, table in cuts.items()},
        "srb_minus": {name: analysis.summary(cuts["srb"], names, cuts[name])
                      for name in ("static", "published", "end_rule")},
        "matched": {name: analysis.summary(cuts["srb"], names, table)
                    for name, table in matched.items()},
        "by_bucket": analysis.by_bucket(cuts, names, [row["bucket"] for row in reported]),
        "designs": {
            name: {"rule": plain(found[name]),
                   "minus_static": analysis.summary(measured(statics, kept, lengths), names,
                                                    cuts["static"])}
            for name, kept in stops.items()
        },
    }  # fmt: skip
    return row | {"bar": bar(row)}


def read(
    writer: Writer, judge: Writer | None, rows: Sequence[study.Row]
) -> tuple[list[finishing.Trace], list[Measures]]:
    """What the rule sees of each reply, and the measures of all its cuts."""
    by_name = {p.name: p for half in (0, 1) for p in prompts(half, analysis.EVERY)}
    traces, tables = [], []
    for row in tqdm(rows, desc="quality", unit="reply", leave=False, disable=None):
        prompt = by_name[row["name"]]
        heads = [writer.spell(row["ids"][:k]) for k in range(len(row["ids"]) + 1)]
        traces.append(finishing.traced(row, prompt, heads))
        tables.append(measures(row, prompt, writer, judge))
    return traces, tables


def measured(
    tables: Sequence[Measures], stops: np.ndarray, lengths: np.ndarray
) -> dict[str, np.ndarray]:
    """Measures (N,2) of replies of `lengths` (N,) cut at `stops` (N,), and the tokens saved."""
    pairs = {"saved": (lengths - stops, lengths), "cut": (stops < lengths, np.ones(len(stops)))}
    return cut(tables, stops) | {k: np.stack(v, -1).astype(float) for k, v in pairs.items()}


def plain(rule: SRB) -> dict[str, Any]:
    """The options of a rule as JSON, without those of deepening: infinities are None."""
    names = (
        "end_nats", "over_nats", "budgets", "loop_nats", "repeated", "patience", "settled_nats",
        "settled_delta_nats", "settled_coherence", "reserve",
    )  # fmt: skip
    values = {name: getattr(rule, name) for name in names}
    return {name: None if value == float("inf") else value for name, value in values.items()}


# --- the bar


def bar(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of the bar is met: each part, and better and worse measures against matched cuts."""
    minus = row["srb_minus"]["static"]
    better = {name: _good(minus[name], sign) for name, sign in GOOD.items() if minus.get(name)}
    kept = [
        high >= 0 if name.endswith("nats") else low > -MOST_LOST
        for name, (_, low, high) in better.items()
    ]
    counts = {arm: counted(found) for arm, found in row["matched"].items()}
    return {
        "saved": row["arms"]["srb"]["saved"][0] >= LEAST_SAVED,
        "kept": all(kept),
        "repeats_less": minus["rep4"][2] < 0,
        "against": counts,
        "beats": {arm: 2 * c["better"] >= c["of"] and not c["worse"] for arm, c in counts.items()},
    }  # fmt: skip


def counted(found: Mapping[str, Interval | None]) -> dict[str, int]:
    """How many measures differ at all, and are better, or worse, beyond their interval."""
    known = [_good(found[name], sign) for name, sign in GOOD.items() if any(found.get(name) or ())]
    return {
        "better": sum(low > 0 for _, low, _ in known),
        "worse": sum(high < 0 for _, _, high in known),
        "of": len(known),
    }


def _good(interval: Interval, sign: int) -> Interval:
    """The interval of an improvement."""
    value, low, high = interval
    return (value, low, high) if sign > 0 else (-value, -high, -low)
