"""Shared parts of the figures: the palette, bars of intervals, rows under each other.

Colours: Okabe and Ito (2008), told apart with the common forms of colour blindness. matplotlib is
optional and imported when a figure is made.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

PALETTE = BLUE, ORANGE, GREEN, RED, PURPLE, SKY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9",
)  # fmt: skip
GREY = "#555555"


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def stacked(
    rows: Iterable[Any], draw: Callable[[Any, Any], Any], width: float, height: float
) -> Any:
    """A Figure with `draw(row, part)` for each row, under each other; `height` is that of one."""
    rows = list(rows)
    whole = new_figure(width, height * max(len(rows), 1))
    parts = whole.subfigures(max(len(rows), 1), squeeze=False)[:, 0]
    for row, part in zip(rows, parts, strict=False):
        draw(row, part)
    return whole


def error_bars(intervals: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Values (K,) and how far their intervals reach below and above, (2,K), never below 0."""
    middle, low, high = np.array(intervals).T
    return middle, np.maximum((middle - low, high - middle), 0)


def intervals_figure(
    bars: Mapping[str, Sequence[float]], title: str, axis: str, bars_are: str
) -> Any:
    """A Figure of values with their intervals (value, low, high), one labelled line for each.

    Lines stand in the order given, from the top; 0 is drawn where it lies inside or near.
    """
    figure = new_figure(7.2, 1.35 + 0.34 * len(bars))
    axes = figure.subplots()
    middle, reach = error_bars([*bars.values()])
    places = np.arange(len(bars))[::-1]
    axes.errorbar(middle, places, xerr=reach, fmt="o", color=BLUE, ecolor=SKY, elinewidth=5,
                  markersize=6)  # fmt: skip
    low, high = (middle - reach[0]).min(), (middle + reach[1]).max()
    digits = 3 if high - low < 1 else 2
    for value, place in zip(middle, places, strict=True):
        axes.annotate(f"{value:.{digits}f}", (value, place), xytext=(0, 7), color=GREY,
                      textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    if low - 0.3 * (high - low) < 0:
        axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(places, bars.keys())
    axes.set_ylim(-0.6, len(bars) - 0.3)
    axes.margins(x=0.08)
    axes.set_xlabel(f"{axis}\n({bars_are})", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure
