"""The synchronisation stage against a double loop, exact solutions and the core's dynamics."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from references import clocks_reference, locked_reference, synchronise_reference
from torch.utils._python_dispatch import TorchDispatchMode

from entropy_core import kuramoto as core
from reso_llm.config import KuramotoConfig
from reso_llm.stages import kuramoto
from reso_llm.stages.kuramoto import (
    Synchronisation,
    SyncState,
    carried,
    locked,
    synchronise,
)
from reso_llm.stages.rotary import rotary_table

F64 = torch.float64
CONFIG = KuramotoConfig(num_oscillators=5, coupling=1.3, num_steps=3, step_size=0.4, retention=0.8)
BATCH, TIME, DIM = 2, 11, 12


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def change(**changes):
    return dataclasses.replace(CONFIG, **changes)


def make_stage(config=CONFIG, dtype=F64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stage = Synchronisation(DIM, config).to(dtype)
    torch.nn.init.normal_(stage.read.weight, generator=torch.Generator().manual_seed(seed))
    return stage


def empty_state(config=CONFIG, batch=BATCH):
    return make_stage(config).init_state(batch, like=draw(1))


def run_in_pieces(stage, x, sizes, state=None):
    pieces = []
    for piece in x.split(sizes, dim=1):
        *outputs, state = stage(piece, state)
        pieces.append(outputs)
    return *(torch.cat(output, dim=1) for output in zip(*pieces, strict=True)), state


# --- against the definition ---------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [3, 4, 64])
@pytest.mark.parametrize(
    "changes",
    [{}, {"retention": 0.0}, {"retention": 0.99}, {"num_steps": 1}, {"coupling": 0.0}],
    ids=str,
)
def test_equals_the_double_loop_in_value_and_gradient(monkeypatch, chunk, changes):
    """Chunks of 3 and 4 do not divide the 11 tokens: the last one is short."""
    monkeypatch.setattr(kuramoto, "CHUNK", chunk)
    config = change(**changes)
    shape = (BATCH, TIME, config.num_oscillators)
    theta, omega = draw(*shape).requires_grad_(), draw(*shape, seed=1).requires_grad_()
    fast = synchronise(theta, omega, config, empty_state(config))[:2]
    slow = synchronise_reference(theta, omega, config)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    loss = [(a * draw(*shape, seed=2)).sum() + (b * draw(*shape[:2], seed=3)).sum()
            for a, b in (fast, slow)]  # fmt: skip
    ours, theirs = (torch.autograd.grad(value, (theta, omega)) for value in loss)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_forgetting_sum_continues_what_came_before():
    u, before = draw(BATCH, 150, 3), draw(BATCH, 1, 3, seed=1)
    expected, last = [], before[:, 0]
    for t in range(150):
        last = u[:, t] + 0.9 * last
        expected.append(last)
    torch.testing.assert_close(kuramoto.forgetting_sum(u, before, 0.9), torch.stack(expected, 1))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (F64, 1e-10)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("sizes", [[1] * 150, [64, 86], [7, 1, 1, 70, 71], [149, 1]], ids=len)
def test_carried_state_equals_one_pass(dtype, tolerance, sizes):
    """150 tokens are more than two chunks; one at a time is decoding."""
    stage, x = make_stage(dtype=dtype), draw(BATCH, 150, DIM).to(dtype)
    with torch.no_grad():
        whole, pieces = stage(x, None), run_in_pieces(stage, x, sizes)
    for a, b in zip(whole[:3], pieces[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    torch.testing.assert_close(whole[3], pieces[3], rtol=0, atol=10 * tolerance)


def test_gradients_flow_through_the_carried_state():
    """Also guards against a step form that is right in value alone."""
    stage = make_stage()
    gradients = []
    for sizes in ([TIME], [1] * TIME, [4, 7]):
        x = draw(BATCH, TIME, DIM).requires_grad_()
        *outputs, _ = run_in_pieces(stage, x, sizes)
        loss = sum((y * draw(*y.shape, seed=s)).sum() for s, y in enumerate(outputs, start=4))
        gradients.append(torch.autograd.grad(loss, (x, *stage.parameters())))
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, rtol=1e-9, atol=1e-11)


# --- clocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4, 7, 17])
def test_a_turn_is_along_the_nearest_root_of_unity(n):
    """In value and gradient; a tenth of the gradient passes where the turn is locked."""
    z = torch.complex(2 * draw(400), draw(400, seed=1)).requires_grad_()
    found = locked(z, torch.tensor([float(n)], dtype=F64))
    expected = locked_reference(z, n)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert found.abs().max() <= 1 + 1e-12
    weights = torch.complex(draw(400, seed=2), draw(400, seed=3))
    losses = [(y * weights).real.sum() for y in (found, expected)]
    ours, theirs = (torch.autograd.grad(loss, z)[0] for loss in losses)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def test_clocks_of_many_tokens_equal_one_after_the_other():
    for time in (1, 2, 3, 64, 77):
        turn, renewal = (torch.complex(draw(2, time, 3, seed=s), draw(2, time, 3, seed=s + 1))
                         for s in (0, 2))  # fmt: skip
        turn = turn / (1 + turn.abs())
        before = torch.complex(draw(2, 1, 3, seed=4), draw(2, 1, 3, seed=5))
        h, expected = before[:, 0], []
        for t in range(time):
            h = turn[:, t] * h + renewal[:, t]
            expected.append(h)
        torch.testing.assert_close(carried(turn, renewal, before), torch.stack(expected, dim=1))


def turning(stage, turns):
    """Make every token's z lie far beyond the spoke of so many n-th turns, of each clock."""
    angle = 2 * math.pi * turns / stage.spokes
    z = 5 * torch.cat((angle.cos(), angle.sin())).to(stage.turn.weight)
    stage.turn.weight.data = z[:, None] * torch.ones(DIM).to(z) / DIM
    return stage


@pytest.mark.parametrize("turns", [1, 2])
@torch.no_grad()
def test_constant_turns_are_rotary_positions(turns):
    """The table of Su 2021 at the frequencies of the spokes, from the token after the start."""
    stage = turning(make_stage(), turns)
    step = stage.init_state(1, draw(1))
    assert stage.spokes.tolist() == [2, 3, 4, 5, 6]
    for position in range(1, 20):
        step = stage(draw(1, 1, DIM, seed=position).abs(), step)[3]
        for i, n in enumerate(stage.spokes.tolist()):
            base = (n / (2 * math.pi * turns)) ** 2  # of a width of 4, whose second pair turns by
            table = rotary_table(position, position + 1, 4, base)[0, 1]  # base^(-2/4)
            torch.testing.assert_close(step.clocks[0, 0, :, i], table.double(), atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_locked_clock_counts_exactly_over_many_tokens():
    """Chats run on: float32 must not lose count, nor the clock its length, in either form."""
    stage = turning(make_stage(dtype=torch.float32), 1)
    stage.turn.weight.mul_(1 + 0.05 * draw(DIM, dtype=torch.float32))  # drives differ, turns do not
    x, state = torch.ones(1, 1000, DIM), None
    for _ in range(20):
        state = stage(x, state)[3]
    step = stage.stepper(state)
    for _ in range(1000):
        step(np.ones((1, DIM), np.float32))
    for clocks, count in ((state.clocks, 20_000), (step.state.clocks, 21_000)):
        angle = 2 * math.pi * (count % stage.spokes.double()) / stage.spokes
        expected = torch.stack((angle.cos(), angle.sin()))
        torch.testing.assert_close(clocks[0, 0].double(), expected, rtol=0, atol=0.01)


@torch.no_grad()
def test_a_token_without_drive_sets_the_clock_to_its_own_phase():
    stage, x = make_stage(), draw(1, 3, DIM)
    stage.turn.weight.zero_()
    _, theta, _, state = stage(x, None)
    expected = torch.stack((theta[:, -1].cos(), theta[:, -1].sin()), dim=1)
    torch.testing.assert_close(state.clocks[:, 0], expected)


# --- exact solutions ----------------------------------------------------------------------------


def test_without_coupling_phases_turn_freely_whatever_the_past():
    config = change(coupling=0.0)
    theta, omega = draw(BATCH, TIME, 5), draw(BATCH, TIME, 5, seed=1)
    sums = tuple(draw(BATCH, 1, 2, 5, seed=s) for s in range(4))
    past = empty_state(config)._replace(sums=sums, weight=draw(BATCH, 1, 1, 1) ** 2)
    for state in (empty_state(config), past):
        final, _, _ = synchronise(theta, omega, config, state)
        torch.testing.assert_close(final, theta + 3 * 0.4 * omega, rtol=0, atol=1e-13)


def test_tokens_in_phase_stay_in_phase():
    """A constant sequence is its own mean field: no pull, full coherence."""
    theta, omega = draw(1, 1, 5).expand(1, 70, 5), draw(1, 1, 5, seed=1).expand(1, 70, 5)
    final, r, _ = synchronise(theta, omega, CONFIG, empty_state(batch=1))
    torch.testing.assert_close(final, theta + 3 * 0.4 * omega)
    torch.testing.assert_close(r, torch.ones_like(r), rtol=0, atol=1e-12)
    assert r.max() <= 1


def second_token_error(num_steps, phi0=2.5, K=1.3, retention=0.8, time=2.0):
    """Error against tan(phi/2) = tan(phi0/2) e^{-K' t}, K' = K lambda / (1 + lambda).

    The first token is its own field and rests; the second sees it with weight lambda beside
    itself with weight 1.
    """
    config = KuramotoConfig(
        num_oscillators=1, coupling=K, num_steps=num_steps, step_size=time / num_steps,
        retention=retention,
    )  # fmt: skip
    theta = torch.tensor([0.4, 0.4 + phi0], dtype=F64).view(1, 2, 1)
    final, _, _ = synchronise(theta, torch.zeros_like(theta), config, empty_state(config, 1))
    assert final[0, 0, 0].item() == pytest.approx(0.4, abs=1e-12)
    rate = K * retention / (1 + retention)
    exact = 2 * math.atan(math.tan(phi0 / 2) * math.exp(-rate * time))
    return abs((final[0, 1] - final[0, 0]).item() - exact)


def test_two_tokens_close_up_as_the_exact_solution():
    """Guards the repulsive sign: with it the difference grows towards pi."""
    coarse, fine = second_token_error(80), second_token_error(160)
    assert fine < 4e-3
    assert coarse / fine == pytest.approx(2, rel=0.1)  # Euler is of first order


def test_last_token_moves_as_in_the_core_model():
    """Where nothing is forgotten, the last token is one oscillator of T with equal weights."""
    config = change(num_steps=1, retention=1 - 1e-13, num_oscillators=1)
    theta, omega = draw(1, 30, 1), draw(1, 30, 1, seed=1)
    final, _, _ = synchronise(theta, omega, config, empty_state(config, 1))
    expected = core.euler_step(theta[..., 0], omega[..., 0], config.coupling, config.step_size)
    torch.testing.assert_close(final[0, -1, 0], expected[0, -1])
    rested = change(num_steps=1, retention=1 - 1e-13, num_oscillators=1, coupling=0.0)
    _, r, _ = synchronise(theta, torch.zeros_like(omega), rested, empty_state(rested, 1))
    torch.testing.assert_close(r[0, -1], core.order_parameter(theta[0, :, 0])[0])


def test_coupling_pulls_towards_the_field():
    theta = draw(1, 1, 5)
    psi = theta + torch.tensor([-2.0, -0.5, 0.1, 1.0, 3.0], dtype=F64)
    field = 50 * torch.stack((psi.cos(), psi.sin()), dim=2)
    config = change(num_steps=1, step_size=0.1)
    state = SyncState((field, field), torch.full((1, 1, 1, 1), 50.0, dtype=F64), field)
    final, _, _ = synchronise(theta, torch.zeros_like(theta), config, state)
    assert ((psi - final).abs() < (psi - theta).abs()).all()


def test_coherence_grows_with_coupling():
    theta, omega = 3 * draw(4, 64, 16), 0.3 * draw(4, 64, 16, seed=1)
    r = []
    for coupling in (0.0, 0.5, 1.0, 2.0):
        config = change(coupling=coupling, num_steps=8, num_oscillators=16)
        r.append(synchronise(theta, omega, config, empty_state(config, 4))[1].mean().item())
    assert r == sorted(r)
    assert r[-1] > r[0] + 0.2


def test_coherence_of_opposite_phases():
    """|-1 + lambda| / (1 + lambda), by hand; the second oscillator agrees: mean of both."""
    config = change(retention=0.5, coupling=0.0, num_steps=1, num_oscillators=2)
    theta = torch.tensor([[[0.0, 1.0], [math.pi, 1.0]]], dtype=F64)
    _, r, _ = synchronise(theta, torch.zeros_like(theta), config, empty_state(config, 1))
    assert r[0].tolist() == pytest.approx([1.0, (1 / 3 + 1) / 2])


def test_gradient_is_finite_where_the_field_vanishes():
    config = change(retention=0.5, num_steps=1, num_oscillators=1)
    opposite = torch.tensor([-2.0, 0.0], dtype=F64).view(1, 1, 2, 1)  # half of it cancels (1, 0)
    weight = torch.full((1, 1, 1, 1), 2.0, dtype=F64)
    state = SyncState((opposite, opposite), weight, opposite)
    theta = torch.zeros(1, 1, 1, dtype=F64, requires_grad=True)
    _, r, _ = synchronise(theta, torch.zeros_like(theta), config, state)
    (gradient,) = torch.autograd.grad(r.sum(), theta)
    assert r.item() == 0
    assert torch.isfinite(gradient).all()


# --- the stage ----------------------------------------------------------------------------------


def test_the_stage_is_its_definition():
    stage, x = make_stage(), draw(BATCH, TIME, DIM)
    normal = x / x.square().mean(-1, keepdim=True).sqrt()
    theta, omega = (normal @ stage.project.weight.T).split(5, dim=-1)
    z = torch.complex(*(normal @ stage.turn.weight.T).split(5, dim=-1))
    phases, r = synchronise_reference(theta, omega, CONFIG)
    h = clocks_reference(z, phases, stage.spokes)
    read = torch.cat((h.real, h.imag), dim=-1) @ stage.read.weight.T
    for scale in (1, 300):
        found = stage(scale * x, None)[:3]
        torch.testing.assert_close(found, (scale * x + read, phases, r), rtol=1e-9, atol=1e-9)


def test_a_new_stage_is_the_identity():
    stage, x = Synchronisation(DIM, CONFIG), draw(BATCH, TIME, DIM, dtype=torch.float32)
    assert torch.equal(stage(x, None)[0], x)


def test_silence_adds_and_turns_nothing():
    stage, x = make_stage(), draw(BATCH, TIME, DIM)
    r = stage(x, None)[2]
    stage.silence()
    silent = stage(x, None)
    assert torch.equal(silent[0], x)
    assert not silent[1].any()
    assert torch.equal(silent[2], r)


def test_causality():
    stage, x = make_stage(), draw(1, TIME, DIM)
    before = stage(x, None)
    changed = x.clone()
    changed[:, 6] += draw(DIM, seed=8)
    after = stage(changed, None)
    for a, b in zip(before[:3], after[:3], strict=True):
        torch.testing.assert_close(a[:, :6], b[:, :6])
    assert ((after[2] - before[2]).abs()[:, 6:] > 1e-8).all(), "every later token feels it"


@torch.no_grad()
@pytest.mark.parametrize("silent", [False, True])
def test_one_token_at_a_time_in_numpy(silent):
    stage, x = make_stage(dtype=torch.float32), draw(2, 150, DIM, dtype=torch.float32)
    if silent:
        stage.silence()
    past = stage(x[:, :40], None)[3]
    *whole, end = stage(x[:, 40:], past)
    kept, step = [t.clone() for t in (*past.sums, past.weight, past.clocks)], stage.stepper(past)
    for t in range(110):
        own = x[:, 40 + t].numpy().copy()
        theta, r = step(own)
        for ours, theirs in zip((own, theta, r), whole, strict=True):
            ours = torch.as_tensor(ours, dtype=torch.float32)
            torch.testing.assert_close(ours, theirs[:, t], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(step.state, end, rtol=1e-4, atol=1e-4)
    assert all(map(torch.equal, kept, (*past.sums, past.weight, past.clocks)))


def test_rows_with_pasts_of_different_length_share_a_batch():
    """Guards a normaliser that forgets whose past it counts."""
    stage, x, y = make_stage(), draw(1, 9, DIM), draw(1, 3, DIM, seed=1)
    alone = [stage(x, None)[3], stage(y, None)[3]]
    sums, weight, clocks = zip(*alone, strict=True)
    sums = tuple(map(torch.cat, zip(*sums, strict=True)))
    both = SyncState(sums, torch.cat(weight), torch.cat(clocks))
    for time in (1, 5):
        new = draw(2, time, DIM, seed=2)
        found = stage(new, both)
        for row in range(2):
            expected = stage(new[row : row + 1], alone[row])
            for a, b in zip(found[:3], expected[:3], strict=True):
                torch.testing.assert_close(a[row : row + 1], b)


def test_a_state_is_a_value_and_forward_changes_nothing():
    stage, x = make_stage(), draw(1, 6, DIM)
    state = stage(x, None)[3]
    tensors = [*state.sums, state.weight, state.clocks, *stage.parameters()]
    before, names = [t.clone() for t in tensors], set(vars(stage))
    first = stage(draw(1, 4, DIM, seed=1), state)
    stage(draw(1, 1, DIM, seed=2), state)
    again = stage(draw(1, 4, DIM, seed=1), state)
    assert all(map(torch.equal, tensors, before))
    assert set(vars(stage)) == names
    assert all(map(torch.equal, first[:3], again[:3]))
    assert not set(stage.state_dict()) - {name for name, _ in stage.named_parameters()}


def test_coherence_stays_in_range():
    for dtype in (torch.float32, torch.bfloat16):
        stage, x = make_stage(dtype=dtype), draw(BATCH, 80, DIM).to(dtype)
        x[:, 40:] = x[:, :1]  # a constant stretch brings r to 1
        r = stage(x, None)[2]
        assert ((r >= 0) & (r <= 1)).all()


@pytest.mark.parametrize("time", [1, 7])
def test_bfloat16_and_autocast_keep_the_dynamics_in_float32(time):
    x = draw(BATCH, 7 + time, DIM, dtype=torch.float32)
    expected = make_stage(dtype=torch.float32)(x, None)
    narrow = make_stage(dtype=torch.float32).bfloat16()
    found = run_in_pieces(narrow, x.bfloat16(), [7, time])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run_in_pieces(make_stage(dtype=torch.float32), x, [7, time])
    for (y, theta, r, state), dtype in ((found, torch.bfloat16), (cast, torch.float32)):
        assert y.dtype == theta.dtype == r.dtype == dtype
        tensors = (*state.sums, state.weight, state.clocks)
        assert {t.dtype for t in tensors} == {torch.float32}
        assert (theta - expected[1]).abs().max() < 0.05
        assert (y - expected[0]).abs().max() < 0.2
        assert (r - expected[2]).abs().max() < 0.02


class KernelCount(TorchDispatchMode):
    """Counts the operations that compute: all but the views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_decoding_step_is_few_kernels():
    """A kernel costs a few microseconds in decoding, whatever its size."""
    counts = []
    for num_steps in (2, 3):
        config = change(num_steps=num_steps)
        theta, state = draw(1, 1, 5), empty_state(config, 1)
        with KernelCount() as kernels:
            synchronise(theta, theta, config, state)
        counts.append(kernels.count)
    assert counts[0] <= 23
    assert counts[1] - counts[0] <= 6


def test_init_scale():
    """Phases and frequencies of deviation about 1: spread, but not noise on the circle."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stage = Synchronisation(64, KuramotoConfig())
    projected = stage.project(draw(500, 64, dtype=torch.float32))
    assert projected.shape == (500, 32)
    assert projected.std().item() == pytest.approx(1, rel=0.1)
