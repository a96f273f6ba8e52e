"""The sedenion field: three forms of one recurrence, erase before write, ordered addresses."""

import math

import pytest
import torch
import torch.nn.functional as F
from references import field_reference

from entropy_core import sedenion
from reso_llm.config import TemporalSMFConfig
from reso_llm.stages import field as module
from reso_llm.stages.field import FieldState, SedenionField, delta_scan

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
    field = draw(batch, heads, channels, 16, seed=3)
    address, key = (module.unit(draw(batch, heads, 16, seed=seed)) for seed in (4, 6))
    return FieldState(field.to(dtype), address.to(dtype), key.to(dtype))


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
def test_the_one_token_form_agrees():
    """Whole states of two rows, too; the input state stays as it was."""
    stage = make_stage(2, 3, torch.float32)
    x, state = draw(2, 7, DIM, dtype=torch.float32), make_state(stage, 2, torch.float32)
    before = [v.clone() for v in state]
    expected, after = stage(x, state)
    step, rows = stage.stepper(state), x.numpy().copy()
    for t in range(7):
        step(rows[:, t])
    for a, b in zip((torch.from_numpy(rows), *step.state), (expected, *after), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, before, state))


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
def test_the_scan_is_safe_at_every_decay(decay):
    """Guards exp(+c) of a factored form, which overflows when a chunk forgets much."""
    keys = module.unit(draw(1, 1, 80, 16, dtype=torch.float32))
    values, field = draw(1, 1, 80, 2, dtype=torch.float32), draw(1, 1, 2, 16, dtype=torch.float32)
    whole, log_retention = torch.ones(1, 1, 80), torch.full((1, 1, 80), -decay)
    log_retention.requires_grad_()
    y, after = delta_scan(field, keys, keys, values, whole, whole, log_retention)
    (gradient,) = torch.autograd.grad(y.sum() + after.sum(), log_retention)
    assert gradient.isfinite().all()
    expected = []
    for t in range(80):
        k = keys[0, 0, t]
        expected.append(field @ k)
        field = math.exp(-decay) * field
        field = field + (values[0, 0, t] - field @ k).unsqueeze(-1) * k
    torch.testing.assert_close(y, torch.stack(expected, dim=2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after, field, rtol=1e-4, atol=1e-4)


# --- what it remembers ---------------------------------------------------------------------------


def scan(keys, readers, values, erase=1.0):
    """Reads (T,C) of one head that writes in full and forgets nothing."""
    T, C = values.shape
    rows = (v[None, None] for v in (keys, readers, values))
    ones = torch.ones(1, 1, T, dtype=F64)
    empty = torch.zeros(1, 1, C, 16, dtype=F64)
    return delta_scan(empty, *rows, ones, erase * ones, 0 * ones)[0][0, 0]


def orthogonal(seed=0):
    """16 addresses at right angles."""
    return torch.linalg.qr(draw(16, 16, seed=seed))[0]


def test_sixteen_addresses_hold_sixteen_values():
    """And each gives back its own, exactly."""
    keys, values = orthogonal(), draw(16, 3, seed=1)
    none = torch.zeros_like(values)
    silent = torch.zeros(16, 16, dtype=F64)
    y = scan(torch.cat((keys, silent)), torch.cat((silent, keys)), torch.cat((values, none)))
    torch.testing.assert_close(y[16:], values)


def test_a_new_value_replaces_the_old_one():
    """At its address only; without erasing, the two are summed."""
    (a, b), values = orthogonal()[:2], draw(3, 4, seed=1)
    silent, none = torch.zeros(2, 16, dtype=F64), torch.zeros(2, 4, dtype=F64)
    told = torch.stack((a, b, a)), torch.cat((silent, silent[:1]))
    asked = silent, torch.stack((a, b))
    keys, readers = (torch.cat(pair) for pair in zip(told, asked, strict=True))
    values = torch.cat((values, none))
    y = scan(keys, readers, values)
    torch.testing.assert_close(y[3:], values[[2, 1]])
    y = scan(keys, readers, values, erase=0.0)
    torch.testing.assert_close(y[3:], torch.stack((values[0] + values[2], values[1])))


def scripted_stage(order=0.0, half_life=math.inf, erase=40.0):
    """Reads its input as address, reader and content side by side; gates wide open; output = y."""
    stage = SedenionField(48, TemporalSMFConfig(num_heads=1, num_channels=16)).to(F64)
    with torch.no_grad():
        stage.inputs.weight.zero_()
        stage.inputs.weight[:48].copy_(torch.eye(48))
        stage.gate_bias.fill_(40.0)
        stage.gate_bias[1] = erase
        if half_life < math.inf:
            stage.gate_bias[3] = -math.log(2 ** (1 / half_life) - 1)
        stage.order.fill_(order)
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


@torch.no_grad()
def recalled(stage, tokens, reader):
    """The unbounded read (16,) of a last token with this reader."""
    _, state = stage(torch.stack(tokens).unsqueeze(0), None)
    question = token(reader=reader).view(1, 1, -1)
    y, _ = stage(question, state)
    y = (y - question)[0, 0, :16]
    return y / (1 - y.square().mean()).sqrt()


def test_content_is_bound_to_the_token_before():
    value, stage = draw(16, seed=8), scripted_stage()
    tokens = [token(address=basis(3)), token(address=basis(5), content=value)]
    got = recalled(stage, tokens, basis(3))
    assert F.cosine_similarity(got, value, dim=0) > 1 - 1e-12
    assert recalled(stage, tokens, basis(5)).norm() < 1e-12


def test_half_life():
    stage = scripted_stage(half_life=7)
    told = [token(address=basis(2)), token(content=draw(16, seed=8))]
    near = recalled(stage, told, basis(2))
    far = recalled(stage, [*told, *[token(reader=basis(0))] * 14], basis(2))
    torch.testing.assert_close(far, near / 4)


@torch.no_grad()
def keys_of(stage, *addresses):
    """Where what follows these tokens would be kept."""
    x = torch.stack([token(address=a) for a in addresses])[None]
    return stage(x, None)[1].key[0, 0]


def test_an_address_knows_the_order_of_two_tokens():
    """`a b` and `b a` are kept apart, and so are `a b` and `c b`; with order 0 the last counts."""
    a, b, c = (module.unit(draw(16, seed=seed)) for seed in (1, 2, 3))
    pairs = scripted_stage(order=1e12)  # the product alone
    torch.testing.assert_close(keys_of(pairs, a, b), module.unit(sedenion.multiply(b, a)))
    even = scripted_stage(order=1.0)  # half the product
    ab, ba, cb = keys_of(even, a, b), keys_of(even, b, a), keys_of(even, c, b)
    for other in (ba, cb):
        assert F.cosine_similarity(ab, other, dim=0).abs() < 0.8
    # Imaginary units anticommute.
    torch.testing.assert_close(
        keys_of(pairs, basis(3), basis(10)), -keys_of(pairs, basis(10), basis(3))
    )
    alone = scripted_stage(order=0.0)
    torch.testing.assert_close(keys_of(alone, a, b), keys_of(alone, c, b))


def test_a_pair_in_the_other_order_finds_something_else():
    """The whole stage: told what follows `a b`, then asked for it after `a b` and after `b a`."""
    a, b, value = basis(3), basis(10), draw(16, seed=8)
    stage = scripted_stage(order=1e12)
    told = [token(address=a), token(address=b), token(content=value)]
    got = recalled(stage, [*told, token(address=a)], b)
    assert F.cosine_similarity(got, value, dim=0) > 1 - 1e-9
    other = recalled(stage, [*told, token(address=b)], a)
    assert F.cosine_similarity(other, value, dim=0) < -1 + 1e-9, "e3 e10 = -e10 e3"


def test_a_new_stage_is_the_identity_with_spread_half_lives():
    stage = SedenionField(DIM, TemporalSMFConfig(num_heads=4, num_channels=2))
    x = draw(BATCH, 6, DIM, dtype=torch.float32)
    y, state = stage(x, None)
    assert torch.equal(y, x)
    assert state.field.abs().min() > 0, "but it listens"
    address, reader, _, gates = stage.inputs.weight.split(stage.sizes)
    assert (gates == 0).all()
    assert torch.equal(address, reader), "a token finds what was bound to itself"
    half_lives = math.log(2) / F.softplus(-stage.gate_bias[3].detach())
    torch.testing.assert_close(half_lives, torch.tensor([64.0, 256.0, 1024.0, 4096.0]))
    single = SedenionField(DIM, TemporalSMFConfig(num_heads=1, num_channels=2))
    assert math.log(2) / F.softplus(-single.gate_bias[3]).item() == pytest.approx(4096, rel=1e-4)


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
    """What two texts leave behind is what is left of the first, plus what the second leaves."""
    stage = make_stage()
    x, state = draw(BATCH, 7, DIM), make_state(stage)
    alone = stage(x, state._replace(field=torch.zeros_like(state.field)))[1].field
    faded = stage(x, state)[1].field - alone
    double = stage(x, state._replace(field=2 * state.field))[1].field - alone
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
    torch.testing.assert_close(y[:, :t], other[:, :t], rtol=1e-14, atol=1e-14)
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
    """Whole in bfloat16, and under autocast; the field itself stays in float32."""
    stage = SedenionField(DIM, TemporalSMFConfig(num_heads=2, num_channels=2))
    stage.out.weight.copy_(draw(*stage.out.weight.shape))
    x = draw(BATCH, 5 + time, DIM, dtype=torch.float32)
    expected = stage(x[:, 5:], stage(x[:, :5], None)[1])[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed, state = stage(x[:, 5:], stage(x[:, :5], stage.init_state(BATCH, x))[1])
    assert state.field.dtype == torch.float32
    stage, x = stage.bfloat16(), x.bfloat16()
    whole, state = stage(x[:, 5:], stage(x[:, :5], None)[1])
    assert whole.dtype == torch.bfloat16
    assert state.field.dtype == torch.float32
    for y in (mixed, whole):
        assert (y.float() - expected).norm() < 0.03 * expected.norm()
