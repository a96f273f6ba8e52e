"""Refusals in one line, and the nearest known name."""

import math

import pytest

from entropy_core.checks import nearest, require


def test_require_names_the_key_the_value_and_what_is_expected():
    require(True, "rate", 2, "at most 3")
    with pytest.raises(ValueError, match=r"^rate = -1: expected at least 0$"):
        require(-1 >= 0, "rate", -1, "at least 0")
    with pytest.raises(ValueError, match="rate = nan"):
        require(math.nan >= 0, "rate", math.nan, "at least 0")


def test_nearest_suggests_a_misspelt_name_and_nothing_for_another_word():
    known = ["num_layers", "num_heads", "dropout"]
    assert nearest("num_layer", known) == "; did you mean num_layers?"
    assert nearest("dropuot", known) == "; did you mean dropout?"
    assert nearest("zebra", known) == ""
    assert nearest("nope", ["inspect", "undo"]) == ""  # half of the letters are no resemblance
