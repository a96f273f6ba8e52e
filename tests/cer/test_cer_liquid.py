"""Liquid cells against closed forms, scipy and ncps; the coupled layer against plain Kuramoto."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.nn.functional import softplus

from cer.liquid import KuramotoLiquid, LiquidCell, LiquidState, relax
from entropy_core.kuramoto import order_parameter, rk4_step, simulate

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


def make_cell(input_size=3, hidden_size=4, seed=0):
    return LiquidCell(input_size, hidden_size, generator=seeded(seed)).double()


def velocity(cell, inputs, x):
    """dx/dt of one row, written synapse by synapse from the equation of the module's docstring."""
    y = [*inputs.tolist(), *x.tolist()]
    capacity, leak = softplus(cell.raw_capacity), softplus(cell.raw_leak)
    strength = softplus(cell.raw_strength)
    result = []
    for i in range(cell.hidden_size):
        current = leak[i].item() * (cell.leak_potential[i].item() - x[i].item())
        for j, heard in enumerate(y):
            slope, middle = cell.slope[j, i].item(), cell.midpoint[j, i].item()
            opened = strength[j, i].item() / (1 + math.exp(-slope * (heard - middle)))
            current += opened * (cell.reversal[j, i].item() - x[i].item())
        result.append(current / capacity[i].item())
    return np.array(result)


def exact(cell, inputs, x, elapsed):
    """The ODE solved by scipy to 1e-11, one row."""
    f = lambda t, y: velocity(cell, inputs, torch.from_numpy(y))  # noqa: E731
    return solve_ivp(f, (0, elapsed), x.numpy(), rtol=1e-11, atol=1e-12).y[:, -1]


def cut_recurrence(cell):
    """No synapse between neurons; inputs alone are heard."""
    with torch.no_grad():
        cell.raw_strength[cell.input_size :] = -100.0
    return cell


# --- the cell -------------------------------------------------------------------------------


def test_relaxation_is_the_solution_of_its_equation():
    x, target, rate = randn(2, 3), randn(2, 3, seed=1), randn(2, 3, seed=2).exp()
    t = torch.full((2, 3), 0.7, dtype=F64, requires_grad=True)
    value = relax(x, target, rate, t)
    (slope,) = torch.autograd.grad(value.sum(), t)
    torch.testing.assert_close(slope, rate * (target - value))
    torch.testing.assert_close(relax(x, target, rate, 0.0), x)
    torch.testing.assert_close(relax(x, target, rate, 1e4), target)


def test_a_constant_input_relaxes_exactly_in_one_step_of_any_length():
    cell = cut_recurrence(make_cell())
    inputs, x = randn(1, 3), randn(1, 4, seed=1)
    with torch.no_grad():
        for elapsed in (0.01, 0.5, 3.0):
            one = cell(inputs, x, elapsed)
            np.testing.assert_allclose(one[0], exact(cell, inputs[0], x[0], elapsed), atol=1e-9)
            torch.testing.assert_close(cell(inputs, x, elapsed, num_steps=7), one)


def test_recurrent_steps_converge_to_the_solution_with_order_two():
    cell, inputs, x = make_cell(), randn(1, 3), randn(1, 4, seed=1)
    with torch.no_grad():
        true = torch.from_numpy(exact(cell, inputs[0], x[0], 1.0))
        errors = [(cell(inputs, x, 1.0, n)[0] - true).abs().max().item() for n in (8, 16, 32, 64)]
    assert errors[-1] < 1e-3
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(2, abs=0.25), (errors, orders)


def test_the_time_constant_is_liquid():
    cell = make_cell()
    weak, strong = torch.full((1, 3), -2.0, dtype=F64), torch.full((1, 3), 2.0, dtype=F64)
    x = torch.zeros(1, 4, dtype=F64)
    rates = [cell.equilibrium(inputs, x)[1] for inputs in (weak, strong)]
    assert (rates[1] > 2 * rates[0]).all()


@pytest.mark.parametrize("elapsed", [0.1, 10.0, 1e4])
def test_potentials_stay_between_the_reversal_and_leak_potentials(elapsed):
    """Guards explicit integration, which explodes at long steps."""
    cell = make_cell()
    bound = max(cell.reversal.abs().max().item(), 1.0) + 1e-9
    x = 2 * torch.rand(5, 4, generator=seeded(), dtype=F64) - 1
    with torch.no_grad():
        for t in range(200):
            x = cell(100 * randn(5, 3, seed=t), x, elapsed)
            assert x.abs().max() <= bound


def test_every_parameter_of_the_cell_learns_and_rows_are_independent():
    cell, inputs, x = make_cell(), randn(3, 3), randn(3, 4, seed=1)
    out = cell(inputs, x)
    torch.testing.assert_close(cell(inputs[1:2], x[1:2]), out[1:2])
    out.square().sum().backward()
    for name, p in cell.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "call",
    [
        lambda: LiquidCell(0, 4),
        lambda: make_cell()(randn(1, 3), randn(1, 4), 0.0),
        lambda: make_cell()(randn(1, 3), randn(1, 4), 1.0, 0),
        lambda: KuramotoLiquid(3, 4, coupling=0.0),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(ValueError, match=r"at least 1|elapsed > 0|positive"):
        call()


# --- ncps with the same weights --------------------------------------------------------------


def ncps_cell(cell, unfolds):
    """The same neurons in ncps, which takes fused implicit Euler steps (order 1)."""
    torch_ncps = pytest.importorskip("ncps.torch")
    wirings = pytest.importorskip("ncps.wirings")
    wiring = wirings.FullyConnected(cell.hidden_size, cell.hidden_size, self_connections=True)
    theirs = torch_ncps.LTCCell(
        wiring, cell.input_size, ode_unfolds=unfolds, epsilon=0.0, implicit_param_constraints=True
    ).double()
    I = cell.input_size
    ours = {"w": cell.raw_strength, "sigma": cell.slope, "mu": cell.midpoint,
            "erev": cell.reversal}  # fmt: skip
    weights = {name: p[I:] for name, p in ours.items()}
    weights |= {f"sensory_{name}": p[:I] for name, p in ours.items()}
    weights |= {"cm": cell.raw_capacity, "gleak": cell.raw_leak, "vleak": cell.leak_potential}
    # Their implicit constraints are a softplus, as ours are: the raw numbers carry over.
    theirs.load_state_dict({**theirs.state_dict(), **weights})
    theirs.sensory_sparsity_mask.data.fill_(1.0)
    theirs.sparsity_mask.data.fill_(1.0)
    return theirs


def test_ncps_with_the_same_weights_tends_to_our_solution():
    cell, inputs, x = make_cell(), randn(2, 3), randn(2, 4, seed=1)
    with torch.no_grad():
        ours = cell(inputs, x, 1.0, 256)
        gaps = [
            (ncps_cell(cell, n)(inputs, x)[1] - ours).abs().max().item() for n in (64, 128, 256)
        ]
    assert gaps[-1] < 0.02
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.2)
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.2)


def test_at_equal_cost_our_step_is_closer_to_the_truth_than_ncps():
    cell, inputs, x = make_cell(), randn(1, 3), randn(1, 4, seed=1)
    true = torch.from_numpy(exact(cell, inputs[0], x[0], 1.0))
    with torch.no_grad():
        ours = (cell(inputs, x, 1.0, 16)[0] - true).abs().max()  # 32 evaluations
        theirs = (ncps_cell(cell, 32)(inputs, x)[1][0] - true).abs().max()
    assert 3 * ours < theirs


# --- the coupled layer -------------------------------------------------------------------------


def make_layer(hidden_size=16, coupling=2.0, seed=0):
    return KuramotoLiquid(3, hidden_size, coupling=coupling, generator=seeded(seed)).double()


def test_without_frequency_gain_the_phases_are_plain_kuramoto():
    layer = make_layer()
    torch.nn.init.zeros_(layer.frequency_gain)
    state = layer.init_state(2, seeded(1))
    _, last = layer(randn(2, 30, 3), state, 0.05)
    theta, r = simulate(state.theta, layer.frequency, 2.0, dt=0.05, num_steps=30, step=rk4_step)
    torch.testing.assert_close(torch.polar(torch.ones_like(theta), last.theta),
                               torch.polar(torch.ones_like(theta), theta))  # fmt: skip
    torch.testing.assert_close(layer.coherence(last), r[:, -1])


def test_potentials_set_frequencies_and_the_cell_hears_the_field():
    layer, inputs = make_layer(), randn(1, 3)
    state = layer.init_state(1, seeded(1))
    shifted = state._replace(theta=state.theta + 1.0)
    assert not torch.allclose(layer.step(inputs, state).x, layer.step(inputs, shifted).x)
    x = layer.step(inputs, state).x
    omega = layer.frequency + layer.frequency_gain * x
    expected = rk4_step(state.theta, omega, 2.0, 0.1)
    moved = layer.step(inputs, state).theta
    torch.testing.assert_close(moved.cos(), expected.cos())
    torch.testing.assert_close(moved.sin(), expected.sin())


def test_coupling_pulls_phases_together():
    """Guards the sign: with sin(θi - θj) r falls as K grows."""
    inputs, found = randn(1, 400, 3), []
    for coupling in (0.01, 1.0, 4.0):
        layer = make_layer(64, coupling)
        with torch.no_grad():
            _, state = layer(inputs, layer.init_state(1, seeded(1)), 0.05)
        found.append(layer.coherence(state).item())
    assert found[0] < 0.4 < found[1] < found[2]
    assert found[2] > 0.95


def test_two_equal_oscillators_follow_the_closed_form():
    layer = make_layer(2)
    torch.nn.init.zeros_(layer.frequency_gain)
    torch.nn.init.zeros_(layer.frequency)
    state = LiquidState(layer.cell.init_state(1), torch.tensor([[-0.8, 1.2]], dtype=F64))
    with torch.no_grad():
        _, last = layer(randn(1, 50, 3), state, 0.02)
    gap = last.theta[0, 1] - last.theta[0, 0]
    assert torch.tan(gap / 2).item() == pytest.approx(math.tan(1.0) * math.exp(-2.0), rel=1e-6)


def test_a_long_run_stays_bounded():
    layer = make_layer(8).float()
    state = layer.init_state(2, seeded(1))
    with torch.no_grad():
        for t in range(3000):
            state = layer.step(10 * randn(2, 3, seed=t).float(), state)
            assert (state.theta >= -math.pi).all()
            assert (state.theta <= math.pi).all()
            assert state.x.abs().max() <= 1.0 + 1e-6
    assert order_parameter(state.theta)[0].isfinite().all()


def test_every_parameter_of_the_layer_learns_through_time():
    layer = make_layer(4)
    outputs, state = layer(randn(2, 5, 3), layer.init_state(2, seeded(1)))
    assert outputs.shape == (2, 5, 4)
    (outputs.square().sum() + state.theta.cos().sum()).backward()
    for name, p in layer.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name
