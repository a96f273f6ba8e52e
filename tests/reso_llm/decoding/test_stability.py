"""The stability monitor: its class, its warnings, its exponent, and its temperature."""

import itertools
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from entropy_core import signals
from reso_llm.config import StabilityConfig
from reso_llm.decoding import alarms, onset, text_class
from reso_llm.decoding.damage import looped, replaced, shuffled
from reso_llm.decoding.onset import Evidence
from reso_llm.decoding.stability import StabilityMonitor, StabilityReading, readings
from reso_llm.decoding.text_class import CLASSES, DEFAULT, StabilityCalibration, calibrated

CONFIG = StabilityConfig(enabled=True)
MIXED = [t * 7919 % 4001 for t in range(2000)]  # ids without repetition


def generator(seed=0):
    return np.random.default_rng(seed)


def watched(entropies, ids=MIXED, config=CONFIG, calibration=DEFAULT, **known):
    """A monitor that has read the whole text."""
    monitor = StabilityMonitor(config, calibration)
    for t, entropy in enumerate(entropies):
        monitor.observe(float(entropy), ids[t], **{name: v[t] for name, v in known.items()})
    return monitor


def logistic(T, seed=0):
    x = [generator(seed).uniform(0.1, 0.9)]
    for _ in range(T + 99):
        x.append(4 * x[-1] * (1 - x[-1]))
    return np.array(x[-T:])


# --- the class --------------------------------------------------------------------------------

WORDS = 400


def read(ids):
    """A model that knows which word follows which: word i goes with i + 1, i + 2, ... i + 8."""
    expected = (ids[:, 1:] - ids[:, :-1]) % WORDS
    known = (expected >= 1) & (expected <= 8)
    surprise = np.where(known, np.log(8 / 0.9), np.log((WORDS - 8) / 0.1))
    for row, text in zip(surprise, ids, strict=True):  # what was just read is expected again
        for t in range(1, len(text)):
            if text[t] in text[max(0, t - 17) : t]:
                row[t - 1] = 0.1
    return surprise + generator(1).normal(0, 0.5, surprise.shape), np.full(surprise.shape, 2.5)


def clean_texts(count=40, T=96, seed=0):
    steps = generator(seed).integers(1, 9, (count, T))
    return np.cumsum(steps, axis=1) % WORDS


def test_each_kind_of_text_has_its_class_on_texts_that_were_not_calibrated_on():
    calibration = calibrated(read, clean_texts(), generator(2))
    clean, rng = clean_texts(seed=5), generator(6)
    texts = (clean, looped(clean, 0, rng), replaced(clean, 0, 0.5, rng), shuffled(clean, rng))
    for name, ids in zip(CLASSES, texts, strict=True):
        surprise, entropy = read(ids)
        called = [
            watched(h, row[1:].tolist(), calibration=calibration, surprise_nats=s).stability_class
            for s, h, row in zip(surprise, entropy, ids, strict=True)
        ]
        assert called.count(name) >= 0.8 * len(called), (name, called)


def test_a_text_is_stable_until_its_tokens_say_otherwise_and_always_has_a_class():
    assert StabilityMonitor(CONFIG).stability_class == "stable"
    assert watched([8.3] * 2, surprise_nats=[8.3] * 2).stability_class == "stable"  # random weights
    for seed in range(20):
        values = generator(seed).uniform(0, 20, (2, 30))
        every = readings(CONFIG, values[0], MIXED[:30], surprise_nats=values[1])
        assert {reading.stability_class for reading in every} <= set(CLASSES)
        assert all(math.isfinite(reading.lyapunov_per_token) for reading in every)


def test_one_surprising_token_is_no_class_but_many_are():
    few, many = [4.0] * 40 + [16.0], [4.0] * 10 + [16.0, 4.0] * 30
    assert watched([4.0] * 41, surprise_nats=few).stability_class == "stable"
    assert watched([4.0] * 70, surprise_nats=many).stability_class == "chaotic"
    assert watched([4.0] * 70, surprise_nats=[10.0] * 70).stability_class == "divergent"


def test_the_prompt_counts_for_the_class_and_not_for_a_warning():
    monitor = StabilityMonitor(CONFIG)
    monitor.read_prompt([1, 2] * 60, [0.1] * 120, [0.1] * 120)
    assert monitor.stability_class == "periodic"
    reading = monitor.observe(1.0, 3, surprise_nats=1.0)
    assert (reading.stability_class, monitor.warnings, reading.repetition) == ("periodic", (), 0.0)


def test_a_calibration_needs_texts_and_is_plain_numbers():
    with pytest.raises(ValueError, match="texts = 3"):
        calibrated(read, clean_texts(3), generator())
    found = calibrated(read, clean_texts(), generator())
    assert StabilityCalibration(**found._asdict()) == found
    assert isinstance(found.means[0][0], float)


def test_the_alarms_are_quantiles_of_clean_texts():
    """A share of FALSE_ALARMS of the texts that were calibrated on warns, for each cause."""
    clean = clean_texts(100)
    calibration = calibrated(read, clean, generator())
    surprise, entropy = read(clean)
    warned = [
        bool(watched(h, row[1:].tolist(), calibration=calibration, surprise_nats=s).warnings)
        for s, h, row in zip(surprise, entropy, clean, strict=True)
    ]
    assert sum(warned) <= 100 * sum(text_class.FALSE_ALARMS.values()) + 1
    damaged, _ = read(replaced(clean, 0, 0.9, generator()))
    some = zip(damaged[:20], entropy, strict=False)
    assert all(watched(h, calibration=calibration, surprise_nats=s).warnings for s, h in some)


# --- the exponent -----------------------------------------------------------------------------


def test_the_exponent_is_the_mean_of_those_taken_else_that_of_the_entropies():
    chaos = watched(logistic(128))
    assert chaos.lyapunov == pytest.approx(math.log(2), abs=0.3)
    assert watched(generator().normal(size=200)).lyapunov == 0.0  # noise has none
    chaos.take_exponent(-0.2)
    chaos.take_exponent(0.4)
    assert chaos.lyapunov == pytest.approx(0.1)
    with pytest.raises(ValueError, match="exponent = nan"):
        chaos.take_exponent(math.nan)


# --- repetition -------------------------------------------------------------------------------


def test_repetition_is_the_loop_score_of_the_last_tokens():
    ids = MIXED[:50] + [1, 2, 3] * 6
    expected = signals.loop_score(
        torch.tensor([ids]), window=text_class.LOOP_WINDOW, max_period=text_class.MAX_PERIOD
    )
    assert readings(CONFIG, [1.0] * len(ids), ids)[-1].repetition == expected.item()
    assert readings(CONFIG, [1.0] * 60, ids[:60])[-1].repetition == pytest.approx(7 / 12)


@pytest.mark.parametrize("period", [1, 3, text_class.MAX_PERIOD])
def test_a_loop_is_periodic_warns_once_and_ends(period):
    loop = np.resize(np.arange(5000, 5000 + period), 3 * text_class.MAX_PERIOD).tolist()
    ids = [*MIXED[:40], *loop]
    monitor = watched(generator().uniform(size=len(ids)), ids)
    assert monitor.stability_class == "periodic"
    assert len(monitor.warnings) == 1
    # The first repeated token is number 41 + period; a score above the alarm takes 12 of them.
    expected = 40 + period + math.ceil(DEFAULT.loop_alarm * text_class.LOOP_WINDOW)
    assert monitor.warnings[0].startswith(f"token {expected}: ")
    for token in MIXED[100:180]:
        monitor.observe(1.0, token)
    assert monitor.stability_class == "stable"
    assert monitor.stability > 0.9


# --- surprise, warning and temperature --------------------------------------------------------


def test_the_onset_is_bayes_rule_over_every_sequence_of_states():
    """The oracle sums over all 3^T paths of clean, replaced and looping tokens."""
    evidence, horizon, T = Evidence(0.3, -2.0, 0.1), 5, 6
    surprises, scores = generator(1).uniform(0, 12, T), [0, 1 / 12, 0, 1 / 12, 1, 1]
    rises, end = [0, 1, 0, 1, 1, 1], 1 / (2 * horizon)
    (b, c), a = onset.BEGIN, 1 - sum(onset.BEGIN)
    step = [[a, b, c], [end, 1 - end, 0], [end, 0, 1 - end]]
    said = [
        [1, math.exp(0.3 * s - 2), onset.HIT / 0.1 if r else (1 - onset.HIT) / 0.9]
        for s, r in zip(surprises, rises, strict=True)
    ]
    read, ends = onset.Onset(evidence, horizon), np.zeros(3)
    for path in itertools.product(range(3), repeat=T + 1):
        p = [a, b, c][path[0]]
        for t in range(T):
            p *= step[path[t]][path[t + 1]] * said[t][path[t + 1]]
        ends[path[-1]] += p
    for s, score in zip(surprises, scores, strict=True):
        read.add(s, score)
    assert (read.replaced, read.looping) == pytest.approx(tuple(ends[1:] / ends.sum()), rel=1e-9)
    assert read.damaged_nats == pytest.approx(math.log((ends[1] + ends[2]) / ends[0]), rel=1e-9)


def test_the_warning_is_the_chance_of_damage_less_its_alarm_unless_a_cause_warns():
    surprise = generator(1).uniform(2, 6, 40)
    read = onset.Onset(Evidence(*DEFAULT.evidence), CONFIG.predictive_horizon)
    for s in surprise:
        read.add(s, 0.0)
    expected = 1 / (1 + math.exp(DEFAULT.damage_alarm - read.damaged_nats))
    monitor = watched([4.0] * 40, surprise_nats=surprise)
    assert monitor.stability == pytest.approx(1 - expected, rel=1e-9)
    assert watched([1.0] * 40, [7] * 40).stability < 0.5  # a loop that goes on


def test_log_odds_stay_finite_whatever_is_read():
    read = onset.Onset(Evidence(*DEFAULT.evidence), CONFIG.predictive_horizon)
    for s in (1e6, 1e6, 0.0, 1e6):
        read.add(s, 1.0)
        assert math.isfinite(read.damaged_nats)
        assert math.isfinite(read.replaced_nats)


def test_surprise_warns_with_position_and_again_only_after_it_has_fallen():
    surprise = [2.0] * 20 + [20.0] * 10 + [2.0] * 20 + [20.0] * 10
    monitor = watched([2.0] * 60, surprise_nats=surprise)
    assert [w.split(":")[0] for w in monitor.warnings] == ["token 23", "token 53"]
    assert "next 5 tokens" in monitor.warnings[0]
    assert monitor.stability < 0.5


def test_a_cause_warns_again_only_after_falling_below_the_lower_threshold():
    causes = alarms.Alarms()
    scores = (0.4, 0.6, 0.4, 0.6, 0.2, 0.6)
    assert [causes.update({"loop": x}) for x in scores] == [[], ["loop"], [], [], [], ["loop"]]
    assert causes.update({}) == []
    assert causes.active == set()


def test_temperature_cools_surprise_warms_loops_and_leaves_the_rest():
    loop = watched(np.ones(60), [1, 2] * 30)
    assert loop.suggested_temperature(0.8) == pytest.approx(0.8 * math.exp(0.4))
    assert loop.suggested_temperature(2.0) == 2.0
    surprised = watched([2.0] * 30, surprise_nats=[20.0] * 30)
    assert 0.8 * math.exp(-0.4) <= surprised.suggested_temperature(0.8) < 0.8 * math.exp(-0.2)
    assert surprised.suggested_temperature(0.1) <= 0.1  # a bound must not raise it
    damaged = watched([4.0] * 70, surprise_nats=[4.0] * 10 + [16.0, 4.0] * 30)
    assert damaged.suggested_temperature(0.8) < 0.8
    stable = watched([4.0] * 30, surprise_nats=[4.0] * 30)
    assert stable.suggested_temperature(0.8) == 0.8
    assert StabilityMonitor(CONFIG).suggested_temperature(0.0) == 0.0
    monitors = (loop, surprised, damaged, stable, StabilityMonitor(CONFIG))
    assert [m.steering_cause for m in monitors] == ["loop", "surprise", "chaotic", "", ""]


# --- configuration, state and errors ----------------------------------------------------------


def test_every_field_of_the_configuration_changes_behaviour():
    x, changed = logistic(128), set()
    for threshold, warns in ((0.1, True), (2.0, False)):
        monitor = watched(x, config=replace(CONFIG, lyapunov_threshold=threshold))
        assert monitor.warnings == ()  # the exponent of a series does not warn
        monitor.take_exponent(0.5)
        monitor.observe(1.0, 5000)
        assert ["separate" in warning for warning in monitor.warnings] == [True] * warns
    changed.add("lyapunov_threshold")
    fixed = replace(CONFIG, auto_temperature_adjust=False)
    assert watched(np.ones(60), [1, 2] * 30, fixed).suggested_temperature(0.8) == 0.8
    changed.add("auto_temperature_adjust")
    known = {"surprise_nats": [2.0] * 20 + [20.0] * 3}
    long = watched([2.0] * 23, config=replace(CONFIG, predictive_horizon=20), **known)
    assert long.stability < watched([2.0] * 23, **known).stability  # damage is to last longer
    changed.add("predictive_horizon")
    assert changed | {"enabled"} == {field.name for field in fields(StabilityConfig)}


def test_readings_equal_observe_and_reset_starts_anew():
    T = 150
    x, ids = logistic(T), generator().integers(0, 9, T).tolist()
    known = {"surprise_nats": 5 * x[::-1], "coherence": x}
    monitor = StabilityMonitor(CONFIG)
    for _ in range(2):
        steps = [
            monitor.observe(x[t], ids[t], **{name: v[t] for name, v in known.items()})
            for t in range(T)
        ]
        np.testing.assert_equal(readings(CONFIG, x, ids, **known), steps)
        monitor.reset()
    assert steps[-1].order_parameter == x[-1]
    assert monitor.warnings == ()
    assert math.isnan(monitor.stability)


def test_the_first_reading():
    reading = StabilityMonitor(CONFIG).observe(1.5, 3)
    assert isinstance(reading, StabilityReading)
    assert (reading.stability_class, reading.lyapunov_per_token) == ("stable", 0.0)
    assert math.isnan(reading.order_parameter)


@pytest.mark.parametrize(
    ("arguments", "known", "message"),
    [
        ((math.nan, 1), {}, "entropy_nats"),
        ((1.0, -1), {}, "token_id"),
        ((1.0, 1), {"surprise_nats": math.inf}, "surprise_nats"),
    ],
)
def test_wrong_values_are_named(arguments, known, message):
    with pytest.raises(ValueError, match=message):
        StabilityMonitor(CONFIG).observe(*arguments, **known)


def test_other_misuse_is_named():
    with pytest.raises(ValueError, match="current_temp"):
        StabilityMonitor(CONFIG).suggested_temperature(-1.0)
    with pytest.raises(ValueError, match="coherence has 1 values, expected 2"):
        readings(CONFIG, [1.0, 2.0], [1, 2], coherence=[0.5])
