"""Lyapunov exponents of known systems; the classifier on signals whose class is known."""

import math

import pytest
import torch

from entropy_core import lyapunov
from entropy_core.lyapunov import CHAOTIC, DIVERGENT, PERIODIC, STABLE, UNKNOWN

F64 = torch.float64


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def logistic(x, r=4.0):
    return r * x * (1 - x)


def henon(z):
    x, y = z.unbind(-1)
    return torch.stack([1 - 1.4 * x**2 + y, 0.3 * x], dim=-1)


def lorenz(z, dt=0.02):
    """One RK4 step of the Lorenz flow with the classical parameters."""

    def velocity(z):
        x, y, w = z.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w], dim=-1)

    k1 = velocity(z)
    k2 = velocity(z + dt / 2 * k1)
    k3 = velocity(z + dt / 2 * k2)
    k4 = velocity(z + dt * k3)
    return z + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def orbit(update, x, T, *, discard=200, every=1):
    """First component of x (B, D) or (B,) along an orbit: (B, T)."""
    samples = []
    for t in range((discard + T) * every):
        x = update(x)
        if t % every == 0 and t // every >= discard:
            samples.append(x if x.dim() == 1 else x[:, 0])
    return torch.stack(samples, dim=-1)


def logistic_series(T, r=4.0, B=100):
    return orbit(lambda x: logistic(x, r), 0.1 + 0.8 * uniform(B), T)


def lorenz_series(T, B=100):
    return orbit(lorenz, 5 * normal(B, 3), T, every=5)  # one sample per 0.1 time units


# --- exponents from the map -------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.5, -0.5, 3.0])
def test_linear_map(a):
    x = normal(4, 3)
    exponent, final = lyapunov.tangent_exponent_per_step(
        lambda x: a * x, x, normal(4, 3, seed=1), num_steps=7
    )
    torch.testing.assert_close(exponent, torch.full((4,), math.log(abs(a)), dtype=F64))
    torch.testing.assert_close(final, a**7 * x)


def test_finite_time_exponent_is_the_growth_of_the_product_of_jacobians():
    """The tangent is renormalised each step; the total growth must not notice."""
    x, v = 0.5 * normal(3, 2), normal(3, 2, seed=1)
    exponent, _ = lyapunov.tangent_exponent_per_step(henon, x, v, num_steps=5, discard=2)
    for row in range(3):
        point, tangent, lengths = x[row], v[row], []
        for _ in range(7):
            jacobian = torch.tensor([[-2.8 * point[0], 1.0], [0.3, 0.0]], dtype=F64)
            point, tangent = henon(point), jacobian @ tangent
            lengths.append(tangent.norm())
        expected = (lengths[-1] / lengths[1]).log() / 5
        torch.testing.assert_close(exponent[row], expected)


def test_logistic_map_is_ln_2():
    x = 0.1 + 0.8 * uniform(500, 1)
    exponent, _ = lyapunov.tangent_exponent_per_step(
        logistic, x, torch.ones_like(x), num_steps=300, discard=50
    )
    assert exponent.mean().item() == pytest.approx(math.log(2), abs=0.003)


def test_logistic_period_two_closed_form():
    """r = 3.2: the 2-cycle has multiplier 4 + 2 r - r²."""
    x = torch.full((1, 1), 0.3, dtype=F64)
    exponent, _ = lyapunov.tangent_exponent_per_step(
        lambda x: logistic(x, 3.2), x, torch.ones_like(x), num_steps=200, discard=200
    )
    assert exponent.item() == pytest.approx(math.log(abs(4 + 6.4 - 3.2**2)) / 2, abs=1e-9)


def test_henon_spectrum():
    x = 0.1 * uniform(200, 2)
    spectrum, final = lyapunov.spectrum_per_step(henon, x, num_steps=400, discard=50)
    assert spectrum.mean(0).tolist() == pytest.approx([0.4192, -1.6232], abs=0.003)
    torch.testing.assert_close(
        spectrum.sum(-1), torch.full((200,), math.log(0.3), dtype=F64)
    )  # the Jacobian determinant is -0.3 everywhere
    largest, _ = lyapunov.tangent_exponent_per_step(
        henon, x, normal(200, 2), num_steps=400, discard=50
    )
    torch.testing.assert_close(largest.mean(), spectrum[:, 0].mean(), atol=1e-3, rtol=0)
    assert final.shape == x.shape


def test_lorenz_spectrum():
    x = 5 * normal(400, 3)
    for _ in range(4000):  # orbits that start near the unstable fixed points leave them slowly
        x = lorenz(x)
    spectrum, _ = lyapunov.spectrum_per_step(lorenz, x, num_steps=250, discard=200)
    per_time = spectrum.mean(0) / 0.02
    assert per_time.tolist() == pytest.approx([0.9056, 0.0, -14.572], abs=0.03)
    assert per_time.sum().item() == pytest.approx(-41 / 3, abs=5e-3)  # divergence; RK4 error


def test_exponent_is_differentiable_through_the_update():
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    x = normal(2, 3)
    exponent, _ = lyapunov.tangent_exponent_per_step(
        lambda x: a * x, x, torch.ones_like(x), num_steps=3
    )
    (gradient,) = torch.autograd.grad(exponent.sum(), a)
    assert gradient.item() == pytest.approx(2 / 0.7)


def test_a_vanishing_tangent_is_minus_infinity():
    x = torch.ones(1, 2)
    exponent, _ = lyapunov.tangent_exponent_per_step(lambda x: 0 * x, x, x, num_steps=3)
    assert exponent.item() == -math.inf


# --- exponents from a series --------------------------------------------------------------------


def rosenstein_reference(series, dim, lag, theiler, trajectory):
    """The published algorithm in loops, for one series."""
    points = [series[i : i + (dim - 1) * lag + 1 : lag] for i in range(len(series))]
    points = torch.stack([p for p in points if len(p) == dim])
    starts = len(points) - trajectory + 1
    logs = [[] for _ in range(trajectory)]
    for i in range(starts):
        candidates = [j for j in range(starts) if abs(i - j) > theiler]
        j = min(candidates, key=lambda j: (points[i] - points[j]).norm())
        for k in range(trajectory):
            gap = (points[i + k] - points[j + k]).norm()
            if gap > 0:
                logs[k].append(gap.log())
    curve = torch.stack([torch.stack(column).mean() for column in logs])
    k = torch.arange(trajectory, dtype=F64)
    return ((k - k.mean()) * curve).sum() / (k - k.mean()).square().sum()


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("decimals", [15, 1])
def test_rosenstein_matches_the_loop(lag, decimals):
    """With one decimal some neighbours coincide: ln 0 must be left out, not averaged."""
    series = logistic_series(80, B=2).round(decimals=decimals)
    options = {"dim": 3, "lag": lag, "theiler": 4, "trajectory": 5}
    actual = lyapunov.rosenstein_exponent_per_step(series, **options)
    expected = torch.stack([rosenstein_reference(row, **options) for row in series])
    torch.testing.assert_close(actual, expected)


def test_rosenstein_on_known_systems():
    exponent = lyapunov.rosenstein_exponent_per_step(logistic_series(1000, B=5), dim=2)
    assert exponent.mean().item() == pytest.approx(math.log(2), abs=0.01)
    series = orbit(henon, 0.1 * uniform(5, 2), 1000)
    exponent = lyapunov.rosenstein_exponent_per_step(series, dim=2)
    assert exponent.mean().item() == pytest.approx(0.4192, abs=0.03)
    t = torch.arange(200, dtype=F64)[None]
    for dtype in (F64, torch.float32):
        growth = lyapunov.rosenstein_exponent_per_step((0.3 * t).exp().to(dtype))
        assert growth.item() == pytest.approx(0.3, abs=1e-4)
        assert growth.dtype == dtype


def test_rosenstein_without_information_is_nan():
    assert lyapunov.rosenstein_exponent_per_step(torch.zeros(2, 100)).isnan().all()


def test_shortest_series():
    options = {"dim": 3, "lag": 2, "theiler": 5, "trajectory": 4}
    shortest = 2 * 2 + 4 + 2 * 5 + 1
    assert lyapunov.rosenstein_exponent_per_step(normal(1, shortest), **options).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {shortest}"):
        lyapunov.rosenstein_exponent_per_step(normal(1, shortest - 1), **options)


# --- classification -----------------------------------------------------------------------------


def counts(series):
    label = lyapunov.classify(series).label
    return torch.bincount(label, minlength=len(lyapunov.CLASSES)).tolist()


def ar1(phi, T, B=100):
    noise, x, out = normal(B, T + 200), torch.zeros(B, dtype=F64), []
    for t in range(T + 200):
        x = phi * x + noise[:, t]
        out.append(x)
    return torch.stack(out, dim=-1)[:, -T:]


NOISES = {
    "normal": lambda T: normal(100, T),
    "uniform": lambda T: uniform(100, T),
    "ar1(.9)": lambda T: ar1(0.9, T),
    "ar1(.99)": lambda T: ar1(0.99, T),
    "random walk": lambda T: normal(100, T).cumsum(-1),
}


@pytest.mark.parametrize("T", [100, 200])
@pytest.mark.parametrize("name", NOISES)
def test_noise_is_unknown_in_100_of_100_seeds(name, T):
    """Guards the trap of iid noise being called divergent (80 %) or unknown being called stable."""
    result = lyapunov.classify(NOISES[name](T))
    assert (result.label == UNKNOWN).all()
    assert result.exponent_per_step.isnan().all()


def test_heavy_tails_rarely_look_divergent():
    cauchy = torch.tan(math.pi * (uniform(100, 200) - 0.5))
    assert counts(cauchy)[DIVERGENT] <= 3
    assert counts(cauchy)[UNKNOWN] >= 97


def test_chaotic_series():
    """Error rates of the docstring, 100 seeds each: at least this many are recognised."""
    assert counts(logistic_series(100))[CHAOTIC] >= 90
    assert counts(logistic_series(200))[CHAOTIC] == 100
    assert counts(orbit(henon, 0.1 * uniform(100, 2), 200))[CHAOTIC] == 100
    assert counts(lorenz_series(500, B=20))[CHAOTIC] == 20


def test_periodic_series():
    assert counts(logistic_series(200, r=3.2))[PERIODIC] == 100
    assert counts(logistic_series(200, r=3.83))[PERIODIC] == 100
    frequency = 0.2 + 2.8 * uniform(100, 1)  # incommensurate with the sampling
    assert counts((frequency * torch.arange(200)).sin())[PERIODIC] == 100
    spikes = (torch.arange(200) % 10 == 0).to(F64)[None]
    assert counts(spikes)[PERIODIC] == 1


def test_two_sines_are_never_chaotic():
    """Guards the order of the linear predictor: order 2 cannot follow two frequencies."""
    frequency = 0.05 * 60 ** uniform(100, 2)
    series = (frequency[..., None] * torch.arange(200)).sin().sum(1)
    periodic, chaotic, unknown = (counts(series)[k] for k in (PERIODIC, CHAOTIC, UNKNOWN))
    assert chaotic == 0
    assert periodic + unknown == 100


def formula_series(formula, T=100):
    return formula(torch.arange(T, dtype=F64))[None]


@pytest.mark.parametrize(
    ("formula", "label", "exponent"),
    [
        (lambda t: (0.3 * t).exp(), DIVERGENT, 0.3),
        (lambda t: 5 + (0.3 * t).exp(), DIVERGENT, 0.3),
        (lambda t: (0.05 * t).exp() * t.sin(), DIVERGENT, 0.05),
        (lambda t: (-0.3 * t).exp(), STABLE, -0.3),
        (lambda t: (-0.03 * t).exp() * t.sin(), STABLE, -0.03),
        (lambda t: 0 * t + 3, STABLE, math.nan),
        (lambda t: 0 * t, STABLE, math.nan),
        (lambda t: t, UNKNOWN, math.nan),  # unbounded, but not exponentially
        (lambda t: t**2, UNKNOWN, math.nan),
        (lambda t: t**4, UNKNOWN, math.nan),
        (lambda t: torch.where(t > 50, math.nan, t.sin()), UNKNOWN, math.nan),
        (lambda t: torch.where(t > 50, math.inf, t.sin()), DIVERGENT, math.nan),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_formulas(formula, label, exponent, dtype):
    result = lyapunov.classify(formula_series(formula).to(dtype))
    assert lyapunov.CLASSES[result.label] == lyapunov.CLASSES[label]
    assert result.exponent_per_step.item() == pytest.approx(exponent, abs=3e-3, nan_ok=True)
    assert result.exponent_per_step.dtype == dtype


def test_rows_and_scale_do_not_matter():
    rows = [logistic_series(128, B=1), normal(1, 128), formula_series(torch.sin, 128)]
    together = lyapunov.classify(torch.cat(rows))
    assert together.label.tolist() == [CHAOTIC, UNKNOWN, PERIODIC]
    for scale in (1e-6, 1e6):
        assert torch.equal(lyapunov.classify(scale * torch.cat(rows)).label, together.label)


def test_ranges():
    with pytest.raises(ValueError, match="at least 64"):
        lyapunov.classify(normal(1, 63))
    x = normal(1, 2)
    with pytest.raises(ValueError, match="num_steps"):
        lyapunov.tangent_exponent_per_step(henon, x, x, num_steps=0)
    with pytest.raises(ValueError, match="discard"):
        lyapunov.spectrum_per_step(henon, x, num_steps=1, discard=-1)
