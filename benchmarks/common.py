"""What the benchmarks share: the record of a row, names of weights, interleaved timing.

A record is one line of results/NAME.jsonl: what was measured, and under "environment" the command
line, commit, versions and machine.
"""

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from run_core.hardware import environment

RESULTS = Path(__file__).parent / "results"


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
    """Append one row, with the environment it was measured in, to results/NAME.jsonl."""
    RESULTS.mkdir(exist_ok=True)
    record = {**row, "environment": environment(torch.device("cpu"))}
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_rows(name: str) -> list[dict[str, Any]]:
    """All rows of results/NAME.jsonl, none where there is no such file.

    Raises ValueError naming file and line where a line is no row, as of a run killed in writing it.
    """
    path = RESULTS / f"{name}.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [_row(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _row(line: bytes, place: str) -> dict[str, Any]:
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

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The row whose fields are `key` (a field that is missing is None), or None."""
        wanted = json.loads(json.dumps(key))  # as it would be read back: tuples are lists
        for row in read_rows(self.name) if self.on else ():
            if all(row.get(field) == value for field, value in wanted.items()):
                return row
        return None

    def row(
        self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The row of `key`, else what is measured now, which is then recorded."""
        found = self.find(**key)
        if found is None:
            found = {**key, **measure()}
            self.add(found)
        return found

    def add(self, row: Mapping[str, Any]) -> None:
        """Append the row with the environment it was measured in."""
        if self.on:
            write_row(self.name, row)


def interleaved(
    measures: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, tuple[float, ...]]:
    """Call every measure once a round, in turn, so that all see the same disturbances."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            values[name].append(measure())
    return {name: tuple(v) for name, v in values.items()}


def median_ratio(ours: tuple[float, ...], theirs: tuple[float, ...]) -> float:
    """Median over the rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
