"""Quality at equal time: the full stack, our own control, and GPT-2, each with and without echo.

python -m benchmarks.studies.quality shakespeare --data data/tinyshakespeare.txt
python -m benchmarks.studies.quality guanaco --data data/guanaco_900.jsonl
python -m benchmarks.studies.quality table

`benchmarks/kit/learners.py` has the tasks, `trials.py` the budgets, `equal_time.py` trains both
texts at once. One row per model and seed in results/quality.jsonl, scored by two protocols:
stateful (what was read of the document is known) and windowed (nothing before the window is). A
difference is paired by seed; its interval and p are Student's, p adjusted by Holm over the pairs of
a text and protocol.
"""

import argparse
import dataclasses
import math
import statistics
from collections.abc import Sequence

from benchmarks.kit import trials
from benchmarks.kit.learners import TASKS, with_choice
from benchmarks.kit.pace import measure_pace
from benchmarks.kit.records import Row, current_rows, grouped, newest
from benchmarks.kit.statistics import holm, student
from benchmarks.kit.tables import number, table

MODELS = ("full", "full - echo", "control", "control + echo", "gpt2", "gpt2 + echo")
SECONDS = {"shakespeare": 130.0, "guanaco": 180.0}  # for each model
PAIRS = (
    ("full", "control"), ("full", "control + echo"), ("full", "gpt2"), ("full", "gpt2 + echo"),
    ("control", "gpt2"), ("control + echo", "gpt2 + echo"), ("full", "full - echo"),
    ("control + echo", "control"), ("gpt2 + echo", "gpt2"),
)  # fmt: skip
PROTOCOLS = {"stateful": "bits_per_byte", "windowed": "windowed_bits_per_byte"}
GROUP = ("task", "seconds", "paced", "device", "dropout", "choose_on")


def text() -> str:
    """The newest rows of results/quality.jsonl: each model, then what a model has over another."""
    rows = newest(current_rows("quality"), *GROUP, "variant", "seed")
    return f"{models_table(rows)}\n\n{differences_table(rows)}"


def models_table(rows: Sequence[Row]) -> str:
    """Mean and deviation over seeds."""
    lines = []
    groups = grouped(rows, *GROUP, "variant")
    for (task, seconds, _, device, dropout, choose_on, model), some in groups.items():
        seeds = ", ".join(str(row["seed"]) for row in some)
        lines.append([
            task, budget(seconds, device, dropout, choose_on), model, seeds,
            *(spread([row[field] for row in some]) for field in PROTOCOLS.values()),
            f"{statistics.median(row.get('chosen_step', row['steps']) for row in some):,.0f}",
            f"{statistics.fmean(row['tokens_per_second'] for row in some):,.0f}",
        ])  # fmt: skip
    return table(
        ("task", "budget", "model", "seeds", *(f"{name} bits/byte" for name in PROTOCOLS), "steps",
         "tokens/s"), lines,
    )  # fmt: skip


def differences_table(rows: Sequence[Row]) -> str:
    """What it buys: bits per byte less than another model, and whether that is chance."""
    lines = []
    for (task, seconds, _, device, dropout, choose_on), some in grouped(rows, *GROUP).items():
        for protocol, field in PROTOCOLS.items():
            bits = {(row["variant"], row["seed"]): row[field] for row in some}
            lines += [
                [task, budget(seconds, device, dropout, choose_on), protocol, *cells]
                for cells in differences(bits)
            ]  # fmt: skip
    head = ("task", "budget", "protocol", "model", "against", "bits/byte less", "seeds", "Holm's p")
    return table(head, lines)


def differences(bits: dict[tuple[str, int], float]) -> list[list[str]]:
    """A line for each of PAIRS that some seed has both models of."""
    gains = {
        (model, other): [bits[other, s] - value for (name, s), value in bits.items()
                         if name == model and (other, s) in bits]
        for model, other in PAIRS
    }  # fmt: skip
    found = {pair: student(values) for pair, values in gains.items() if values}
    ps = holm([p for _, _, p in found.values()])
    return [
        [*pair, f"{mean:+.4f}" + ("" if half is None else f" ± {half:.4f}"),
         str(len(gains[pair])), number(p, ".3g")]
        for (pair, (mean, half, _)), p in zip(found.items(), ps, strict=True)
    ]  # fmt: skip


def budget(seconds: float, device: str, dropout: float | None, choose_on: int | None) -> str:
    with_dropout = f", dropout {dropout:g}" if dropout else ""
    return f"{seconds:g} s, {device}{with_dropout}" + (", chosen" if choose_on else "")


def spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.4f} ± {deviation:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=(*TASKS, "table"))
    parser.add_argument("--data", help="tinyshakespeare.txt or guanaco-format rows")
    parser.add_argument("--seconds", type=float, help="per model; default 130 or 180")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--dropout", type=float, default=0.0, help="of every model, in training")
    parser.add_argument(
        "--choose_on", type=int, default=0, metavar="ROWS",
        help="validation rows, out of the training rows, by which the checkpoint is chosen",
    )  # fmt: skip
    trials.add_options(parser)
    options = parser.parse_args()
    if options.task == "table":
        print(text())
        return
    if options.data is None:
        parser.error("--data is needed")
    try:
        name, task = options.task, TASKS[options.task](options.data)
        task.config = dataclasses.replace(task.config, dropout=options.dropout)
        if options.choose_on:
            task = with_choice(task, options.choose_on)
        if options.measure_pace:
            measure_pace(options.measure_pace, {name: task}, options.models)
            return
        seconds = options.seconds or SECONDS[name]
        wanted = trials.trials_of(
            "quality", name, options.models, options, seconds=seconds, dropout=options.dropout,
            choose_on=options.choose_on,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    trials.run(wanted, {name: task}, jobs=options.jobs)
    print(text())


if __name__ == "__main__":
    main()
