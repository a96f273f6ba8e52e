"""Loss against compute on one CPU, and what larger models cost.

python -m benchmarks.studies.scaling fit --data data/tinyshakespeare.txt      trains, resumable
python -m benchmarks.studies.scaling table                                    the tables again

`fit` trains the full stack and the control in four sizes on three budgets of tokens each, on
characters, one seed, and scores 20,000 held-out characters. A run has a schedule of its own, so a
short one is no part of a long one. Rows go to results/scaling.jsonl as they come.

    ln L = a - alpha ln N - beta ln D          L bits per character, N numbers in the matrices

is fitted to the rows of a model by least squares. Its test is the largest size: it is predicted by
the line through the three smaller ones. Compute is 6 N D, as though every token went through every
layer; the coherence gate lets fewer through. The binding memory counts the whole text at each
budget.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.kit import trials
from benchmarks.kit.costs import costs_table
from benchmarks.kit.learners import Task, one_document, shakespeare
from benchmarks.kit.records import Row, current_rows, grouped, newest
from benchmarks.kit.statistics import bootstrap
from benchmarks.kit.tables import shown, table

SIZES = ((32, 2), (48, 3), (64, 4), (96, 4))  # width, layers; heads of 16
STEPS = (25, 75, 225)  # of 24 windows of 64 characters
MODELS = ("full", "control")
TRAINED, SCORED = 350_000, 20_000  # characters


def tasks_of(path: str) -> dict[str, Task]:
    """The same characters for a model of each size, by a name of it."""
    whole = shakespeare(path)
    train, val = (
        one_document(split.tokens[:size])
        for split, size in ((whole.train, TRAINED), (whole.val, SCORED))
    )
    task = dataclasses.replace(whole, train=train, val=val)
    return {
        f"{dim} wide, {layers} layers": dataclasses.replace(task, config=sized(task, dim, layers))
        for dim, layers in SIZES
    }


def sized(task: Task, dim: int, layers: int):
    """The shape of the task's model in another size."""
    heads = dim // 16
    field = dataclasses.replace(task.config.temporal_smf, num_heads=heads)
    return dataclasses.replace(
        task.config, dim=dim, num_layers=layers, num_heads=heads, temporal_smf=field
    )


def fit(path: str, steps: Sequence[int]) -> None:
    """Train what is not recorded yet, the short budgets of all sizes first."""
    tasks = tasks_of(path)
    options = argparse.Namespace(seeds=[0], pace=None, device="cpu", jobs=0)
    for num_steps in steps:
        for name in tasks:
            wanted = trials.trials_of("scaling", name, MODELS, options, steps=num_steps)
            trials.run(wanted, tasks)


# --- tables


def rows_of_today() -> list[Row]:
    return newest(current_rows("scaling"), "task", "variant", "seed", "steps")


def compute(row: Row) -> float:
    """6 N D, in operations."""
    return 6 * row["parameters"] * row["tokens"]


def losses_table(rows: Sequence[Row]) -> str:
    """Bits per character of each size and budget, and what the full stack saves."""
    lines = []
    for (task, steps), some in sorted(
        grouped(rows, "task", "steps").items(), key=lambda item: (item[0][1], item[0][0])
    ):
        own = {row["variant"]: row for row in some}
        if set(own) < set(MODELS):
            continue
        full, control = (own[name]["bits_per_byte"] for name in MODELS)
        lines.append([
            task, f"{steps * 24 * 64:,}", *(f"{compute(own[name]):.1e}" for name in MODELS),
            f"{full:.3f}", f"{control:.3f}", f"{control - full:.3f}",
        ])  # fmt: skip
    return table(
        ("model", "characters read", "6 N D, full", "control", "bits, full", "control", "less"),
        lines,
    )


def points(rows: Sequence[Row]) -> np.ndarray:
    """ln N, ln D, ln L of rows (n,3)."""
    values = [(row["parameters"], row["tokens"], row["bits_per_byte"]) for row in rows]
    return np.log(np.array(values, dtype=float))


def line_through(points: np.ndarray) -> np.ndarray:
    """a, alpha, beta by least squares; NaN where the points do not tell them."""
    design = np.stack([np.ones(len(points)), -points[:, 0], -points[:, 1]], axis=1)
    if np.linalg.matrix_rank(design) < 3:
        return np.full(3, np.nan)
    return np.linalg.lstsq(design, points[:, 2], rcond=None)[0]


def fits_table(rows: Sequence[Row]) -> str:
    """Exponents with intervals over the points, and how far the largest size is mispredicted."""
    lines = []
    for (name,), some in grouped(rows, "variant").items():
        whole = points(some)

        def exponents(picks: np.ndarray, column: int, whole: np.ndarray = whole) -> np.ndarray:
            return np.array([line_through(whole[pick])[column] for pick in picks])

        alpha, beta = (
            bootstrap(lambda picks, c=column: exponents(picks, c), len(some)) for column in (1, 2)
        )
        errors = 100 * mispredicted(whole)
        lines.append([
            name, str(len(some)), shown(alpha, 3), shown(beta, 3),
            ", ".join(f"{error:+.1f} %" for error in errors),
        ])  # fmt: skip
    head = ("model", "runs", "alpha (size)", "beta (tokens)", "largest size, predicted too high by")
    return table(head, lines)


def mispredicted(points: np.ndarray) -> np.ndarray:
    """Predicted / true loss - 1 of the largest size, from the line through the others."""
    largest = points[:, 0] == points[:, 0].max()
    a, alpha, beta = line_through(points[~largest])
    predicted = a - alpha * points[largest, 0] - beta * points[largest, 1]
    return np.exp(predicted - points[largest, 2]) - 1


def text() -> str:
    """All tables of docs/scaling.md, in its order."""
    rows = rows_of_today()
    return "\n\n".join((costs_table(), losses_table(rows), fits_table(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=("fit", "table"))
    parser.add_argument("--data", help="tinyshakespeare.txt")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), help="budgets")
    options = parser.parse_args()
    if options.work == "fit":
        if options.data is None:
            parser.error("--data is needed")
        torch.set_num_threads(1)
        fit(options.data, options.steps)
    print(text())


if __name__ == "__main__":
    main()
