"""A figure of the SRB study: the entropy of every token by bucket, in both arms.

Traces are nats (n,) by (name, seed, strategy): n tokens of one reply. Styles: figures.py.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.tasks.srb.figures import STYLES, Canvas
from benchmarks.tasks.srb.statistics import ARM, OTHER

MIN_REPLIES = 0.25  # of a bucket's replies, for a mean over them
WINDOWS = 48  # of tokens, at most, along a trace
Traces = Mapping[tuple[str, int, str], np.ndarray]


def token_entropy_overlay(traces: Traces, buckets: Mapping[str, str], on: Canvas) -> None:
    """Per-token entropy by bucket: mean and quartiles over replies, and where SRB stopped.

    traces holds nats (n,) by (name, seed, strategy), buckets the bucket of each name. Entropies are
    means over windows of tokens, drawn as far as a quarter of the bucket's replies reach. A tick
    below marks an SRB reply that ended before the static one of the same prompt and seed; from
    there on it is no part of its arm's mean, so late means are of other replies than early ones.
    """
    order = [*dict.fromkeys(buckets[name] for name, _, _ in traces)]
    columns = min(3, len(order) + 1)
    lines = math.ceil((len(order) + 1) / columns)
    panels = on.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    longest = max(len(trace) for trace in traces.values())
    size = math.ceil(longest / WINDOWS)
    for axes, bucket in zip(panels, order, strict=False):
        for arm, style in ((OTHER, STYLES[0]), (ARM, STYLES[1])):
            some = [t for (n, _, s), t in traces.items() if s == arm and buckets[n] == bucket]
            _band(axes, windows(some, size), size, style)
        stops = [n for name, n in stopped(traces) if buckets[name] == bucket]
        axes.plot(stops, [0.03] * len(stops), "|", color=STYLES[1]["color"], ms=10,
                  transform=axes.get_xaxis_transform())  # fmt: skip
        pairs = sum(s == ARM and buckets[n] == bucket for n, _, s in traces)
        axes.set_title(f"{bucket}: {len(stops)} of {pairs} stopped earlier")
        axes.set_xlim(0, longest)
        axes.tick_params(labelbottom=True)
    on.supxlabel(f"token of the reply (windows of {size})", fontsize=10)
    on.supylabel("entropy, nats", fontsize=10)
    panels[0].set_ylim(bottom=0)
    for axes in panels[len(order) :]:
        axes.axis("off")
    for style, arm in zip(STYLES, (OTHER, ARM), strict=True):
        line = {k: style[k] for k in ("color", "linestyle")}
        panels[len(order)].plot([], [], **line, label=f"{arm}: mean and quartiles")
    panels[len(order)].plot([], [], "|", color=STYLES[1]["color"], ms=10, label=f"{ARM} stopped")
    panels[len(order)].legend(loc="center", frameon=False, fontsize=10)


def windows(traces: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Means over windows of `size` tokens: N traces -> (N,W), NaN after the end of each."""
    means = [[t[i : i + size].mean() for i in range(0, len(t), size)] for t in traces]
    padded = np.full((len(means), max(map(len, means), default=0)), math.nan)
    for row, one in zip(padded, means, strict=True):
        row[: len(one)] = one
    return padded


def stopped(traces: Traces) -> list[tuple[str, int]]:
    """Name and length of the SRB replies that are shorter than the static ones."""
    return [
        (name, len(trace))
        for (name, seed, arm), trace in traces.items()
        if arm == ARM and len(trace) < len(traces.get((name, seed, OTHER), ()))
    ]


def _band(axes: Any, values: np.ndarray, size: int, style: dict[str, Any]) -> None:
    if not len(values):
        return
    reach = np.isfinite(values).mean(0) >= MIN_REPLIES  # it only falls along a trace
    values = values[:, reach]
    at = size * (np.arange(values.shape[1]) + 0.5)
    low, high = np.nanquantile(values, [0.25, 0.75], axis=0)
    axes.fill_between(at, low, high, color=style["color"], alpha=0.15, lw=0)
    axes.plot(at, np.nanmean(values, 0), color=style["color"], linestyle=style["linestyle"], lw=1.5)
