"""Sentences with numbers of rows: `{a.b:.2f}` is the value at key b of key a.

A key that ends in ± is a value with its interval: `a.mean±` is [a.mean, *a.mean_interval].
Where rows differ (seeds of one measurement) the mean is shown; an interval (value, low, high) is
shown as `value [low, high]`, its ends being means as well.
"""

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def value(row: Mapping[str, Any], path: str) -> Any:
    """The value at a path of keys and indices, joined by dots."""
    for key in path.split("."):
        if key.endswith("±"):
            row = [row[key[:-1]], *row[f"{key[:-1]}_interval"]]
        else:
            row = row[int(key)] if isinstance(row, Sequence) else row[key]
    return row


class _Said(string.Formatter):
    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows

    def get_field(self, path: str, args: Any, names: Mapping[str, Any]) -> tuple[Any, str]:
        if path in names:
            return names[path], path
        values = [value(row, path) for row in self.rows]
        same = all(other == values[0] for other in values)
        return (values[0] if same else np.mean(values, axis=0).tolist()), path

    def format_field(self, shown: Any, spec: str) -> str:
        if not isinstance(shown, list | tuple):
            return format(shown, spec)
        middle, low, high = (format(v, spec) for v in shown)
        return f"{middle} [{low}, {high}]"


def say(sentence: str, rows: Sequence[Mapping[str, Any]], **names: Any) -> str:
    """The sentence with the values of rows, and with `names` in the place of their own."""
    return _Said(rows).vformat(sentence, (), names)
