"""What each stage brings: the full stack, the control, each stage taken out, each alone.

All variants of one seed are trained in turn in one process (benchmarks/learners.py), each for
--seconds of its own, or, with --steps, step by step for the same number of tokens. A row is a
variant and a seed; seeds and variants already recorded are left out. Compared is by pairs of equal
seeds (benchmarks/ablation_report.py). --quick trains tiny models for two steps, on a made text
where none is given. The tasks are `shakespeare` (characters) and `guanaco` (BPE, dialogue).
"""

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.ablation_report import figure, text
from benchmarks.common import Records, num_parameters
from benchmarks.learners import (
    TASKS,
    Learner,
    Task,
    reso_learner,
    score,
    train_alternately,
    train_equal_steps,
)
from reso_llm.config import KuramotoConfig, ResoLLMConfig, control_of, with_stage
from run_core.cli import Parser
from run_core.hardware import keep_freed_memory

__all__ = ["add_options", "figure", "run", "text"]

TRAINED = (
    "prime_embedding", "prsc", "resonant_attention", "kuramoto", "coherence_gate", "agency",
    "temporal_smf",
)  # fmt: skip
QUICK_STEPS = 2

Row = dict[str, Any]


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
    for seed in tqdm(seeds, desc="seeds", leave=False):
        found = {}
        for name in options.only or names:
            key = {"task": options.task, "variant": name, "seed": seed, **budget}
            found[name] = records.find(**key) or key
        missing = [name for name, row in found.items() if "bits_per_byte" not in row]
        for name, learner in trained(task, seed, budget, missing).items():
            found[name] |= measured(learner, task)
            records.add(found[name])
        rows += found.values()
    return rows


def variants(full: ResoLLMConfig) -> dict[str, ResoLLMConfig]:
    """By name: full, control, full without each trained stage, control with each."""
    made = {"full": full, "control": control_of(full)}
    for stage in TRAINED:
        made[f"full - {stage}"] = with_stage(full, stage, enabled=False)
        made[f"control + {stage}"] = with_stage(control_of(full), stage, enabled=True)
    return made


def trained(
    task: Task, seed: int, budget: dict[str, float], names: Sequence[str]
) -> dict[str, Learner]:
    """The variants of these names, trained in turn."""
    learners = {name: reso_learner(task, variants(task.config)[name], seed) for name in names}
    if budget["steps"]:
        total = budget["steps"] * len(names)
        with tqdm(total=total, desc=f"seed {seed}", unit="step", leave=False) as bar:
            train_equal_steps(learners, budget["steps"], bar.update)
    else:
        total = budget["seconds"] * len(names)
        with tqdm(total=total, desc=f"seed {seed}", unit="s", leave=False) as bar:
            train_alternately(learners, budget["seconds"], bar.update)
    return learners


def measured(learner: Learner, task: Task) -> Row:
    """What a trained variant is worth and costs."""
    nats, bits = score(learner, task)
    tokens = learner.steps * learner.batch * task.config.max_seq_len
    tables = sum(p.numel() for n, p in learner.model.named_parameters() if "table" in n)
    prsc = learner.model.prsc
    return {
        "tokens": tokens, "tokens_per_second": round(tokens / learner.seconds),
        "decode_ms": decode_ms(learner), "nats_per_token": nats, "bits_per_byte": bits,
        "parameters": num_parameters(learner.model) - tables, "table_parameters": tables,
        "bound_pairs": len(prsc.entry_ids) if prsc else 0,
    }  # fmt: skip


@torch.inference_mode()
def decode_ms(learner: Learner, num_tokens: int = 40) -> float:
    """Median milliseconds of a greedy step at batch 1, over what fits into the context."""
    model = learner.model.eval()
    state = model.init_state()
    token, times = torch.zeros(1, 1, dtype=torch.int64), []
    for _ in range(min(num_tokens, model.config.max_seq_len)):
        started = time.perf_counter()
        output = model(token, state)
        token, state = output.logits[:, -1:].argmax(-1), output.state
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


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
