"""Kuramoto dynamics against exact solutions, orders of convergence and N → ∞ theory."""

import functools
import math

import pytest
import torch
from scipy.optimize import brentq
from scipy.special import i0e, i1e, ndtri
from torch.autograd import gradcheck

from entropy_core import kuramoto

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def quantiles(N):
    """Midpoints of N equal-probability cells: frequencies without sampling noise."""
    return (torch.arange(N, dtype=F64) + 0.5) / N


def spread_phases(N):
    """Low-discrepancy phases, uncorrelated with the order of the frequencies, slightly bunched."""
    golden = (math.sqrt(5) - 1) / 2
    uniform = 2 * math.pi * (golden * torch.arange(N, dtype=F64)).frac()
    return uniform - 0.3 * uniform.sin()


def velocity_reference(theta, omega, coupling):
    """The defining pairwise sum, O(N²)."""
    N = theta.shape[-1]
    differences = theta.unsqueeze(-2) - theta.unsqueeze(-1)  # [i, j] = theta_j - theta_i
    return omega + coupling / N * differences.sin().sum(-1)


# --- definition and exact solutions -----------------------------------------------------------


def test_mean_field_equals_pairwise_sum_in_value_and_gradient():
    theta, omega = draw(3, 7).requires_grad_(), draw(3, 7, seed=1)
    fast = kuramoto.phase_velocity(theta, omega, 1.7)
    slow = velocity_reference(theta, omega, 1.7)
    torch.testing.assert_close(fast, slow)
    weights = draw(3, 7, seed=2)
    gradients = [torch.autograd.grad((v * weights).sum(), theta)[0] for v in (fast, slow)]
    torch.testing.assert_close(*gradients)


def test_coupling_per_row():
    theta, omega = draw(2, 5), draw(2, 5, seed=1)
    both = kuramoto.phase_velocity(theta, omega, torch.tensor([0.5, 3.0]))
    for row, K in enumerate((0.5, 3.0)):
        torch.testing.assert_close(both[row], velocity_reference(theta[row], omega[row], K))


def two_oscillators(step, num_steps, K=1.3, phi0=2.5, t=2.0):
    """Error of the phase difference against tan(phi/2) = tan(phi0/2) e^{-K t}."""
    theta = torch.tensor([0.0, phi0], dtype=F64)
    theta, _ = kuramoto.simulate(
        theta, torch.zeros(2, dtype=F64), K, dt=t / num_steps, num_steps=num_steps, step=step
    )
    exact = 2 * math.atan(math.tan(phi0 / 2) * math.exp(-K * t))
    return abs((theta[1] - theta[0]).item() - exact)


def test_two_oscillators_closed_form():
    """Guards the repulsive sign sin(theta_i - theta_j): the pair must close up."""
    assert two_oscillators(kuramoto.rk4_step, 200) < 1e-8


@pytest.mark.parametrize(("step", "ratio"), [(kuramoto.euler_step, 2), (kuramoto.rk4_step, 16)])
def test_order_of_convergence(step, ratio):
    coarse, fine = two_oscillators(step, 80), two_oscillators(step, 160)
    assert coarse / fine == pytest.approx(ratio, rel=0.1)


def test_uncoupled_oscillators_turn_freely():
    theta, omega = draw(4, 6), draw(4, 6, seed=1)
    final, _ = kuramoto.simulate(theta, omega, 0.0, dt=0.1, num_steps=10)
    torch.testing.assert_close(final, theta + omega)


def test_order_parameter_closed_forms():
    r, psi = kuramoto.order_parameter(torch.full((2, 5), 0.7, dtype=F64))
    torch.testing.assert_close(r, torch.ones(2, dtype=F64))
    torch.testing.assert_close(psi, torch.full((2,), 0.7, dtype=F64))
    r, _ = kuramoto.order_parameter(2 * math.pi * quantiles(9))
    assert r.item() == pytest.approx(0.0, abs=1e-12)
    r, psi = kuramoto.order_parameter(torch.tensor([0.0, math.pi / 2], dtype=F64))
    assert (r.item(), psi.item()) == pytest.approx((math.sqrt(0.5), math.pi / 4))


def test_mean_frequency_is_conserved():
    theta, omega = draw(3, 8), draw(3, 8, seed=1)
    final, r = kuramoto.simulate(theta, omega, 2.0, dt=0.05, num_steps=40)
    torch.testing.assert_close(final.mean(-1), theta.mean(-1) + 2.0 * omega.mean(-1))
    assert r.shape == (3, 40)
    torch.testing.assert_close(r[:, -1], kuramoto.order_parameter(final)[0])


def test_gradcheck():
    theta, omega = draw(2, 4).requires_grad_(), draw(2, 4, seed=1).requires_grad_()
    K = torch.tensor([0.5, 2.0], dtype=F64, requires_grad=True)
    for step in (kuramoto.euler_step, kuramoto.rk4_step):
        assert gradcheck(functools.partial(step, dt=0.2), (theta, omega, K))
    assert gradcheck(kuramoto.order_parameter, (theta,))


# --- N → ∞ theory ------------------------------------------------------------------------------


def lorentzian_r(K, gamma=0.5):
    return math.sqrt(max(0.0, 1 - 2 * gamma / K))  # K_c = 2 gamma


def gaussian_r(K):
    """Self-consistency r = K r ∫ cos²u g(K r sin u) du for unit variance (Strogatz 2000)."""
    c = lambda r: (K * r) ** 2 / 4  # noqa: E731
    f = lambda r: K * math.sqrt(math.pi / 8) * (i0e(c(r)) + i1e(c(r))) - 1  # noqa: E731
    return brentq(f, 1e-6, 1.0)


def noisy_identical_r(K, D=0.5):
    """Self-consistency r = I1(K r / D) / I0(K r / D); K_c = 2 D."""
    return brentq(lambda r: i1e(K * r / D) / i0e(K * r / D) - r, 1e-6, 1.0)


def settled_r(omega, couplings, *, dt, num_steps, step=kuramoto.rk4_step):
    theta = spread_phases(omega.shape[-1]).to(omega).expand(len(couplings), -1)
    K = torch.tensor(couplings)
    _, r = kuramoto.simulate(theta, omega, K, dt=dt, num_steps=num_steps, step=step)
    return r[:, num_steps // 2 :].mean(-1).tolist()


def test_theory_gives_the_published_values():
    published = {
        lorentzian_r: {1.2: 0.408, 1.5: 0.577, 2: 0.707, 3: 0.816, 5: 0.894},
        gaussian_r: {1.7: 0.425, 2: 0.715, 2.5: 0.870, 3: 0.925, 5: 0.978},
        noisy_identical_r: {1.2: 0.545, 1.5: 0.724, 2: 0.832, 3: 0.902},
    }
    for theory, table in published.items():
        for K, r in table.items():
            assert theory(K) == pytest.approx(r, abs=6e-4), (theory.__name__, K)


def test_lorentzian_frequencies():
    omega = 0.5 * (math.pi * (quantiles(2000) - 0.5)).tan()
    couplings = [1.2, 1.5, 2.0, 3.0, 5.0]
    r = settled_r(omega, couplings, dt=0.1, num_steps=500)
    assert r == pytest.approx([lorentzian_r(K) for K in couplings], abs=0.01)


def test_gaussian_frequencies():
    omega = torch.from_numpy(ndtri(quantiles(2000).numpy()))
    couplings = [1.7, 2.0, 2.5, 3.0, 5.0]
    r = settled_r(omega, couplings, dt=0.1, num_steps=600)
    assert r == pytest.approx([gaussian_r(K) for K in couplings], abs=0.01)


def test_incoherent_below_critical_coupling():
    omega = 0.5 * (math.pi * (quantiles(2000) - 0.5)).tan()
    (r,) = settled_r(omega, [0.5], dt=0.1, num_steps=300)
    assert r < 0.05


def test_noisy_identical_oscillators():
    step = functools.partial(
        kuramoto.noisy_step, diffusion=0.5, generator=torch.Generator().manual_seed(0)
    )
    couplings = [1.2, 1.5, 2.0, 3.0]
    omega = torch.zeros(4000, dtype=torch.float32)
    r = settled_r(omega, couplings, dt=0.02, num_steps=4000, step=step)
    expected = [noisy_identical_r(K) for K in couplings]
    assert r[1:] == pytest.approx(expected[1:], abs=0.01)
    assert r[0] == pytest.approx(expected[0], abs=0.025)  # slow fluctuations near K_c = 1


def test_noise_is_a_function_of_the_generator():
    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return kuramoto.noisy_step(
            torch.zeros(6), torch.zeros(6), 1.0, 0.1, diffusion=0.5, generator=generator
        )

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))
    assert run(3).dtype == torch.float32


def test_ranges():
    theta = torch.zeros(3)
    with pytest.raises(ValueError, match="num_steps"):
        kuramoto.simulate(theta, theta, 1.0, dt=0.1, num_steps=0)
    with pytest.raises(ValueError, match="dt"):
        kuramoto.simulate(theta, theta, 1.0, dt=0.0, num_steps=1)
    with pytest.raises(ValueError, match="diffusion"):
        kuramoto.noisy_step(
            theta, theta, 1.0, 0.1, diffusion=-1.0, generator=torch.Generator().manual_seed(0)
        )
