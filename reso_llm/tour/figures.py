"""The tour as one figure: six panels, needs matplotlib (the extra `plots`).

Colours are Okabe & Ito's, which colour-blind readers can tell apart; lines differ in style, too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reso_llm.tour.tour import Stop

Axes = Any  # matplotlib's, which is imported only where a figure is drawn

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
STYLES = ((BLUE, "-"), (ORANGE, "--"), (RED, ":"))
STAGES = {
    "prsc": "binding memory",
    "kuramoto": "phases",
    "coherence_gate": "gate's cut",
    "temporal_smf": "sedenion field",
    "goal": "goal, to none",
    "goal, another's": "goal, to another's",
}


def check_plots() -> None:
    """ValueError where a figure cannot be drawn, as matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ValueError(
            "a figure needs matplotlib: pip install -e '.[plots]', or leave --save_figure out"
        ) from None


def save_figure(stops: Mapping[str, Stop], path: str | Path) -> None:
    """Draw what the stops of a tour found, by name; the suffix of the path gives the format.

    Raises ValueError without matplotlib or for a suffix it does not know, OSError where the path
    cannot be written.
    """
    check_plots()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 10), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 2)
    panels = (_entropy, _order, _layers, _warnings, _memory, _worth)
    for draw, ax in zip(panels, axes.flat, strict=True):
        draw(ax, stops)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _entropy(ax: Axes, stops: Mapping[str, Stop]) -> None:
    traces = stops["control"].traces
    slips = traces["slips"]
    _lines(ax, {name: traces[name] for name in ("greedy", "with slips")})
    for i, at in enumerate(slips):
        ax.axvline(at, color=RED, lw=0.8, alpha=0.6, zorder=0, label="" if i else "slip")
    ax.set(title="Greedy decoding: entropy", xlabel="token", ylabel="entropy (nats)")
    ax.locator_params(axis="x", integer=True)
    highest = max(max(traces[name], default=0.0) for name in ("greedy", "with slips"))
    ax.set_ylim(0, 1.35 * highest + 0.1)  # room for the legend
    ax.legend(fontsize=8, loc="upper right")


def _order(ax: Axes, stops: Mapping[str, Stop]) -> None:
    ax.set(title="Kuramoto order parameter along a conversation", xlabel="token", ylabel="r")
    if _there(ax, traces := stops["synchrony"].traces):
        _lines(ax, traces)
        ax.set_ylim(0, 1)
        ax.legend(fontsize=8, loc="upper right")


def _layers(ax: Axes, stops: Mapping[str, Stop]) -> None:
    ax.set(title="Layers that run, token by token", ylabel="layers")
    stop = stops["depth"]
    if _there(ax, stop.traces):
        layers = stop.traces["layers"]
        ax.bar(range(len(layers)), layers, color=BLUE)
        names = [label.replace("$", "\\$")[:10] for label in stop.labels]
        ax.set_xticks(range(len(layers)), names, rotation=90, fontsize=7)
        ax.set_ylim(0, stop.numbers["num_layers"])
        ax.yaxis.get_major_locator().set_params(integer=True)


def _warnings(ax: Axes, stops: Mapping[str, Stop]) -> None:
    ax.set(title="Stability monitor: damage begins half-way", xlabel="token", ylabel="warning")
    if _there(ax, traces := stops["stability"].traces):
        _lines(ax, traces)
        ax.axhline(0.5, color="0.6", lw=0.8, zorder=0)
        ax.set_ylim(0, 1.05)
        ax.legend(fontsize=8, loc="upper left")


def _memory(ax: Axes, stops: Mapping[str, Stop]) -> None:
    ax.set(title="Episodic memory: probability of a fact told once", ylabel="probability")
    if _there(ax, p := stops["memory"].numbers):
        bars = ax.bar(list(p), list(p.values()), color=[ORANGE, BLUE, GREEN], width=0.6)
        ax.bar_label(bars, [f"{value:.2g}" for value in p.values()])
        ax.set_ylim(0, 1.15 * max(p.values()))


def _worth(ax: Axes, stops: Mapping[str, Stop]) -> None:
    found = {k: v for stop in stops.values() for k, v in stop.numbers.items() if k in STAGES}
    ax.set(title="What each stage saves on unseen talk", xlabel="bits per byte saved")
    if _there(ax, found):
        values = list(found.values())
        colours = [BLUE if value >= 0 else RED for value in values]
        bars = ax.barh([STAGES[name] for name in found], values, color=colours)
        ax.bar_label(bars, [f"{round(value, 3) + 0.0:+.3f}" for value in values], padding=3)
        ax.axvline(0, color="0.3", lw=0.8)
        ax.invert_yaxis()
        ax.margins(x=0.2)


def _lines(ax: Axes, traces: Mapping[str, list[float]]) -> None:
    for (name, values), (colour, style) in zip(traces.items(), STYLES, strict=False):
        ax.plot(values, style, color=colour, lw=1.3, label=name)


def _there(ax: Axes, values: Mapping) -> bool:
    if not values:
        ax.text(0.5, 0.5, "not in this model", ha="center", transform=ax.transAxes)
    return bool(values)
