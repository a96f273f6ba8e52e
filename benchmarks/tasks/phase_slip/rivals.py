"""Phase-Slip against the samplers people use, at equal nats per byte, and on known facts.

A family is one sampler at several strengths: a curve of repetition over nats per byte, greedy being
its weakest. An arm is compared with the curve at its own nats per byte, by linear interpolation:

    rep-4 - curve        below 0: it repeats less than that sampler where that strays as far
    distinct-2 - curve   above 0: more of its pairs of tokens are new

Where an arm strays further than the strongest of a family there is no comparison. Intervals are
over prompts, and over seeds within each. `facts`: questions whose greedy answer is right, the first
NUM_FACTS of them, and how many of an arm's answers are the greedy ones, token for token.

Shapes: P prompts, S seeds, R draws of the bootstrap (the sample itself first).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.kit.pretrained import Writer
from benchmarks.kit.statistics import summary
from benchmarks.kit.tables import number, shown, table
from benchmarks.kit.writers import Arm, asked
from benchmarks.tasks.phase_slip.arms import ARMS, CURVE, GREEDY, PUBLISHED
from benchmarks.tasks.phase_slip.questions import QUESTIONS, says
from benchmarks.tasks.phase_slip.statistics import Drawn, drawn_measures, on_curve
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import PhaseSlip, StochasticResonance

Rows = Sequence[dict[str, Any]]
REWIND = "rewind"
NUM_FACTS, FACT_TOKENS = 100, 24
MEASURES = ("rep-4", "distinct-2")


def rewind(**changes: Any) -> Arm:
    """Greedy decoding with repeats taken back."""
    return {"temperature": 0.0, "controllers": (PhaseSlip(**changes),)}


DESIGNS: dict[str, Arm] = {
    REWIND: rewind(),
    "rewind, 4 tokens": rewind(repeat_length=4),
    "rewind, 8 tokens": rewind(repeat_length=8),
    "rewind, heat": rewind(slip_temperature=1.0),
    "rewind, noise": rewind(noise=CacheNoise()),
    "rewind, noise in values": rewind(noise=CacheNoise(scale=0.1, values_only=True)),
    "rewind, heat and noise": rewind(slip_temperature=1.0, noise=CacheNoise()),
}
"""Phase-Slip's default, and what it could be."""
FAMILIES: dict[str, dict[str, Arm]] = {
    "sampling": {CURVE[t]: ARMS[CURVE[t]] for t in (0.2, 0.4, 0.6, 0.8)},
    "DRY": {f"DRY {m:g}": {"temperature": 0.0, "dry_multiplier": m} for m in (0.4, 0.8, 1.6, 3.2)},
    "DRY, sampled": {
        f"DRY 1.6, T {t:g}": {"temperature": t, "dry_multiplier": 1.6} for t in (0.3, 0.5)
    },
    "repetition penalty": {
        f"penalty {r:g}": {"temperature": 0.0, "repetition_penalty": r} for r in (1.05, 1.1, 1.2)
    },
    "min-p": {f"min-p, T {t:g}": {"temperature": t, "min_p": 0.1} for t in (0.5, 1.0)},
    "top-n-sigma": {f"top-n-sigma, T {t:g}": {"temperature": t, "top_n_sigma": 1.0}
                    for t in (0.5, 1.0)},
    "XTC": {f"XTC {p:g}": {"temperature": 0.5, "min_p": 0.05, "xtc_probability": p}
            for p in (0.1, 0.5)}
    | {"XTC 0.5, T 0.8": {"temperature": 0.8, "min_p": 0.05, "xtc_probability": 0.5}},
    "stochastic resonance": {
        f"resonance {a:g}": {"temperature": 0.0, "controllers": (StochasticResonance(amplitude=a),)}
        for a in (0.3, 0.6, 1.2)
    },
    "Phase-Slip, published": {PUBLISHED: ARMS[PUBLISHED]},
}  # fmt: skip
"""Each sampler's arms, the weakest first; greedy, the weakest of all, is left out."""
NAMES = {"DRY, sampled": [*FAMILIES["DRY"]][2]}
"""Where a family's weakest arm is not greedy."""
RIVALS: dict[str, Arm] = {
    GREEDY: ARMS[GREEDY], REWIND: DESIGNS[REWIND],
    **{arm: how for family in FAMILIES.values() for arm, how in family.items()}, **DESIGNS,
}  # fmt: skip
"""All arms, the most telling first: a run may be stopped."""


def against(drawn: Drawn, arm: str, family: str, scorer: str, measure: str) -> Any:
    """`measure` of an arm minus the family's curve: (value, low, high), or None beyond it."""
    points = [NAMES.get(family, GREEDY), *(a for a in FAMILIES[family] if a in drawn)]
    if len(points) < 2 or points[0] not in drawn:
        return None
    xs, ys = (
        np.stack([drawn[name][what] for name in points], axis=1) for what in (scorer, measure)
    )
    x = drawn[arm][scorer]
    weakest = np.where(x < xs.min(1), drawn[points[0]][measure], math.nan)
    curve = on_curve(x, xs, ys)
    return summary(drawn[arm][measure] - np.where(np.isnan(curve), weakest, curve))


def facts(writer: Writer, arm: str) -> dict[str, Any]:
    """How many greedy answers that are right an arm leaves as they are."""
    prompts = [asked(question) for question, _ in QUESTIONS]
    greedy = writer.answers(prompts, ARMS[GREEDY], FACT_TOKENS)
    right = [
        i for i, (text, (_, answer)) in enumerate(zip(greedy, QUESTIONS, strict=True))
        if says(text.text, answer)
    ][:NUM_FACTS]  # fmt: skip
    written = writer.answers([prompts[i] for i in right], RIVALS[arm], FACT_TOKENS)
    same = [text.ids == greedy[i].ids for i, text in zip(right, written, strict=True)]
    still = [says(t.text, QUESTIONS[i][1]) for i, t in zip(right, written, strict=True)]
    return {"asked": len(prompts), "right": len(right), "same": sum(same), "still": sum(still)}


# --- tables


def equal_nats(rows: Rows) -> str:
    """Measures of each arm, and the differences of the rewinds from each family."""
    rows = sorted(rows, key=lambda row: [*RIVALS].index(row["arm"]))
    drawn = drawn_measures(rows)
    scorers = [s for s in ("own", "outside") if s in rows[0]["pairs"]]
    head = ["arm", *scorers, "rep-4", "distinct-2", "escaped", "rewinds / 100 tokens"]
    lines = [_measured(row, drawn, scorers) for row in rows]
    title = (
        f"Rivals: {len(rows[0]['pairs']['rep-4'][0])} prompts, {len(rows[0]['seeds'])} seeds, "
        f"{rows[0]['tokens']} tokens; nats per byte, intervals over prompts and seeds."
    )
    if rows[0]["scorer"] is not None:
        title += f" Outside: {rows[0]['scorer']}."
    parts = [f"{title}\n\n{table(head, lines)}"]
    parts += [_differences(drawn, scorer) for scorer in scorers if REWIND in drawn]
    return "\n\n".join(parts)


def _measured(row: Mapping[str, Any], drawn: Drawn, scorers: Sequence[str]) -> list[str]:
    values = row["values"]
    cells = [shown(summary(drawn[row["arm"]][name]), 3) for name in (*scorers, *MEASURES)]
    return [row["arm"], *cells, number(values["escaped"]), number(100 * values["rewinds"])]


def _differences(drawn: Drawn, scorer: str) -> str:
    lines = []
    for family in FAMILIES:
        both = [against(drawn, REWIND, family, scorer, measure) for measure in MEASURES]
        lines.append([family, *(shown(x, 3) if x else "-" for x in both)])
    head = [f"{REWIND} minus, at equal {scorer} nats/byte", *MEASURES]
    return table(head, lines)


def known_facts(rows: Rows) -> str:
    """Answers that stay as greedy decoding gives them."""
    head = ["arm", "asked", "right greedily, of which", "unchanged", "still right"]
    lines = [
        [row["arm"], *(str(row[k]) for k in ("asked", "right", "same", "still"))] for row in rows
    ]
    return f"Known facts, at most {FACT_TOKENS} tokens each:\n\n{table(head, lines)}"
