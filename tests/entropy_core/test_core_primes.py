"""Primes and the golden ladder: the sieve against trial division, phases that add."""

import numpy as np
import pytest

from entropy_core.primes import (
    GOLDEN_RATIO,
    MAX_FREQUENCIES,
    first_primes,
    golden_frequencies,
    log_phases,
)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 7, 100, 303])
def test_the_sieve_is_trial_division(count):
    expected = [n for n in range(2, 2100) if all(n % d for d in range(2, int(n**0.5) + 1))]
    assert first_primes(count) == tuple(expected[:count])
    assert len(first_primes(count)) == count


def test_the_bound_of_the_sieve_holds_for_large_counts():
    """The 10^k-th primes are known."""
    for count, last in ((1_000, 7_919), (10_000, 104_729), (100_000, 1_299_709)):
        assert first_primes(count)[-1] == last


def test_the_golden_ratio_solves_its_equation():
    assert pytest.approx(1 + 1 / GOLDEN_RATIO, rel=1e-15) == GOLDEN_RATIO


def test_multiplying_numbers_adds_phases():
    """z(pq) = z(p) z(q): binding is multiplication, for every frequency of a full ladder."""
    primes = first_primes(4096)
    frequencies = golden_frequencies(primes[-1], 32)
    p, q = np.array(primes[::61]), np.array(primes[::-61])
    together = np.exp(1j * log_phases(p * q, frequencies))
    apart = np.exp(1j * log_phases(p, frequencies)) * np.exp(1j * log_phases(q, frequencies))
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-7)
    cubes = np.exp(1j * log_phases(p**3, frequencies))
    np.testing.assert_allclose(
        cubes, np.exp(1j * log_phases(p, frequencies)) ** 3, rtol=0, atol=1e-7
    )


def test_frequencies_are_a_golden_ladder():
    largest = first_primes(4096)[-1]
    frequencies = golden_frequencies(largest, 32)
    np.testing.assert_allclose(frequencies[1:] / frequencies[:-1], GOLDEN_RATIO)
    turns = frequencies * np.log(largest) / (2 * np.pi)
    assert turns[0] == pytest.approx(0.5), "the slowest wave never repeats itself"
    assert turns[-1] > 1e5
    nearest = np.diff(np.log(first_primes(4096))).min()
    assert frequencies[-1] * nearest > np.pi, "the fastest tells any two primes apart"


@pytest.mark.parametrize("count", [0, MAX_FREQUENCIES + 1])
def test_a_ladder_beyond_the_precision_of_float64_is_refused(count):
    with pytest.raises(ValueError, match=rf"num_frequencies = {count}: expected 1 to"):
        golden_frequencies(100, count)
    assert len(golden_frequencies(100, MAX_FREQUENCIES)) == MAX_FREQUENCIES
