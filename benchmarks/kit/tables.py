"""Rows as markdown: one writer of tables, and how numbers and intervals stand in a cell."""

from collections.abc import Iterable, Sequence


def table(head: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    """A markdown table; a `|` inside a cell is escaped."""
    rows = [[*head], *lines]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(value: float | None, spec: str = ".2f") -> str:
    """A number by its format, `-` where there is none."""
    return "-" if value is None else format(value, spec)


def shown(values: Sequence[float] | None, digits: int = 4) -> str:
    """`value [low, high]`, `-` where there is nothing."""
    if values is None:
        return "-"
    value, low, high = (f"{v:.{digits}f}" for v in values)
    return f"{value} [{low}, {high}]"
