"""Recorded rows: how they are written, read, found again and grouped, and names of weights.

A record is one line of results/NAME.jsonl: what was measured, and under "environment" the command
line, commit, versions and machine.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from run_core.hardware import environment

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results"

STACK = 2
"""The resonance stack of today: 2 reads along (echo) and doubts (gate); rows that name none: 1."""

OF_THE_STACK = (
    "ablation", "consensus", "gating", "goals", "gpu", "hearsay", "lm", "long_context", "memory",
    "own_words", "quality", "recall", "scaling", "speed", "stability", "strategies", "talk",
)  # fmt: skip
"""Studies whose rows are all of our language model, and so of one stack."""

Row = dict[str, Any]


def num_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def weights_hash(directory: str | Path) -> str:
    """First 16 hex digits of the sha256 of model*.safetensors, in the order of their names.

    Raises ValueError where there is none.
    """
    files = sorted(Path(directory).glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{directory}: expected model*.safetensors, the weights, in it")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def write_row(name: str, row: Mapping[str, Any]) -> None:
    """Append one row, with its stack and the environment it was measured in, to results/NAME.jsonl.

    The row says on which device, the cpu where it does not.
    """
    RESULTS.mkdir(exist_ok=True)
    stack = {"stack": STACK} if is_ours(name, row) else {}
    about = environment(torch.device(row.get("device", "cpu")))
    about["command"] = without_directories(about["command"])
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({**row, **stack, "environment": about}) + "\n")


def without_directories(command: str) -> str:
    """A command line whose absolute paths are file names: a row names no folder of a machine."""
    return re.sub(r"(?<=\s)/\S*/(?=\S)", "", command)


def read_rows(name: str) -> list[Row]:
    """All rows of results/NAME.jsonl, none where there is no such file.

    Raises ValueError naming file and line where a line is no row, as of a run killed in writing it.
    """
    path = RESULTS / f"{name}.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [_row(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def is_ours(name: str, row: Mapping[str, Any]) -> bool:
    """Whether a row is of our language model; of the studies of any model, those of the shipped."""
    return name in OF_THE_STACK or "shipped" in (row.get("model"), row.get("model_id"))


def current_rows(name: str) -> list[Row]:
    """The rows that say something of today's code: those of our model only of today's stack."""
    rows = read_rows(name)
    return [row for row in rows if not is_ours(name, row) or row.get("stack", 1) == STACK]


def _row(line: bytes, place: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a row, a JSON object; delete the line to measure anew")
    return row


class Records:
    """The rows of one task, of which those already recorded need not be measured again.

    With `on` false nothing is found and nothing is written. Rows are written as they are added, so
    that a run that was stopped goes on where it was. To measure again, delete the row.
    """

    def __init__(self, name: str, on: bool) -> None:
        self.name, self.on = name, on

    def find(self, **key: Any) -> Row | None:
        """The row whose fields are `key` (a field that is missing is None), or None."""
        wanted = json.loads(json.dumps(key))  # as it would be read back: tuples are lists
        rows = current_rows(self.name) if self.on else []
        alike = (r for r in rows if all(r.get(k) == v for k, v in wanted.items()))
        return next(alike, None)

    def row(self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> Row:
        """The row of `key`, else what is measured now, which is then recorded."""
        row = self.find(**key)
        if row is None:
            row = {**key, **measure()}
            self.add(row)
        return row

    def add(self, row: Mapping[str, Any]) -> None:
        """Append the row with the environment it was measured in."""
        if self.on:
            write_row(self.name, row)


def grouped(rows: Iterable[Row], *fields: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by their values of the fields (a list counts as a tuple), in the order of the rows."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        values = (row.get(field) for field in fields)
        key = tuple(_as_tuple(value) for value in values)
        groups.setdefault(key, []).append(row)
    return groups


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def newest(rows: Iterable[Row], *fields: str) -> list[Row]:
    """The last of the rows that are equal in these fields, in the order of the first."""
    return [some[-1] for some in grouped(rows, *fields).values()]
