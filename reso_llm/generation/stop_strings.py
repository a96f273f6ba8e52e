"""Stop strings: where a text ends, and how much of its end may be the start of one."""

from collections.abc import Sequence


def first_stop(text: str, stop_strings: Sequence[str], start: int) -> int | None:
    """Index of the first stop string in a text; None without one.

    The text before `start` was searched already: only a string that ends behind it is new.
    """
    places = [text.find(stop, max(0, start - len(stop) + 1)) for stop in stop_strings]
    return min((place for place in places if place >= 0), default=None)


def overlap(text: str, stop_strings: Sequence[str]) -> int:
    """Length of the longest end of a text that begins a stop string."""
    return max((_overlap(text, stop) for stop in stop_strings), default=0)


def _overlap(text: str, stop: str) -> int:
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
