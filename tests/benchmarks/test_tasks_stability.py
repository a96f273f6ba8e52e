"""The stability task: its damage, its loops, and the interval of its AUROC."""

import math

import numpy as np
import pytest

from benchmarks.kit.statistics import auroc
from benchmarks.tasks.stability.damage import loop_onset
from benchmarks.tasks.stability.scores import Trace, auroc_interval, compare
from reso_llm.decoding.damage import looped, replaced

pytest.importorskip("scipy")


def generator(seed=0):
    return np.random.default_rng(seed)


def test_intervals_draw_documents_not_windows():
    """With every document repeated 20 times, windows would look 20 times as certain."""
    scores, docs = generator().normal(size=(2, 12)), np.arange(12)
    once = auroc_interval(*scores, docs, docs)
    often = auroc_interval(*scores.repeat(20, 1), *[docs.repeat(20)] * 2)
    assert once == pytest.approx(often)
    assert once[0] == pytest.approx(auroc(*scores))
    assert once[1] < once[0] < once[2]


def test_an_interval_has_the_width_of_theory():
    """Variance of the AUROC of equal distributions: (m + n + 1) / (12 m n)."""
    scores, docs = generator().normal(size=(2, 60)), np.arange(60)
    _, low, high = auroc_interval(*scores, docs, docs + 60)
    assert (high - low) / 3.92 == pytest.approx(math.sqrt(121 / (12 * 60**2)), rel=0.2)


def test_damage_begins_at_c_and_not_before():
    ids = generator().integers(0, 1000, (30, 64))
    bad, loop = replaced(ids, 40, 0.5, generator(1)), looped(ids, 40, generator(1))
    for damaged in (bad, loop):
        np.testing.assert_equal(damaged[:, :40], ids[:, :40])
    assert (bad != ids)[:, 40].mean() > 0.9
    assert 0.4 < (bad != ids)[:, 41:].mean() < 0.6
    for row in loop:
        periods = [p for p in range(1, 17) if (row[40:] == row[40 - p : -p]).all()]
        assert periods
        assert loop_onset(row, 8) == 40
    assert loop_onset(ids[0], 8) is None


def test_a_baselines_sign_is_that_of_the_calibration_half_and_the_other_half_is_told():
    """The warning, whose sign is fixed, is worst in the calibration half, which is not counted."""
    docs, rows = np.arange(4), np.arange(4)
    at, ids = (rows, np.zeros(4, dtype=int)), np.zeros((4, 1))

    def trace(surprise, warning):
        scores = {"surprise": np.array(surprise)[:, None], "warning": np.array(warning)[:, None]}
        return Trace(ids, scores, rows, {})

    damaged, clean = trace([0.0, 0, 0, 9], [0.0, 0, 9, 9]), trace([1.0, 1, 1, 1], [1.0, 1, 1, 1])
    found = compare((damaged, at, docs), (clean, at, docs), np.array([0, 1]), 20)
    assert (found["num_damaged"], found["num_clean"]) == (2, 2)
    assert (found["surprise"]["sign"], found["surprise"]["auroc"][0]) == (-1.0, 0.5)
    assert (found["warning"]["sign"], found["warning"]["auroc"][0]) == (1.0, 1.0)
    nothing = compare((damaged, at, docs), (clean, at, docs), docs, 20)
    assert nothing == {"num_damaged": 0, "num_clean": 0}
