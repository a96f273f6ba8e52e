"""The claims of the documents behind the project, and what our records say about them.

A claim is a row of a table: a sentence of a document, a selector of recorded rows, a sentence with
the numbers of these rows, and the rules that make its verdict. No number stands here that was not
read from a row; where the rows are missing, the verdict is "untested". `evaluate.py report` makes
the document.

A selector gives cases by name: models, texts, kinds of damage; each with rows that differ in their
seed alone. A rule is asked of every row, and must hold in every seed. The claim holds where every
rule does in every case, does not hold where none does, and is mixed otherwise.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.claims.sentences import say
from benchmarks.kit.records import current_rows

HOLDS, NOT, MIXED, UNTESTED = "holds", "does not hold", "mixed", "untested"
Row = Mapping[str, Any]
Rule = Callable[[Row], bool | Sequence[bool]]
Cases = Mapping[Any, Sequence[Row]]


class Missing(LookupError):
    """There is no recorded row to judge by."""


class Finding(NamedTuple):
    """The numbers in words, the verdict, and the command that measures them again."""

    measured: str
    verdict: str
    rerun: str


class Evidence:
    """The recorded rows of all studies, read once: those of today's model, where they are of it."""

    def __init__(self, read: Callable[[str], list[Row]] = current_rows) -> None:
        self.read, self._known = read, {}

    def rows(self, name: str, **fields: Any) -> list[Row]:
        """All rows with these fields, in the order of the file. Raises Missing where none has."""
        if name not in self._known:
            self._known[name] = self.read(name)
        rows = [r for r in self._known[name] if all(r.get(k) == v for k, v in fields.items())]
        if not rows:
            raise Missing(f"no row of today's code in benchmarks/results/{name}.jsonl to judge by")
        return rows

    def row(self, name: str, **fields: Any) -> Row:
        """The newest of `rows`."""
        return self.rows(name, **fields)[-1]


@dataclass(frozen=True)
class Claim:
    """A sentence of a document, where it stands, and what decides it.

    `sentence` and `frame` are of `sentences.say`: the first is said of each case, the second of
    all, with the joined sentences as {cases}. `view` makes the rows that are shown and judged from
    the selected ones of a case; a case for which it raises Missing is left out. A claim that
    nothing can test says why with `because`.
    """

    text: str
    source: str
    rerun: str = ""
    select: Callable[[Evidence], Cases] = lambda evidence: {"": [{}]}
    sentence: str = ""
    rules: Sequence[Rule] = ()
    view: Callable[[Sequence[Row]], Sequence[Row]] = list
    frame: str = "{cases}"
    between: str = "; "
    because: str = ""

    def finding(self, evidence: Evidence) -> Finding:
        """Judge the claim by the records; it is untested where they say nothing.

        Raises ValueError naming the claim where its rows cannot be read.
        """
        try:
            with naming(f"the claim {self.text!r}"):
                return self._judged(evidence)
        except Missing as missing:
            return Finding(str(missing), UNTESTED, "")

    def _judged(self, evidence: Evidence) -> Finding:
        if self.because:
            raise Missing(self.because)
        cases, missing = {}, Missing("there is no model to judge by")
        for name, rows in self.select(evidence).items():
            try:
                cases[name] = self.view(rows)
            except Missing as error:
                missing = error
        if not cases:
            raise missing
        first = next(iter(cases.values()))
        said = self.between.join(
            say(self.sentence, rows, case=name, num_seeds=len(rows)) for name, rows in cases.items()
        )
        said = say(self.frame, first, cases=said, num_cases=len(cases), num_seeds=len(first))
        truths = [everywhere(rule, rows) for rows in cases.values() for rule in self.rules]
        return Finding(said, verdict_of(itertools.chain(*truths)), self.rerun)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Errors inside, but Missing, become a ValueError that says where they arose."""
    try:
        yield
    except Missing:
        raise
    except Exception as error:
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error


def everywhere(rule: Rule, rows: Sequence[Row]) -> list[bool]:
    """Whether a rule holds of every row; one truth for each that the rule gives."""
    truths = [truth if isinstance(truth, Sequence) else [truth] for truth in map(rule, rows)]
    return [all(column) for column in zip(*truths, strict=True)]


def verdict_of(truths: Iterable[bool]) -> str:
    """One verdict of all rules in all cases: mixed where they differ."""
    different = {bool(truth) for truth in truths}
    if not different:
        raise ValueError("nothing was asked of the rows")
    return MIXED if len(different) > 1 else HOLDS if different == {True} else NOT
