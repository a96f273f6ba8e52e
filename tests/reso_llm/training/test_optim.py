"""Optimizers: orthogonalisation against the SVD, Muon against a plain loop, groups, schedule."""

import copy
import math

import pytest
import torch
from conftest import FULL

from reso_llm.model import ResoLLMModel
from reso_llm.training import optim
from reso_llm.training.config import OptimConfig
from reso_llm.training.optim import (
    POLAR_EXPRESS,
    Muon,
    learning_rate_factor,
    make_optimizers,
    orthogonalize,
    set_learning_rate,
)

STEPS = OptimConfig().polar_steps


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- orthogonalisation --------------------------------------------------------------------------


RANGE = {3: (0.02, 0.1), 5: (0.001, 0.13)}  # from this singular value up, this near to one


@pytest.mark.parametrize("steps", POLAR_EXPRESS)
@pytest.mark.parametrize("shape", [(1, 24, 24), (1, 64, 16), (1, 16, 64), (3, 16, 32), (2, 3, 2)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape, steps):
    x = draw(*shape)
    out = orthogonalize(x, steps)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    u, values, vt = torch.linalg.svd(x, full_matrices=False)
    smallest, distance = RANGE[steps]
    covered = values / torch.linalg.matrix_norm(x)[:, None] > 1.02 * smallest
    assert covered.float().mean() > 0.9
    middle = u.mT @ out @ vt.mT  # diagonal, if the singular vectors are those of x
    reached = middle.diagonal(dim1=-2, dim2=-1)
    assert (reached[covered] - 1).abs().max() < distance
    assert (reached > 0).all()
    assert (reached < 1 + distance).all()
    torch.testing.assert_close(middle, torch.diag_embed(reached), atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", POLAR_EXPRESS)
def test_coefficients_keep_every_singular_value_of_their_range_near_one(steps):
    """Guards a mistyped coefficient: a minimax polynomial touches both ends of its band."""
    smallest, distance = RANGE[steps]
    x = torch.logspace(math.log10(smallest), 0, 10_000, dtype=torch.float64)
    for a, b, c in POLAR_EXPRESS[steps]:
        x = a * x + b * x**3 + c * x**5
    below, above = 1 - x.min().item(), x.max().item() - 1
    assert max(below, above) < distance
    assert below == pytest.approx(above, rel=0.01)


def test_a_single_direction_becomes_its_unit_matrix():
    """Singular values of zero stay zero."""
    u, v = draw(6, 1), draw(1, 9, seed=1)
    out = orthogonalize((u @ v)[None], 5)[0]
    unit = u @ v / (u.norm() * v.norm())
    scale = (out * unit).sum()
    assert scale == pytest.approx(1, abs=0.13)
    torch.testing.assert_close(out, scale * unit, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", POLAR_EXPRESS)
@pytest.mark.parametrize("smallest", [1e-2, 1e-4, 0])
def test_a_wide_matrix_is_iterated_by_its_gram_matrix_alike(monkeypatch, steps, smallest):
    u, values, vt = torch.linalg.svd(draw(2, 32, 128), full_matrices=False)
    values[:] = torch.logspace(0, -4, 32).clamp_min(smallest)
    x = u @ torch.diag_embed(values) @ vt
    by_gram = orthogonalize(x, steps)
    monkeypatch.setattr(optim, "WIDE", math.inf)
    plain = orthogonalize(x.double(), steps).float()
    assert (by_gram - plain).norm() < 2e-3 * plain.norm()
    assert (orthogonalize(x, steps) - plain).norm() < 3e-5 * plain.norm()


def test_scale_and_transpose_do_not_matter():
    x = draw(2, 8, 12)
    out = orthogonalize(x, STEPS)
    torch.testing.assert_close(orthogonalize(x * 1e4, STEPS), out, atol=1e-3, rtol=0)
    torch.testing.assert_close(orthogonalize(x * 1e-3, STEPS), out, atol=1e-2, rtol=0)
    torch.testing.assert_close(orthogonalize(x.mT.contiguous(), STEPS).mT, out, atol=1e-4, rtol=0)


def test_matrices_of_a_batch_do_not_mix():
    x = draw(3, 8, 12) * torch.tensor([1.0, 1e-3, 1e3]).view(3, 1, 1)
    together = orthogonalize(x, STEPS)
    for i in range(3):
        torch.testing.assert_close(together[i], orthogonalize(x[i : i + 1], STEPS)[0])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-9, 1e15])
def test_extreme_scales_stay_finite(scale):
    """A zero gradient is the first one of everything behind a zero-initialised map."""
    out = orthogonalize(draw(2, 4, 6) * scale, STEPS)
    assert torch.isfinite(out).all()
    assert torch.linalg.svdvals(out).max() < 1.3
    if scale == 0:
        assert (out == 0).all()


def test_the_input_is_left_alone():
    x = draw(1, 4, 6)
    before = x.clone()
    orthogonalize(x, STEPS)
    assert torch.equal(x, before)


# --- Muon ---------------------------------------------------------------------------------------


def muon_reference(p, grads, lr, momentum, weight_decay, steps):
    """One matrix, one step at a time: Nesterov momentum as in Jordan's reference code."""
    buffer = torch.zeros_like(p)
    for grad in grads:
        buffer = momentum * buffer + (1 - momentum) * grad
        update = momentum * buffer + (1 - momentum) * grad
        matrices = update if update.ndim == 3 else update[None]
        direction = torch.stack([orthogonalize(m[None], steps)[0] for m in matrices])
        rows, columns = p.shape[-2:]
        p = p * (1 - lr * weight_decay)
        p = p - lr * math.sqrt(max(1, rows / columns)) * direction.view_as(p)
    return p


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("momentum", [0.0, 0.95])
def test_muon_equals_the_plain_loop(weight_decay, momentum):
    """Several parameters, of equal and of different shape, some of them stacks of matrices."""
    shapes = [(6, 4), (6, 4), (4, 8), (3, 4, 4), (1, 4, 4)]
    starts = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    params = [torch.nn.Parameter(start.clone()) for start in starts]
    muon = Muon(params, lr=0.1, momentum=momentum, weight_decay=weight_decay, polar_steps=STEPS)
    grads = [[draw(*shape, seed=100 * t + i) for i, shape in enumerate(shapes)] for t in range(3)]
    for row in grads:
        for p, grad in zip(params, row, strict=True):
            p.grad = grad.clone()
        muon.step()
    for i, p in enumerate(params):
        own = [row[i] for row in grads]
        expected = muon_reference(starts[i], own, 0.1, momentum, weight_decay, STEPS)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-3, atol=1e-4)


def test_muon_leaves_gradients_and_parameters_without_one_alone():
    p, q = (torch.nn.Parameter(draw(4, 4, seed=i)) for i in range(2))
    p.grad = draw(4, 4, seed=5)
    grad, q_before = p.grad.clone(), q.detach().clone()
    muon = Muon([p, q], lr=0.1, weight_decay=0.1)
    muon.step()
    assert torch.equal(p.grad, grad)
    assert torch.equal(q.detach(), q_before)
    assert not muon.state[q]


def test_muon_finds_the_minimum_of_a_quadratic():
    """Guards the sign of the update."""
    target = draw(8, 8)
    p = torch.nn.Parameter(torch.zeros(8, 8))
    muon = Muon([p], lr=0.5)
    for step in range(200):
        muon.param_groups[0]["lr"] = 0.5 * (1 - step / 200)
        p.grad = (p - target).detach()
        muon.step()
    assert (p - target).norm() < 0.1 * target.norm()


# --- groups, schedule, state --------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("num_value_embeddings", [0, 2])
def test_every_parameter_is_in_exactly_one_group(tiny_model, tied, num_value_embeddings):
    model = tiny_model(tie_embeddings=tied, num_value_embeddings=num_value_embeddings)
    optimizers = make_optimizers(model, OptimConfig())
    grouped = [id(p) for o in optimizers.values() for g in o.param_groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    muon = {names[id(p)] for g in optimizers["muon"].param_groups for p in g["params"]}
    assert muon == {
        f"blocks.{i}.{name}"
        for i in range(2)
        for name in (
            "attention.qkv", "attention.out.weight", "feed_forward.up.weight",
            "feed_forward.down.weight",
        )
    }  # fmt: skip


def test_each_group_has_the_rate_of_its_kind(tiny_model):
    config = OptimConfig(matrix_lr=1.0, embedding_lr=2.0, head_lr=3.0, scalar_lr=4.0)
    model = tiny_model(tie_embeddings=False)
    rates = {
        id(p): group["lr"]
        for optimizer in make_optimizers(model, config).values()
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert rates[id(model.blocks[0].attention.qkv)] == 1.0
    assert rates[id(model.embedding.table.weight)] == 2.0
    assert rates[id(model.value_tables[0].weight)] == 2.0
    assert rates[id(model.head.weight)] == 3.0
    assert rates[id(model.blocks[0].residual_scale)] == 4.0
    assert rates[id(model.embedding.smear_gate.weight)] == 4.0


def test_set_learning_rate_is_relative_to_the_full_rate(tiny_model):
    """Twice the same factor must not compound."""
    optimizers = make_optimizers(tiny_model(), OptimConfig(matrix_lr=0.02, scalar_lr=0.01))
    for factor in (0.5, 0.5, 0.0, 1.0):
        set_learning_rate(optimizers, factor)
        assert optimizers["muon"].param_groups[0]["lr"] == 0.02 * factor
        assert optimizers["adamw"].param_groups[-1]["lr"] == 0.01 * factor


@pytest.mark.parametrize(
    ("progress", "factor"),
    [
        (0.0, 0.0),
        (0.05, 0.5),
        (0.1, 1.0),
        (0.4, 1.0),
        (0.6, 1.0),
        (0.8, 0.5),
        (0.9, 0.25),
        (1.0, 0.0),
        (1.2, 0.0),  # a budget in minutes is overrun by part of a step
    ],
)
def test_warmup_stable_decay(progress, factor):
    config = OptimConfig(warmup_fraction=0.1, decay_fraction=0.4)
    assert learning_rate_factor(config, progress) == pytest.approx(factor)


def test_schedule_without_warmup_or_decay_is_constant():
    config = OptimConfig(warmup_fraction=0.0, decay_fraction=0.0)
    assert [learning_rate_factor(config, x) for x in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("matrix_lr", 0.0),
        ("head_lr", math.nan),
        ("momentum", 1.0),
        ("beta2", -0.1),
        ("weight_decay", -1.0),
        ("polar_steps", 0),
        ("warmup_fraction", 1.5),
        ("decay_fraction", math.nan),
        ("grad_clip", 0.0),
    ],
)
def test_a_wrong_optimizer_option_names_its_key(name, value):
    with pytest.raises(ValueError, match=rf"optim\.{name} = .*expected"):
        OptimConfig(**{name: value})


def train_steps(model, optimizers, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(61, (2, 8), generator=generator)
        model.loss(ids, ids.roll(-1, 1)).backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()


def test_going_on_from_state_dict_is_exact(tiny_model):
    """Six steps equal three, a state_dict into new optimizers, and three more, bit for bit."""
    straight = tiny_model(stages=FULL)
    config = OptimConfig(weight_decay=0.1)
    optimizers = make_optimizers(straight, config)
    train_steps(straight, optimizers, range(3))
    resumed = ResoLLMModel(straight.config)
    resumed.load_weights(straight.state_dict(), "here")
    fresh = make_optimizers(resumed, config)
    for name, optimizer in fresh.items():
        optimizer.load_state_dict(copy.deepcopy(optimizers[name].state_dict()))
    train_steps(straight, optimizers, range(3, 6))
    train_steps(resumed, fresh, range(3, 6))
    assert all(map(torch.equal, straight.parameters(), resumed.parameters()))
    assert fresh["muon"].param_groups[0]["peak_lr"] == config.matrix_lr


@pytest.mark.parametrize("stages", [(), FULL])
def test_a_few_steps_lower_the_loss(tiny_config, stages):
    """The two optimizers together, from the real initialisation, on one batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResoLLMModel(tiny_config(stages))
    ids = torch.randint(61, (4, 12), generator=torch.Generator().manual_seed(1))
    optimizers = make_optimizers(model, OptimConfig())
    before = model.loss(ids, ids.roll(-1, 1)).item()
    for _ in range(30):
        model.loss(ids, ids.roll(-1, 1)).backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
    assert model.loss(ids, ids.roll(-1, 1)).item() < 0.3 * before
