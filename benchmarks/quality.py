"""Quality at equal wall-clock time: the full stack, our own control, and Hugging Face GPT-2.

python -m benchmarks.quality shakespeare --data tinyshakespeare.txt
python -m benchmarks.quality guanaco --data guanaco_900.jsonl
python -m benchmarks.quality table

`benchmarks/learners.py` has the protocol. One row per model and seed in results/quality.jsonl.
"""

import argparse
import math
import statistics

from benchmarks.common import num_parameters, read_rows, write_row
from benchmarks.learners import TASKS, Task, gpt2_learner, reso_learner, score, train_alternately
from reso_llm.config import control_of
from run_core.hardware import keep_freed_memory

MODELS = ("full", "control", "gpt2")
SECONDS = {"shakespeare": 130.0, "guanaco": 480.0}  # the budgets of a run, for each model


def run(name: str, task: Task, models: list[str], seconds: float, seed: int) -> None:
    makers = {
        "full": lambda: reso_learner(task, task.config, seed),
        "control": lambda: reso_learner(task, control_of(task.config), seed),
        "gpt2": lambda: gpt2_learner(task, seed),
    }
    learners = {model: makers[model]() for model in models}
    train_alternately(learners, seconds)
    for model, learner in learners.items():
        nats, bits = score(learner, task)
        tokens = learner.steps * learner.batch * task.config.max_seq_len
        row = {
            "task": name, "model": model, "seed": seed, "seconds": round(learner.seconds, 1),
            "steps": learner.steps, "tokens": tokens,
            "tokens_per_second": round(tokens / learner.seconds),
            "nats_per_token": nats, "bits_per_byte": bits,
            "parameters": num_parameters(learner.model),
        }  # fmt: skip
        write_row("quality", row)
        print({key: row[key] for key in list(row)[:9]}, flush=True)


def table() -> str:
    """Mean and deviation over seeds of the newest rows of results/quality.jsonl."""
    newest = {
        (row["task"], round(row["seconds"], -1), row["model"], row["seed"]): row
        for row in read_rows("quality")
    }
    groups: dict[tuple, list[dict]] = {}
    for key, row in newest.items():
        groups.setdefault(key[:3], []).append(row)
    lines = ["| task | seconds | model | seeds | nats/token | bits/byte | tokens/s |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for (task, seconds, model), rows in groups.items():
        cells = [
            f"{statistics.fmean(v):.4f} ± {statistics.stdev(v) if len(v) > 1 else math.nan:.4f}"
            for v in ([r["nats_per_token"] for r in rows], [r["bits_per_byte"] for r in rows])
        ]
        speed = statistics.fmean(r["tokens_per_second"] for r in rows)
        seeds = ", ".join(str(r["seed"]) for r in rows)
        lines.append(
            f"| {task} | {seconds:.0f} | {model} | {seeds} | {' | '.join(cells)} | {speed:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=(*TASKS, "table"))
    parser.add_argument("--data", help="tinyshakespeare.txt or guanaco-format rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, help="per model; default 130 or 480")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    options = parser.parse_args()
    if options.task == "table":
        print(table())
        return
    if options.data is None:
        parser.error("--data is needed")
    keep_freed_memory()
    task, seconds = TASKS[options.task](options.data), options.seconds or SECONDS[options.task]
    for seed in options.seeds:
        run(options.task, task, options.models, seconds, seed)


if __name__ == "__main__":
    main()
