"""Oracles of the Kuramoto model: the order parameter over the coupling, and pairs of oscillators.

Shapes: K couplings, N oscillators.
"""

import functools
import math
from collections.abc import Sequence

import torch

from benchmarks.tasks.dynamics.oracle import F64, Oracle, Size
from entropy_core import kuramoto

GAMMA = 0.5  # width of the Lorentzian; the critical coupling is 2 GAMMA
COUPLINGS = (0.25, 0.5, 0.75, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)


def theory_r(K: float) -> float:
    return math.sqrt(max(0.0, 1 - 2 * GAMMA / K))


def r_tolerance(K: float, N: int, num_seeds: int) -> float:
    """4 standard errors of the mean r of N random frequencies, and 0.01; see the docstring.

    Below the critical coupling r is of order 1/sqrt(N (1 - K/Kc)) (Daido 1990), not 0.
    """
    if 2 * GAMMA > K:
        return 4 / math.sqrt(N * (1 - K / (2 * GAMMA)))
    return 0.01 + 4 * GAMMA * math.sqrt(2 / N / num_seeds) / (K * theory_r(K))


def settled_r(seed: int, size: Size) -> list[float]:
    """r at every coupling, mean over the second half, from random phases and frequencies."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(2, size.oscillators, generator=generator, dtype=F64)
    omega = GAMMA * (math.pi * (uniform[0] - 0.5)).tan()
    theta = (2 * math.pi * uniform[1]).expand(len(COUPLINGS), -1)  # (K, N)
    _, r = kuramoto.simulate(
        theta, omega, torch.tensor(COUPLINGS, dtype=F64), dt=0.1, num_steps=size.steps
    )
    return r[:, size.steps // 2 :].mean(-1).tolist()


def difference(omega: float, K: float, phi: float, time: float) -> float:
    """Phase difference of two oscillators after a time; theirs is dphi/dt = omega - K sin phi."""
    frequencies, start = torch.tensor([0.0, omega], dtype=F64), torch.tensor([0.0, phi], dtype=F64)
    end, _ = kuramoto.simulate(start, frequencies, K, dt=time / 600, num_steps=600)
    return (end[1] - end[0]).item()


def kuramoto_oracles(seeds: Sequence[int], size: Size) -> list[Oracle]:
    curve = functools.cache(functools.partial(settled_r, size=size))
    curves = [
        Oracle(
            "kuramoto", f"r of {size.oscillators} oscillators, Lorentzian, K = {K:g}", theory_r(K),
            r_tolerance(K, size.oscillators, len(seeds)), "Strogatz 2000",
            lambda seed, i=i: curve(seed)[i], K,
        )
        for i, K in enumerate(COUPLINGS)
    ]  # fmt: skip
    closing = 2 * math.atan(math.tan(1.25) * math.exp(-1.3 * 2))
    period = 2 * math.pi / math.sqrt(1.5**2 - 1)
    pairs = {
        "two equal oscillators, phi(2), K = 1.3": (
            closing, lambda seed: difference(0, 1.3, 2.5, 2),
        ),
        "two oscillators locked, phi = asin(0.6)": (
            math.asin(0.6), lambda seed: difference(0.6, 1.0, 0.0, 60),
        ),
        "two oscillators drifting, turns in 5 periods": (
            5.0, lambda seed: (difference(1.5, 1.0, 0.3, 5 * period) - 0.3) / (2 * math.pi),
        ),
    }  # fmt: skip
    return curves + [
        Oracle("kuramoto", name, expected, 1e-6, "Adler 1946", got)
        for name, (expected, got) in pairs.items()
    ]
