"""Curves of times: slopes, a table of them, and a picture, each time beside its bound.

A row has curve and x, and milliseconds `ms` and `bound` by the name of a model.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.kit.figures import PALETTE, new_figure
from benchmarks.kit.records import Row

HEAD = ("curve", "model", "x", "ms", "slope", "bound's", "ms / bound, first", "last")


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the line through ln x and ln y by least squares; NaN for a single point."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 else float("nan")


def summary(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A line for each curve and model: times, slopes, and the last time over its bound."""
    lines = []
    for curve in dict.fromkeys(row["curve"] for row in rows):
        those = sorted((r for r in rows if r["curve"] == curve), key=lambda row: row["x"])
        x = [row["x"] for row in those]
        for name in those[0]["ms"]:
            ms, bound = ([row[kind][name] for row in those] for kind in ("ms", "bound"))
            times = ", ".join(f"{value:,.2f}" for value in ms)
            slopes = f"{slope(x, ms):.2f}", f"{slope(x, bound):.2f}"
            points = ", ".join(f"{value:,}" for value in x)
            ratios = f"{ms[0] / bound[0]:.1f}", f"{ms[-1] / bound[-1]:.1f}"
            lines.append((curve, name, points, times, *slopes, *ratios))
    return lines


def draw(rows: Sequence[Row], curve: str, axis: str, directory: Path) -> Path:
    """Write growth_CURVE.png: times as lines, bounds dashed, both scales logarithmic."""
    those = sorted((r for r in rows if r["curve"] == curve), key=lambda row: row["x"])
    figure, x = new_figure(5.2, 3.6), [row["x"] for row in those]
    axes = figure.subplots()
    for name, colour in zip(those[0]["ms"], PALETTE, strict=False):
        ms, bound = ([row[kind][name] for row in those] for kind in ("ms", "bound"))
        label = f"{name}, slope {slope(x, ms):.2f}"
        axes.loglog(x, ms, "o-", color=colour, label=label)
        axes.loglog(x, bound, "--", color=colour, linewidth=1)
    axes.set_xlabel(f"{axis} (dashed: the bound of this machine)")
    axes.set_ylabel("milliseconds")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    path = directory / f"growth_{curve}.png"
    figure.savefig(path, dpi=120)
    return path
