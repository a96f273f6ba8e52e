"""Oracles of Lyapunov exponents: maps, flows and series whose exponent or class is known.

Shapes: B orbits, D state components.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.tasks.dynamics.oracle import F64, Oracle, Size
from entropy_core import lyapunov

LOGISTIC = (2.8, 3.2, 3.4, 3.5, 3.57, 3.6, 3.7, 3.8, 3.83, 3.9, 4.0)
ROSENSTEIN, SPROTT = "Rosenstein, Collins & De Luca 1993", "Sprott 2003"
SETTLE = 4000  # steps: Lorenz orbits that start near the unstable fixed points leave them slowly


def orbit_mean(r: float, x: float, discard: int, count: int) -> float:
    """Mean of ln |f'| = ln |r (1 - 2 x)| along an orbit of the logistic map, in plain floats."""
    total = 0.0
    for t in range(discard + count):
        total += math.log(abs(r * (1 - 2 * x))) if t >= discard else 0.0
        x = r * x * (1 - x)
    return total / count


def logistic_tangent(rates: Tensor, x: Tensor, discard: int, count: int) -> Tensor:
    """Exponents of logistic maps (B,) from starts (B,), by entropy_core."""
    update = lambda z: rates[:, None] * z * (1 - z)  # noqa: E731
    exponent, _ = lyapunov.tangent_exponent_per_step(
        update, x[:, None], torch.ones_like(x[:, None]), num_steps=count, discard=discard
    )
    return exponent


def logistic_series(r: float, x: Tensor, discard: int, count: int) -> Tensor:
    """Orbits (B, count) of starts (B,)."""
    samples = []
    for t in range(discard + count):
        x = r * x * (1 - x)
        samples += [x] if t >= discard else []
    return torch.stack(samples, dim=-1)


def henon(z: Tensor) -> Tensor:
    x, y = z.unbind(-1)
    return torch.stack([1 - 1.4 * x**2 + y, 0.3 * x], dim=-1)


def lorenz(z: Tensor, dt: float = 0.02) -> Tensor:
    """One Runge-Kutta step of the Lorenz flow with the classical parameters."""

    def velocity(z: Tensor) -> Tensor:
        x, y, w = z.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w], dim=-1)

    k1 = velocity(z)
    k2 = velocity(z + dt / 2 * k1)
    k3 = velocity(z + dt / 2 * k2)
    return z + dt / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(z + dt * k3))


def starts(seed: int, *shape: int) -> Tensor:
    """Uniform in (0.1, 0.9)."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + 0.8 * torch.rand(*shape, generator=generator, dtype=F64)


def spectrum(update: Callable, seed: int, size: Size, D: int, scale: float) -> list[float]:
    """Mean exponents over orbits that were let run to the attractor first."""
    x = scale * (starts(seed, size.orbits, D) - 0.5)
    for _ in range(SETTLE):
        x = update(x)
    exponents, _ = lyapunov.spectrum_per_step(update, x, num_steps=size.orbit, discard=100)
    return exponents.mean(0).tolist()


def estimated(samples: Tensor, **how: int) -> float:
    """Mean exponent of orbits, from their values alone."""
    return lyapunov.rosenstein_exponent_per_step(samples, **how).mean().item()


def map_exponent(seed: int, size: Size) -> float:
    """Mean exponent of logistic orbits at r = 4, from the map."""
    x = starts(seed, size.orbits)
    return logistic_tangent(torch.full_like(x, 4.0), x, 50, size.orbit).mean().item()


def sines(seed: int, size: Size) -> Tensor:
    frequency = 0.2 + 2 * starts(seed, size.orbits, 1)
    return (frequency * torch.arange(300, dtype=F64)).sin()


def noise(seed: int, size: Size) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size.orbits, 300, generator=generator, dtype=F64)


def share(samples: Tensor, label: int) -> float:
    """Share of the series that get this class."""
    return (lyapunov.classify(samples).label == label).double().mean().item()


def lyapunov_oracles(seeds: Sequence[int], size: Size) -> list[Oracle]:
    oracle = functools.partial(Oracle, "lyapunov")

    def orbits(seed: int, r: float, discard: int, count: int) -> Tensor:
        return logistic_series(r, starts(seed, size.orbits), discard, count)

    # ln 2 is the mean of ln |f'| with sd pi / sqrt(12); sums of it are anticorrelated, not wider
    error = 4 * math.pi / math.sqrt(12 * size.orbit * size.orbits * len(seeds))
    oracles = [
        oracle("logistic map r = 4, from the map: ln 2", math.log(2), error, SPROTT,
               lambda seed: map_exponent(seed, size)),
        oracle("logistic map r = 4, from 300 samples: ln 2", math.log(2), 0.05, ROSENSTEIN,
               lambda seed: estimated(orbits(seed, 4.0, 100, 300), dim=2)),
        oracle("fixed point of r = 2.8, from 80 samples: ln 0.8", math.log(0.8), 0.01, ROSENSTEIN,
               lambda seed: estimated(orbits(seed, 2.8, 0, 80), dim=2)),
        oracle("sines, from 300 samples: 0", 0.0, 0.005, ROSENSTEIN,
               lambda seed: estimated(sines(seed, size))),
        oracle("cycle of r = 3.2 (-0.916 by its map), from 300 samples", None, None,
               "neighbours coincide, a series holds no exponent",
               lambda seed: estimated(orbits(seed, 3.2, 1000, 300), dim=2)),
        oracle("normal noise, from 300 samples", None, None,
               "no exponent exists, the slope is positive",
               lambda seed: estimated(noise(seed, size))),
        oracle("share of noise classified unknown", 1.0, 0.0, "no other class is true of it",
               lambda seed: share(noise(seed, size), lyapunov.UNKNOWN)),
        oracle("share of cycles of r = 3.2 classified periodic", 1.0, 0.0, "by construction",
               lambda seed: share(orbits(seed, 3.2, 1000, 200), lyapunov.PERIODIC)),
        oracle("share of r = 4 classified chaotic", 1.0, 0.02, "by construction",
               lambda seed: share(orbits(seed, 4.0, 100, 200), lyapunov.CHAOTIC)),
    ]  # fmt: skip
    return oracles + spectrum_oracles(size) + logistic_oracles(seeds, size)


def spectrum_oracles(size: Size) -> list[Oracle]:
    if not size.spectra:
        return []
    oracle = functools.partial(Oracle, "lyapunov")

    @functools.cache
    def of_henon(seed: int) -> list[float]:
        return spectrum(henon, seed, size, 2, 0.1)

    @functools.cache
    def of_lorenz(seed: int) -> list[float]:
        return [value / 0.02 for value in spectrum(lorenz, seed, size, 3, 10)]

    return [
        oracle("Henon map, largest", 0.4192, 0.005, SPROTT, lambda seed: of_henon(seed)[0]),
        oracle("Henon map, sum: ln 0.3", math.log(0.3), 1e-9, "determinant",
               lambda seed: sum(of_henon(seed))),
        oracle("Lorenz flow, largest", 0.9056, 0.02, SPROTT, lambda seed: of_lorenz(seed)[0]),
        oracle("Lorenz flow, sum: -41/3", -41 / 3, 0.005, "divergence",
               lambda seed: sum(of_lorenz(seed))),
    ]  # fmt: skip


def logistic_oracles(seeds: Sequence[int], size: Size) -> list[Oracle]:
    """Exponents of logistic maps against the mean along the very same orbits."""
    rates = torch.tensor(LOGISTIC, dtype=F64)

    @functools.cache
    def exponents(seed: int) -> list[float]:
        return logistic_tangent(rates, starts(seed, 1).repeat(len(rates)), 200, size.orbit).tolist()

    oracles = []
    for i, r in enumerate(LOGISTIC):
        means = [orbit_mean(r, starts(seed, 1).item(), 200, size.orbit) for seed in seeds]
        name = f"logistic map r = {r:g}, from the map: mean ln |f'|"
        oracles.append(Oracle("lyapunov", name, float(np.mean(means)), 1e-9, "orbit mean",
                            lambda seed, i=i: exponents(seed)[i], r))  # fmt: skip
    return oracles
