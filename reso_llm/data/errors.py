"""Errors of data: what is wrong, in which file, at which line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class DataError(ValueError):
    """Data that cannot be used; the message says what, where and what to do."""


class BadRow(NamedTuple):
    """One row that was not read: `source` names the file, `line` counts from 1."""

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}"


@dataclass
class BadRows:
    """The rows that were skipped, all of them, in order."""

    rows: list[BadRow] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of skipped rows."""
        return len(self.rows)

    def summary(self, limit: int = 10) -> str:
        """One line per row, at most `limit` of them; empty when nothing was skipped."""
        if not self.rows:
            return ""
        lines = [f"{self.count} bad row{'s' * (self.count > 1)} skipped:", *self.rows[:limit]]
        lines += [f"... and {self.count - limit} more"] * (self.count > limit)
        return "\n".join(map(str, lines))
