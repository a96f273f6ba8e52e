"""Checks of values that a person gave: refusal in one line, and the nearest known name."""

import difflib


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """ValueError naming the key, its value and what would be accepted, unless `condition`."""
    if not condition:  # also for NaN, which compares false
        raise ValueError(f"{key} = {value!r}: expected {expected}")


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean X?` for a misspelt name, or the empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
