"""Noise on the embeddings of two language models: is attention or recurrence hurt more?

ΔPPL and the commutation cost of noise and reading, on two scales of the noise (`cer.zombie` has
the equations). A row is a seed: a GPT-2 and a Mamba of equal size, trained from scratch on the
same bytes to one loss, or two models that exist (--models), of which it draws the noise alone.
--width makes the pair smaller or larger. The interval of b - a is Student's, over seeds. --quick
trains for seconds. Source: the Coherent Entropy Reactor's README, "MCC Prediction 4".
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.kit.figures import stacked
from benchmarks.kit.records import Records, Row, grouped
from cer.zombie import summarise
from cer.zombie_pair import ZombieConfig, quick, zombie_test, zombie_test_pretrained
from cer.zombie_report import zombie_figure, zombie_table
from run_core.cli import Parser

HEIGHT = 7  # inches, of the figure of a group


def add_options(parser: Parser) -> None:
    parser.add_argument("--data", type=str, help="text file; default: a random Markov text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=96, help="of the trained pair")
    parser.add_argument("--models", type=str, nargs="+", help="two directories or hub ids")
    parser.add_argument("--deadline", type=float, default=600.0, help="seconds for a download")


def run(options: Any) -> list[Row]:
    """One row a seed. Raises ValueError for --models without --data, or not two of them."""
    if options.models and not options.data:
        raise ValueError("--models needs a text in their language: --data FILE")
    if options.width < 4 or options.width % 4:
        raise ValueError(f"--width {options.width}: expected a multiple of 4, the attention heads")
    records = Records("zombie", options.record)
    key = {
        "data": Path(options.data).name if options.data else "markov",
        "pretrained": options.models,
        "quick": options.quick,
        "width": None if options.models else options.width,
    }
    rows = {seed: records.find(seed=seed, **key) for seed in options.seeds}
    missing = [seed for seed in options.seeds if rows[seed] is None]
    with tqdm(total=len(missing), desc="seeds", leave=False, disable=None) as bar:

        def on_row(row: Row) -> None:
            rows[row["seed"]] = row | key
            records.add(rows[row["seed"]])
            bar.update()

        if missing:
            measure(missing, options, on_row)
    return [rows[seed] for seed in options.seeds]


def measure(seeds: Sequence[int], options: Any, on_row: Any) -> None:
    """Call on_row with the row of each seed as soon as it is measured."""
    config = ZombieConfig(seeds=tuple(seeds), width=options.width)
    config = quick(config) if options.quick else config
    text = Path(options.data).read_bytes() if options.data else None
    if options.models:
        names, language = options.models, text.decode("utf-8")
        zombie_test_pretrained(config, names, language, on_row, deadline=options.deadline)
    else:
        zombie_test(config, text, on_row)


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    """(title, result) of the rows that differ in nothing but the seed."""
    pairs = [row | {"pair": " and ".join(map(_named, row["models"]))} for row in rows]
    for (data, pair), some in grouped(pairs, "data", "pair").items():
        yield f"{pair} on {data}", {"rows": some, "summary": summarise(some)}


def _named(model: Row) -> str:
    """A model's name, and its weights where it was trained here."""
    weights = model.get("num_parameters")
    return model["name"] if weights is None else f"{model['name']} ({weights:,} weights)"


def text(rows: Sequence[Row]) -> str:
    """What was compared, the differences with their intervals, and the effect of units."""
    return "\n\n".join(f"**{title}**\n\n{zombie_table(result)}" for title, result in groups(rows))


def figure(rows: Sequence[Row]) -> Any:
    """Under each other, a pair and a text each: both quantities against the noise."""
    results = [result for _, result in groups(rows)]
    return stacked(results, zombie_figure, 10.5, HEIGHT)
