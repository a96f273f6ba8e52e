"""Shared parts of the figures: the palette, bars of intervals, rows under each other.

Colours: Okabe and Ito (2008), told apart with the common forms of colour blindness. matplotlib is
optional and imported when a figure is made.
"""

from collections.abc import Callable, Iterable, Sequence
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
