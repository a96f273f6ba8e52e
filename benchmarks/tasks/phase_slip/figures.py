"""The figure: for each model a run with its slips, and repetition over nats per byte."""

import itertools
from typing import Any

from benchmarks.kit.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, new_figure
from benchmarks.kit.records import grouped
from benchmarks.tasks.phase_slip.arms import ARMS, CAUSES, CURVE, GREEDY, PUBLISHED
from benchmarks.tasks.phase_slip.measures import TRIGGER
from benchmarks.tasks.phase_slip.tables import Rows

CAUSE_STYLES = {"spike": (RED, "v"), "stale": (ORANGE, "s"), "loop": (PURPLE, "D")}
ARM_COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
NATS_TICKS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5)
ARM_MARKERS = ("s", "D", "v", "^", "<", ">", "P", "*", "X")


def figure(rows: Rows) -> Any:
    """Two panels for each model: a matplotlib Figure. A panel without rows stays empty."""
    models = grouped(rows, "model", "weights")
    drawing = new_figure(14, 4.8 * max(1, len(models)))
    panels = drawing.subplots(max(1, len(models)), 2, squeeze=False)
    for (left, right), ((name, _), some) in zip(panels, models.items(), strict=False):
        _run(left, [row for row in some if row["protocol"] == "breaker"])
        _repetition(right, [row for row in some if row["protocol"] == "strict"])
        for panel, what in ((left, "one prompt, step by step"), (right, "means of all texts")):
            panel.set_title(f"{name}: {what}", fontsize=11)
    return drawing


def _run(axes: Any, rows: Rows) -> None:
    """Entropy over steps of the greedy and the Phase-Slip text, with the slips of the second."""
    by_arm = {row["arm"]: row for row in rows}
    for arm, colour in ((GREEDY, BLUE), (PUBLISHED, GREEN)):
        if arm in by_arm:
            entropies = by_arm[arm]["entropies_nats"]
            axes.plot(entropies, color=colour, lw=1.3, label=arm)
    slips = by_arm[PUBLISHED]["slips"] if PUBLISHED in by_arm else []
    for cause in CAUSES:
        steps = [step for step, why in slips if why == cause]
        if steps:
            heights = [by_arm[PUBLISHED]["entropies_nats"][step] for step in steps]
            colour, marker = CAUSE_STYLES[cause]
            axes.plot(steps, heights, marker, color=colour, ms=6, label=f"slip: {cause}")
    threshold = TRIGGER.spike_nats
    axes.axhline(threshold, color=GREY, lw=1, ls="--", label=f"threshold {threshold:g} nats")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("token of the text", fontsize=10)
    axes.set_ylabel("entropy before the token, nats", fontsize=10)
    _legend(axes)


def _repetition(axes: Any, rows: Rows) -> None:
    """rep-4 over own nats per byte: the curve of sampling temperatures, and the other arms."""
    points = {row["arm"]: (row["values"]["own"], row["values"]["rep-4"]) for row in rows}
    curve = [(t, points[name]) for t, name in CURVE.items() if name in points]
    if curve:
        xs, ys = zip(*(point for _, point in curve), strict=True)
        axes.plot(xs, ys, "o-", color=GREY, label="sampling at T")
    for t, point in curve:
        axes.annotate(f"{t:g}", point, xytext=(5, 5), textcoords="offset points", fontsize=9)
    others = [arm for arm in ARMS if arm not in CURVE.values()]  # alike for all models
    styles = zip(itertools.cycle(ARM_COLOURS), itertools.cycle(ARM_MARKERS), strict=False)
    for arm, (colour, marker) in zip(others, styles, strict=False):
        if arm in points:
            axes.plot(*points[arm], marker, color=colour, ms=8, label=arm)
    axes.set_xscale("log")  # strong noise is far away
    axes.set_xticks(NATS_TICKS, [f"{nats:g}" for nats in NATS_TICKS])
    axes.minorticks_off()
    if points:
        nats = [x for x, _ in points.values()]
        axes.set_xlim(min(nats) / 1.15, max(nats) * 1.15)
    axes.set_ylim(bottom=-0.02)
    axes.set_xlabel("nats per byte under the model itself, without control", fontsize=10)
    axes.set_ylabel("rep-4: share of 4-grams that stood before", fontsize=10)
    _legend(axes)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1))
