"""Figures of the mirror test and of the set point, from the results as plain values.

The two public functions return a matplotlib Figure, or draw on the figure (or subfigure) given.
They show nothing and change no global style. matplotlib is optional and imported when a figure is
made. The colours (Okabe and Ito 2008) stay distinct under the common forms of colour blindness;
conditions also differ in marker and line.
"""

from typing import Any

from cer.mirror import CONDITIONS
from cer.setpoint import targets_of, worst_error

STYLES = {
    "PEAKED": dict(color="#D55E00", marker="o", linestyle="-"),
    "UNIFORM": dict(color="#0072B2", marker="s", linestyle="--"),
    "RANDOM": dict(color="#009E73", marker="^", linestyle=":"),
}
ACTIONS = {  # label: colour, hatch, direction of the marker
    "BRAKE": ("#56B4E9", "", "v"),
    "ESCAPE": ("#E69F00", "//", "^"),
    "NONE": ("#BBBBBB", "..", "o"),
}
GREY = "#555555"
LEAST_ERROR = 1e-8  # nats; drawn for an error of exactly 0 on the logarithmic axis


def _new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def mirror_figure(result: dict[str, Any], figure: Any = None) -> Any:
    """Trajectories with bands, output entropy and control counts of `mirror_test`."""
    figure = _new_figure(14, 4.6) if figure is None else figure
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _trajectories(left, result)
    _outputs(middle, result)
    _actions(right, result)
    metadata = result["metadata"]
    figure.suptitle(
        f"Mirror test, {metadata['mode']} mode, untrained reactors, {metadata['n_seeds']} seeds"
    )
    return figure


def _runs(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [c for r in result["seed_results"] for c in r["conditions"] if c["name"] == name]


def _trajectories(axes: Any, result: dict[str, Any]) -> None:
    metadata = result["metadata"]
    for i, name in enumerate(CONDITIONS):
        steps = result["summary"]["conditions"][name]["entropy_trajectory"].values()
        mean, std = [s["mean"] for s in steps], [s["std"] for s in steps]
        at = [x + 0.07 * (i - 1) for x in range(len(mean))]  # the conditions nearly coincide
        color = STYLES[name]["color"]
        for run in _runs(result, name):
            axes.plot(at, [s["entropy"] for s in run["steps"]], color=color, lw=0.5, alpha=0.25)
        band = ([m - s for m, s in zip(mean, std, strict=True)],
                [m + s for m, s in zip(mean, std, strict=True)])  # fmt: skip
        axes.fill_between(at, *band, color=color, alpha=0.15, lw=0)
        axes.plot(at, mean, **STYLES[name], ms=5, label=name)
    _line(axes, metadata["target_entropy"], "target")
    _line(axes, metadata["max_state_entropy"], "maximum")
    axes.set_xticks(range(len(mean)), _step_names(metadata))
    axes.set(title="State after each step's control (mean, ± 1 sd, each seed)")
    axes.set(xlabel="layer and step", ylabel="entropy of the state, nats")
    axes.set_ylim(0, metadata["max_state_entropy"] + 0.4)
    axes.legend(loc="lower left")


def _line(axes: Any, value: float, name: str) -> None:
    axes.axhline(value, color=GREY, lw=0.8, ls=(0, (6, 3)))
    axes.annotate(
        f"{name} {value:.3g}", (1, value), xycoords=("axes fraction", "data"), ha="right",
        va="bottom", color=GREY, fontsize=9, xytext=(-2, 1), textcoords="offset points",
    )  # fmt: skip


def _step_names(metadata: dict[str, Any]) -> list[str]:
    steps = range(metadata["num_refinement_steps"])
    return [f"L{layer}S{step}" for layer in range(metadata["num_layers"]) for step in steps]


def _outputs(axes: Any, result: dict[str, Any]) -> None:
    for i, name in enumerate(CONDITIONS):
        style = {k: v for k, v in STYLES[name].items() if k != "linestyle"}
        runs = _runs(result, name)
        values = [run["output_entropy"] for run in runs]
        shift = [0.3 * ((k + 0.5) / len(runs) - 0.5) for k in range(len(runs))]
        axes.plot([i + s for s in shift], values, **style, ls="", ms=4, alpha=0.6)
        spread = result["summary"]["conditions"][name]["output_entropy"]
        axes.errorbar(i + 0.28, spread["mean"], spread["std"], **style, capsize=4, ms=6)
        entropy = sum(run["input_entropy"] for run in runs) / len(runs)
        axes.plot(i, entropy, marker="_", ms=26, mew=2, ls="", color="black",
                  label=None if i else "input")  # fmt: skip
    maximum = result["metadata"]["max_output_entropy"]
    _line(axes, maximum, "maximum")
    axes.set_xticks(range(len(CONDITIONS)), CONDITIONS)
    axes.set(title="Output (each seed; mean ± 1 sd)", ylabel="entropy of the output, nats")
    axes.set_xlim(-0.5, len(CONDITIONS) - 0.4)
    axes.set_ylim(0, maximum + 0.4)
    axes.legend(loc="lower right")


def _actions(axes: Any, result: dict[str, Any]) -> None:
    bottom = [0] * len(CONDITIONS)
    for action, (color, hatch, _) in ACTIONS.items():
        counts = [
            sum(s["control"] == action for run in _runs(result, name) for s in run["steps"])
            for name in CONDITIONS
        ]
        bars = axes.bar(
            CONDITIONS, counts, bottom=bottom, color=color, hatch=hatch, edgecolor="white",
            label=f"{action} ({sum(counts)})",
        )  # fmt: skip
        tall = max(1.0, 0.08 * sum(len(run["steps"]) for run in _runs(result, "PEAKED")))
        axes.bar_label(bars, [str(c) if c >= tall else "" for c in counts], label_type="center")
        bottom = [b + c for b, c in zip(bottom, counts, strict=True)]
    axes.set(title="Control actions", ylabel="refinement steps, all seeds")
    axes.set_ylim(0, 1.3 * max(bottom))
    axes.legend(loc="upper center", ncols=3, fontsize=9, columnspacing=1)


def setpoint_figure(result: dict[str, Any], figure: Any = None) -> Any:
    """Error of each target, and the first seed's control step by step, of `setpoint_curve`."""
    figure = _new_figure(12, 4.8) if figure is None else figure
    left, right = figure.subplots(1, 2)
    targets = targets_of(result)
    for name in CONDITIONS:
        errors = [max(worst_error(result, t, name), LEAST_ERROR) for t in targets]
        left.plot(targets, errors, **STYLES[name], ms=6, label=name)
    left.axhline(1e-3, color=GREY, lw=0.8, ls=(0, (6, 3)), label="0.001 nats")
    left.set_xticks(targets, [f"{target:g}" for target in targets])
    left.set(yscale="log", xlabel="target, nats", ylabel="error of the worst sample, nats")
    left.set(title=f"Final entropy against its target ({len(result['seeds'])} seeds)")
    left.legend()
    _control_steps(right, result)
    figure.suptitle(f"Set point of the {result['mode']} control, untrained reactors")
    return figure


def _control_steps(axes: Any, result: dict[str, Any]) -> None:
    """A line for each action, from the entropy before it to the entropy after it."""
    seed, targets = result["seeds"][0], targets_of(result)
    for row in result["rows"]:
        if row["seed"] != seed or row["condition"] != "RANDOM":
            continue
        axes.axhline(row["target"], color=GREY, lw=0.6, ls=(0, (6, 3)))
        shift = 0.1 * (targets.index(row["target"]) - (len(targets) - 1) / 2)
        for i, step in enumerate(row["steps"]):
            x = i + shift  # the first step of several targets is one line otherwise
            after = step["entropy"]
            # The published deficit is the distance from the target, not the change that was made.
            end = row["target"] if result["mode"] == "published" else after
            color, _, marker = ACTIONS[step["control"]]
            axes.plot([x, x], [end - step["deficit"], after], color=color, lw=2)
            axes.plot(x, after, marker=marker, color=color, ms=7, ls="")
    for action, (color, _, marker) in ACTIONS.items():
        axes.plot([], [], marker=marker, color=color, lw=2, label=action)
    names = _step_labels(result["rows"][0]["steps"])
    axes.set_xticks(range(len(names)), names)
    axes.set(title=f"What the control does (RANDOM, seed {seed}; dashed: targets)")
    axes.set(xlabel="layer and step", ylabel="entropy of the state, nats")
    axes.legend(loc="upper right", ncols=3, fontsize=9)
    axes.set_ylim(0, 6.2)


def _step_labels(steps: list[dict[str, Any]]) -> list[str]:
    return [f"L{s['layer']}S{s['step']}" for s in steps]
