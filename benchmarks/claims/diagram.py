"""The picture of the README: the stages in the order a token meets them, and what each buys.

    box       a stage, and what it does
    bar       bits per byte of text that it saves (guanaco, 180 s of training, 95 % interval)
    words     what else it brings, measured elsewhere

Numbers are those of recorded rows; `evaluate.py report` draws it.
"""

import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.claims import Evidence, Missing, headline_views
from benchmarks.claims.headline_views import STAGES
from benchmarks.kit.figures import BLUE, GREY, ORANGE, SKY, new_figure
from benchmarks.kit.records import newest

WIDTH, HEIGHT = 10.0, 6.6
LEFT, BOX = 0.1, 4.3  # where a box begins, and its width
ZERO, BITS = 5.0, 4.2  # where a bar begins, and inches a bit
WORDS = 7.0


class Stage(NamedTuple):
    """A box: its name in the configuration, its title, what it does and what else it buys."""

    name: str
    title: str
    does: str
    buys: str = ""


def stages(evidence: Evidence) -> tuple[Stage, ...]:
    """The boxes from the text to the next token. Raises Missing where a row is."""
    clocks = headline_views.tracked(evidence)["bars"]["parity, with clocks"][0]
    recall = headline_views.recalled(evidence)["bars"]
    kept = recall["sedenion memory"][0], recall["linear attention, equal state"][0]
    guided = evidence.rows("goals", measure="guided", strength=1.5)
    spoken = statistics.fmean(row["own words, rise"][0] for row in guided)
    gated = steps(evidence, "full") / steps(evidence, "full - coherence_gate") - 1
    return (
        Stage("prsc", "Binding memory", "counts what followed each context"),
        Stage("coherence_gate", "Coherence gate", "lets only doubtful tokens go deep",
              f"{gated:.0%} more training steps in the time"),
        Stage("prime_embedding", "Prime embedding", "builds tokens of their bytes"),
        Stage("kuramoto", "Kuramoto oscillators", "turn attention, count like clocks",
              f"parity at 400 tokens: {clocks:.0%} right"),
        Stage("agency", "Blocks with agency", "attention, steered by a goal",
              f"with the goal said, {spoken:+.0%} of replies name it"),
        Stage("temporal_smf", "Sedenion memory", "16 axes that are overwritten",
              f"changed values: {kept[0]:.1%}, linear attention {kept[1]:.1%}"),
        Stage("echo", "Echo", "expects what was read before"),
    )  # fmt: skip


def steps(evidence: Evidence, variant: str) -> float:
    """Mean training steps in 180 s."""
    rows = evidence.rows("ablation", task="guanaco", variant=variant, seconds=180.0)
    return statistics.fmean(row["steps"] for row in newest(rows, "seed"))


def save(evidence: Evidence, path: Path) -> None:
    """Draw the picture into a file, where all of its numbers are recorded."""
    with suppress(Missing):
        draw(evidence).savefig(path, dpi=120)


def draw(evidence: Evidence) -> Any:
    """The picture, a matplotlib Figure. Raises Missing where a number is not recorded."""
    costs = headline_views.worth(evidence)["bars"]
    boxes = stages(evidence)
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(-0.9, len(boxes) + 1.3)
    axes.invert_yaxis()
    axes.axis("off")
    header(axes)
    end(axes, 0, "text")
    for place, stage in enumerate(boxes, start=1):
        arrow(axes, place)
        box(axes, place, stage.title, stage.does)
        bar(axes, place, costs[STAGES[stage.name]])
        axes.text(WORDS, place, stage.buys, va="center", fontsize=9)
    arrow(axes, len(boxes) + 1)
    end(axes, len(boxes) + 1, "next token: controllers may slip, deepen or stop; all is measured")
    axes.plot([ZERO, ZERO], [0.5, len(boxes) + 0.5], color=GREY, linewidth=0.8)
    return figure


def header(axes: Any) -> None:
    for x, text in (
        (LEFT, "a token's way through Reso"),
        (ZERO - 0.35, "the text, in bits/byte"),
        (WORDS, "what else it brings"),
    ):
        axes.text(x, -0.6, text, fontsize=10, weight="bold", va="center")


def end(axes: Any, place: int, text: str) -> None:
    axes.text(LEFT + 0.1, place, text, va="center", fontsize=9, style="italic")


def arrow(axes: Any, place: int) -> None:
    tail, head = (LEFT + 0.35, place - 0.68), (LEFT + 0.35, place - 0.33)
    axes.annotate("", head, tail, arrowprops={"arrowstyle": "->", "color": GREY})


def box(axes: Any, place: int, title: str, does: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    frame = FancyBboxPatch((LEFT, place - 0.3), BOX, 0.6, boxstyle="round,pad=0.02",
                           facecolor="#EEF5FA", edgecolor=BLUE)  # fmt: skip
    axes.add_patch(frame)
    axes.text(LEFT + 0.1, place, title, va="center", fontsize=10, weight="bold")
    axes.text(LEFT + 1.95, place, does, va="center", fontsize=9)


def bar(axes: Any, place: int, cost: Sequence[float]) -> None:
    """A bar from zero with its interval; orange where the whole interval is below zero."""
    value, low, high = cost
    colour = ORANGE if high < 0 else BLUE if low > 0 else SKY
    axes.barh(place, value * BITS, left=ZERO, height=0.36, color=colour)
    axes.plot([ZERO + low * BITS, ZERO + high * BITS], [place, place], color="black", linewidth=1)
    axes.text(ZERO + max(high, 0) * BITS + 0.07, place, verdict(cost), va="center", fontsize=8)


def verdict(cost: Sequence[float]) -> str:
    """What the stage does to the text, in words; its interval says whether that is sure."""
    value, low, high = cost
    if low <= 0 <= high:
        return f"no difference ({value:+.3f})"
    return f"{abs(value):.3f} {'better' if value > 0 else 'worse'}"
