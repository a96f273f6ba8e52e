"""What the five documents behind the project claim, and what our records say about it.

A claim is a sentence of a document and a function that reads the recorded rows and finds: what was
measured, in words with the numbers, and a verdict that follows from those numbers by a rule written
down in the function. No number stands here that was not read from a row; where the rows are
missing, the verdict is "untested". `evaluate.py report` makes the table.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.common import read_rows

HOLDS, NOT, MIXED, UNTESTED = "holds", "does not hold", "mixed", "untested"
Row = Mapping[str, Any]
Interval = Sequence[float]  # value, low, high


class Missing(LookupError):
    """There is no recorded row to judge by."""


class Finding(NamedTuple):
    """What was measured, the verdict, and how to measure it again."""

    measured: str
    verdict: str
    rerun: str


class Evidence:
    """The recorded rows of all studies, read once."""

    def __init__(self, read: Callable[[str], list[Row]] = read_rows) -> None:
        self.read, self._known = read, {}

    def rows(self, name: str, **fields: Any) -> list[Row]:
        """All rows with these fields, in the order of the file. Raises Missing where none has."""
        if name not in self._known:
            self._known[name] = self.read(name)
        found = [r for r in self._known[name] if all(r.get(k) == v for k, v in fields.items())]
        if not found:
            raise Missing(f"no row of benchmarks/results/{name}.jsonl to judge by")
        return found

    def row(self, name: str, **fields: Any) -> Row:
        """The newest of `rows`."""
        return self.rows(name, **fields)[-1]


@dataclass(frozen=True)
class Claim:
    """A sentence, where it stands, and what decides it."""

    text: str
    source: str
    decide: Callable[[Evidence], Finding]

    def finding(self, evidence: Evidence) -> Finding:
        """What the records say; untested where they say nothing.

        Raises ValueError naming the claim where its rows cannot be read.
        """
        try:
            with naming(f"the claim {self.text!r}"):
                return self.decide(evidence)
        except Missing as missing:
            return Finding(str(missing), UNTESTED, "")


class naming:
    """Errors inside, but Missing, become a ValueError that says where they arose."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, Missing):
            raise ValueError(f"{self.where}: {type(error).__name__}: {error}") from error


def untested(because: str) -> Callable[[Evidence], Finding]:
    """The decision about a claim that nothing here can test."""
    return lambda evidence: Finding(because, UNTESTED, "")


def each(known: Mapping[str, Any], judge: Callable[[Any], tuple[str, str]], rerun: str) -> Finding:
    """One finding of what each model's rows say. Those that lack a row are left out.

    Raises Missing where all do.
    """
    found: dict[str, tuple[str, str]] = {}
    lacking = "there is no model to judge by"
    for model, rows in known.items():
        try:
            found[model] = judge(rows)
        except Missing as missing:
            lacking = str(missing)
    if not found:
        raise Missing(lacking)
    words = "; ".join(f"{model}: {words}" for model, (words, _) in found.items())
    return Finding(words, combined(*(verdict for _, verdict in found.values())), rerun)


def newest(rows: Iterable[Row], *fields: str) -> list[Row]:
    """Of rows that are equal in these fields the last, in the order of the first."""
    return list({tuple(str(row.get(field)) for field in fields): row for row in rows}.values())


def below(values: Interval, bound: float = 0.0) -> str:
    """Holds where the whole interval lies below the bound; an effect not seen does not hold."""
    return HOLDS if values[2] < bound else NOT


def above(values: Interval, bound: float = 0.0) -> str:
    """Holds where the whole interval lies above the bound."""
    return HOLDS if values[1] > bound else NOT


def decided(truth: bool) -> str:
    """Of a yes or no."""
    return HOLDS if truth else NOT


def combined(*verdicts: str) -> str:
    """One verdict of several: mixed where they differ."""
    return verdicts[0] if len(set(verdicts)) == 1 else MIXED
