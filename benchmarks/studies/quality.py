"""Quality at equal wall-clock time: the full stack, our own control, and Hugging Face GPT-2.

python -m benchmarks.studies.quality shakespeare --data tinyshakespeare.txt
python -m benchmarks.studies.quality guanaco --data guanaco_900.jsonl
python -m benchmarks.studies.quality table

`benchmarks/kit/learners.py` has the protocol. One row per model and seed in results/quality.jsonl.
"""

import argparse
import math
import statistics
from collections.abc import Sequence

from benchmarks.kit.learners import (
    TASKS,
    Task,
    gpt2_learner,
    reso_learner,
    score,
    train_alternately,
)
from benchmarks.kit.records import grouped, newest, num_parameters, read_rows, write_row
from benchmarks.kit.tables import table
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
        row = {
            "task": name, "model": model, "seed": seed, "seconds": round(learner.seconds, 1),
            "steps": learner.steps, **score(learner, task),
            "parameters": num_parameters(learner.model),
        }  # fmt: skip
        write_row("quality", row)
        print({key: row[key] for key in list(row)[:9]}, flush=True)


def text() -> str:
    """Mean and deviation over seeds of the newest rows of results/quality.jsonl."""
    rows = [row | {"budget": round(row["seconds"], -1)} for row in read_rows("quality")]
    rows = newest(rows, "task", "budget", "model", "seed")
    lines = []
    for (task, budget, model), some in grouped(rows, "task", "budget", "model").items():
        speed = statistics.fmean(row["tokens_per_second"] for row in some)
        lines.append([
            task, f"{budget:.0f}", model, ", ".join(str(row["seed"]) for row in some),
            spread([row["nats_per_token"] for row in some]),
            spread([row["bits_per_byte"] for row in some]), f"{speed:,.0f}",
        ])  # fmt: skip
    return table(
        ("task", "seconds", "model", "seeds", "nats/token", "bits/byte", "tokens/s"), lines
    )


def spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.4f} ± {deviation:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=(*TASKS, "table"))
    parser.add_argument("--data", help="tinyshakespeare.txt or guanaco-format rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, help="per model; default 130 or 480")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    options = parser.parse_args()
    if options.task == "table":
        print(text())
        return
    if options.data is None:
        parser.error("--data is needed")
    keep_freed_memory()
    task, seconds = TASKS[options.task](options.data), options.seconds or SECONDS[options.task]
    for seed in options.seeds:
        run(options.task, task, options.models, seconds, seed)


if __name__ == "__main__":
    main()
