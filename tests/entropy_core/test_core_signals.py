"""Signals: the trace against one computed by hand, the trackers of one row against the trace."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from entropy_core import signals
from entropy_core.information import entropy_nats, normalised_entropy

F64 = torch.float64
NAN = math.nan


def uniform_logits(*counts, V=8):
    """Logits (len(counts), V) whose entropies are ln(count): `count` equal tokens, others -inf."""
    logits = torch.full((len(counts), V), -math.inf, dtype=F64)
    for row, count in enumerate(counts):
        logits[row, :count] = 0.0
    return logits


def random_run(B=3, T=13, V=11, D=5, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, T, V, generator=generator, dtype=dtype)
    return logits, torch.randn(B, T, D, generator=generator, dtype=dtype)


def tracked(logits, embeddings, window=8, ema_weight=0.2, min_prob=None):
    """The readings (B, T) of one `SignalTracker` for each row."""
    entropy = entropy_nats(logits).tolist()
    normalised = normalised_entropy(logits, min_prob).tolist()
    rows = []
    for b, row in enumerate(embeddings.numpy()):
        tracker = signals.SignalTracker(window, ema_weight)
        rows.append([tracker.update(*x) for x in zip(entropy[b], normalised[b], row, strict=True)])
    return signals.Signals(*torch.tensor(rows, dtype=F64).unbind(-1))


def assert_same(actual, expected):
    for name, a, b in zip(expected._fields, actual, expected, strict=True):
        torch.testing.assert_close(
            a, b, equal_nan=True, rtol=1e-6, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_hand_computed_trace():
    ln2 = math.log(2)
    logits = uniform_logits(2, 8, 4, 4)[None]  # H = ln2 · (1, 3, 2, 2)
    e = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]]], dtype=F64)
    state = signals.init_state(1, 2, window=2, dtype=F64)
    reading, _ = signals.trace(state, logits, e, ema_weight=0.5)
    expected = signals.Signals(
        entropy_nats=[ln2, 3 * ln2, 2 * ln2, 2 * ln2],
        normalised_entropy=[1 / 3, 1.0, 2 / 3, 2 / 3],
        delta_nats=[NAN, 2 * ln2, -ln2, 0.0],
        delta2_nats=[NAN, NAN, -3 * ln2, ln2],
        ema_nats=[ln2, 2 * ln2, 2 * ln2, 2 * ln2],
        delta_ema_nats=[NAN, ln2, 0.0, 0.0],
        # windowed sums: (1,0) (1,1) (0,2) (-1,1)
        coherence=[NAN, 1 / math.sqrt(2), 1 / math.sqrt(2), 1 / math.sqrt(2)],
    )
    assert_same(reading, signals.Signals(*(torch.tensor([x], dtype=F64) for x in expected)))


def test_undefined_values_fire_nothing():
    reading = signals.SignalTracker().update(1.0, 0.5, np.ones(5))
    assert isinstance(reading.ema_nats, float)
    for value in (reading.delta_nats, reading.delta2_nats, reading.delta_ema_nats):
        assert not abs(value) <= 1e9
    assert not reading.coherence >= -1.0
    assert reading.ema_nats == 1.0


@pytest.mark.parametrize("window", [1, 3, 20])
@pytest.mark.parametrize("T", [1, 2, 13])
def test_tracker_equals_trace(window, T):
    logits, embeddings = random_run(T=T)
    state = signals.init_state(3, 5, window=window, dtype=F64)
    options = {"ema_weight": 0.3, "min_prob": 0.05}
    expected, _ = signals.trace(state, logits, embeddings, **options)
    assert_same(tracked(logits, embeddings, window, **options), expected)


def test_tracker_reads_float32_and_keeps_no_view_of_what_it_read():
    """Guards a caller that reuses one buffer for the newest embedding."""
    _, embeddings = random_run(T=9, dtype=torch.float32)
    buffer, tracker, fresh = np.zeros(5, np.float32), signals.SignalTracker(4), []
    expected = tracked(torch.zeros(3, 9, 2), embeddings, window=4).coherence[0]
    for row in embeddings[0].numpy():
        buffer[:] = row
        fresh.append(tracker.update(1.0, 0.5, buffer).coherence)
    assert fresh == pytest.approx(expected.tolist(), nan_ok=True)


def test_prefill_then_decode_equals_one_trace():
    """Guards the SRB trap of a clock that skips prefill: state carries over any split."""
    logits, embeddings = random_run()
    state = signals.init_state(3, 5, window=4, dtype=F64)
    whole, whole_state = signals.trace(state, logits, embeddings)
    _, carried = signals.trace(state, logits[:, :6], embeddings[:, :6])
    rest, rest_state = signals.trace(carried, logits[:, 6:], embeddings[:, 6:])
    assert_same(rest, signals.Signals(*(x[:, 6:] for x in whole)))
    assert_same(rest_state, whole_state)


def test_nan_entropy_is_passed_on_and_the_average_restarts():
    logits, embeddings = random_run(B=2, T=7)
    logits[0, 3] = NAN
    state = signals.init_state(2, 5, dtype=F64)
    actual, _ = signals.trace(state, logits, embeddings)
    assert_same(tracked(logits, embeddings), actual)
    assert actual.ema_nats[0].isnan().tolist() == [t == 3 for t in range(7)]
    assert actual.ema_nats[0, 4] == actual.entropy_nats[0, 4]


def test_rows_are_independent():
    logits, embeddings = random_run()
    state = signals.init_state(3, 5, dtype=F64)
    both, _ = signals.trace(state, logits, embeddings)
    alone, _ = signals.trace(signals.init_state(1, 5, dtype=F64), logits[1:2], embeddings[1:2])
    assert_same(alone, signals.Signals(*(x[1:2] for x in both)))


def test_state_is_a_value():
    logits, embeddings = random_run()
    state = signals.init_state(3, 5, dtype=F64)
    before = [x.clone() for x in state]
    first, _ = signals.trace(state, logits, embeddings)
    again, _ = signals.trace(state, logits, embeddings)
    assert_same(first, again)
    assert all(
        torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(state, before, strict=True)
    )


def test_coherence_of_constant_opposite_and_zero_embeddings():
    e = torch.tensor([[1.0, 2.0], [2.0, 4.0], [-3.0, -6.0], [0.0, 0.0]], dtype=F64)[None]
    state = signals.init_state(1, 2, window=1, dtype=F64)
    reading, _ = signals.trace(state, torch.zeros(1, 4, 3, dtype=F64), e)
    assert reading.coherence[0, :3].tolist() == pytest.approx([NAN, 1.0, -1.0], nan_ok=True)
    assert reading.coherence[0, 3].isnan()
    assert_same(tracked(torch.zeros(1, 4, 3, dtype=F64), e, window=1), reading)


def test_gradients_pass_through_the_trace():
    logits, embeddings = random_run(B=2, T=4, V=3, D=2)
    state = signals.init_state(2, 2, window=2, dtype=F64)

    def defined(logits, embeddings):
        reading, _ = signals.trace(state, logits, embeddings)
        return reading.ema_nats, reading.delta2_nats[:, 2:], reading.coherence[:, 1:]

    assert gradcheck(defined, (logits.requires_grad_(), embeddings.requires_grad_()))


def test_loop_score():
    ids = torch.tensor(
        [
            [9, 9, 1, 2, 3, 1, 2, 3, 1, 2],  # period 3 throughout the window
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],  # no repetition
            [0, 0, 0, 5, 5, 5, 5, 6, 5, 5],  # period 3 holds for 3 of the last 4
        ]
    )
    score = signals.loop_score(ids, window=4, max_period=3)
    assert score.tolist() == [1.0, 0.0, 0.75]
    assert signals.loop_score(ids[:, :6], window=4, max_period=3).isnan().all()


@pytest.mark.parametrize(("window", "max_period"), [(1, 1), (4, 3), (12, 32)])
def test_loop_tracker_equals_loop_score_of_padded_ids(window, max_period):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 4, (60,), generator=generator).tolist() + [1, 2, 3] * 8 + [7] * 9
    tracker = signals.LoopTracker(window, max_period)
    padded = [-1 - i for i in range(window + max_period)]  # all different: they match nothing
    for token in ids:
        padded.append(token)
        expected = signals.loop_score(torch.tensor([padded]), window=window, max_period=max_period)
        assert tracker.add(token) == pytest.approx(expected.item())


def test_ranges():
    logits, embeddings = random_run()
    state = signals.init_state(3, 5, dtype=F64)
    for start in (lambda: signals.init_state(1, 2, window=0), lambda: signals.SignalTracker(0)):
        with pytest.raises(ValueError, match="window"):
            start()
    for weight in (0.0, 1.5, NAN):
        with pytest.raises(ValueError, match="ema_weight"):
            signals.SignalTracker(ema_weight=weight)
        with pytest.raises(ValueError, match="ema_weight"):
            signals.trace(state, logits, embeddings, ema_weight=weight)
