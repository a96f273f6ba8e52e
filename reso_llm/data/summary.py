"""Summary of the data read: documents, turns, unused fields, markers left in plain text.

A `DataSummary` counts documents as they pass. `lines()` are the first lines of a run, `to_json()`
is what a token cache keeps, so that a run that reads the cache says the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from reso_llm.data.conversation import Document
from reso_llm.data.layouts import marker_position
from run_core.terminal import one_line

__all__ = ["DataSummary"]

MAX_PLACES = 100  # of markers in plain text, kept for the warning
MAX_FIELDS = 1000  # that are counted by name; data may have a field of its own in every row
OTHER_FIELDS = "other fields"
SHOWN = 20  # names in a line


@dataclass
class DataSummary:
    """Counts of the documents of some files.

    turns: messages of users and assistants; replies: those of assistants; system: system messages.
    unused_fields: documents in which each field was not used. marked: plain texts with chat markers
    in them; marker_places: (file, line) of the first of these. left_out: data files beside those
    read that are not read themselves.
    """

    files: list[str] = field(default_factory=list)
    conversations: int = 0
    plain: int = 0
    turns: int = 0
    replies: int = 0
    system: int = 0
    unused_fields: Counter[str] = field(default_factory=Counter)
    marked: int = 0
    marker_places: list[tuple[str, int]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def watch(self, documents: Iterable[Document], name: str) -> Iterable[Document]:
        """The same documents, counted as those of the file `name`."""
        self.files.append(name)
        for document in documents:
            self._count(document, name)
            yield document
            del document

    def warnings(self) -> list[str]:
        """`file:line` of the plain texts with markers, as many as are kept."""
        return [f"{name}:{line}" for name, line in self.marker_places]

    def lines(self) -> list[str]:
        """The summary for people: one line for each count that is not zero."""
        lines = [f"read {_listed(self.files)}", self._counts()]
        if self.left_out:
            lines.append(f"not read, held out or of a second kind: {_listed(self.left_out)}")
        if self.unused_fields:
            fields = [f"{name} ({count:,})" for name, count in self.unused_fields.items()]
            lines.append(f"not used, with the number of documents: {_listed(fields)}")
        if self.marked:
            texts = "plain text has" if self.marked == 1 else "plain texts have"
            lines.append(
                f"warning: {self.marked:,} {texts} chat markers inside and would be trained as "
                f"text: {one_line(', '.join(self.warnings()[:3]))}"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """The counts as plain values."""
        return vars(self) | {"unused_fields": dict(self.unused_fields)}

    @classmethod
    def from_json(cls, values: dict[str, Any], names: dict[str, str]) -> DataSummary:
        """The summary of `to_json`; `names` gives the files' present names."""
        summary = cls(**values)
        summary.files = [names.get(name, name) for name in summary.files]
        summary.marker_places = [
            (names.get(name, name), line) for name, line in summary.marker_places
        ]
        summary.unused_fields = Counter(summary.unused_fields)
        return summary

    def _count(self, document: Document, name: str) -> None:
        for unused in document.unused:
            is_known = unused in self.unused_fields or len(self.unused_fields) < MAX_FIELDS
            self.unused_fields[unused if is_known else OTHER_FIELDS] += 1
        if document.text is None:
            roles = Counter(message.role for message in document.messages)
            self.conversations += 1
            self.turns += roles["user"] + roles["assistant"]
            self.replies += roles["assistant"]
            self.system += roles["system"]
            return
        self.plain += document.start == 0
        position = marker_position(document.text)
        if position is not None:
            self.marked += 1
            if len(self.marker_places) < MAX_PLACES:
                whole = document.file_bytes is None
                below = 0 if whole else document.text.count("\n", 0, position)
                self.marker_places.append((name, document.line + below))

    def _counts(self) -> str:
        parts = [
            f"{_number(self.conversations, 'conversation')} with {_number(self.turns, 'turn')} "
            f"({_number(self.replies, 'reply', 'replies')}, "
            f"{_number(self.system, 'system message')})"
        ] * (self.conversations > 0)
        parts += [_number(self.plain, "plain text")] * (self.plain > 0)
        return ", ".join(parts)


def _listed(names: list[str]) -> str:
    """The names in one line without control characters, at most SHOWN of them."""
    more = [f"and {len(names) - SHOWN:,} more"] * (len(names) > SHOWN)
    return one_line(", ".join([*names[:SHOWN], *more]))


def _number(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
