"""Prime numbers, the golden ratio, and phases of logarithms on a golden ladder of frequencies.

    phase_f(n) = w_f ln n,    w_f = w_0 phi^f,    phi = (1 + sqrt 5) / 2

ln(mn) = ln m + ln n, so multiplying numbers adds their phases: n -> e^{i w_f ln n} is a
homomorphism from the integers under multiplication to rotations. It is the log-frequency face of
holographic reduced representations, where binding adds phases (Plate 1995).

Every product of primes is a number of its own (Euclid), so phases of primes bind without loss.

Shapes: V numbers, F frequencies. All values are float64, as the fastest phases are millions of
radians.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from entropy_core.checks import require

GOLDEN_RATIO = (1 + 5**0.5) / 2  # phi; 1/phi = 0.618: trust in goals, decay of rates, clipping
MAX_FREQUENCIES = 40  # beyond, float64 places the phase of ln n no better than float32 its cosine


@lru_cache(maxsize=8)
def first_primes(count: int) -> tuple[int, ...]:
    """The first `count` primes, by the sieve of Eratosthenes."""
    if count < 1:
        return ()
    bound = max(15, int(count * (np.log(count + 1) + np.log(np.log(count + 2) + 1) + 1)))
    is_prime = np.ones(bound + 1, dtype=bool)
    is_prime[:2] = False
    for factor in range(2, int(bound**0.5) + 1):
        if is_prime[factor]:
            is_prime[factor * factor :: factor] = False
    return tuple(np.flatnonzero(is_prime)[:count].tolist())


def golden_frequencies(largest: int, count: int) -> np.ndarray:
    """`count` frequencies in radians per unit of ln n, for numbers up to `largest` -> (F,).

    ValueError for a count beyond MAX_FREQUENCIES or a largest number below 2.
    """
    require(1 <= count <= MAX_FREQUENCIES, "num_frequencies", count, f"1 to {MAX_FREQUENCIES}")
    require(largest >= 2, "largest", largest, "at least 2")
    # The slowest wave makes half a turn from 1 to `largest`: its cosine alone orders the numbers,
    # without wrapping. Each next one turns phi times as often; the ratio is the hardest to
    # approximate by fractions, so no two waves come back into step. From about the 25th on (for
    # 4096 primes) even the two nearest primes are half a turn apart.
    return np.pi / np.log(largest) * GOLDEN_RATIO ** np.arange(count)


def log_phases(numbers: Sequence[int], frequencies: np.ndarray) -> np.ndarray:
    """w_f ln n in radians, not wrapped: numbers (V,) and frequencies (F,) -> (V,F)."""
    return np.outer(np.log(np.asarray(numbers, dtype=np.float64)), frequencies)
