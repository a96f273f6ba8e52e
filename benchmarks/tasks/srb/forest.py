"""Figures of a comparison's statistics alone: differences by bucket, ratios, a bucket summary.

Each function draws a row of comparison.py on the axes or the part of a Figure that it is given.
Points are means, lines their 95 % bootstrap intervals over prompts. Styles: figures.py.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.tasks.srb.comparison_text import MEASURES
from benchmarks.tasks.srb.figures import STYLES, Canvas, legend

DIFFERENCES = ("tokens_emitted", "wall_time_s", "avg_entropy")
FACTORS = ("wall_time_s", "tokens_emitted", "seconds_per_token")


def comparison_figure(row: Mapping[str, Any], on: Canvas) -> None:
    """Three measures by bucket, and what wall time's ratio is made of."""
    panels = on.subplots(2, 2).ravel()
    for axes, measure in zip(panels, DIFFERENCES, strict=False):
        if measure in row["overall"]:
            differences(axes, row, measure)
        else:
            axes.axis("off")
    ratios(panels[-1], row)


def differences(axes: Any, row: Mapping[str, Any], measure: str) -> None:
    """Treated minus baseline, over all prompts and in each bucket."""
    groups = {"all": row["overall"][measure], **row["by_bucket"][measure]}
    for i, one in enumerate(groups.values()):
        if one["mean"] is not None:
            _point(axes, i, one["mean"], one["mean_interval"], STYLES[i == 0])
    axes.axvline(0, color="black", lw=0.8)
    labels = [f"{name} ({one['prompts']})" for name, one in groups.items()]
    _rows(axes, labels, f"{MEASURES[measure][0]}: {row['treated']} − {row['baseline']}")


def ratios(axes: Any, row: Mapping[str, Any]) -> None:
    """Wall time's ratio, treated over baseline, and its two factors."""
    for i, measure in enumerate(FACTORS):
        ratio, *edges = row["decomposition"][measure]
        _point(axes, i, ratio, None if None in edges else edges, STYLES[i == 0])
    axes.axvline(1, color="black", lw=0.8)
    labels = ["wall time", "= tokens", "× seconds per token"]
    _rows(axes, labels, f"geometric-mean ratio: {row['treated']} / {row['baseline']}")


def _point(axes: Any, at: int, mean: float, edges: Any, style: Mapping[str, Any]) -> None:
    bars = None if edges is None else [[mean - edges[0]], [edges[1] - mean]]
    look = {"color": style["color"], "marker": style["marker"]}
    axes.errorbar(mean, at, xerr=bars, capsize=3, ms=6, **look)


def _rows(axes: Any, labels: list[str], title: str) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)  # the first on top
    axes.set_xlabel(title)
    axes.grid(axis="x", alpha=0.2, lw=0.5)


def bucket_changes(table: Iterable[Mapping[str, Any]], on: Canvas) -> None:
    """Draw the change of mean tokens and wall time of each bucket, in percent."""
    rows = list(table)
    axes = on.subplots()
    kinds = (("tokens_pct_change", "tokens"), ("wall_time_pct_change", "wall time"))
    for i, ((column, label), style) in enumerate(zip(kinds, STYLES, strict=True)):
        values = [math.nan if row[column] is None else row[column] for row in rows]
        at = [n + 0.36 * (i - 0.5) for n in range(len(rows))]
        bars = axes.barh(at, values, 0.34, color=style["color"], label=label)
        axes.bar_label(bars, fmt="%+.1f", padding=3, fontsize=9)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(rows)), [row["bucket"] for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="SRB's mean against the baseline's, %", title="Change by bucket")
    legend(axes, loc="best")
