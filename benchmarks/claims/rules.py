"""The selectors and the rules of the claims.

A path is one of `sentences.value`. An interval is (value, low, high): an effect holds where its
whole interval lies on the claimed side, so an effect that was not seen does not hold.
"""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.claims import Cases, Evidence, Row, Rule
from benchmarks.claims.sentences import value
from benchmarks.kit.records import grouped, newest

# --- selectors


def rows_of(
    name: str, *fields: str, case: str | None = None, like_last: Sequence[str] = (), **equal: Any
) -> Callable[[Evidence], Cases]:
    """Select the newest of the rows that are equal in `fields`; without fields, all rows.

    Cases are the values of the field `case`. `equal` are values that all rows have; of `like_last`,
    all have the values of the last row.
    """

    def select(evidence: Evidence) -> Cases:
        last = evidence.row(name, **equal)
        rows = evidence.rows(name, **equal, **{field: last[field] for field in like_last})
        rows = newest(rows, *fields) if fields else rows
        if case is None:
            return {"": rows}
        return {label: some for (label,), some in grouped(rows, case).items()}

    return select


def one(view: Callable[[Row], Row]) -> Callable[[Sequence[Row]], list[Row]]:
    """A view of rows that sees each by itself."""
    return lambda rows: [view(row) for row in rows]


def computed(view: Callable[[], Row]) -> Callable[[Evidence], Cases]:
    """Values that are computed now, of no row."""
    return lambda evidence: {"": [view()]}


# --- rules


def below(path: str, bound: float = 0.0) -> Rule:
    """The whole interval lies below the bound."""
    return lambda row: value(row, path)[2] < bound


def above(path: str, bound: float = 0.0) -> Rule:
    """The whole interval lies above the bound."""
    return lambda row: value(row, path)[1] > bound


def apart(lower: str, higher: str) -> Rule:
    """The whole of one interval lies below the whole of another."""
    return lambda row: value(row, lower)[2] < value(row, higher)[1]


def less(path: str, bound: float | str) -> Rule:
    """A number is less than a bound, or than another one."""
    return lambda row: value(row, path) < (value(row, bound) if isinstance(bound, str) else bound)


def more(path: str, bound: float | str) -> Rule:
    """A number is more than a bound, or than another one."""
    return lambda row: value(row, path) > (value(row, bound) if isinstance(bound, str) else bound)


def equal(path: str, expected: Any) -> Rule:
    """A value is the expected one."""
    return lambda row: value(row, path) == expected


def truths(path: str) -> Rule:
    """The truths at a path, each a rule of its own."""
    return lambda row: value(row, path)


def all_of(*rules: Rule) -> Rule:
    """Several rules as one: it holds where all of them do."""
    return lambda row: all(rule(row) for rule in rules)
