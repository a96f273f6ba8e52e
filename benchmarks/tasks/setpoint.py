"""How far a reactor's entropy ends from its target.

The worst sample's |H - target| in nats after the last refinement step, over the mirror test's
conditions and seeds, on untrained reactors (`cer.setpoint`); a row is a mode. --quick takes one
seed and the targets 1 and 3.
"""

import functools
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from benchmarks.kit.figures import stacked
from benchmarks.kit.records import Records, Row
from cer.figures import setpoint_figure
from cer.setpoint import TARGETS_NATS, setpoint_curve, setpoint_table
from run_core.cli import Parser

MODES = ("published", "corrected")
QUICK_TARGETS = (1.0, 3.0)
HEIGHT = 4.8  # inches, of the figure of a row


def add_options(parser: Parser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", type=float, nargs="+", help="nats; default: 1 2 3 4 5")
    parser.add_argument("--mode", choices=MODES, nargs="+", default=["corrected"])


def run(options: Any) -> list[Row]:
    """One row a mode. Raises ValueError without seeds or for a target out of range."""
    seeds = options.seeds[:1] if options.quick else options.seeds
    targets = options.targets or list(QUICK_TARGETS if options.quick else TARGETS_NATS)
    records, rows = Records("setpoint", options.record), []
    for mode in tqdm(options.mode, desc="modes", leave=False, disable=None):
        key = {"mode": mode, "seeds": seeds, "targets": targets}
        rows.append(records.row(key, functools.partial(setpoint_curve, seeds, targets, mode)))
    return rows


def text(rows: Sequence[Row]) -> str:
    """A table a mode: worst error of each target and condition, and the actions taken."""
    return "\n\n".join(f"**{_title(row)}**\n\n{setpoint_table(row)}" for row in rows)


def _title(row: Row) -> str:
    return f"error of the worst sample, nats, {row['mode']} mode, {len(row['seeds'])} seeds"


def figure(rows: Sequence[Row]) -> Any:
    """Under each other, a mode each: error against target, and the control step by step."""
    return stacked(rows, setpoint_figure, 12, HEIGHT)
