"""The streaming exponent of hidden states: against a twin that keeps every distance."""

import math

import numpy as np
import pytest

from entropy_core.divergence import PAIR_WINDOW, STATE_WINDOW, THEILER, HiddenDivergence, MovingMean
from entropy_core.lyapunov import CHAOTIC, STABLE, UNKNOWN


def generator(seed=0):
    return np.random.default_rng(seed)


def henon(T, seed=0, discard=100):
    """States (T,2) of the Hénon map, exponent 0.4192 nats per step."""
    z, states = generator(seed).uniform(-0.1, 0.1, 2), []
    for _ in range(T + discard):
        z = np.array([1 - 1.4 * z[0] ** 2 + z[1], 0.3 * z[0]])
        states.append(z)
    return np.array(states[discard:])


def divergence_of(x, horizon=5):
    found = HiddenDivergence(horizon=horizon, threshold=0.1)
    for state in x:
        found.add(state)
    return found


def test_known_systems_have_their_exponents_and_labels():
    chaotic = [divergence_of(henon(256, seed)) for seed in range(4)]
    assert np.mean([found.lyapunov for found in chaotic]) == pytest.approx(0.4192, abs=0.1)
    assert {found.label for found in chaotic} <= {CHAOTIC, UNKNOWN}
    assert [found.label for found in chaotic].count(CHAOTIC) >= 3
    decay = divergence_of(np.exp(-0.1 * np.arange(128))[:, None])
    assert decay.lyapunov == pytest.approx(-0.1)
    assert decay.label == STABLE
    noise = divergence_of(generator().normal(size=(200, 4)))
    assert math.isnan(noise.lyapunov)
    assert noise.label == UNKNOWN


@pytest.mark.parametrize("T", [100, 300])  # 300 states go around the ring
def test_divergence_equals_a_twin_that_keeps_all_distances(T):
    """Neighbour, growth from the 1st to the k-th token, and what the neighbour is better by."""
    x, k = henon(T), 6
    divergence = divergence_of(x)
    logs = np.log(np.linalg.norm(x[:, None] - x[None], axis=-1) + np.eye(T))

    def candidates(t):
        return slice(max(0, t + k + 1 - STATE_WINDOW), t - THEILER)

    growth, advantage = [], []
    for b in range(THEILER + 1, T - 1):
        s = candidates(b).start + logs[b, candidates(b)].argmin()
        advantage.append(logs[b + 1, s + 1] - logs[b + 1, candidates(b + 1)].mean())
        if b + k < T:
            growth.append((logs[b + k, s + k] - logs[b + 1, s + 1]) / (k - 1))
    recent = slice(-PAIR_WINDOW, None)
    assert divergence.lyapunov == pytest.approx(np.mean(growth[recent]), rel=1e-6)
    assert divergence.advantage.estimate()[0] == pytest.approx(np.mean(advantage[recent]))


def test_moving_mean_and_its_error_of_overlapping_values():
    mean, values = MovingMean(window=8, overlap=4), generator().normal(size=30)
    for t, value in enumerate(values, start=1):
        mean.add(value)
        recent = values[max(0, t - 8) : t]
        expected = (recent.mean(), recent.std() / math.sqrt(t / 4 if t < 8 else 2))
        assert mean.estimate() == pytest.approx(
            expected if t >= 4 else (math.nan,) * 2, nan_ok=True
        )


def test_a_state_of_another_shape_or_that_is_not_finite_is_refused():
    found = divergence_of(henon(20))
    for state, message in (
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((1, 2)), "shape"),
        (np.array([0, math.nan]), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            found.add(state)
