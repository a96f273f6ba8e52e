"""The worth of each stage: the full stack, the control, each stage taken out, each alone.

All variants of one seed are trained in turn in one process (kit/learners.py), each for
--seconds of its own, or, with --steps, step by step for the same number of tokens. A row is a
variant and a seed; seeds and variants already recorded are left out. --quick trains tiny models
for two steps, on a made text where none is given. The tasks are `shakespeare` (characters) and
`guanaco` (BPE, dialogue). Variants are compared by pairs of equal seeds:

    gain = bits per byte of the reference - bits per byte of the variant

The reference of "full - stage" is full, that of all others the control. Half the width of the 95 %
interval of the mean gain over n seeds is t(n) s / sqrt(n), s their standard deviation.
"""

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.kit.figures import BLUE, GREY, RED, new_figure
from benchmarks.kit.learners import (
    TASKS,
    Learner,
    Task,
    reso_learner,
    score,
    train_alternately,
    train_equal_steps,
)
from benchmarks.kit.records import Records, Row, num_parameters
from benchmarks.kit.tables import table
from benchmarks.kit.timing import greedy_steps
from cer.zombie import T_95
from reso_llm.config import TRAINED_STAGES, KuramotoConfig, ResoLLMConfig, control_of, with_stage
from reso_llm.model import ResoLLMModel
from run_core.cli import Parser
from run_core.hardware import keep_freed_memory

QUICK_STEPS = 2
LINEAR_BITS = 0.02  # the axis is linear up to here, logarithmic beyond
STYLES = {"full": (RED, "s"), "control": (BLUE, "o")}  # by reference
INCHES_A_VARIANT = 0.3

Group = dict[str, dict[int, Row]]  # rows by variant and seed


def add_options(parser: Parser) -> None:
    parser.add_argument("task", choices=list(TASKS), help="what to learn")
    parser.add_argument("--data", type=str, help="tinyshakespeare.txt or guanaco-format rows")
    parser.add_argument("--seconds", type=float, default=60.0, help="per variant")
    parser.add_argument("--steps", type=int, default=0, help="equal tokens instead of equal time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", type=str, nargs="+", default=[], help="these variants alone")


def run(options: Any) -> list[Row]:
    """One row a seed and variant. Raises ValueError without data or for an unknown variant."""
    names = list(variants(ResoLLMConfig()))
    if unknown := [name for name in options.only if name not in names]:
        raise ValueError(f"unknown variants {unknown}; known: {', '.join(names)}")
    if options.quick:
        task, steps, seeds = quick_task(options.task, options.data), QUICK_STEPS, options.seeds[:1]
    elif options.data:
        keep_freed_memory()
        task, steps, seeds = TASKS[options.task](options.data), options.steps, options.seeds
    else:
        raise ValueError("which text? --data FILE")
    budget = {"steps": steps, "seconds": 0.0 if steps else options.seconds}
    records, rows = Records("ablation", options.record), []
    for seed in tqdm(seeds, desc="seeds", leave=False, disable=None):
        by_name = {}
        for name in options.only or names:
            key = {"task": options.task, "variant": name, "seed": seed, **budget}
            by_name[name] = records.find(**key) or key
        missing = [name for name, row in by_name.items() if "bits_per_byte" not in row]
        for name, learner in trained(task, seed, budget, missing).items():
            by_name[name] |= measured(learner, task)
            records.add(by_name[name])
        rows += by_name.values()
    return rows


def variants(full: ResoLLMConfig) -> dict[str, ResoLLMConfig]:
    """By name: full, control, full without each trained stage, control with each."""
    configs = {"full": full, "control": control_of(full)}
    for stage in TRAINED_STAGES:
        configs[f"full - {stage}"] = with_stage(full, stage, enabled=False)
        configs[f"control + {stage}"] = with_stage(control_of(full), stage, enabled=True)
    return configs


def trained(
    task: Task, seed: int, budget: dict[str, float], names: Sequence[str]
) -> dict[str, Learner]:
    """The variants of these names, trained in turn."""
    learners = {name: reso_learner(task, variants(task.config)[name], seed) for name in names}
    train = train_equal_steps if budget["steps"] else train_alternately
    amount = budget["steps"] or budget["seconds"]
    with tqdm(total=amount * len(names), desc=f"seed {seed}", leave=False, disable=None) as bar:
        train(learners, amount, bar.update)
    return learners


def measured(learner: Learner, task: Task) -> Row:
    """Score a trained variant, and measure its speed and size."""
    tables = sum(p.numel() for n, p in learner.model.named_parameters() if "table" in n)
    prsc = learner.model.prsc
    return {
        **score(learner, task), "decode_ms": decode_ms(learner.model.eval()),
        "parameters": num_parameters(learner.model) - tables, "table_parameters": tables,
        "bound_pairs": len(prsc.entry_ids) if prsc else 0,
    }  # fmt: skip


def decode_ms(model: ResoLLMModel, num_tokens: int = 40) -> float:
    """Median milliseconds of a greedy step at batch 1, over what fits into the context."""
    count = min(num_tokens, model.config.max_seq_len)
    return statistics.median(greedy_steps(model, model.init_state(), count)[0])


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
        budget = f"{row['steps']} steps each" if row["steps"] else f"{row['seconds']:g} s each"
        group = by_title.setdefault(f"{row['task']}, {budget}", {})
        group.setdefault(row["variant"], {})[row["seed"]] = row
    return by_title


def reference_of(variant: str) -> str:
    return "full" if variant.startswith("full - ") else "control"


def gain(group: Group, variant: str) -> Gain | None:
    """The gain of a variant; None where no seed has both it and its reference."""
    reference, rows = group.get(reference_of(variant), {}), group[variant]
    gains = [reference[s]["bits_per_byte"] - r["bits_per_byte"] for s, r in rows.items()
             if s in reference]  # fmt: skip
    if not gains:
        return None
    if len(gains) == 1:
        return Gain(gains[0], None)
    factor = T_95[min(len(gains), max(T_95))]
    return Gain(statistics.fmean(gains), factor * statistics.stdev(gains) / len(gains) ** 0.5)


def text(rows: Sequence[Row]) -> str:
    """Markdown: bits per byte, what it is less than its reference, and what the variant costs."""
    return "\n\n".join(_section(title, group) for title, group in groups(rows).items())


def _section(title: str, group: Group) -> str:
    columns = ("variant", "seeds", "bits/byte", "less than its reference", "tokens/s", "decode ms",
               "parameters", "tables", "pairs")  # fmt: skip
    lines = []
    for variant, by_seed in group.items():
        rows = [*by_seed.values()]
        values = [row["bits_per_byte"] for row in rows]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        speeds, times = ([row[f] for row in rows] for f in ("tokens_per_second", "decode_ms"))
        sizes = [rows[0][f] for f in ("parameters", "table_parameters", "bound_pairs")]
        lines.append([
            variant, str(len(rows)), f"{statistics.fmean(values):.4f}{spread}",
            _written(gain(group, variant)), f"{statistics.median(speeds):,.0f}",
            f"{statistics.median(times):.2f}", *(f"{size:,}" for size in sizes),
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
        color, marker = STYLES[reference_of(variant)]
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
