"""Checks of values that a person gave: a refusal in one line, and the nearest known name.

Similarity of names is that of `difflib` (Ratcliff & Metzener 1988).
"""

import difflib
import math
from numbers import Integral, Real


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Raise ValueError naming the key, its value and what is expected, unless `condition` holds.

    Write conditions as comparisons that hold for good values: every comparison with NaN is false.
    """
    if not condition:
        raise ValueError(f"{key} = {value!r}: expected {expected}")


def require_within(options: object, **ranges: tuple[float, float]) -> None:
    """Raise ValueError naming the first field outside its closed range (NaN is outside)."""
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise ValueError(f"{name} must be in [{low}, {high}], got {value}")


def is_number(value: object) -> bool:
    """Whether a value is a finite real number, numpy's included; a bool is none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def is_whole(value: object) -> bool:
    """Whether a value is an integer, numpy's included; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def nearest_name(name: str, known: list[str]) -> str | None:
    """The most similar known name, None where none is similar."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else None


def nearest(name: str, known: list[str]) -> str:
    """ "; did you mean X?" with the most similar known name, or "" where none is similar."""
    close = nearest_name(name, known)
    return f"; did you mean {close}?" if close else ""
