"""The rows of the goals task as tables, and the loss with a goal minus that without."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.kit.figures import BLUE, GREY, RED, error_bars, new_figure
from benchmarks.kit.records import grouped
from benchmarks.kit.statistics import mean_interval
from benchmarks.kit.tables import shown, table

COLUMNS = {
    "loss": ("matching", "none", "shuffled", "matching - none", "shuffled - none"),
    "achieved": ("false", "true", "auc", "auc of vectors", "auc, words - vectors"),
    "generated": ("with", "without", "rise"),
    "guided": (
        "own words",
        "own words, rise",
        "others' words",
        "nearness",
        "nearness, rise",
        "repeated 4-grams",
        "finished",
    ),
}
ABOUT, NAMES = ("checkpoint", "data"), ("weighting", "case", "goal", "strength")
STYLES = (("matching", BLUE, "o"), ("shuffled", RED, "s"))


def over_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each measurement: its numbers' means over the seeds, and how many there are."""
    averaged = []
    for some in grouped(rows, *ABOUT, "measure", *NAMES).values():
        columns = COLUMNS.get(some[0]["measure"], COLUMNS["loss"])
        means = {c: mean_interval([row[c] for row in some]) for c in columns}
        averaged.append({**some[0], **means, "num_seeds": len(some)})
    return averaged


def groups(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Rows over the seeds by checkpoint, data and measure."""
    return grouped(over_seeds(rows), *ABOUT, "measure")


def text(rows: Sequence[dict[str, Any]]) -> str:
    """One table for each checkpoint, data set and measure."""
    return "\n\n".join(_table(*key, some) for key, some in groups(rows).items())


def _table(checkpoint: str, data: str, measure: str, rows: Sequence[dict[str, Any]]) -> str:
    columns = COLUMNS.get(measure, COLUMNS["loss"])
    names = [name for name in NAMES if name in rows[0]]
    title = (
        f"**{measure}**: {checkpoint}, {rows[0]['rows']} conversations of {data}, "
        f"seeds: {rows[0]['num_seeds']}"
    )
    lines = [
        [*(str(row[name]) for name in names), *(shown(row[c], 3) for c in columns)] for row in rows
    ]
    return f"{title}\n\n{table([*names, *columns], lines)}"


def figure(rows: Sequence[dict[str, Any]]) -> Any:
    """Loss with a goal minus loss without, by where the goal comes from; a panel a checkpoint."""
    losses = {key[:2]: some for key, some in groups(rows).items() if key[2] == "loss"}
    drawn = new_figure(7.5 * max(1, len(losses)), 4.2)
    panels = drawn.subplots(1, max(1, len(losses)), squeeze=False)[0]
    for axes, ((checkpoint, data), some) in zip(panels, losses.items(), strict=False):
        for i, (name, color, marker) in enumerate(STYLES):
            middle, bars = error_bars([row[f"{name} - none"] for row in some])
            axes.errorbar(middle, np.arange(len(some)) + 0.2 * i - 0.1, xerr=bars, fmt=marker,
                          color=color, capsize=3, label=f"{name} goal")  # fmt: skip
        axes.axvline(0, color=GREY, lw=0.8)
        axes.set_yticks(range(len(some)), [f"goal from {row['case']}" for row in some])
        axes.set_ylim(len(some) - 0.5, -0.5)
        axes.set(xlabel="nats per token of the reply, minus those without a goal",
                 title=f"{checkpoint}, {some[0]['rows']} conversations of {data}")  # fmt: skip
        axes.legend()
    return drawn
