"""Oracles of entropy_core: Kuramoto, Lyapunov and sedenion numbers beside what theory gives.

    error = |got - expected|, holds = error <= tolerance;  got = mean over the seeds, sd over them

Every expected number comes from a formula, a published table, or code of this file that shares no
line with entropy_core (the orbit mean of ln |f'|, the doubling rule on arrays). Where no number is
right (the exponent of noise), `expected` is empty and the row only says what the estimator gives.
A tolerance is rounding for identities, 4 standard errors for samples (of r, by the delta method
from the Cramer-Rao bound of a Lorentzian's width, sd(gamma) = gamma sqrt(2 / N), and 0.01 for the
limit itself), and what its source promises otherwise. --quick leaves out the Henon and Lorenz
spectra, whose orbits need thousands of steps to be typical.

Shapes: K couplings, N oscillators, B orbits, D state components, S = 16 components.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import Records
from entropy_core import kuramoto, lyapunov, sedenion

F64 = torch.float64
GAMMA = 0.5  # width of the Lorentzian; the critical coupling is 2 GAMMA
COUPLINGS = (0.25, 0.5, 0.75, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
LOGISTIC = (2.8, 3.2, 3.4, 3.5, 3.57, 3.6, 3.7, 3.8, 3.83, 3.9, 4.0)
STROGATZ, ROSENSTEIN = "Strogatz 2000", "Rosenstein, Collins & De Luca 1993"
SPROTT, BAEZ = "Sprott 2003", "Baez 2002"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#555555"


class Size(NamedTuple):
    """How much is computed: oscillators, their steps, orbits and products; spectra or none."""

    oscillators: int
    steps: int
    orbit: int
    orbits: int
    products: int
    spectra: bool


FULL, QUICK = Size(4000, 1200, 2000, 50, 4000, True), Size(300, 200, 100, 8, 200, False)
SETTLE = 4000  # steps: Lorenz orbits that start near the unstable fixed points leave them slowly


class Oracle(NamedTuple):
    """One row to be: its name, expected number (None: none is right), and how to get it."""

    group: str
    name: str
    expected: float | None
    tolerance: float | None
    source: str
    got: Callable[[], Sequence[float]]  # one value for each seed; nan: undefined
    at: float | None = None  # the coupling or parameter, where a figure is drawn over it


# --- Kuramoto


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
    curves = functools.cache(lambda: [settled_r(seed, size) for seed in seeds])
    found = [
        Oracle(
            "kuramoto", f"r of {size.oscillators} oscillators, Lorentzian, K = {K:g}", theory_r(K),
            r_tolerance(K, size.oscillators, len(seeds)), STROGATZ,
            lambda i=i: [curve[i] for curve in curves()], K,
        )
        for i, K in enumerate(COUPLINGS)
    ]  # fmt: skip
    closing = 2 * math.atan(math.tan(1.25) * math.exp(-1.3 * 2))
    period = 2 * math.pi / math.sqrt(1.5**2 - 1)
    pairs = {
        "two equal oscillators, phi(2), K = 1.3": (closing, lambda: difference(0, 1.3, 2.5, 2)),
        "two oscillators locked, phi = asin(0.6)": (
            math.asin(0.6), lambda: difference(0.6, 1.0, 0.0, 60),
        ),
        "two oscillators drifting, turns in 5 periods": (
            5.0, lambda: (difference(1.5, 1.0, 0.3, 5 * period) - 0.3) / (2 * math.pi),
        ),
    }  # fmt: skip
    for name, (expected, got) in pairs.items():
        once = lambda got=got: [got()]  # noqa: E731
        found.append(Oracle("kuramoto", name, expected, 1e-6, "Adler 1946", once))
    return found


# --- Lyapunov


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
    found, _ = lyapunov.spectrum_per_step(update, x, num_steps=size.orbit, discard=100)
    return found.mean(0).tolist()


def lyapunov_oracles(seeds: Sequence[int], size: Size) -> list[Oracle]:
    orbit, found = size.orbit, []

    def add(name: str, expected: float | None, tolerance: float | None, source: str,
            got: Callable[[int], float]) -> None:  # fmt: skip
        every = lambda: [got(seed) for seed in seeds]  # noqa: E731
        found.append(Oracle("lyapunov", name, expected, tolerance, source, every))

    def series(seed: int, r: float, discard: int, count: int) -> float:
        samples = logistic_series(r, starts(seed, size.orbits), discard, count)
        return lyapunov.rosenstein_exponent_per_step(samples, dim=2).mean().item()

    def noise(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(size.orbits, 300, generator=generator, dtype=F64)

    def share(samples: Tensor, label: int) -> float:
        return (lyapunov.classify(samples).label == label).double().mean().item()

    def many(seed: int) -> float:
        x = starts(seed, size.orbits)
        return logistic_tangent(torch.full_like(x, 4.0), x, 50, orbit).mean().item()

    def sine(seed: int) -> float:
        frequency = 0.2 + 2 * starts(seed, size.orbits, 1)
        samples = (frequency * torch.arange(300, dtype=F64)).sin()
        return lyapunov.rosenstein_exponent_per_step(samples).mean().item()

    # ln 2 is the mean of ln |f'| with sd pi / sqrt(12); sums of it are anticorrelated, not wider
    error = 4 * math.pi / math.sqrt(12 * orbit * size.orbits * len(seeds))
    add("logistic map r = 4, from the map: ln 2", math.log(2), error, SPROTT, many)
    add("logistic map r = 4, from 300 samples: ln 2", math.log(2), 0.05, ROSENSTEIN,
        lambda seed: series(seed, 4.0, 100, 300))  # fmt: skip
    add("fixed point of r = 2.8, from 80 samples: ln 0.8", math.log(0.8), 0.01, ROSENSTEIN,
        lambda seed: series(seed, 2.8, 0, 80))  # fmt: skip
    add("sines, from 300 samples: 0", 0.0, 0.005, ROSENSTEIN, sine)
    add("cycle of r = 3.2 (-0.916 by its map), from 300 samples", None, None,
        "neighbours coincide, a series holds no exponent",
        lambda seed: series(seed, 3.2, 1000, 300))  # fmt: skip
    add("normal noise, from 300 samples", None, None, "no exponent exists, the slope is positive",
        lambda seed: lyapunov.rosenstein_exponent_per_step(noise(seed)).mean().item())  # fmt: skip
    add("share of noise classified unknown", 1.0, 0.0, "no other class is true of it",
        lambda seed: share(noise(seed), lyapunov.UNKNOWN))  # fmt: skip
    add("share of cycles of r = 3.2 classified periodic", 1.0, 0.0, "by construction",
        lambda seed: share(logistic_series(3.2, starts(seed, size.orbits), 1000, 200),
                           lyapunov.PERIODIC))  # fmt: skip
    add("share of r = 4 classified chaotic", 1.0, 0.02, "by construction",
        lambda seed: share(logistic_series(4.0, starts(seed, size.orbits), 100, 200),
                           lyapunov.CHAOTIC))  # fmt: skip
    if size.spectra:
        both = functools.cache(lambda seed: spectrum(henon, seed, size, 2, 0.1))
        three = functools.cache(lambda s: [v / 0.02 for v in spectrum(lorenz, s, size, 3, 10)])
        add("Henon map, largest", 0.4192, 0.005, SPROTT, lambda s: both(s)[0])
        add("Henon map, sum: ln 0.3", math.log(0.3), 1e-9, "determinant", lambda s: sum(both(s)))
        add("Lorenz flow, largest", 0.9056, 0.02, SPROTT, lambda s: three(s)[0])
        add("Lorenz flow, sum: -41/3", -41 / 3, 0.005, "divergence", lambda s: sum(three(s)))
    return found + logistic_oracles(seeds, orbit)


def logistic_oracles(seeds: Sequence[int], orbit: int) -> list[Oracle]:
    """Exponents of logistic maps against the mean along the very same orbits."""
    x = torch.cat([starts(seed, 1) for seed in seeds])

    @functools.cache
    def exponents() -> list[list[float]]:
        rates = torch.tensor(LOGISTIC, dtype=F64).repeat_interleave(len(x))
        found = logistic_tangent(rates, x.repeat(len(LOGISTIC)), 200, orbit)
        return found.view(len(LOGISTIC), -1).tolist()

    found = []
    for i, r in enumerate(LOGISTIC):
        expected = float(np.mean([orbit_mean(r, start, 200, orbit) for start in x.tolist()]))
        name = f"logistic map r = {r:g}, from the map: mean ln |f'|"
        got = lambda i=i: exponents()[i]  # noqa: E731
        found.append(Oracle("lyapunov", name, expected, 1e-9, "orbit mean", got, r))
    return found


# --- sedenions


def doubled(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(a, b)(c, d) = (a c - d* b, d a + b c*) on arrays (..., S), down to the reals."""
    if x.shape[-1] == 1:
        return x * y
    a, b = np.split(x, 2, -1)
    c, d = np.split(y, 2, -1)
    star = lambda z: np.concatenate([z[..., :1], -z[..., 1:]], -1)  # noqa: E731
    low = doubled(a, c) - doubled(star(d), b)
    return np.concatenate([low, doubled(d, a) + doubled(b, star(c))], -1)


@functools.cache
def basis_associator(S: int) -> float:
    """Sum over basis triples of |(e_i e_j) e_k - e_i (e_j e_k)|^2, by `doubled`."""
    e = np.eye(S)
    i, j, k = e[:, None, None], e[None, :, None], e[None, None]
    gap = doubled(doubled(i, j), k) - doubled(i, doubled(j, k))
    return float(np.square(gap).sum())


def zero_divisors() -> tuple[int, int]:
    """Elements e_i + e_j and e_i - e_j (0 < i < j) that divide zero, and ordered pairs of them."""
    e = torch.eye(16, dtype=F64)
    pairs = [(i, j) for i in range(1, 16) for j in range(i + 1, 16)]
    elements = torch.stack([e[i] + s * e[j] for i, j in pairs for s in (1, -1)])  # (210, S)
    products = torch.einsum("akj,bj->abk", sedenion.left_matrix(elements), elements)
    zero = (products == 0).all(-1)
    return int(zero.any(1).sum()), int(zero.sum())


def sedenion_oracles(seeds: Sequence[int], size: Size) -> list[Oracle]:
    times, norm, found = sedenion.multiply, sedenion.norm, []

    def draws(seed: int, S: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(3, size.products, S, generator=generator, dtype=F64).unbind(0)

    def add(name: str, expected: float, tolerance: float, source: str,
            got: Callable[[int], float]) -> None:  # fmt: skip
        every = lambda: [got(seed) for seed in seeds]  # noqa: E731
        found.append(Oracle("sedenion", name, expected, tolerance, source, every))

    def against_doubling(seed: int, S: int) -> float:
        x, y, _ = draws(seed, S)
        return float(np.abs(times(x, y).numpy() - doubled(x.numpy(), y.numpy())).max())

    def not_multiplicative(seed: int, S: int) -> float:
        x, y, _ = draws(seed, S)
        return ((norm(times(x, y)) / (norm(x) * norm(y)) - 1).abs() > 1e-9).double().mean().item()

    def mean_square(seed: int) -> float:
        x, y, _ = draws(seed, 16)
        return (norm(times(x, y)) / (norm(x) * norm(y))).square().mean().item()

    def associator(seed: int, S: int) -> float:
        x, y, z = (v / norm(v)[:, None] for v in draws(seed, S))
        gap = times(times(x, y), z) - times(x, times(y, z))
        return gap.square().sum(-1).mean().item()

    def worst(seed: int, law: Callable[[Tensor, Tensor], Tensor]) -> float:
        x, y, _ = draws(seed, 16)
        return law(x / norm(x)[:, None], y / norm(y)[:, None]).abs().max().item()

    def own_norm(x: Tensor, _: Tensor) -> Tensor:
        wanted = torch.zeros_like(x)
        wanted[:, 0] = 1
        return times(x, sedenion.conjugate(x)) - wanted

    for S in (2, 4, 8, 16):
        add(f"product of {S} components against the doubling rule, largest gap", 0.0, 1e-12,
            BAEZ, functools.partial(against_doubling, S=S))  # fmt: skip
    for S, expected in ((8, 0.0), (16, 1.0)):
        add(f"share of products of {S} components with |xy| != |x||y|", expected, 0.0, BAEZ,
            functools.partial(not_multiplicative, S=S))  # fmt: skip
    count = size.products * len(seeds)
    add("mean of |xy|^2 over unit x, y", 1.0, 1 / math.sqrt(count), "trace of L(x)^T L(x) is 16",
        mean_square)  # fmt: skip
    e = torch.eye(16, dtype=F64)
    add("|(e3 + e10)(e6 - e15)|", 0.0, 0.0, BAEZ,
        lambda seed: norm(times(e[3] + e[10], e[6] - e[15])).item())  # fmt: skip
    counts = functools.cache(zero_divisors)
    add("elements e_i +- e_j that divide zero", 84.0, 0.0, "Cawagas 2004", lambda _: counts()[0])
    add("ordered pairs of them with product 0", 336.0, 0.0, "Cawagas 2004", lambda _: counts()[1])
    for S in (4, 8, 16):
        add(f"mean of |(xy)z - x(yz)|^2 over unit x, y, z of {S} components",
            basis_associator(S) / S**3, 2 / math.sqrt(count) if S > 4 else 1e-12,
            "all basis triples, doubling rule", functools.partial(associator, S=S))  # fmt: skip
    laws = {
        "x x* against |x|^2": own_norm,
        "x^2 x^2 against x (x (x x))": lambda x, _: (
            times(times(x, x), times(x, x)) - times(x, times(x, times(x, x)))
        ),
        "x (y x) against (x y) x": lambda x, y: times(x, times(y, x)) - times(times(x, y), x),
    }
    for name, law in laws.items():
        add(f"{name}, largest gap", 0.0, 1e-12, BAEZ, functools.partial(worst, law=law))
    return found


# --- the task


def add_options(parser: Any) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def run(options: Any) -> list[dict[str, Any]]:
    """One row for each oracle."""
    size = QUICK if options.quick else FULL
    seeds = options.seeds[:1] if options.quick else options.seeds
    records = Records("dynamics", options.record)
    makers = (kuramoto_oracles, lyapunov_oracles, sedenion_oracles)
    oracles = [oracle for make in makers for oracle in make(seeds, size)]
    rows = []
    for oracle in tqdm(oracles, desc="oracles", leave=False):
        key = {"group": oracle.group, "name": oracle.name, "seeds": seeds}
        rows.append(records.row(key, functools.partial(judged, oracle)))
    return rows


def judged(oracle: Oracle) -> dict[str, Any]:
    """Mean and spread over the seeds, and whether they hold; None where undefined."""
    values = np.array(oracle.got(), dtype=np.float64)
    known = bool(np.isfinite(values).all())
    row = {"expected": oracle.expected, "got": float(values.mean()) if known else None,
           "sd": float(values.std(ddof=1)) if known and len(values) > 1 else None,
           "tolerance": oracle.tolerance, "at": oracle.at, "source": oracle.source}  # fmt: skip
    if oracle.expected is None:
        return {**row, "error": None, "holds": None}
    error = abs(row["got"] - oracle.expected) if known else None
    return {**row, "error": error, "holds": known and error <= oracle.tolerance}


def text(rows: Sequence[dict[str, Any]]) -> str:
    """One table, a line for each oracle, and how many hold."""
    lines = ["| | oracle | expected | got | sd over seeds | error | tolerance | holds | source |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        numbers = [_shown(row[name]) for name in ("expected", "got", "sd", "error", "tolerance")]
        verdict = {True: "yes", False: "**no**", None: "-"}[row["holds"]]
        cells = [row["group"], row["name"], *numbers, verdict, row["source"]]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    judged_rows = [row for row in rows if row["holds"] is not None]
    held = sum(row["holds"] for row in judged_rows)
    return "\n".join([*lines, "", f"{held} of {len(judged_rows)} hold."])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def figure(rows: Sequence[dict[str, Any]]) -> Any:
    """r over the coupling with theory; exponents of the logistic map with the orbit mean."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(13, 4.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    _order(left, [r for r in rows if r["group"] == "kuramoto" and r["at"] is not None])
    _logistic(right, [r for r in rows if r["group"] == "lyapunov" and r["at"] is not None])
    return drawn


def _order(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    K = np.concatenate([[0, 2 * GAMMA], np.linspace(2 * GAMMA, 5, 300)])
    r = [theory_r(k) if k else 0.0 for k in K]
    axes.plot(K, r, color=GREY, label="theory, N to infinity")
    axes.errorbar([row["at"] for row in rows], [row["got"] for row in rows],
                  yerr=[row["sd"] or 0 for row in rows], fmt="o", color=BLUE, capsize=3,
                  label="simulated, mean and sd over seeds")  # fmt: skip
    axes.axvline(2 * GAMMA, color=ORANGE, ls=":", label="critical coupling")
    axes.set(xlabel="coupling K, radians per unit time", ylabel="order parameter r", ylim=(0, 1))
    axes.set_title(f"Kuramoto, Lorentzian frequencies of width {GAMMA:g}")
    axes.legend(loc="lower right")


def _logistic(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    rates = np.linspace(2.8, 4, 400)
    axes.plot(rates, [orbit_mean(r, 0.3, 200, 500) for r in rates], color=GREY, lw=0.8,
              label="orbit mean of ln |f'|")  # fmt: skip
    axes.plot([row["at"] for row in rows], [row["got"] for row in rows], "o", color=BLUE,
              label="tangent_exponent_per_step")  # fmt: skip
    axes.axhline(math.log(2), color=GREEN, ls="--", lw=0.8, label="ln 2, exact at r = 4")
    axes.axhline(0, color=ORANGE, ls=":", lw=0.8)
    axes.set(xlabel="r of the logistic map", ylabel="exponent, nats per step", ylim=(-2.2, 1))
    axes.set_title("Lyapunov exponent of x to r x (1 - x)")
    axes.legend(loc="lower right")
