"""Entropy of untrained reactors fed three distributions (the mirror test), and its ablations.

One untrained reactor a seed, three conditions after each other (`cer.mirror`); a row is a mode in
the schema of the published file: metadata, seed_results, summary, and the seeds. Entropies in
nats, ± the population standard deviation over seeds. --ablation takes parts of the reactor out, in
turn, on the same seeds (`cer.ablation`): a row is a mode with its variants, and the difference from
the whole reactor is paired by seed, with a 95 % bootstrap interval (Efron 1979). --trained takes
the reactor that comes with the package (`cer.pretrained`), of mode corrected; a seed draws the
random input alone. Source: the Coherent Entropy Reactor's README and published trajectories.
--quick takes two seeds.
"""

import functools
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from benchmarks.kit.figures import GREY, stacked
from benchmarks.kit.records import Records, Row
from cer import ablation
from cer.figures import STYLES, mirror_figure
from cer.mirror import CONDITIONS, build_reactor, mirror_table, mirror_test, output_table
from cer.pretrained import load_reactor
from run_core.cli import Parser

MODES = ("published", "corrected")
TITLES = {
    "mirror": "mirror test",
    "ablate": "ablation",
    "trained": "mirror test of the trained reactor",
}
HEIGHT = 4.6  # inches, of the figure of a row


def add_options(parser: Parser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--mode", choices=MODES, nargs="+", help="default: published")
    parser.add_argument("--ablation", action="store_true", help="take parts out, in turn")
    parser.add_argument("--trained", action="store_true", help="the shipped, trained reactor")


def run(options: Any) -> list[Row]:
    """One row a mode.

    Raises ValueError without seeds, with one of them twice, or for --trained beside --ablation or
    a mode that it has not.
    """
    seeds = options.seeds[:2] if options.quick else options.seeds
    if options.trained and (options.ablation or options.mode not in (None, ["corrected"])):
        raise ValueError("--trained goes with --mode corrected alone, and without --ablation")
    measure = trained if options.trained else ablate if options.ablation else mirror
    records, rows = Records("mirror", options.record), []
    for mode in options.mode or ["corrected" if options.trained else "published"]:
        key = {"mode": mode, "seeds": seeds, "kind": measure.__name__}
        rows.append(records.row(key, functools.partial(measure, mode, seeds)))
    return rows


def mirror(mode: str, seeds: Sequence[int]) -> Row:
    progress = functools.partial(tqdm, desc=f"{mode}: seeds", leave=False)
    return mirror_test(seeds, mode, progress=progress)


def trained(mode: str, seeds: Sequence[int]) -> Row:
    return mirror_test(seeds, mode, trained=load_reactor())


def ablate(mode: str, seeds: Sequence[int]) -> Row:
    progress = functools.partial(tqdm, desc=f"{mode}: variants", leave=False)
    build = functools.partial(build_reactor, mode=mode)
    return {"variants": ablation.ablate(seeds, build, progress=progress)}


def text(rows: Sequence[Row]) -> str:
    """A table a row: the conditions of a mirror test, or the variants of its ablation."""
    return "\n\n".join(f"**{_title(row)}**\n\n{_table(row)}" for row in rows)


def _title(row: Row) -> str:
    return f"{TITLES[row['kind']]}, {row['mode']} mode, {len(row['seeds'])} seeds"


def _table(row: Row) -> str:
    if row["kind"] == "ablate":
        return ablation.ablation_table(row["variants"])
    if row["kind"] == "trained":
        return output_table(row)
    return mirror_table(row)


def figure(rows: Sequence[Row]) -> Any:
    """Under each other: trajectories, outputs and actions, or the differences of the variants."""
    return stacked(rows, _draw, 14, HEIGHT)


def _draw(row: Row, part: Any) -> None:
    (_differences if row["kind"] == "ablate" else mirror_figure)(row, part)
    if row["kind"] == "trained":
        part.suptitle(f"{_title(row)[0].upper()}{_title(row)[1:]}")


def _differences(row: Row, part: Any) -> None:
    """Final entropy of each variant minus the whole reactor's, with intervals."""
    variants = [v for v in row["variants"] if v["variant"] != ablation.BASELINE]
    for axes, name in zip(part.subplots(1, len(CONDITIONS), sharey=True), CONDITIONS, strict=True):
        for i, variant in enumerate(variants):
            condition = variant["conditions"][name]
            low, high = condition["difference_interval"]
            axes.plot([low, high], [i, i], color=STYLES[name]["color"], lw=2)
            axes.plot(condition["difference"], i, "o", color=STYLES[name]["color"])
        axes.axvline(0, color=GREY, lw=0.8)
        axes.set_yticks(range(len(variants)), [v["variant"] for v in variants])
        axes.set(title=name, xlabel="change of the final entropy, nats")
    part.axes[0].invert_yaxis()
    part.suptitle(f"Reactors with parts taken out, {row['mode']} mode, {len(row['seeds'])} seeds")
