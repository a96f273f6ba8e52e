"""The bootstrap and the rank statistics against slow twins, theory and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.kit import statistics

stats = pytest.importorskip("scipy.stats")


def generator(seed=0):
    return np.random.default_rng(seed)


def test_the_interval_of_a_mean_is_the_normal_one_for_many_values():
    values = generator(2).normal(3, 2, size=400)
    value, low, high = statistics.mean_of(values)
    half = 1.96 * values.std() / 20
    assert value == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    again = statistics.ratio_interval(values, np.ones(400), seed=1)
    assert again[1:] != (low, high)
    assert statistics.mean_of(values) == (value, low, high)


def test_an_interval_is_of_the_ratio_of_sums_and_covers():
    """Not a mean of ratios; about 95 of 100 intervals hold 2."""
    value, low, high = statistics.ratio_interval([1.0, 9.0], [1.0, 1.5])
    assert (value, low, high) == pytest.approx((4.0, 1.0, 6.0))
    rng = generator()
    held = 0
    for trial in range(100):
        counts = 1 + rng.random(60)
        _, low, high = statistics.ratio_interval(2 * counts + rng.normal(size=60), counts, trial)
        held += low < 2 < high
    assert 88 <= held <= 99


def test_draws_without_a_value_are_left_out():
    assert statistics.summary(np.array([math.nan, 1.0])) is None
    assert statistics.summary(np.array([1.0, math.nan])) is None
    assert statistics.summary(np.array([5.0, *range(101), math.nan])) == (5.0, 2.5, 97.5)
    value, low, high = statistics.ratio_interval([3.0, 5.0], [1.0, 0.0])
    assert (value, low, high) == (8.0, 3.0, 8.0)  # no draw of the second alone


def test_the_sample_comes_first_and_seeds_are_drawn_within_prompts():
    picks = statistics.draw(4, 50)
    assert picks.shape == (51, 4)
    assert picks[0].tolist() == [0, 1, 2, 3]
    prompts, seeds = statistics.draw_nested(4, 3, 50)
    assert prompts[0, :, 0].tolist() == [0, 1, 2, 3]
    assert seeds[0].tolist() == [[0, 1, 2]] * 4
    assert (prompts.shape, seeds.shape) == ((51, 4, 1), (51, 4, 3))
    assert len({tuple(row) for row in seeds[1:].reshape(-1, 3).tolist()}) == 27


def test_groups_are_drawn_whole():
    """With every document repeated 20 times, windows would look 20 times as certain."""
    values, labels = generator().normal(size=12), np.arange(12)
    mean = lambda numbers: lambda drawn: float(numbers[drawn].mean())  # noqa: E731
    once = statistics.bootstrap_groups(mean(values), statistics.groups_of(labels), 300)
    many = statistics.groups_of(labels.repeat(20))
    often = statistics.bootstrap_groups(mean(values.repeat(20)), many, 300)
    assert once == pytest.approx(often)
    assert once == pytest.approx(statistics.bootstrap(lambda p: values[p].mean(-1), 12, 300))


def test_auroc_counts_pairs():
    positive, negative = generator().integers(0, 6, 40), generator(1).integers(0, 5, 31)
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert statistics.auroc(positive, negative) == pytest.approx(np.mean(pairs))
    assert statistics.auroc(np.ones(3), np.zeros(4)) == 1.0
    assert math.isnan(statistics.auroc(np.ones(0), np.zeros(4)))


def test_rank_correlations_are_scipys():
    rng = generator()
    for pairs in (rng.normal(size=(20, 2)), rng.integers(0, 3, (20, 2)), rng.random((3, 2))):
        expected = stats.spearmanr(*pairs.T).statistic
        assert statistics.spearman(pairs) == pytest.approx(expected)
    assert math.isnan(statistics.spearman(np.array([[1, 2], [1, 3.0]])))


def test_a_p_value_is_scipys_and_one_where_nothing_differs():
    d = np.array([1.0, 2.0, 3.0, 10.0])
    assert statistics.wilcoxon_p(d) == 0.125  # 2 / 2^4
    assert statistics.wilcoxon_p(np.zeros(3)) == 1.0
    assert statistics.wilcoxon_p(np.zeros(0)) is None


def test_holm_by_hand():
    assert statistics.holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_rejects_as_the_step_down_procedure_does(ps):
    """The slow twin: reject the smallest while p <= 0.05 / (hypotheses not yet rejected)."""
    rejected, remaining = set(), len(ps)
    for i in sorted(range(len(ps)), key=lambda i: ps[i]):
        if ps[i] * remaining > 0.05:
            break
        rejected.add(i)
        remaining -= 1
    assert {i for i, p in enumerate(statistics.holm(ps)) if p <= 0.05} == rejected


def test_intervals_of_seeds_are_averaged_end_by_end():
    assert statistics.mean_interval([[1, 0, 2], [3, 1, 8]]) == [2, 0.5, 5]


def test_students_interval_and_p_are_scipys():
    values = [0.3, 0.1, 0.4, 0.2]
    mean, half, p = statistics.student(values)
    wanted = stats.ttest_1samp(values, 0)
    low, high = wanted.confidence_interval()
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert p == pytest.approx(wanted.pvalue)
    assert statistics.student([1.0]) == (1.0, None, None)
    assert statistics.student([0.0, 0.0]) == (0, 0, 1)
    assert statistics.student([2.0, 2.0]) == (2, 0, 0)
