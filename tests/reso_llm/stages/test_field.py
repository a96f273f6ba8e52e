"""The sedenion field: three forms of one recurrence, exact recall, causality, additive fields."""

import math

import pytest
import torch
import torch.nn.functional as F
from references import field_reference

from entropy_core import sedenion
from reso_llm.config import TemporalSMFConfig
from reso_llm.stages import field as module
from reso_llm.stages.field import FieldState, SedenionField, scan_chunk

F64 = torch.float64
SHAPES = {"two heads": (2, 3), "one head": (1, 1), "one channel": (3, 1)}
BATCH, DIM = 2, 10


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_stage(heads=2, channels=3, dtype=F64, dim=DIM, seed=5):
    """A stage with every parameter moved off its start: the zero output map hides all else."""
    stage = SedenionField(dim, TemporalSMFConfig(num_heads=heads, num_channels=channels)).to(dtype)
    with torch.no_grad():
        for i, p in enumerate(stage.parameters()):
            p.copy_(0.4 * draw(*p.shape, seed=seed + i))
    return stage


def make_state(stage, batch=BATCH, dtype=F64):
    heads, channels = stage.num_heads, stage.num_channels
    field, previous = draw(batch, heads, channels, 16, seed=3), draw(batch, heads, 16, seed=4)
    return FieldState(field.to(dtype), previous.to(dtype))


def run_in_steps(stage, x, state):
    outputs = []
    for x_t in x.split(1, dim=1):
        y, state = stage(x_t, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def value_and_gradients(function, stage, x, state):
    """Everything that comes out, and the gradients of a random projection of it."""
    leaves = [v.clone().requires_grad_() for v in (x, *state)]
    y, after = function(stage, leaves[0], FieldState(*leaves[1:]))
    total = sum((v * draw(*v.shape, seed=9)).sum() for v in (y, *after))
    return [y, *after, *torch.autograd.grad(total, [*leaves, *stage.parameters()])]


# --- one recurrence, three forms -----------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("form", [SedenionField.forward, run_in_steps], ids=["parallel", "steps"])
def test_forms_agree_in_value_and_gradient(monkeypatch, form, shape):
    monkeypatch.setattr(module, "CHUNK", 4)  # 4 + 4 + 1 tokens: whole, whole, partial
    stage = make_stage(*shape)
    x, state = draw(BATCH, 9, DIM), make_state(stage)
    ours = value_and_gradients(form, stage, x, state)
    for a, b in zip(ours, value_and_gradients(field_reference, stage, x, state), strict=True):
        assert b.abs().max() > 1e-4, "every path carries something"
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("form", [SedenionField.forward, run_in_steps], ids=["parallel", "steps"])
def test_forms_agree_in_float32(form):
    """At the chunk length in use, over more than two chunks."""
    stage = make_stage(2, 2)
    x, state = draw(1, 2 * module.CHUNK + 5, DIM), make_state(stage, 1)
    expected, after = field_reference(stage, x, state)
    single = FieldState(*(v.float() for v in state))
    y, ours = form(stage.float(), x.float(), single)
    for a, b in zip((y, *ours), (expected, *after), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


@torch.no_grad()
def test_carried_state_equals_one_pass():
    stage = make_stage()
    x = draw(BATCH, 11, DIM)
    whole, end = stage(x, None)
    outputs, state = [], stage.init_state(BATCH, x)
    for piece in x.split([1, 4, 5, 1], dim=1):
        y, state = stage(piece, state)
        outputs.append(y)
    for a, b in zip((torch.cat(outputs, 1), *state), (whole, *end), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decay", [0.0, 1e-6, 3.0, 1e4])
def test_scan_is_safe_at_every_decay(decay):
    """Guards exp(+c) of a factored form, which overflows when a chunk forgets much."""
    writes, field = draw(1, 1, 40, 2, dtype=torch.float32), draw(1, 1, 2, dtype=torch.float32)
    log_retention = torch.full((1, 1, 40), -decay, requires_grad=True)
    before, after = scan_chunk(field, writes, log_retention)
    (gradient,) = torch.autograd.grad(before.sum() + after.sum(), log_retention)
    assert gradient.isfinite().all()
    expected, state = [], field
    for t in range(40):
        expected.append(state)
        state = math.exp(-decay) * state + writes[:, :, t]
    torch.testing.assert_close(before, torch.stack(expected, dim=2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after, state, rtol=1e-5, atol=1e-5)


# --- what it remembers ---------------------------------------------------------------------------


def scripted_stage(previous_mix, half_life=math.inf):
    """Reads its input as address, reader and content side by side; gates wide open; output = y."""
    stage = SedenionField(48, TemporalSMFConfig(num_heads=1, num_channels=1)).to(F64)
    with torch.no_grad():
        stage.inputs.weight.zero_()
        stage.inputs.weight[:48].copy_(torch.eye(48))
        stage.gate_bias.fill_(40.0)
        if half_life < math.inf:
            stage.gate_bias[2] = -math.log(2 ** (1 / half_life) - 1)
        stage.previous_mix.fill_(previous_mix)
        stage.out.weight.zero_()
        stage.out.weight[:16] = torch.eye(16)
    return stage


def token(address=None, reader=None, content=None):
    """An input whose root mean square is 1, so that the stage's normalisation leaves it alone."""
    x = torch.zeros(3, 16, dtype=F64)
    for row, value in enumerate((address, reader, content)):
        if value is not None:
            x[row] = value
    return x.flatten() * math.sqrt(48) / x.norm()


def basis(i):
    return torch.eye(16, dtype=F64)[i]


def recalled(stage, tokens, reader):
    """The unbounded read of a last token with this reader, and the field before it."""
    with torch.no_grad():
        _, state = stage(torch.stack(tokens).unsqueeze(0), None)
        question = token(reader=reader).view(1, 1, -1)
        y, _ = stage(question, state)
    y = (y - question)[0, 0, :16]
    return y / (1 - y.square().mean()).sqrt(), state.field[0, 0, 0]


@pytest.mark.parametrize("unit_index", [0, 1, 7, 15])
def test_a_unit_address_gives_the_content_back(unit_index):
    """e_i* (e_i v) = v for every basis unit, though sedenions are not alternative."""
    value = draw(16, seed=8)
    stage = scripted_stage(previous_mix=0.0)
    key = basis(unit_index)
    got, field = recalled(stage, [token(address=key, content=value)], key)
    scale = math.sqrt(48 / (1 + value.square().sum()))  # of `token`
    torch.testing.assert_close(got, scale * value)
    torch.testing.assert_close(field, scale * sedenion.multiply(key, value))


def test_the_previous_token_is_the_address():
    """A value is bound to the key before it, and to no other."""
    value, stage = draw(16, seed=8), scripted_stage(previous_mix=1.0)
    tokens = [
        token(address=basis(3)),
        token(address=basis(5), content=value),
        token(reader=basis(0)),
    ]
    got, _ = recalled(stage, tokens, basis(3))
    assert F.cosine_similarity(got, value, dim=0) > 1 - 1e-12
    other, _ = recalled(stage, tokens, basis(5))
    assert F.cosine_similarity(other, value, dim=0).abs() < 0.5


def test_half_life():
    stage = scripted_stage(previous_mix=0.0, half_life=7)
    first = token(address=basis(2), content=draw(16, seed=8))
    near, _ = recalled(stage, [first], basis(2))
    far, _ = recalled(stage, [first, *[token(reader=basis(0))] * 14], basis(2))
    torch.testing.assert_close(far, near / 4)


def test_a_new_stage_is_the_identity_with_spread_half_lives():
    stage = SedenionField(DIM, TemporalSMFConfig(num_heads=4, num_channels=2))
    x = draw(BATCH, 6, DIM, dtype=torch.float32)
    y, state = stage(x, None)
    assert torch.equal(y, x)
    assert state.field.abs().min() > 0, "but it listens"
    address, reader, _, gates = stage.inputs.weight.split(stage.sizes)
    assert (gates == 0).all()
    assert torch.equal(address, reader), "a token finds what was bound to itself"
    half_lives = math.log(2) / F.softplus(-stage.gate_bias[2].detach())
    torch.testing.assert_close(half_lives, torch.tensor([64.0, 256.0, 1024.0, 4096.0]))
    single = SedenionField(DIM, TemporalSMFConfig(num_heads=1, num_channels=2))
    assert math.log(2) / F.softplus(-single.gate_bias[2]).item() == pytest.approx(4096, rel=1e-4)


@torch.no_grad()
def test_an_empty_field_adds_nothing_and_a_stored_one_does():
    """Guards memory that is written but never heard: more weight is heard more."""
    stage = make_stage()
    x = draw(1, 1, DIM)
    empty = stage.init_state(1, x)
    assert torch.equal(stage(x, empty)[0], x)
    stored = stage(draw(1, 8, DIM, seed=2), None)[1].field
    heard = [
        (stage(x, empty._replace(field=empty.field + weight * stored))[0] - x).norm().item()
        for weight in (0.1, 1.0, 10.0)
    ]
    assert 0 < heard[0] < heard[1] < heard[2]


@torch.no_grad()
def test_fields_add():
    """What two texts leave behind is what the first left, decayed, plus what the second leaves."""
    stage = make_stage()
    x, state = draw(BATCH, 7, DIM), make_state(stage)
    alone = FieldState(torch.zeros_like(state.field), state.previous_address)
    faded = stage(x, state)[1].field - stage(x, alone)[1].field
    double = stage(x, state._replace(field=2 * state.field))[1].field - stage(x, alone)[1].field
    torch.testing.assert_close(double, 2 * faded)
    assert (faded.norm() < state.field.norm()).all()


# --- house rules ---------------------------------------------------------------------------------


@torch.no_grad()
def test_causality_and_the_read_before_the_write():
    """Changing token t leaves y before t; y - x at t + 1 changes; x_t never reads its own write."""
    stage = make_stage()
    x, t = draw(1, 9, DIM), 4
    changed = x.clone()
    changed[0, t] = draw(DIM, seed=7)
    y, other = stage(x, None)[0], stage(changed, None)[0]
    assert torch.equal(y[:, :t], other[:, :t])
    assert ((y - x) - (other - changed))[0, t:].abs().amax(-1).min() > 1e-6
    first = stage(x[:, :1], None)[0]
    assert torch.equal(first, x[:, :1])


@torch.no_grad()
def test_rows_do_not_meet_and_forward_is_pure():
    stage = make_stage()
    x, state = draw(3, 6, DIM), make_state(stage, 3)
    before = [v.clone() for v in (x, *state, *stage.state_dict().values())]
    y, after = stage(x, state)
    assert all(map(torch.equal, before, (x, *state, *stage.state_dict().values())))
    for b in range(3):
        alone, end = stage(x[b : b + 1], FieldState(*(v[b : b + 1] for v in state)))
        for a, whole in zip((alone, *end), (y, *after), strict=True):
            torch.testing.assert_close(a[0], whole[b])


def test_every_parameter_learns():
    stage = make_stage()
    stage(draw(1, 5, DIM), None)[0].square().sum().backward()
    for name, p in stage.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.norm() > 0, name


@torch.no_grad()
@pytest.mark.parametrize("time", [1, 5])
def test_lower_precision(time):
    """Whole in bfloat16, and under autocast, where the state may be wider than the projections."""
    stage = SedenionField(DIM, TemporalSMFConfig(num_heads=2, num_channels=2))
    stage.out.weight.copy_(draw(*stage.out.weight.shape))
    x = draw(BATCH, 5 + time, DIM, dtype=torch.float32)
    expected = stage(x[:, 5:], stage(x[:, :5], None)[1])[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = stage(x[:, 5:], stage(x[:, :5], stage.init_state(BATCH, x))[1])[0]
    stage, x = stage.bfloat16(), x.bfloat16()
    whole, state = stage(x[:, 5:], stage(x[:, :5], None)[1])
    assert whole.dtype == state.field.dtype == torch.bfloat16
    for y in (mixed, whole):
        assert (y.float() - expected).norm() < 0.03 * expected.norm()
