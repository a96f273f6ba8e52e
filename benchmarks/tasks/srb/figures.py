"""Figures of the SRB study: both arms' entropies, tokens saved, time against quality.

Each function draws runs (mappings with name, bucket, seed, strategy and numbers) on `on`, a
matplotlib Figure or a part of one. Seeds of a prompt are averaged.
The arms differ in colour, marker and line.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.kit.figures import BLUE, GREY, RED
from benchmarks.tasks.srb.statistics import ARM, OTHER, Run, ends, pair_up

Canvas = Any  # matplotlib's Figure or SubFigure
STYLES = (
    {"color": BLUE, "marker": "o", "linestyle": "-"},
    {"color": RED, "marker": "^", "linestyle": "--"},
)
QUALITY = ("own_nats_per_byte", "avg_entropy")
UNITS = {
    "own_nats_per_byte": "own nats per byte (lower is better)",
    "avg_entropy": "average entropy, nats",
    "wall_time_s": "wall time, s",
}
MARKERS = "os^Dv<>ph"  # of buckets
CELL_NUMBERS = 24  # columns at most for numbers to fit into the cells


def entropy_overlay(runs: Sequence[Run], on: Canvas) -> None:
    """Average entropy of every prompt in both arms, bucket by bucket; a line joins the two."""
    _, buckets, values = _by_names(runs, "avg_entropy")
    axes = on.subplots()
    order = [*dict.fromkeys(buckets)]
    at = np.array([i + 3 * order.index(b) for i, b in enumerate(buckets)], float)
    inside = {bucket: np.array([b == bucket for b in buckets]) for bucket in order}
    axes.vlines(at, values.min(1), values.max(1), color=GREY, lw=0.8, alpha=0.6)
    for column, arm, style in ((1, OTHER, STYLES[0]), (0, ARM, STYLES[1])):
        for i, mine in enumerate(inside.values()):
            label = arm if i == 0 else None
            axes.plot(at[mine], values[mine, column], **style, ms=4.5, lw=0.8, label=label)
    for mine in inside.values():
        axes.axvspan(at[mine].min() - 1, at[mine].max() + 1, color="black", alpha=0.04, lw=0)
        difference = np.mean(values[mine, 0] - values[mine, 1])
        axes.text(at[mine].mean(), 1.01, f"{difference:+.3f}", ha="center", va="bottom",
                  fontsize=9, transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set_xticks([at[mine].mean() for mine in inside.values()], order)
    axes.set(xlabel="prompts, by bucket", ylabel=UNITS["avg_entropy"])
    axes.set_title(f"Average entropy per prompt; above: mean of {ARM} − {OTHER}", pad=18)
    axes.set_ylim(0, 1.18 * np.nanmax(values))
    legend(axes, ncols=2, loc="upper left")


def efficiency_heatmap(runs: Sequence[Run], on: Canvas) -> None:
    """Signed efficiency, in percent of the baseline's tokens: a row per bucket, its prompts sorted.

    Blue cells saved tokens, red ones cost some. Rows are in the order of their means.
    """
    rows = {b: np.sort(row)[::-1] for b, row in saved_percent(runs).items()}
    order = sorted(rows, key=lambda b: -rows[b].mean())
    width = max(map(len, rows.values()))
    grid = np.full((len(order), width), math.nan)
    for i, bucket in enumerate(order):
        grid[i, : len(rows[bucket])] = rows[bucket]
    axes = on.subplots()
    axes.set_facecolor("#d9d9d9")  # no prompt; white is nothing saved
    limit = max(10.0, min(100.0, np.nanpercentile(abs(grid), 95)))
    image = axes.imshow(grid, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    if width <= CELL_NUMBERS:
        for (i, j), cell in np.ndenumerate(grid):
            if cell == cell:
                color = "white" if abs(cell) > 0.6 * limit else "black"
                axes.text(j, i, f"{cell:.0f}", ha="center", va="center", color=color, fontsize=9)
    axes.set_yticks(range(len(order)), [f"{b}\nmean {rows[b].mean():+.1f} %" for b in order])
    axes.set_xticks([])
    axes.set_xlabel("prompts of the bucket, most saved first")
    axes.set_title(f"Tokens saved by {ARM}, percent of {OTHER}'s")
    over = {(False, False): "neither", (True, False): "min", (False, True): "max"}
    sides = (bool(np.nanmin(grid) < -limit), bool(np.nanmax(grid) > limit))
    bar = on.colorbar(image, ax=axes, extend=over.get(sides, "both"), pad=0.02)
    bar.set_label("signed efficiency, %")


def saved_percent(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Signed efficiency in percent, (P,) of each bucket: means over a prompt's seeds."""
    pairs = pair_up(runs, "tokens_emitted").complete()
    pairs = pairs.where(pairs.values[:, 1] > 0)
    buckets = np.array([*pairs.prompts().values()])
    saved = pairs.by_prompt(100 * (1 - pairs.values[:, 0] / pairs.values[:, 1]))
    return {bucket: saved[buckets == bucket] for bucket in dict.fromkeys(buckets.tolist())}


def time_quality(runs: Sequence[Run], on: Canvas) -> None:
    """Wall time against quality: pairs joined on the left, means of buckets on the right.

    The crosses on the right are 95 % bootstrap intervals over prompts. Quality is the first column
    of QUALITY that a run has a number in.
    """
    known = {k for run in runs for k in QUALITY if run.get(k) is not None}
    quality = next((k for k in QUALITY if k in known), QUALITY[-1])
    names, buckets, seconds = _by_names(runs, "wall_time_s")
    places = {name: i for i, name in enumerate(names)}
    others, _, values = _by_names(runs, quality)
    seconds = seconds[[places[name] for name in others]]  # prompts without quality have no point
    buckets = [buckets[places[name]] for name in others]
    left, right = on.subplots(1, 2)
    left.plot(seconds.T, values.T, color=GREY, lw=0.5, alpha=0.45)
    for column, arm, style in ((1, OTHER, STYLES[0]), (0, ARM, STYLES[1])):
        look = {"color": style["color"], "marker": style["marker"]}
        left.scatter(seconds[:, column], values[:, column], s=18, alpha=0.8, label=arm, **look)
    for bucket, marker in zip(dict.fromkeys(buckets), itertools.cycle(MARKERS), strict=False):
        mine = np.array([b == bucket for b in buckets])
        _bucket_means(right, bucket, marker, seconds[mine], values[mine])
    if seconds.max() > 4 * seconds.min() > 0:
        _log_seconds(left)
    left.set_title("Every prompt, its two arms joined")
    right.set_title("Means of buckets with 95 % intervals, same colours")
    for axes in (left, right):
        axes.set(xlabel=UNITS["wall_time_s"], ylabel=UNITS.get(quality, quality))
        axes.grid(alpha=0.2, which="both", lw=0.5)
        legend(axes, loc="best")


def _log_seconds(axes: Any) -> None:
    """A logarithmic axis whose labels are plain numbers that do not run into each other."""
    from matplotlib import ticker

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _bucket_means(
    axes: Any, bucket: str, marker: str, seconds: np.ndarray, values: np.ndarray
) -> None:
    x, y = seconds.mean(0), values.mean(0)
    axes.plot(x, y, color=GREY, lw=0.8)
    axes.plot([], [], marker, color=GREY, label=bucket)
    for column, style in ((1, STYLES[0]), (0, STYLES[1])):
        bars = {}
        for name, points in (("xerr", seconds[:, column]), ("yerr", values[:, column])):
            mean = points.mean()
            low, high = ends(points) or (mean, mean)
            bars[name] = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
        axes.errorbar(x[column], y[column], **bars, color=style["color"], marker=marker,
                      ms=7, elinewidth=1, alpha=0.9)  # fmt: skip


def _by_names(runs: Sequence[Run], measure: str) -> tuple[list[str], list[str], np.ndarray]:
    """Names, buckets and values (P,2) of the prompts known in both arms, bucket by bucket."""
    pairs = pair_up(runs, measure)
    first = [*dict.fromkeys(pairs.buckets)]
    pairs = pairs.complete()
    if not pairs.keys:
        raise ValueError(f"no prompt has {measure} of both {ARM!r} and {OTHER!r}")
    buckets = pairs.prompts()
    values = np.stack([pairs.by_prompt(column) for column in pairs.values.T], 1)
    names = [*buckets]
    order = sorted(range(len(names)), key=lambda i: (first.index(buckets[names[i]]), names[i]))
    return [names[i] for i in order], [buckets[names[i]] for i in order], values[order]


def legend(axes: Any, **how: Any) -> None:
    axes.legend(fontsize=9, framealpha=0.9, **how)
