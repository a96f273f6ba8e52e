"""Controllers: tables of what they see of a row and what they decide."""

import dataclasses
import math

import numpy as np
import pytest

from entropy_core.signals import Signals
from reso_llm.config import StabilityConfig
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import (
    SRB,
    Decision,
    Deepen,
    PhaseSlip,
    RowView,
    StabilityTemperature,
    StochasticResonance,
)
from reso_llm.decoding.draft import Written
from reso_llm.decoding.stability import StabilityMonitor

ALL = (SRB.published(), PhaseSlip.published(), StochasticResonance(), StabilityTemperature())


def view(entropy=1.0, *, delta=0.0, coherence=0.0, loop=0.0, temperature=0.8, monitor=None):
    """A view whose averages are the entropy itself."""
    signals = Signals(entropy, 0.5, delta, 0.0, entropy, delta, coherence)
    return RowView(signals, loop, temperature, monitor)


def decisions(controller, views):
    row = controller.start()
    return [row.decide(r) for r in views]


def causes(controller, views):
    return [decision and decision.cause for decision in decisions(controller, views)]


# --- SRB --------------------------------------------------------------------------------------

CALM = view(0.5, coherence=0.95)
BUSY = view(2.0, coherence=0.5)
LOST, TURNING = view(4.0, coherence=0.1), view(4.0, coherence=0.5)


@pytest.mark.parametrize(
    ("options", "views", "expected"),
    [
        ({"patience": 3}, [CALM] * 3, [None, None, "settled"]),
        ({"patience": 3}, [CALM, CALM, BUSY, CALM, CALM, CALM], [None] * 5 + ["settled"]),
        ({"patience": 3}, [view(0.5, delta=0.06, coherence=0.95)] * 4, [None] * 4),
        ({"max_tokens": 3}, [BUSY] * 3, [None, None, "budget"]),
        ({}, [LOST, TURNING, TURNING, LOST, TURNING], [None, "deepen", None, None, "deepen"]),
        ({"candidates": 0}, [LOST, TURNING], [None, None]),
        ({"deepen_nats": 4.1}, [LOST, TURNING], [None, None]),
    ],
)
def test_srb_table(options, views, expected):
    assert causes(SRB.published(**options), views) == expected


def test_srb_decisions_say_what_to_do():
    settled, budget = Decision("settled", stop=True), Decision("budget", stop=True)
    assert decisions(SRB.published(patience=1), [CALM]) == [settled]
    assert decisions(SRB.published(max_tokens=1), [BUSY]) == [budget]
    deepen = Decision("deepen", deepen=Deepen(candidates=3, horizon=5))
    assert decisions(SRB.published(candidates=3, horizon=5), [LOST, TURNING]) == [None, deepen]


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 8, 9, 10, 16, 40])
@pytest.mark.parametrize(("candidates", "horizon"), [(0, 3), (2, 3), (4, 1)])
def test_the_budget_is_spent_to_the_last_token_and_never_exceeded(max_tokens, candidates, horizon):
    row, spent, num_tokens = (
        SRB.published(max_tokens=max_tokens, candidates=candidates, horizon=horizon).start(),
        0,
        0,
    )
    while True:
        decision = row.decide((LOST, TURNING)[num_tokens % 2])  # asks to deepen every other token
        num_tokens += 1
        spent += 1
        assert spent <= max_tokens
        if decision is not None and decision.deepen is not None:
            spent += decision.deepen.candidates * decision.deepen.horizon
            assert spent < max_tokens  # the run is not yet over
        elif decision is not None:
            break
    assert decision == Decision("budget", stop=True)
    assert spent == max_tokens
    cost = candidates * horizon
    # Deepening brings the end nearer as soon as two tokens, its cost and one more fit.
    assert (num_tokens < max_tokens) == (cost > 0 and max_tokens > 2 + cost)


def test_only_the_published_rule_deepens_by_default():
    written = Written("", "No end in", (), 99.0)
    turning = [r._replace(written=written) for r in (LOST, TURNING)]
    assert causes(SRB(), turning) == [None, None]
    assert causes(SRB.published(), turning) == [None, "deepen"]


def test_deepening_leaves_the_reserve_for_a_finished_place():
    rule = SRB(max_tokens=60, reserve=20, candidates=4, horizon=4)
    written = Written("", "No end in", (), 99.0)
    views = [view(4.0, coherence=c)._replace(written=written) for c in (0.1, 0.5)] * 9
    deepened = [d is not None and d.deepen is not None for d in decisions(rule, views)]
    assert deepened == [False, True, False, True] + [False] * 14, "36 of 40 are spent by then"


# --- Phase-Slip -------------------------------------------------------------------------------

SPIKE, CONFIDENT = view(4.0), view(0.01)


@pytest.mark.parametrize(
    ("options", "views", "expected"),
    [
        ({}, [SPIKE] * 6, ["spike"] + [None] * 4 + ["spike"]),
        ({"cooldown_steps": 1}, [SPIKE] * 4, ["spike", None, "spike", None]),
        ({}, [BUSY] * 13, [None, "stale"] + [None] * 10 + ["stale"]),
        ({}, [CONFIDENT] * 20, [None] * 20),
        ({"spike_nats": 5.0}, [SPIKE], [None]),
        ({"loop_patience": 2}, [view(0.01, loop=0.95)] * 3, [None, "loop", None]),
        ({"loop_patience": 2}, [view(0.01, loop=0.85)] * 3, [None] * 3),
        ({"loop_patience": 2}, [view(0.6, loop=0.95)], [None]),
        ({}, [view(0.01, loop=1.0)] * 20, [None] * 20),  # loops are off as published
    ],
)
def test_phase_slip_table(options, views, expected):
    assert causes(PhaseSlip.published(**options), views) == expected


def test_a_slip_is_hot_over_the_full_vocabulary_and_heats_the_cache():
    """And each of the two is switched off alone: the 2x2 that separates them."""

    def slip(**options):
        return PhaseSlip.published(**options).start().decide(SPIKE)

    noise, none = CacheNoise(scale=0.1, window=4), CacheNoise(scale=0)
    hot = Decision("spike", temperature=1.5, full_vocabulary=True)
    assert slip() == hot._replace(cache_noise=CacheNoise(scale=0.03))
    assert slip(noise=noise) == hot._replace(cache_noise=noise)
    assert slip(noise=none) == hot
    assert slip(slip_temperature=0.9, noise=none) == hot._replace(temperature=0.9)
    assert slip(slip_temperature=None) == Decision("spike", cache_noise=CacheNoise())
    assert slip(slip_temperature=None, noise=none) == Decision("spike")


# --- stochastic resonance and temperature -----------------------------------------------------


@pytest.mark.parametrize(
    ("options", "loop", "expected"),
    [
        ({}, 0.89, None),
        ({}, 0.9, Decision("loop", logit_noise=0.3)),
        ({}, 1.0, Decision("loop", logit_noise=0.3)),
        ({}, math.nan, None),
        ({"amplitude": 0}, 1.0, None),
        ({"amplitude": 2.0, "loop": 0.5}, 0.5, Decision("loop", logit_noise=2.0)),
    ],
)
def test_stochastic_resonance_acts_on_loops_only(options, loop, expected):
    assert decisions(StochasticResonance(**options), [view(loop=loop)]) == [expected]


def monitor(entropies, ids, surprise=None, **config):
    watching = StabilityMonitor(StabilityConfig(enabled=True, **config))
    for entropy, token in zip(entropies, ids, strict=True):
        watching.observe(entropy, token, surprise_nats=surprise)
    return watching


@pytest.mark.parametrize("temperature", [0.8, 1.2])
def test_stability_temperature_is_what_the_monitor_suggests(temperature):
    mixed = [t * 7919 % 4001 for t in range(128)]
    monitors = {
        "divergent": monitor([2.0] * 60, mixed[:60], 10.0),
        "surprise": monitor([2.0] * 30, mixed[:30], 20.0),
        "loop": monitor([1.0] * 60, [1, 2] * 30),
    }
    for cause, watching in monitors.items():
        suggested = watching.suggested_temperature(temperature)
        assert (suggested > temperature) == (cause == "loop")
        (decision,) = decisions(
            StabilityTemperature(), [view(monitor=watching, temperature=temperature)]
        )
        assert decision == Decision(cause, temperature=suggested)


def test_stability_temperature_changes_nothing_without_a_cause():
    loop = [1, 2] * 30
    fixed = monitor([1.0] * 60, loop, auto_temperature_adjust=False)
    greedy = view(monitor=monitor([1.0] * 60, loop), temperature=0.0)
    calm = view(monitor=monitor([1.0] * 3, [5, 6, 7]))
    table = [view(monitor=fixed), greedy, calm]
    assert decisions(StabilityTemperature(), table) == [None] * 3


# --- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("controller", ALL, ids=lambda c: c.name)
def test_rows_share_nothing(controller):
    """Guards state kept in the options: two rows in turns decide as each alone, then anew."""
    watching = monitor([1.0] * 20, [3] * 20)
    draws = np.random.default_rng(0).uniform(0, 5, (2, 60)).tolist()
    rows = [
        [view(e, coherence=e % 1, loop=float(e < 2), monitor=watching) for e in row]
        for row in draws
    ]
    alone = [decisions(controller, row) for row in rows]
    assert any(alone[0])
    started = [controller.start(), controller.start()]
    for step, both in enumerate(zip(*rows, strict=True)):
        for i in (0, 1):
            assert started[i].decide(both[i]) == alone[i][step]
    assert decisions(controller, rows[0]) == alone[0]


def test_options_are_values_with_a_name():
    assert [c.name for c in ALL] == [
        "srb", "phase_slip", "stochastic_resonance", "stability_temperature",
    ]  # fmt: skip
    for controller in ALL:
        assert controller == dataclasses.replace(controller)
        assert hash(controller) == hash(dataclasses.replace(controller))
        with pytest.raises(dataclasses.FrozenInstanceError):
            controller.name = "x"


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (SRB, "candidates", -1),
        (SRB, "candidates", 1),  # nothing to compare
        (SRB, "horizon", 0),
        (SRB, "patience", 0),
        (PhaseSlip, "slip_temperature", 0.0),
        (PhaseSlip, "slip_temperature", math.inf),
        (PhaseSlip, "cooldown_steps", -1),
        (StochasticResonance, "amplitude", -0.1),
        (StochasticResonance, "amplitude", math.nan),
        (StochasticResonance, "loop", 0.0),
        (StochasticResonance, "loop", 1.1),
    ],
)
def test_options_out_of_range_name_the_field(options, field, value):
    with pytest.raises(ValueError, match=f"^{field} "):
        options(**{field: value})
