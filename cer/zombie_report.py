"""The zombie test as a table and as a figure, from its result as plain values.

matplotlib is optional and imported where the figure is made. Colours: Okabe and Ito (2008); the two
models also differ in marker and line.
"""

from typing import Any

from cer.zombie import PUBLISHED, QUANTITIES, SCALES

Axes = Figure = Any  # matplotlib's

STYLES = (
    dict(color="#0072B2", marker="o", linestyle="-"),
    dict(color="#D55E00", marker="s", linestyle="--"),
)
LABELS = {"delta_ppl": "ΔPPL", "commutation_nats": "commutation cost (nats)"}
SCALE_LABELS = {
    "norm": "σ, in mean lengths of the vectors perturbed",
    "absolute": "σ, per component, the same number for both",
}


def zombie_table(result: dict[str, Any]) -> str:
    """Markdown: what was compared, the differences with their intervals, the effect of units."""
    rows, names = result["rows"], [m["name"] for m in result["rows"][0]["models"]]
    lines = [f"{len(rows)} seeds; a = {names[0]}, b = {names[1]}"]
    for letter, i in (("a", 0), ("b", 1)):
        models = [row["models"][i] for row in rows]
        values = {key: _mean(models, key) for key in ("clean_nats", "embedding_norm")}
        lines[0] += (
            f"; {letter}: {values['clean_nats']:.4f} nats unperturbed, mean embedding length "
            f"{values['embedding_norm']:.3f}"
        )
    lines += ["", "| scale | σ | quantity | a | b | b - a | 95 % interval | published direction |"]
    lines += ["|---" * 8 + "|", *(_line(entry) for entry in result["summary"])]
    lines += ["", *_units(rows), ""]
    a, b = PUBLISHED["delta_ppl"]
    lines.append(f"Published (gpt2, mamba-130m, unmatched): ΔPPL {a} and {b}, ")
    lines[-1] += "commutation cost {} and {}.".format(*PUBLISHED["commutation_nats"])
    return "\n".join(lines)


def _line(entry: dict[str, Any]) -> str:
    label = "ΔPPL" if entry["quantity"] == "delta_ppl" else "commutation, nats"
    values = " | ".join(f"{entry[k]:.4f}" for k in ("feed_forward", "state_space", "difference"))
    between = "-" if entry["low"] is None else f"[{entry['low']:.4f}, {entry['high']:.4f}]"
    return (
        f"| {entry['scale']} | {entry['level']:g} | {label} | {values} | {between} "
        f"| {entry['published_direction']} |"
    )


def _units(rows: list[dict[str, Any]]) -> list[str]:
    """The feed-forward model rewritten in other units, on the absolute scale."""
    lines = ["| a as the same function in other units: embeddings x | σ, absolute | ΔPPL |"]
    lines.append("|---|---|---|")
    for k, first in enumerate(rows[0]["units"]):
        mean = sum(row["units"][k]["delta_ppl"] for row in rows) / len(rows)
        lines.append(f"| {first['factor']:g} | {first['level']:g} | {mean:.4f} |")
    return lines


def _mean(models: list[dict[str, Any]], key: str) -> float:
    return sum(model[key] for model in models) / len(models)


def zombie_figure(result: dict[str, Any], figure: Figure = None) -> Figure:
    """Both quantities against the noise, on both scales; thin lines are single seeds.

    Drawn on `figure` (a part of a larger one, say) where it is given.
    """
    if figure is None:
        from matplotlib import figure as plots

        figure = plots.Figure(figsize=(10.5, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row")
    for across, scale in enumerate(SCALES):
        for down, quantity in enumerate(QUANTITIES):
            _panel(panels[down, across], result["rows"], scale, quantity)
    for across, factor in enumerate(sorted({u["factor"] for u in result["rows"][0]["units"]})):
        _units_curve(panels[0, 1], result["rows"], factor, ":" if across else "-.")
    panels[0, 0].set_title("noise relative to each model's own vectors", fontsize=10)
    panels[0, 1].set_title("the same absolute noise for both, as published", fontsize=10)
    panels[0, 0].legend(frameon=False, loc="upper left")
    # The lower panel has room for the legend, the upper one has none.
    handles = panels[0, 1].get_legend_handles_labels()
    panels[1, 1].legend(*handles, frameon=False, fontsize=9, loc="lower right")
    losses = ", ".join(
        f"{_mean([row['models'][i] for row in result['rows']], 'clean_nats'):.3f}" for i in range(2)
    )
    seeds, data = len(result["rows"]), result["rows"][0]["data"]
    figure.suptitle(f"Zombie test on {data}, {seeds} seeds; unperturbed loss {losses} nats")
    return figure


def _panel(ax: Axes, rows: list[dict[str, Any]], scale: str, quantity: str) -> None:
    for i, style in enumerate(STYLES):
        curves = [
            [(n["level"], n[quantity]) for n in row["models"][i]["noise"] if n["scale"] == scale]
            for row in rows
        ]
        levels = [level for level, _ in curves[0]]
        for curve in curves:
            ax.plot(levels, [v for _, v in curve], color=style["color"], lw=0.6, alpha=0.4)
        mean = [sum(c[k][1] for c in curves) / len(curves) for k in range(len(levels))]
        ax.plot(levels, mean, label=rows[0]["models"][i]["name"], **style)
    _axes(ax, scale, quantity)


def _units_curve(ax: Axes, rows: list[dict[str, Any]], factor: float, line: str) -> None:
    chosen = [[u for u in row["units"] if u["factor"] == factor] for row in rows]
    levels = [u["level"] for u in chosen[0]]
    mean = [sum(c[k]["delta_ppl"] for c in chosen) / len(chosen) for k in range(len(levels))]
    name = rows[0]["models"][0]["name"]
    label = f"above: {name}, same function, embeddings x {factor:g}"
    ax.plot(levels, mean, color=STYLES[0]["color"], linestyle=line, lw=1, label=label)


def _axes(ax: Axes, scale: str, quantity: str) -> None:
    ax.set_xscale("log")
    # Small noise may lower a perplexity by chance; a logarithm alone would hide that.
    ax.set_yscale("symlog", linthresh=0.1 if quantity == "delta_ppl" else 1e-4)
    ax.axhline(0, color="#555555", lw=0.6)
    ax.set_xlabel(SCALE_LABELS[scale], fontsize=9)
    ax.set_ylabel(LABELS[quantity])
    ax.spines[["top", "right"]].set_visible(False)
