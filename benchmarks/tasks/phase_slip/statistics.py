"""Intervals of the study, and arms against the curve of plain sampling.

Sampling at temperatures T, greedy being T = 0, gives rep-4 as a curve over nats per byte. An arm is
compared with that curve at its own nats per byte, by linear interpolation: `rep-4 - curve` is below
0 where an arm repeats less than sampling that strays as far. A repeat is cheap for any scorer, so
nats per byte alone would reward it. Intervals are 95 % bootstrap percentiles over prompts, and over
seeds within each.

Shapes: P prompts, S seeds, R draws of the bootstrap (the sample itself first), K points of a curve.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.kit.statistics import draw_nested, ratio, summary
from benchmarks.tasks.phase_slip.arms import CURVE

Drawn = dict[str, dict[str, np.ndarray]]
"""Values (1+R,) of each measure of each arm."""


def drawn_measures(rows: Sequence[Mapping[str, Any]]) -> Drawn:
    """Ratios of sums of the pairs (2,P,S) of strict rows that are alike, with the same draws."""
    num_prompts, num_seeds = np.shape(rows[0]["pairs"]["rep-4"][0])
    picks = draw_nested(num_prompts, num_seeds)

    def ratios(pairs: Any) -> np.ndarray:
        sums, counts = np.array(pairs, dtype=float)[:, *picks].sum(-1)
        return ratio(sums, counts)

    return {
        row["arm"]: {name: ratios(pairs) for name, pairs in row["pairs"].items()} for row in rows
    }


def on_curve(x: np.ndarray, curve_x: np.ndarray, curve_y: np.ndarray) -> np.ndarray:
    """y of the piecewise linear curve at x, draw by draw: (R,), (R,K), (R,K) -> (R,).

    NaN outside the curve. Points are ordered by their x in each draw.
    """
    order = curve_x.argsort(1)
    curve_x, curve_y = (np.take_along_axis(c, order, 1) for c in (curve_x, curve_y))
    rows = zip(x, curve_x, curve_y, strict=True)
    return np.array([np.interp(*row, left=math.nan, right=math.nan) for row in rows])


def matched(drawn: Drawn, arm: str, scorer: str) -> dict[str, Any] | None:
    """An arm against sampling of equal nats per byte: rep-4 - curve, that T, and draws inside.

    None where fewer than two points of the curve are there.
    """
    curve = {t: name for t, name in CURVE.items() if name in drawn}
    if len(curve) < 2:
        return None
    xs, ys = (
        np.stack([drawn[name][measure] for name in curve.values()], axis=1)
        for measure in (scorer, "rep-4")
    )
    x = drawn[arm][scorer]
    difference = drawn[arm]["rep-4"] - on_curve(x, xs, ys)
    temperature = on_curve(x, xs, np.broadcast_to(np.array([*curve]), xs.shape))
    return {
        "rep-4 - curve": summary(difference),
        "temperature": summary(temperature),
        "inside": float(np.isfinite(difference[1:]).mean()),
    }
