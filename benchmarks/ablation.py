"""What each stage brings: the full stack, the control, each stage taken out, each alone.

python -m benchmarks.ablate shakespeare --data tinyshakespeare.txt
python -m benchmarks.ablate guanaco --data guanaco_900.jsonl
python -m benchmarks.ablate table

All variants of one seed are trained in turn in one process (benchmarks/learners.py), each for
--seconds of its own, or, with --steps, step by step for the same number of tokens. Rows are
written seed by seed to results/ablation.jsonl; seeds already there are left out, so a sweep that
was stopped goes on. `table` compares by pairs of equal seeds.
"""

import argparse
import math
import statistics
import time

import torch

from benchmarks.common import num_parameters, read_rows, write_row
from benchmarks.learners import (
    TASKS,
    Learner,
    Task,
    read_options,
    reso_learner,
    score,
    train_alternately,
)
from reso_llm.config import ResoLLMConfig, control_of, with_stage

TRAINED = (
    "prime_embedding", "prsc", "resonant_attention", "kuramoto", "coherence_gate", "agency",
    "temporal_smf",
)  # fmt: skip
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, two-sided, by number of pairs


def variants(full: ResoLLMConfig) -> dict[str, ResoLLMConfig]:
    """By name: full, control, full without each trained stage, control with each."""
    made = {"full": full, "control": control_of(full)}
    for stage in TRAINED:
        made[f"full - {stage}"] = with_stage(full, stage, enabled=False)
        made[f"control + {stage}"] = with_stage(control_of(full), stage, enabled=True)
    return made


def train_equal_steps(learners: dict[str, Learner], num_steps: int) -> None:
    """One step of each in turn, until all have done num_steps."""
    for done in range(num_steps):
        for learner in learners.values():
            started = time.perf_counter()
            learner.step(done / num_steps)
            learner.seconds += time.perf_counter() - started
            learner.steps += 1


@torch.inference_mode()
def decode_ms(learner: Learner, num_tokens: int = 40) -> float:
    """Median milliseconds of a greedy step at batch 1."""
    model = learner.model.eval()
    state = model.init_state()
    token, times = torch.zeros(1, 1, dtype=torch.int64), []
    for _ in range(num_tokens):
        started = time.perf_counter()
        output = model(token, state)
        token, state = output.logits[:, -1:].argmax(-1), output.state
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def run(name: str, task: Task, seed: int, budget: dict[str, float], only: list[str]) -> None:
    learners = {
        variant: reso_learner(task, config, seed)
        for variant, config in variants(task.config).items()
        if not only or variant in only
    }
    if budget["steps"]:
        train_equal_steps(learners, budget["steps"])
    else:
        train_alternately(learners, budget["seconds"])
    for variant, learner in learners.items():
        nats, bits = score(learner, task)
        tokens = learner.steps * learner.batch * task.config.max_seq_len
        tables = sum(p.numel() for n, p in learner.model.named_parameters() if "table" in n)
        prsc = learner.model.prsc
        row = {
            "task": name, "variant": variant, "seed": seed, **budget,
            "tokens": tokens, "tokens_per_second": round(tokens / learner.seconds),
            "decode_ms": decode_ms(learner), "nats_per_token": nats, "bits_per_byte": bits,
            "parameters": num_parameters(learner.model) - tables, "table_parameters": tables,
            "bound_pairs": len(prsc.entry_ids) if prsc else 0,
        }  # fmt: skip
        write_row("ablation", row)
        print({key: row[key] for key in list(row)[1:10]}, flush=True)


def table() -> str:
    """Bits per byte, and the paired difference to control and full, of all recorded rows."""
    groups: dict[tuple, dict[str, dict[int, dict]]] = {}
    for row in read_rows("ablation"):
        key = (row["task"], row["steps"], row["seconds"])
        groups.setdefault(key, {}).setdefault(row["variant"], {})[row["seed"]] = row
    return "\n\n".join(_section(key, group) for key, group in groups.items())


def _section(key: tuple, group: dict[str, dict[int, dict]]) -> str:
    task, steps, seconds = key
    budget = f"{steps} steps each" if steps else f"{seconds:g} s each"
    lines = [
        f"**{task}, {budget}**", "",
        "| variant | bits/byte | less than its reference | tokens/s | decode ms | parameters "
        "| tables | pairs |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for variant, rows in group.items():
        reference = group.get("full" if variant.startswith("full - ") else "control", {})
        values = [row["bits_per_byte"] for row in rows.values()]
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        gain = _paired([(reference[s]["bits_per_byte"], r["bits_per_byte"])
                        for s, r in rows.items() if s in reference])  # fmt: skip
        any_row = next(iter(rows.values()))
        lines.append(
            f"| {variant} | {statistics.fmean(values):.4f} ± {spread:.4f} | {gain} "
            f"| {statistics.median(r['tokens_per_second'] for r in rows.values()):,.0f} "
            f"| {statistics.median(r['decode_ms'] for r in rows.values()):.2f} "
            f"| {any_row['parameters']:,} | {any_row['table_parameters']:,} "
            f"| {any_row['bound_pairs']:,} |"
        )
    return "\n".join(lines)


def _paired(pairs: list[tuple[float, float]]) -> str:
    """Mean of reference - value and the half width of its 95 % interval."""
    gains = [reference - value for reference, value in pairs]
    if len(gains) < 2:
        return "-"
    half = T_95[len(gains)] * statistics.stdev(gains) / len(gains) ** 0.5
    return f"{statistics.fmean(gains):+.4f} ± {half:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="per variant")
    parser.add_argument("--steps", type=int, default=0, help="equal tokens instead of equal time")
    parser.add_argument("--only", nargs="+", default=[], help="these variants alone")
    options = read_options(parser, table)
    task = TASKS[options.task](options.data)
    budget = {"steps": options.steps, "seconds": 0.0 if options.steps else options.seconds}
    done = {(r["task"], r["steps"], r["seconds"], r["seed"]) for r in read_rows("ablation")}
    for seed in options.seeds:
        if (options.task, budget["steps"], budget["seconds"], seed) not in done:
            run(options.task, task, seed, budget, options.only)


if __name__ == "__main__":
    main()
