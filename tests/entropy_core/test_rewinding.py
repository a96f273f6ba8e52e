"""Rewinding: what is a repeat, where it is taken back to, and when it stays."""

import math

import pytest
import torch

from entropy_core.rewinding import RewindOptions, RewindState, ends_in_repeat, rewind_step

THREE = RewindOptions(repeat_length=3)


@pytest.mark.parametrize(
    ("tokens", "length", "expected"),
    [
        ([], 2, False),
        ([1, 2], 2, False),
        ([1, 2, 1, 2], 2, True),
        ([1, 2, 3, 1, 2], 2, True),
        ([1, 2, 3, 2, 1], 2, False),
        ([5, 5, 5], 2, True),  # a repeat may overlap itself
        ([5, 5, 5], 3, False),
        ([5, 5, 5, 5], 3, True),
    ],
)
def test_a_repeat_by_hand(tokens, length, expected):
    assert ends_in_repeat(tokens, length) == expected


def test_a_repeat_is_the_slow_definition():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        tokens = torch.randint(0, 3, (9,), generator=generator).tolist()
        grams = [tuple(tokens[i : i + 3]) for i in range(7)]
        assert ends_in_repeat(tokens, 3) == (grams[-1] in grams[:-1])


def test_it_goes_back_to_the_least_sure_token():
    tokens = [1, 2, 3, 4, 1, 2, 3]
    place, state = rewind_step(RewindState(), tokens, [9, 9, 9, 9, 0.5, 2.0, 1.0], THREE)
    assert place == 5
    assert state == RewindState({5: frozenset({2})}, num_taken_back=2, num_longest=7)


def test_the_next_time_it_goes_back_to_another():
    """Least tried first; what was excluded behind an earlier place may stand there again."""
    tokens, entropies = [1, 2, 3, 4, 1, 2, 3], [9, 9, 9, 9, 0.5, 2.0, 1.0]
    state, places = RewindState(), []
    for _ in range(4):
        place, state = rewind_step(state, tokens, entropies, RewindOptions(max_share=9))
        places.append(place)
    assert places == [5, 6, 4, 5]
    assert state.excluded == {4: {1}, 5: {2}}


def test_attempts_at_a_place_are_counted():
    state = RewindState({k: frozenset(range(10, 18)) for k in (4, 5, 6)})
    place, after = rewind_step(state, [1, 2, 3, 4, 1, 2, 3], [1.0] * 7, THREE)
    assert place is None
    assert after.excluded == state.excluded


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(repeat_nats=0.9), None),
        (dict(repeat_nats=1.0), 4),
        (dict(repeat_length=None), None),
        (dict(repeat_length=4), None),
        (dict(repeat_window=6), None),
        (dict(repeat_window=7), 4),
        (dict(max_share=0.4), None),  # 3 of 7
        (dict(max_share=0.43), 4),
    ],
)
def test_when_a_repeat_stays(options, expected):
    tokens, entropies = [1, 2, 3, 4, 1, 2, 3], [0, 0, 0, 0, 1.5, 0.8, 0.7]
    assert rewind_step(RewindState(), tokens, entropies, RewindOptions(**options))[0] == expected


def test_it_does_not_go_back_behind_its_reach():
    tokens, entropies = [1, 2, 3, 4, 1, 2, 3], [0, 0, 0, 0, 1.5, 0.8, 0.7]
    for longest, expected in ((7, 4), (20, 4), (21, 5), (22, 6), (23, None)):
        state = RewindState(num_longest=longest)
        assert rewind_step(state, tokens, entropies, THREE)[0] == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("repeat_length", 1), ("repeat_window", 3), ("repeat_nats", math.nan), ("max_attempts", 0),
     ("rewind_tokens", 2), ("max_share", -1.0)],
)  # fmt: skip
def test_an_option_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name} = .*expected"):
        RewindOptions(**{name: value})
