"""The tour as one figure of six panels. It needs matplotlib (the extra `plots`).

The colours are Okabe & Ito's, which colour-blind readers can tell apart. Lines differ in style too.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reso_llm.tour.measurements import Finding
from run_core.files import require_writable

Axes = Any  # of matplotlib, which is imported only where a figure is drawn

NAMES = {"prsc": "binding memory (PRSC)", "temporal_smf": "sedenion memory"}
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
STYLES = ((BLUE, "-"), (ORANGE, "--"), (RED, ":"))


def check_figure(path: str | Path) -> None:
    """Check that a figure can be written to `path`, before the work that it is to show.

    Raises ValueError without matplotlib, for a suffix that matplotlib does not write, for a
    directory that does not exist or may not be written to, and for a path that is a directory.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            'save_figure needs matplotlib: pip install "reso-llm[plots]", or leave it out'
        ) from None
    path = Path(path)
    known = [f".{suffix}" for suffix in sorted(Figure().canvas.get_supported_filetypes())]
    if path.suffix.lower() not in known:
        raise ValueError(f"save_figure = {path}: expected a name ending in {', '.join(known)}")
    require_writable(path, "save_figure")


def save_figure(findings: Mapping[str, Finding], path: str | Path) -> None:
    """Draw the findings of a tour, by station; the suffix of the path gives the format.

    Raises ValueError as `check_figure` does, OSError where the path cannot be written.
    """
    check_figure(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 10), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 2)
    _draw_entropy(axes[0, 0], findings["control"])
    _draw_order(axes[0, 1], findings["synchrony"])
    _draw_layers(axes[1, 0], findings["depth"])
    _draw_warnings(axes[1, 1], findings["stability"])
    _draw_memory(axes[2, 0], findings["memory"])
    _draw_saved(axes[2, 1], findings.values())
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _draw_entropy(ax: Axes, finding: Finding) -> None:
    texts = {name: values for name, values in finding.traces.items() if name != "slips"}
    _draw_lines(ax, texts)
    for i, place in enumerate(finding.traces["slips"]):
        label = "slip" if i == 0 else ""
        ax.axvline(place, color=RED, lw=0.8, alpha=0.6, zorder=0, label=label)
    _caption(ax, "Phase-Slip", "entropy of the most repetitive greedy text, with slips and without")
    ax.set(xlabel="token", ylabel="entropy (nats)")
    ax.locator_params(axis="x", integer=True)
    highest = max(max(values, default=0.0) for values in texts.values())
    ax.set_ylim(0, 1.35 * highest + 0.1)  # room for the legend
    ax.legend(fontsize=8, loc="upper right")


def _draw_order(ax: Axes, finding: Finding) -> None:
    _caption(ax, "Kuramoto oscillators", "how far the phases agree: 0 not at all, 1 fully")
    ax.set(xlabel="token", ylabel="order parameter")
    if not finding.traces:
        _say_absent(ax)
        return
    _draw_lines(ax, finding.traces)
    ax.set_ylim(0, 1)
    ax.legend(fontsize=8, loc="upper right")


def _draw_layers(ax: Axes, finding: Finding) -> None:
    _caption(ax, "Coherence gate", "layers that run for each token; fewer is faster")
    ax.set(ylabel="layers")
    if not finding.traces:
        _say_absent(ax)
        return
    layers = finding.traces["layers"]
    ax.bar(range(len(layers)), layers, color=BLUE)
    names = [label.replace("$", "\\$")[:10] for label in finding.labels]
    ax.set_xticks(range(len(layers)), names, rotation=90, fontsize=7)
    ax.set_ylim(0, finding.numbers["num_layers"])
    ax.yaxis.get_major_locator().set_params(integer=True)


def _draw_warnings(ax: Axes, finding: Finding) -> None:
    _caption(ax, "Stability monitor", "damage begins half-way; above the grey line is a warning")
    ax.set(xlabel="token", ylabel="warning (0 to 1)")
    if not finding.traces:
        _say_absent(ax)
        return
    _draw_lines(ax, finding.traces)
    ax.axhline(0.5, color="0.6", lw=0.8, zorder=0)
    ax.set_ylim(0, 1.05)
    ax.legend(fontsize=8, loc="upper left")


def _draw_memory(ax: Axes, finding: Finding) -> None:
    _caption(ax, "Memory", "probability of a fact, before and after it was told once")
    ax.set(ylabel="probability")
    if not finding.numbers:
        _say_absent(ax)
        return
    names, values = list(finding.numbers), list(finding.numbers.values())
    bars = ax.bar(names, values, color=[ORANGE, BLUE, GREEN], width=0.6)
    ax.bar_label(bars, [f"{value:.3g}" for value in values])
    ax.set_ylim(0, 1.15 * max(values))


def _draw_saved(ax: Axes, findings: Iterable[Finding]) -> None:
    """One bar for everything that a station has switched off."""
    saved = {name: bits for finding in findings for name, bits in finding.saved.items()}
    _caption(ax, "What each stage brings", "on talk that was not trained on; red: it costs")
    ax.set(xlabel="bits per byte saved (more is better)")
    if not saved:
        _say_absent(ax)
        return
    values = list(saved.values())
    colours = [BLUE if value >= 0 else RED for value in values]
    names = [NAMES.get(name, name.replace("_", " ")) for name in saved]
    bars = ax.barh(names, values, color=colours)
    ax.bar_label(bars, [f"{round(value, 3) + 0.0:+.3f}" for value in values], padding=3)
    ax.axvline(0, color="0.3", lw=0.8)
    ax.invert_yaxis()
    ax.margins(x=0.2)


def _caption(ax: Axes, title: str, caption: str) -> None:
    ax.set_title(title, loc="left", weight="bold", pad=22)
    ax.text(0, 1.03, caption, transform=ax.transAxes, fontsize=9, color="0.35")


def _draw_lines(ax: Axes, traces: Mapping[str, list[float]]) -> None:
    for (name, values), (colour, style) in zip(traces.items(), STYLES, strict=False):
        ax.plot(values, style, color=colour, lw=1.3, label=name)


def _say_absent(ax: Axes) -> None:
    ax.text(0.5, 0.5, "not in this model", ha="center", transform=ax.transAxes)
