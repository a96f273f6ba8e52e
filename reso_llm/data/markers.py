"""Markers of turns in a text, and the contents between them.

White space beside a marker belongs to the marker; only the indentation of a content's first line is
kept. Markers inside a code fence are content when the fence is closed and the first of them begins
a line; a marker that alone stands in quotation marks is content.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = [
    "WHITE",
    "Marker",
    "contents",
    "opens_quotation",
    "outside_fences",
    "outside_quotations",
    "without_ends",
    "without_margin",
]

WHITE = " \t\r\n"
BLANK_LINES = re.compile(r"(?:[ \t]*\r?\n)+|[ \t]+")
QUOTATION = {"`": "`", '"': '"', "'": "'", "“": "”", "‘": "’", "(": ")", "*": "*"}
FENCE = re.compile(r"^ {0,3}(```+|~~~+)([^`\n]*)$", re.MULTILINE)


class Marker(NamedTuple):
    """A marker at text[start:end], and the role of what follows it ("input" adds to the user)."""

    start: int
    end: int
    role: str


def contents(text: str, markers: Sequence[Marker]) -> Iterator[tuple[Marker, str]]:
    """Each marker with the text from its end to the next marker."""
    stops = [marker.start for marker in markers[1:]] + [len(text)]
    for marker, stop in zip(markers, stops, strict=True):
        yield marker, text[marker.end : stop]


def without_margin(content: str) -> str:
    """`content` without the white space that belongs to the markers around it."""
    margin = BLANK_LINES.match(content)
    return content[margin.end() if margin else 0 :].rstrip(WHITE)


def without_ends(content: str, ends: Sequence[str]) -> str:
    """`content` without the tokens that end a turn."""
    bare = content.rstrip(WHITE)
    while end := next((end for end in ends if bare.endswith(end)), ""):
        content = bare = bare.removesuffix(end).rstrip(WHITE)
    return content


def outside_fences(text: str, markers: Sequence[Marker]) -> list[Marker]:
    """The markers that are not quoted in a code fence.

    Markers are quoted while the fences before them are odd, when the first of them begins a line
    and the message ends its fences.
    """
    if "```" not in text and "~~~" not in text:
        return list(markers)
    fences = [found.start() for found in FENCE.finditer(text)]
    starts = [marker.start for marker in markers] + [len(text)]
    kept: list[Marker] = []
    index = 0
    while index < len(markers):
        kept.append(markers[index])
        begin = markers[index].end
        following = index = index + 1
        if following < len(markers) and _starts_line(text, starts[following]):
            while following < len(markers) and _odd(fences, begin, starts[following]):
                following += 1
            if not _odd(fences, begin, starts[following]):
                index = following
    return kept


def outside_quotations(text: str, markers: Sequence[Marker]) -> list[Marker]:
    """The markers but those that alone stand between a pair of quotation marks."""
    return [
        marker
        for marker in markers
        if not opens_quotation(text, marker.start - 1)
        or text[marker.end : marker.end + 1] != QUOTATION[text[marker.start - 1]]
    ]


def opens_quotation(text: str, position: int) -> bool:
    """Whether a quotation, a bracket or emphasis begins at text[position].

    A mark that follows a word or the end of a sentence closes one.
    """
    if position < 0 or text[position] not in QUOTATION:
        return False
    return not position or not (text[position - 1].isalnum() or text[position - 1] in ".!?,;…)")


def _starts_line(text: str, position: int) -> bool:
    return not text[text.rfind("\n", 0, position) + 1 : position].strip()


def _odd(fences: Sequence[int], begin: int, stop: int) -> bool:
    return (bisect_left(fences, stop) - bisect_left(fences, begin)) % 2 == 1
