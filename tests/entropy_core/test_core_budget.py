"""SRB's policy: tables of signals and drafts, and the decisions."""

import math

import pytest

from entropy_core.budget import Draft, Place, SRBAction, SRBOptions, SRBState, srb_step

NAN = math.nan
CONTINUE, DEEPEN, SETTLED, BUDGET, FINISHED, LOOP = SRBAction

SRB = SRBOptions.published(
    settled_nats=1.0,
    settled_delta_nats=0.1,
    settled_coherence=0.8,
    patience=2,
    deepen_nats=3.0,
    deepen_coherence_rise=0.05,
    max_tokens=6,
)


def run_srb(signals, options=SRB):
    """The actions at a list of (E, ΔE, C+)."""
    state, actions = SRBState(), []
    for ema, delta, coherence in signals:
        action, state = srb_step(state, ema, delta, coherence, options)
        actions.append(action)
    return actions


CALM = (0.9, 0.0, 0.9)


@pytest.mark.parametrize(
    ("signals", "actions"),
    [
        ([CALM, CALM, CALM], [CONTINUE, SETTLED, SETTLED]),
        ([(1.0, 0.1, 0.8), (1.0, -0.1, 0.8)], [CONTINUE, SETTLED]),  # every bound is inclusive
        ([CALM, (1.01, 0.0, 0.9), CALM, CALM], [CONTINUE] * 3 + [SETTLED]),  # streak starts again
        ([CALM, (0.9, 0.11, 0.9), CALM], [CONTINUE] * 3),
        ([CALM, (0.9, -0.11, 0.9), CALM], [CONTINUE] * 3),
        ([CALM, (0.9, 0.0, 0.79), CALM], [CONTINUE] * 3),
        ([(0.9, NAN, 0.9), CALM, CALM], [CONTINUE, CONTINUE, SETTLED]),  # undefined never counts
        ([CALM, (0.9, 0.0, NAN), CALM], [CONTINUE] * 3),
        ([(NAN, NAN, NAN)] * 6, [CONTINUE] * 5 + [BUDGET]),
        ([(2.0, 0.0, 0.9)] * 6, [CONTINUE] * 5 + [BUDGET]),
        ([(2.0, 0.0, 0.9)] * 4 + [CALM] * 2, [CONTINUE] * 5 + [SETTLED]),  # settled at the budget
        ([(4.0, 0.5, 0.1), (4.0, 0.5, 0.2)], [CONTINUE, DEEPEN]),  # no earlier C+ at first
        ([(4.0, 0.5, 0.1), (4.0, 0.5, 0.14)], [CONTINUE, CONTINUE]),  # rises too little
        ([(4.0, 0.5, 0.2), (4.0, 0.5, 0.1)], [CONTINUE, CONTINUE]),
        ([(4.0, 0.5, NAN), (4.0, 0.5, 0.9)], [CONTINUE, CONTINUE]),
        ([(2.9, 0.5, 0.1), (2.9, 0.5, 0.9)], [CONTINUE, CONTINUE]),  # entropy not high
    ],
)
def test_srb_table(signals, actions):
    assert run_srb(signals) == actions


def test_srb_counts_what_was_spent_besides():
    """Who deepens adds its cost to num_spent, and the budget ends that much earlier."""
    signals = (2.0, 0.0, 0.9)
    _, state = srb_step(SRBState(), *signals, SRB)
    assert state == (0, 1, 0.9, 0)
    spent = state._replace(num_spent=state.num_spent + 4)
    assert srb_step(state, *signals, SRB)[0] == CONTINUE
    assert srb_step(spent, *signals, SRB)[0] == BUDGET


# --- the rule that finishes -------------------------------------------------------------------

RULE = SRBOptions(
    settled_nats=1.0, patience=2, repeated=0.5, end_nats=2.0, loop_nats=3.0, over_nats=4.0,
    reserve=2, max_tokens=12,
)  # fmt: skip
SENTENCE = Draft(2.0, 0.0, Place.FINISHED, True, 0)
INSIDE = SENTENCE._replace(place=Place.INSIDE)
DEAR = SENTENCE._replace(done=False, end_nats=9.0)
LOOPING = INSIDE._replace(repeated=0.5)


def run_rule(drafts, ema=1.0, options=RULE):
    state, actions = SRBState(), []
    for draft in drafts:
        action, state = srb_step(state, ema, 0.0, 0.9, options, draft)
        actions.append(action)
    return actions


@pytest.mark.parametrize(
    ("drafts", "actions"),
    [
        ([INSIDE, SENTENCE], [CONTINUE, FINISHED]),  # every bound is inclusive
        ([SENTENCE._replace(end_nats=2.1)], [CONTINUE]),  # dearer than the price
        ([SENTENCE._replace(end_nats=math.inf)], [CONTINUE]),
        ([SENTENCE._replace(done=False)], [CONTINUE]),
        ([SENTENCE._replace(end_nats=5.0, repeated=0.5)], [FINISHED]),  # a loop pays more
        ([SENTENCE._replace(end_nats=5.1, repeated=0.5)], [CONTINUE]),
        ([SENTENCE._replace(place=Place.LINE)], [CONTINUE]),
        ([LOOPING] * 5, [CONTINUE] * 5),  # inside a word even a loop goes on
        ([LOOPING, LOOPING._replace(place=Place.LINE)], [CONTINUE, LOOP]),
        ([LOOPING, SENTENCE._replace(repeated=0.5, end_nats=9.0)], [CONTINUE, LOOP]),
        ([LOOPING] * 3 + [LOOPING._replace(place=Place.WORD)], [CONTINUE] * 3 + [LOOP]),
        ([LOOPING] * 2 + [LOOPING._replace(place=Place.WORD)], [CONTINUE] * 3),
        ([LOOPING, INSIDE, LOOPING._replace(place=Place.LINE)], [CONTINUE] * 3),  # streak anew
        ([LOOPING, LOOPING._replace(progress=1, place=Place.LINE)], [CONTINUE] * 2),  # progress
        ([INSIDE] * 12, [CONTINUE] * 11 + [BUDGET]),
        ([INSIDE] * 10 + [DEAR], [CONTINUE] * 10 + [FINISHED]),  # the last tokens of all
        ([INSIDE] * 9 + [DEAR], [CONTINUE] * 10),
    ],
)  # fmt: skip
def test_table_of_the_rule_that_finishes(drafts, actions):
    assert run_rule(drafts) == actions


def test_code_is_sure_of_itself_and_no_loop():
    """Low entropy without repetition, and repetition at a high entropy, are no loops."""
    here = LOOPING._replace(place=Place.LINE)
    assert run_rule([here._replace(repeated=0.49)] * 4) == [CONTINUE] * 4
    assert run_rule([here] * 4, ema=1.01) == [CONTINUE] * 4


def test_the_price_rises_with_the_tokens_beyond_the_budget():
    dear = SENTENCE._replace(end_nats=6.0, budget=4)
    assert run_rule([dear] * 9) == [CONTINUE] * 8 + [FINISHED]  # 2 + 4 (8 / 4 - 1)
    assert run_rule([dear._replace(budget=math.inf)] * 9) == [CONTINUE] * 9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("settled_nats", -0.1), ("settled_delta_nats", NAN), ("settled_coherence", 1.1),
        ("patience", 0), ("deepen_nats", -1.0), ("deepen_coherence_rise", -0.1), ("max_tokens", 0),
        ("repeated", 1.1), ("end_nats", NAN), ("reserve", -1), ("over_nats", -1),
    ],
)  # fmt: skip
def test_options_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        SRBOptions(**{name: value})
