"""The stability monitor on signals whose exponent and class are known, and its score."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from entropy_core import signals
from entropy_core.lyapunov import CLASSES
from reso_llm.config import StabilityConfig
from reso_llm.decoding import alarms, stability
from reso_llm.decoding.stability import StabilityMonitor, StabilityReading, readings

CONFIG = StabilityConfig(enabled=True)
MIXED = [t * 7919 % 4001 for t in range(2000)]  # ids without repetition


def generator(seed=0):
    return np.random.default_rng(seed)


def watched(entropies, ids=MIXED, config=CONFIG, **known):
    """A monitor that has read the whole text."""
    monitor = StabilityMonitor(config)
    for t, entropy in enumerate(entropies):
        monitor.observe(float(entropy), ids[t], **{name: v[t] for name, v in known.items()})
    return monitor


def orbit(update, x, T, discard=100):
    states = []
    for _ in range(T + discard):
        x = update(x)
        states.append(x)
    return np.array(states[discard:])  # (T, D)


def logistic(T, seed=0):
    return orbit(lambda x: 4 * x * (1 - x), generator(seed).uniform(0.1, 0.9, 1), T)


def henon(T, seed=0):
    start = generator(seed).uniform(-0.1, 0.1, 2)
    return orbit(lambda z: np.array([1 - 1.4 * z[0] ** 2 + z[1], 0.3 * z[0]]), start, T)


def lorenz(T, seed=0, dt=0.02, every=5):
    """Lorenz flow by RK4, one state each 0.1 time units: 0.0906 nats per state."""

    def velocity(z):
        return np.array([10 * (z[1] - z[0]), z[0] * (28 - z[2]) - z[1], z[0] * z[1] - 8 / 3 * z[2]])

    def step(z):
        for _ in range(every):
            k1 = velocity(z)
            k2 = velocity(z + dt / 2 * k1)
            k3 = velocity(z + dt / 2 * k2)
            z = z + dt / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(z + dt * k3))
        return z

    return orbit(step, 5 * generator(seed).normal(size=3), T)


def sine(T):
    t = 0.37 * np.arange(T)
    return np.stack([np.sin(t), np.cos(t)], axis=1)


# --- exponents and classes of known systems ---------------------------------------------------


@pytest.mark.parametrize(
    ("make", "exponent", "tolerance"),
    [(logistic, math.log(2), 0.1), (henon, 0.4192, 0.1), (lorenz, 0.0906, 0.08)],
)
def test_exponent_of_hidden_states_on_chaotic_systems(make, exponent, tolerance):
    found = [watched(np.zeros(256), hidden=make(256, seed)).lyapunov for seed in range(4)]
    assert np.mean(found) == pytest.approx(exponent, abs=tolerance)


@pytest.mark.parametrize("rate", [-0.05, 0.12, 0.3])
@pytest.mark.parametrize("horizon", [1, 5, 8])
def test_exponent_of_exponential_separation_is_exact(rate, horizon):
    config = replace(CONFIG, predictive_horizon=horizon)
    hidden = np.exp(rate * np.arange(150))[:, None]
    assert watched(np.ones(150), config=config, hidden=hidden).lyapunov == pytest.approx(rate)


@pytest.mark.parametrize("make", [logistic, henon])
def test_chaos_is_chaotic_from_entropies_and_from_hidden_states(make):
    x = make(128)
    from_entropy = watched(x[:, 0])
    assert from_entropy.stability_class == "chaotic"
    assert from_entropy.lyapunov > CONFIG.lyapunov_threshold
    assert watched(np.arange(128) % 2, hidden=x).stability_class == "chaotic"


def test_lorenz_is_chaotic_from_entropies():
    verdicts = [watched(lorenz(192, seed)[:, 0]).stability_class for seed in range(4)]
    assert verdicts.count("chaotic") >= 3
    assert set(verdicts) <= {"chaotic", "unknown"}


def test_exponential_growth_is_divergent():
    monitor = watched(np.exp(0.3 * np.arange(128)))
    assert monitor.stability_class == "divergent"
    assert monitor.lyapunov == pytest.approx(0.3, abs=1e-3)
    assert monitor.stability < 0.5


def test_sine_is_periodic_with_exponent_zero():
    x = sine(192)
    monitor = watched(x[:, 0], hidden=x)
    assert monitor.stability_class == "periodic"
    assert monitor.lyapunov == pytest.approx(0, abs=1e-9)


def test_decay_is_stable():
    x = np.exp(-0.1 * np.arange(128))[:, None]
    monitor = watched(x[:, 0], hidden=x)
    assert monitor.stability_class == "stable"
    assert monitor.lyapunov == pytest.approx(-0.1)


def test_states_that_repeat_exactly_are_stable():
    """Their distance is rounding error, whose logarithm must not count as growth."""
    hidden = np.resize(generator().normal(size=(7, 64)), (128, 64))
    monitor = watched(generator(1).uniform(size=128), hidden=hidden)
    assert monitor.stability_class == "stable"
    assert monitor.lyapunov == pytest.approx(0, abs=0.02)


def test_nothing_is_stable_during_an_alarm():
    entropies = np.exp(-0.1 * np.arange(128))
    alarmed = watched(entropies, surprise_nats=[14.0] * 128)
    assert watched(entropies).stability_class == "stable"
    assert alarmed.stability_class == "unknown"


@pytest.mark.parametrize("width", [1, 8])
def test_noise_has_no_exponent_and_no_class(width):
    """The trap: a slope of ln |H - mean H| calls 80 % of such series divergent."""
    for seed in range(8):
        x = generator(seed).normal(size=(200, width))
        every = readings(CONFIG, x[:, 0].tolist(), MIXED[:200], hidden=x)
        assert {r.stability_class for r in every} == {"unknown"}
        assert all(math.isnan(r.lyapunov_per_token) for r in every)


def test_coloured_noise_and_walks_are_never_chaotic():
    """A diffusion separates as the square root of time: positive slope, but no exponent."""
    fast = 0
    for seed in range(6):
        noise = generator(seed).normal(size=(256, 1))
        for keep in (0.9, 0.99, 1.0):
            x = np.zeros((256, 1))
            for t in range(1, 256):
                x[t] = keep * x[t - 1] + noise[t]
            monitor = watched(x[:, 0], hidden=x)
            is_fast = monitor.lyapunov > CONFIG.lyapunov_threshold
            assert monitor.stability_class in (("unknown",) if is_fast else ("unknown", "stable"))
            fast += is_fast
    assert fast >= 6  # a positive slope alone would have called these chaotic, none of them stable


def test_class_holds_between_calls_of_the_classifier():
    x = [*logistic(128)[:, 0], *generator().normal(size=128)]
    classes = [r.stability_class for r in readings(CONFIG, x, MIXED[:256])]
    assert set(classes[:63]) == {"unknown"}
    assert set(classes[127:191]) == {"chaotic"}
    assert classes[255] == "unknown"
    changes = {t for t in range(1, 256) if classes[t] != classes[t - 1]}
    assert changes <= {63, 127, 191, 255}


# --- repetition -------------------------------------------------------------------------------


def test_repetition_is_the_loop_score_of_the_last_tokens():
    ids = MIXED[:50] + [1, 2, 3] * 6
    expected = signals.loop_score(
        torch.tensor([ids]), window=stability.LOOP_WINDOW, max_period=stability.MAX_PERIOD
    )
    assert readings(CONFIG, [1.0] * len(ids), ids)[-1].repetition == expected.item()
    assert readings(CONFIG, [1.0] * 60, ids[:60])[-1].repetition == pytest.approx(7 / 12)


@pytest.mark.parametrize("period", [1, 3, stability.MAX_PERIOD])
def test_a_loop_is_periodic_warns_once_and_ends(period):
    loop = np.resize(np.arange(5000, 5000 + period), 3 * stability.MAX_PERIOD).tolist()
    ids = [*MIXED[:40], *loop]
    monitor = watched(generator().uniform(size=len(ids)), ids)
    assert monitor.stability_class == "periodic"
    assert len(monitor.warnings) == 1
    # The first repeated token is number 41 + period; a score above the midpoint takes 8 of them.
    expected = 40 + period + math.ceil(alarms.LOOP_MIDPOINT * stability.LOOP_WINDOW)
    assert monitor.warnings[0].startswith(f"token {expected}: ")
    for token in MIXED[100:120]:
        monitor.observe(1.0, token)
    assert monitor.stability_class == "unknown"
    assert monitor.stability > 0.9


# --- surprise, warning and temperature --------------------------------------------------------


@pytest.mark.parametrize("T", [1, 3, 50])
def test_warning_is_the_sigmoid_of_the_average_excess(T):
    entropy, surprise = generator().uniform(0, 4, T), generator(1).uniform(6, 12, T)
    a = 2 / (CONFIG.predictive_horizon + 1)
    weights = a * (1 - a) ** np.arange(T)[::-1]
    excess = (weights * (surprise - entropy)).sum()
    expected = 1 / (1 + math.exp(-(excess - alarms.EXCESS_MIDPOINT) / alarms.EXCESS_SCALE))
    monitor = watched(entropy, surprise_nats=surprise)
    assert monitor.stability == pytest.approx(1 - expected)


def test_surprise_warns_with_position_and_again_only_after_it_has_fallen():
    surprise = [2.0] * 20 + [14.0] * 10 + [2.0] * 20 + [14.0] * 10
    monitor = watched([2.0] * 60, surprise_nats=surprise)
    assert [w.split(":")[0] for w in monitor.warnings] == ["token 22", "token 52"]
    assert "next 5 tokens" in monitor.warnings[0]
    assert monitor.stability < 0.5


def test_a_cause_warns_again_only_after_falling_below_the_lower_threshold():
    causes = alarms.Alarms()
    scores = (0.4, 0.6, 0.4, 0.6, 0.2, 0.6)
    assert [causes.update({"loop": x}) for x in scores] == [[], ["loop"], [], [], [], ["loop"]]
    assert causes.update({}) == []
    assert causes.active == set()


def test_own_samples_do_not_warn():
    """Surprise of tokens drawn from the distribution itself exceeds its entropy by 0 on average."""
    p = np.array([0.7, 0.2, 0.05, 0.05])
    ids = generator().choice(4, 400, p=p)
    surprise, entropy = -np.log(p[ids]), -(p * np.log(p)).sum()
    monitor = watched([entropy] * 400, MIXED, surprise_nats=surprise)
    assert monitor.warnings == ()
    assert monitor.stability > 0.9


def test_temperature_cools_chaos_warms_loops_and_leaves_the_rest():
    chaos = watched(logistic(128)[:, 0])
    assert chaos.suggested_temperature(0.8) == pytest.approx(
        max(0.3, 0.8 * math.exp(-chaos.lyapunov))
    )
    assert chaos.suggested_temperature(0.1) <= 0.1  # a bound must not raise it
    loop = watched(np.ones(60), [1, 2] * 30)
    assert loop.suggested_temperature(0.8) == pytest.approx(0.8 * math.exp(0.4))
    assert loop.suggested_temperature(2.0) == 2.0
    surprised = watched([2.0] * 30, surprise_nats=[14.0] * 30)
    assert surprised.suggested_temperature(0.8) < 0.8
    stable = watched(np.exp(-0.1 * np.arange(128)))
    assert stable.stability_class == "stable"
    assert stable.suggested_temperature(0.8) == 0.8
    assert StabilityMonitor(CONFIG).suggested_temperature(0.0) == 0.0
    monitors = (chaos, loop, surprised, stable, StabilityMonitor(CONFIG))
    assert [m.steering_cause for m in monitors] == ["chaotic", "loop", "surprise", "", ""]
    repeating = watched(sine(192)[:, 0])  # of the entropies, not of the tokens
    assert repeating.steering_cause == "periodic"
    assert repeating.suggested_temperature(0.8) > 0.8


# --- configuration, state and errors ----------------------------------------------------------


def test_every_field_of_the_configuration_changes_behaviour():
    x, changed = logistic(128)[:, 0], set()
    assert watched(x, config=replace(CONFIG, lyapunov_threshold=2.0)).stability_class == "unknown"
    assert (
        watched(
            np.ones(128), config=replace(CONFIG, lyapunov_threshold=2.0), hidden=logistic(128)
        ).stability_class
    ) != "chaotic"
    changed.add("lyapunov_threshold")
    fixed = replace(CONFIG, auto_temperature_adjust=False)
    assert watched(x, config=fixed).suggested_temperature(0.8) == 0.8
    assert watched(np.ones(60), [1, 2] * 30, fixed).suggested_temperature(0.8) == 0.8
    changed.add("auto_temperature_adjust")
    known = {"surprise_nats": [2.0] * 20 + [14.0] * 3}
    slow = watched([2.0] * 23, config=replace(CONFIG, predictive_horizon=20), **known)
    assert slow.stability > watched([2.0] * 23, **known).stability
    changed.add("predictive_horizon")
    assert changed | {"enabled"} == {field.name for field in fields(StabilityConfig)}


def test_readings_equal_observe_and_reset_starts_anew():
    T = 150
    x, ids = logistic(T), generator().integers(0, 9, T).tolist()
    known = {"surprise_nats": 5 * x[::-1, 0], "coherence": x[:, 0], "hidden": x}
    monitor = StabilityMonitor(CONFIG)
    for _ in range(2):
        steps = [
            monitor.observe(x[t, 0], ids[t], **{name: v[t] for name, v in known.items()})
            for t in range(T)
        ]
        np.testing.assert_equal(readings(CONFIG, x[:, 0], ids, **known), steps)
        monitor.reset()
    assert steps[-1].order_parameter == x[-1, 0]
    assert monitor.warnings == ()
    assert math.isnan(monitor.stability)


def test_first_reading_claims_nothing():
    reading = StabilityMonitor(CONFIG).observe(1.5, 3)
    assert isinstance(reading, StabilityReading)
    assert reading.stability_class == "unknown"
    assert reading.stability_class in CLASSES
    assert math.isnan(reading.lyapunov_per_token)
    assert math.isnan(reading.order_parameter)


@pytest.mark.parametrize(
    ("arguments", "known", "message"),
    [
        ((math.nan, 1), {}, "entropy_nats"),
        ((1.0, -1), {}, "token_id"),
        ((1.0, 1), {"surprise_nats": math.inf}, "surprise_nats"),
        ((1.0, 1), {"hidden": np.array([math.nan])}, "finite"),
        ((1.0, 1), {"hidden": np.zeros((2, 2))}, "shape"),
    ],
)
def test_wrong_values_are_named(arguments, known, message):
    with pytest.raises(ValueError, match=message):
        StabilityMonitor(CONFIG).observe(*arguments, **known)


def test_other_misuse_is_named():
    with pytest.raises(ValueError, match="current_temp"):
        StabilityMonitor(CONFIG).suggested_temperature(-1.0)
    with pytest.raises(ValueError, match="predictive_horizon"):
        StabilityMonitor(replace(CONFIG, predictive_horizon=33))
    with pytest.raises(ValueError, match="hidden has 1 values, expected 2"):
        readings(CONFIG, [1.0, 2.0], [1, 2], hidden=np.zeros((1, 3)))
