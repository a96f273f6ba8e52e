"""The worth of each stage: the full stack, the control, each stage taken out, each alone.

A row is a variant and a seed, trained within a budget of tokens or of time (`kit/trials.py`) and
scored by the stateful protocol; its windowed score stands beside it. --quick trains tiny models for
two steps, on a made text where none is given. The tasks are `shakespeare` (characters) and
`guanaco` (BPE, dialogue). Variants are compared by pairs of equal seeds:

    gain = bits per byte of the reference - bits per byte of the variant

The reference of "full - stage" is full, that of "control + stage" the control, or the control with
what the stage needs. The 95 % interval of the mean gain over seeds is Student's.
"""

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.kit import trials
from benchmarks.kit.figures import BLUE, GREY, RED, new_figure
from benchmarks.kit.learners import TASKS, Task
from benchmarks.kit.pace import measure_pace
from benchmarks.kit.records import Row
from benchmarks.kit.statistics import student
from benchmarks.kit.tables import number, table
from benchmarks.kit.variants import reference_of, variants
from reso_llm.config import KuramotoConfig, ResoLLMConfig

QUICK_STEPS = 2
LINEAR_BITS = 0.02  # the axis is linear up to here, logarithmic beyond
STYLES = {"full": (RED, "s"), "control": (BLUE, "o")}  # by reference
INCHES_A_VARIANT = 0.3

Group = dict[str, dict[int, Row]]  # rows by variant and seed


def add_options(parser: Any) -> None:
    parser.add_argument("task", choices=list(TASKS), help="what to learn")
    parser.add_argument("--data", type=str, help="tinyshakespeare.txt or guanaco-format rows")
    parser.add_argument("--seconds", type=float, default=60.0, help="per variant")
    parser.add_argument("--steps", type=int, default=0, help="equal tokens instead of equal time")
    parser.add_argument("--only", type=str, nargs="+", default=[], help="these variants alone")
    trials.add_options(parser)


def run(options: Any) -> list[Row]:
    """One row a seed and variant. Raises ValueError without data or for an unknown variant."""
    names = list(variants(ResoLLMConfig()))
    if unknown := [name for name in options.only if name not in names]:
        raise ValueError(f"unknown variants {unknown}; known: {', '.join(names)}")
    if not (options.data or options.quick):
        raise ValueError("which text? --data FILE")
    name, names, budget = options.task, options.only or names, {"seconds": options.seconds}
    budget["steps"] = QUICK_STEPS if options.quick else options.steps
    wanted = trials.trials_of("ablation", name, names, options, **budget)
    if options.quick:
        wanted = [trial for trial in wanted if trial.seed == options.seeds[0]]
        task = quick_task(name, options.data)
    else:
        task = TASKS[name](options.data)
    if options.measure_pace:
        measure_pace(options.measure_pace, {name: task}, names)
        return []
    return trials.run(wanted, {name: task}, jobs=options.jobs, record=options.record)


def quick_task(name: str, data: str | None) -> Task:
    """The task with a tiny model; a text is made where none is given."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(data) if data else made_text(name, Path(directory))
        task = TASKS[name](str(path))
    tiny = dataclasses.replace(
        task.config, dim=32, num_layers=1, num_heads=2, max_seq_len=16, num_value_embeddings=1,
        kuramoto=KuramotoConfig(num_oscillators=4),
    )  # fmt: skip
    return dataclasses.replace(task, config=tiny, stride=16)


def made_text(name: str, directory: Path) -> Path:
    """Words in random order: a plain text, or rows of dialogue."""
    words = np.random.default_rng(0).choice(["reso", "prime", "phase", "field", "gate"], (40, 12))
    lines = [" ".join(line) for line in words]
    if name == "shakespeare":
        path, rows = directory / "text.txt", lines
    else:
        path = directory / "rows.jsonl"
        rows = [json.dumps({"text": f"### Human: {x}?### Assistant: {x}."}) for x in lines]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


# --- the gains


class Gain(NamedTuple):
    """Bits per byte less than the reference: mean over seeds, half its 95 % interval."""

    mean: float
    half: float | None  # a single pair has no interval


def groups(rows: Sequence[Row]) -> dict[str, Group]:
    """The rows by task and budget, as a title; the newest row of a variant and seed counts."""
    by_title: dict[str, Group] = {}
    for row in rows:
        group = by_title.setdefault(f"{row['task']}, {budget_of(row)}", {})
        group.setdefault(row["variant"], {})[row["seed"]] = row
    return by_title


def budget_of(row: Row) -> str:
    """`130 s each`, and where it was trained if elsewhere than it was timed."""
    each = f"{row['steps']} steps" if row["budget"] == "tokens" else f"{row['seconds']:g} s"
    where = f", trained on {row['device']}" if row["paced"] or row["device"] != "cpu" else ""
    return f"{each} each{where}"


def gain(group: Group, variant: str) -> Gain | None:
    """The gain of a variant; None where no seed has both it and its reference."""
    reference, rows = group.get(reference_of(variant), {}), group[variant]
    gains = [reference[s]["bits_per_byte"] - r["bits_per_byte"] for s, r in rows.items()
             if s in reference]  # fmt: skip
    if not gains:
        return None
    mean, half, _ = student(gains)
    return Gain(mean, half)


def text(rows: Sequence[Row]) -> str:
    """Markdown: bits per byte, what it is less than its reference, and what the variant costs."""
    return "\n\n".join(_section(title, group) for title, group in groups(rows).items())


def _section(title: str, group: Group) -> str:
    columns = ("variant", "seeds", "bits/byte", "less than its reference", "windowed", "steps",
               "tokens/s", "decode ms", "parameters", "tables", "pairs")  # fmt: skip
    lines = []
    for variant, by_seed in group.items():
        rows = [*by_seed.values()]
        values = [row["bits_per_byte"] for row in rows]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        windowed = statistics.fmean(row["windowed_bits_per_byte"] for row in rows)
        steps = statistics.median(row["steps"] for row in rows)
        speed = statistics.median(row["tokens_per_second"] for row in rows)
        times = [row["decode_ms"] for row in rows if row["decode_ms"] is not None]
        sizes = [rows[0][f] for f in ("parameters", "table_parameters", "bound_pairs")]
        lines.append([
            variant, str(len(rows)), f"{statistics.fmean(values):.4f}{spread}",
            _written(gain(group, variant)), f"{windowed:.4f}", f"{steps:,.0f}", f"{speed:,.0f}",
            number(statistics.median(times) if times else None), *(f"{size:,}" for size in sizes),
        ])  # fmt: skip
    return f"**{title}**\n\n{table(columns, lines)}"


def _written(saved: Gain | None) -> str:
    if saved is None:
        return "-"
    return f"{saved.mean:+.4f}" + ("" if saved.half is None else f" ± {saved.half:.4f}")


def figure(rows: Sequence[Row]) -> Any:
    """The gains with their intervals, a panel a task and budget; hollow: one seed, no interval."""
    by_title = groups(rows)
    sizes = [max(len(group) - 1, 1) for group in by_title.values()] or [1]
    drawn = new_figure(8, INCHES_A_VARIANT * sum(sizes) + 1.6 * len(sizes))
    panels = drawn.subplots(len(sizes), 1, squeeze=False, height_ratios=sizes)[:, 0]
    for axes, (title, group) in zip(panels, by_title.items(), strict=False):
        _forest(axes, group)
        axes.set_title(title, fontsize=11)
    return drawn


def _forest(axes: Any, group: Group) -> None:
    gains = {name: g for name in group if name != "control" and (g := gain(group, name))}
    for i, (variant, saved) in enumerate(gains.items()):
        color, marker = STYLES[reference_of(variant).partition(" ")[0]]
        face = color if saved.half is not None else "white"
        axes.errorbar(saved.mean, i, xerr=saved.half or 0, color=color, marker=marker,
                      markerfacecolor=face, capsize=3, ls="")  # fmt: skip
    for reference, (color, marker) in STYLES.items():
        axes.plot([], [], color=color, marker=marker, label=f"against {reference}")
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set_xscale("symlog", linthresh=LINEAR_BITS)
    ticks = [0, *(s * t for t in (0.01, 0.1, 1) for s in (-1, 1))]
    edge = 1.5 * max([1.0, *(abs(saved.mean) + (saved.half or 0) for saved in gains.values())])
    axes.set_xlim(-edge, edge)
    axes.set_xticks(sorted(ticks), [f"{t:+g}" if t else "0" for t in sorted(ticks)])
    axes.set_yticks(range(len(gains)), list(gains))
    axes.set_ylim(len(gains) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("bits per byte less than the reference (right of 0: better)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
