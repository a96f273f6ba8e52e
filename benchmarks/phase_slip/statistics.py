"""Intervals of the study, and arms against the curve of plain sampling.

Sampling at temperatures T, greedy being T = 0, gives rep-4 as a curve over nats per byte. An arm is
compared with that curve at its own nats per byte, by linear interpolation: `rep-4 - curve` is below
0 where an arm repeats less than sampling that strays as far. A repeat is cheap for any scorer, so
nats per byte alone would reward it. Intervals are 95 % bootstrap percentiles (Efron 1979) over
prompts, and over seeds within each.

Shapes: P prompts, S seeds, R draws of the bootstrap, K points of a curve.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.heldout import DRAWS
from benchmarks.phase_slip.arms import CURVE


class Picks(NamedTuple):
    """Prompts (R,P), and seeds within each of them (R,P,S), drawn with replacement."""

    prompts: Tensor
    seeds: Tensor


def draw_picks(num_prompts: int, num_seeds: int, seed: int = 0) -> Picks:
    """The draws of all arms of a study."""
    generator = torch.Generator().manual_seed(seed)
    shape = (DRAWS, num_prompts)
    return Picks(
        torch.randint(num_prompts, shape, generator=generator),
        torch.randint(num_seeds, (*shape, num_seeds), generator=generator),
    )


def ratios(pairs: Tensor, picks: Picks) -> np.ndarray:
    """Ratio of sums of pairs (2,P,S): first of all, then of each draw, (1+R,); NaN for 0/0."""
    drawn = pairs[:, picks.prompts[:, :, None], picks.seeds].sum((-2, -1))  # (2,R)
    sums = torch.cat((pairs.sum((1, 2))[:, None], drawn), dim=1)
    return (sums[0] / sums[1]).numpy()


def summary(values: np.ndarray) -> list[float] | None:
    """[value, low, high] of `ratios`; None where the value or all draws are undefined."""
    known = values[np.isfinite(values)]
    if not np.isfinite(values[0]) or len(known) == 1:
        return None
    return [float(values[0]), *np.quantile(known[1:], (0.025, 0.975)).tolist()]


def on_curve(x: np.ndarray, curve_x: np.ndarray, curve_y: np.ndarray) -> np.ndarray:
    """y of the piecewise linear curve at x, draw by draw: (R,), (R,K), (R,K) -> (R,).

    NaN outside the curve. Points are ordered by their x in each draw.
    """
    order = curve_x.argsort(1)
    curve_x, curve_y = (np.take_along_axis(c, order, 1) for c in (curve_x, curve_y))
    rows = zip(x, curve_x, curve_y, strict=True)
    return np.array([np.interp(*row, left=math.nan, right=math.nan) for row in rows])


def drawn_measures(
    rows: Mapping[str, Mapping[str, Any]], num_prompts: int, num_seeds: int
) -> dict[str, dict[str, np.ndarray]]:
    """`ratios` of the pairs (2,P,S) of every arm: {arm: {measure: (1+R,)}}."""
    picks = draw_picks(num_prompts, num_seeds)
    return {
        arm: {
            name: ratios(torch.tensor(p, dtype=torch.float64), picks) for name, p in pairs.items()
        }
        for arm, pairs in rows.items()
    }


def matched(
    drawn: Mapping[str, Mapping[str, np.ndarray]], arm: str, scorer: str
) -> dict[str, Any] | None:
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
