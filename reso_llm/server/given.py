"""The parameters given in an object of a body: known by name, each of the type asked for."""

from collections.abc import Collection, Mapping
from typing import Any

from entropy_core.checks import is_whole, nearest
from reso_llm.server.errors import ApiError, refuse

NEUTRAL: dict[str, Any] = {
    "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"],
    "store": False, "best_of": 1, "echo": False, "suffix": "",
}  # fmt: skip
"""Parameters that are not built, and the value with which each asks for nothing."""
LONGEST_NAME = 40
"""Characters of an unknown parameter's name that a refusal quotes."""


class Given(dict[str, Any]):
    """The parameters of an object, null ones left out; every method raises ApiError 400.

    prefix: what stands before the names in refusals, such as "reso.".
    """

    def __init__(self, body: Mapping[str, Any], known: Collection[str], prefix: str = "") -> None:
        """Refuse parameters that are not known, unless their value asks for nothing."""
        values = {name: value for name, value in body.items() if value is not None}
        for name, value in values.items():
            if name in known or (not prefix and _asks_for_nothing(name, value)):
                continue
            shown = prefix + name[:LONGEST_NAME]
            hint = nearest(name[:LONGEST_NAME], sorted(known))
            raise ApiError(400, f"{shown} is not built: leave it out{hint}", shown)
        super().__init__({name: value for name, value in values.items() if name in known})
        self.prefix = prefix

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        return self._value(name, default, isinstance(self.get(name), bool), "true or false")

    def text(self, name: str) -> str | None:
        """A string; None where it is not given."""
        return self._value(name, None, isinstance(self.get(name), str), "a string")

    def names(self, name: str) -> list[str]:
        """A list of strings; empty where it is not given."""
        value = self.get(name)
        listed = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return self._value(name, [], listed, "a list of strings")

    def object(self, name: str, known: Collection[str]) -> "Given":
        """The parameters of an object; none where it is not given."""
        value = self._value(name, {}, isinstance(self.get(name), dict), "an object")
        return Given(value, known, f"{self.prefix}{name}.")

    def whole(self, name: str, default: int | None, low: int, high: int) -> Any:
        """A whole number from low to high."""
        value = self.get(name)
        fits = is_whole(value) and low <= value <= high
        return self._value(name, default, fits, f"a whole number from {low} to {high}")

    def _value(self, name: str, default: Any, fits: bool, expected: str) -> Any:
        if name not in self:
            return default
        refuse(fits, self.prefix + name, expected)
        return self[name]


def _asks_for_nothing(name: str, value: Any) -> bool:
    if name not in NEUTRAL or isinstance(value, bool) != isinstance(NEUTRAL[name], bool):
        return False
    return value == NEUTRAL[name]
