"""The model: causal, carried state equal to a full pass, rows apart, forward pure."""

import copy

import pytest
import torch
import torch.nn.functional as F

from reso_llm.attention import Attention, KVCache, rotary_table, rotate
from reso_llm.model import ResoLLMModel

CONFIGS = {
    "default": {},
    "untied": dict(tie_embeddings=False),
    "no value tables": dict(num_value_embeddings=0),
    "all value tables": dict(num_value_embeddings=2),
    "no cap": dict(logit_soft_cap=0.0),
    "dropout": dict(dropout=0.3),
    "one layer, one wide head": dict(num_layers=1, num_heads=1),
    "narrow": dict(dim=8, num_heads=4, ffn_multiplier=1),  # narrower than the smear gate
}
BATCH, TIME, VOCABULARY = 3, 9, 61


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def model(request, tiny_model):
    return tiny_model(**request.param)


def draw_ids(*shape, seed=0):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def run_in_chunks(model, ids, sizes, state=None):
    """Logits of `ids` read in pieces of these sizes with the state carried, and the last state."""
    state = model.init_state(len(ids)) if state is None else state
    logits = []
    for piece in ids.split(sizes, dim=1):
        output = model(piece, state)
        state = output.state
        logits.append(output.logits)
    return torch.cat(logits, dim=1), state


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- causality and carried state ----------------------------------------------------------------


@torch.no_grad()
def test_causality(model):
    """Changing id t leaves the logits before t as they were, and does change those at t."""
    ids = draw_ids(1, TIME)
    logits = model(ids).logits
    for t in range(TIME):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % VOCABULARY
        other = model(changed).logits
        close(other[:, :t], logits[:, :t])
        moved = (other[:, t:] - logits[:, t:]).abs().amax(-1)
        assert (moved > 1e-4).all(), "every later position sees the change"


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1] * 9, [9], [4, 5], [4, 1, 1, 3], [1, 8], [8, 1]])
def test_carried_state_equals_one_pass(model, sizes):
    ids = draw_ids(BATCH, TIME)
    logits, state = run_in_chunks(model, ids, sizes)
    close(logits, model(ids).logits)
    assert state.length == TIME


@torch.no_grad()
def test_the_context_can_be_filled_to_its_last_token(tiny_model):
    model = tiny_model(max_seq_len=12)
    ids = draw_ids(1, 12)
    close(run_in_chunks(model, ids, [11, 1])[0], model(ids).logits)


@torch.no_grad()
def test_two_continuations_of_one_state_do_not_see_each_other(tiny_model):
    """Guards the shared buffer: beam search and speculation continue one state many times."""
    model = tiny_model()
    prefix, a, b = draw_ids(1, 5), draw_ids(1, 4, seed=1), draw_ids(1, 4, seed=2)
    _, state = run_in_chunks(model, prefix, [5])
    first, state_a = run_in_chunks(model, a, [1, 2, 1], state)
    second, state_b = run_in_chunks(model, b, [2, 1, 1], state)
    for end, logits in ((a, first), (b, second)):
        close(logits, model(torch.cat((prefix, end), dim=1)).logits[:, 5:])
    more = draw_ids(1, 2, seed=3)  # and go on with both, in turn
    for end, forked in ((a, state_a), (b, state_b)):
        expected = model(torch.cat((prefix, end, more), dim=1)).logits[:, 9:]
        close(run_in_chunks(model, more, [1, 1], forked)[0], expected)


@torch.no_grad()
def test_continuing_never_changes_an_older_state(tiny_model):
    model = tiny_model()
    states, state = [], model.init_state(1)
    for t in range(6):
        states.append((state, snapshot(state)))
        state = model(draw_ids(1, 1, seed=t), state).state
    model(draw_ids(1, 3, seed=8), states[2][0])
    for old, before in states:
        assert all(map(torch.equal, snapshot(old), before))


def snapshot(state):
    tensors = [t for cache in state.caches for t in (cache.keys, cache.values)]
    if state.last_embedding is not None:
        tensors.append(state.last_embedding)
    return [t.clone() for t in tensors]


@torch.no_grad()
def test_one_line_of_decoding_never_copies_its_cache(tiny_model):
    """Guards decoding speed: a copy for each token would cost O(T) for each token."""
    model = tiny_model()
    state = model.init_state(1)
    buffers = [cache.buffer for cache in state.caches]
    for t in range(4):
        state = model(draw_ids(1, 1, seed=t), state).state
    assert all(c.buffer is b for c, b in zip(state.caches, buffers, strict=True))


@torch.no_grad()
@pytest.mark.parametrize(("capacity", "sizes"), [(None, [13]), (None, [11, 2]), (None, [12, 1])])
def test_more_than_the_context_is_refused(tiny_model, capacity, sizes):
    model = tiny_model(max_seq_len=12)
    with pytest.raises(ValueError, match="do not fit"):
        run_in_chunks(model, draw_ids(1, 13), sizes)
    with pytest.raises(ValueError, match="do not fit"):
        model(draw_ids(1, 13))


@torch.no_grad()
@pytest.mark.parametrize(("capacity", "sizes"), [(4, [4, 1]), (4, [3, 2]), (20, [11, 2])])
def test_more_than_the_capacity_of_a_state_is_refused(tiny_model, capacity, sizes):
    """With room for 20 but positions for 12, [11, 2] once broadcast one position over both."""
    model = tiny_model(max_seq_len=12)
    state = model.init_state(1, capacity)
    ids = draw_ids(1, sum(sizes))
    with pytest.raises(ValueError, match="do not fit"):
        run_in_chunks(model, ids, sizes, state)


@torch.no_grad()
def test_a_refused_step_leaves_the_state_usable(tiny_model):
    model = tiny_model(max_seq_len=12)
    ids = draw_ids(1, 12)
    _, state = run_in_chunks(model, ids[:, :10], [10])
    with pytest.raises(ValueError, match="do not fit"):
        model(draw_ids(1, 3), state)
    close(model(ids[:, 10:], state).logits, model(ids).logits[:, 10:])


# --- rows and purity ----------------------------------------------------------------------------


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other(model):
    ids = draw_ids(BATCH, TIME)
    together = model(ids).logits
    for row in range(BATCH):
        close(model(ids[row : row + 1]).logits, together[row : row + 1])
    others = ids.clone()
    others[1:] = draw_ids(BATCH - 1, TIME, seed=5)
    close(model(others).logits[:1], together[:1])


@pytest.mark.parametrize("with_state", [False, True])
def test_forward_changes_nothing(model, with_state):
    """No attribute, buffer, parameter, gradient or global random state."""
    before = {name: t.clone() for name, t in everything(model).items()}
    attributes = {name: plain_attributes(m) for name, m in model.named_modules()}
    random_state = torch.get_rng_state()
    state = model.init_state(BATCH) if with_state else None
    model(draw_ids(BATCH, TIME), state)
    model.loss(draw_ids(BATCH, TIME), draw_ids(BATCH, TIME, seed=1))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {n: plain_attributes(m) for n, m in model.named_modules()} == attributes
    after = everything(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in model.parameters())


def everything(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


def plain_attributes(module):
    return {k: copy.copy(v) for k, v in vars(module).items() if not k.startswith("_")}


@torch.no_grad()
def test_train_and_eval_run_the_same_graph(tiny_model):
    model, ids = tiny_model(dropout=0.0), draw_ids(1, TIME)
    assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


@torch.no_grad()
def test_dropout_acts_in_training_only(tiny_model):
    model, ids = tiny_model(dropout=0.5), draw_ids(1, TIME)
    plain = tiny_model(dropout=0.0)(ids).logits
    close(model(ids).logits, plain)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.train()
        first, second = model(ids).logits, model(ids).logits
    assert not torch.allclose(first, plain, atol=1e-2)
    assert not torch.allclose(first, second, atol=1e-2)


# --- gradients and precision --------------------------------------------------------------------


def test_every_parameter_receives_a_gradient(model):
    model.loss(draw_ids(BATCH, TIME), draw_ids(BATCH, TIME, seed=1)).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.norm() > 1e-7, name


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_loss_is_the_cross_entropy_of_forward(tiny_model, cap, tied, masked):
    """In value and in every gradient, in float64."""
    model = tiny_model(logit_soft_cap=cap, tie_embeddings=tied).double()
    ids, targets = draw_ids(BATCH, TIME), draw_ids(BATCH, TIME, seed=1)
    mask = draw_ids(BATCH, TIME, seed=2) % 2 == 0 if masked else torch.ones_like(ids) > 0
    loss = model.loss(ids, targets, mask if masked else None)
    expected = F.cross_entropy(model(ids).logits[mask], targets[mask])
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(loss, parameters)
    theirs = torch.autograd.grad(expected, parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@torch.no_grad()
def test_float64_works_and_float32_is_close_to_it(tiny_model):
    ids = draw_ids(BATCH, TIME)
    narrow, wide = tiny_model(), tiny_model().double()
    logits, _ = run_in_chunks(wide, ids, [4, 5])
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, wide(ids).logits, rtol=1e-10, atol=1e-10)
    close(narrow(ids).logits, logits.float())


@torch.no_grad()
def test_bfloat16_weights_on_the_cpu(tiny_model):
    model, ids = tiny_model().bfloat16(), draw_ids(1, TIME)
    logits, _ = run_in_chunks(model, ids, [4, 5])
    assert logits.dtype == torch.bfloat16
    close_loosely(logits, tiny_model()(ids).logits)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@needs_cuda
@torch.no_grad()
def test_cuda_equals_cpu(tiny_model):
    ids = draw_ids(BATCH, TIME)
    logits, _ = run_in_chunks(tiny_model().cuda(), ids.cuda(), [4, 1, 4])
    torch.testing.assert_close(logits.cpu(), tiny_model()(ids).logits, rtol=1e-3, atol=1e-3)


@needs_cuda
def test_bfloat16_autocast_on_cuda(tiny_model):
    model, ids = tiny_model().cuda(), draw_ids(BATCH, TIME).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model.loss(ids, ids)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    expected = tiny_model().loss(ids.cpu(), ids.cpu())
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)


def close_loosely(a, b):
    relative = (a.float() - b.float()).norm() / b.float().norm()
    assert relative < 0.05


# --- initialisation -----------------------------------------------------------------------------


def test_same_seed_same_weights(tiny_config):
    def made(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return ResoLLMModel(tiny_config(tie_embeddings=False))

    first, again, other = made(3), made(3), made(4)
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(first.embedding.table.weight, other.embedding.table.weight)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_new_model_predicts_about_uniformly(tiny_config, tied):
    """A wrong scale at the start costs the first hundred steps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResoLLMModel(tiny_config(tie_embeddings=tied))
    loss = model.loss(draw_ids(BATCH, TIME), draw_ids(BATCH, TIME, seed=1))
    assert loss.item() == pytest.approx(torch.tensor(61.0).log().item(), rel=0.05)


def test_a_goal_needs_agency(tiny_model):
    with pytest.raises(ValueError, match="agency"):
        tiny_model()(draw_ids(1, 3), goal=torch.zeros(32))


# --- saving -------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_give_the_same_model(tiny_model, tmp_path, tied):
    model = tiny_model(tie_embeddings=tied, num_value_embeddings=2, dropout=0.1)
    model.save_pretrained(tmp_path / "new" / "model")
    loaded = ResoLLMModel.from_pretrained(tmp_path / "new" / "model")
    assert loaded.config == model.config
    ids = draw_ids(BATCH, TIME)
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))


def test_saving_again_replaces_the_weights(tiny_model, tmp_path):
    tiny_model(seed=0).save_pretrained(tmp_path / "m")
    tiny_model(seed=1).save_pretrained(tmp_path / "m")
    loaded = ResoLLMModel.from_pretrained(tmp_path / "m")
    assert torch.equal(loaded.head_weight, tiny_model(seed=1).head_weight)


def test_weights_that_do_not_fit_are_refused_by_name(tiny_model):
    model = tiny_model()
    before = model.head_weight.clone()
    weights = tiny_model(dim=16).state_dict()
    with pytest.raises(
        ValueError, match=r"here: .*attention\.qkv is \(3, 16, 16\), not \(3, 32, 32\)"
    ):
        model.load_weights(weights, "here")
    with pytest.raises(ValueError, match=r"head\.weight is \(61, 32\), not None"):
        model.load_weights(tiny_model(tie_embeddings=False).state_dict(), "here")
    assert torch.equal(model.head_weight, before)


# --- attention pieces against their definition --------------------------------------------------


def test_rotation_depends_on_the_distance_alone():
    """<R_s q, R_t k> = <R_(s+3) q, R_(t+3) k>, the property rotary positions exist for."""
    table = rotary_table(12, 8, 100.0)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator)

    def product(s, t):
        return (rotate(q, table[s : s + 1]) * rotate(k, table[t : t + 1])).sum()

    for s, t in ((0, 0), (2, 5), (7, 1)):
        torch.testing.assert_close(product(s, t), product(s + 3, t + 3))
    assert not torch.isclose(product(0, 0), product(0, 3), atol=1e-3)


def test_rotation_is_the_pairwise_one():
    """(x0, x1) -> (x0 cos - x1 sin, x0 sin + x1 cos) with angle position * base^(-2i/K)."""
    x = torch.randn(2, 5, 3, 6, generator=torch.Generator().manual_seed(0))
    out = rotate(x, rotary_table(5, 6, 10.0))
    for t in range(5):
        for i in range(3):
            angle = torch.tensor(t * 10.0 ** (-2 * i / 6))
            a, b = x[:, t, :, 2 * i], x[:, t, :, 2 * i + 1]
            torch.testing.assert_close(out[:, t, :, 2 * i], a * angle.cos() - b * angle.sin())
            torch.testing.assert_close(out[:, t, :, 2 * i + 1], a * angle.sin() + b * angle.cos())


def test_a_cache_is_a_value():
    empty = KVCache.empty(1, 1, 4, 2, like=torch.zeros(()))
    one, two = torch.ones(1, 1, 1, 2), torch.full((1, 1, 1, 2), 2.0)
    a = empty.append(one, -one)
    b = empty.append(two, -two)
    again = a.append(two, two)
    assert (empty.length, a.length, b.length, again.length) == (0, 1, 1, 2)
    assert a.keys.unique().tolist() == [1.0]
    assert b.keys.unique().tolist() == [2.0]
    assert again.keys[0, 0, :, 0].tolist() == [1.0, 2.0]
    assert again.values[0, 0, :, 0].tolist() == [-1.0, 2.0]


def attention_reference(module, x, value_embedding, base):
    """One row, one head, one query at a time."""
    time, dim = x.shape[1:]
    width = dim // module.num_heads
    rows = []
    for row in range(len(x)):
        q, k, v = (x[row] @ w.T for w in module.qkv)  # (T,D)
        if value_embedding is not None:
            v = v + module.value_mix * value_embedding[row]
        heads = []
        for h in range(module.num_heads):
            own = slice(h * width, (h + 1) * width)
            turned = [turn_reference(unit(part[:, own]), base) for part in (q, k)]
            out = []
            for t in range(time):
                scores = turned[1][: t + 1] @ turned[0][t] / width**0.5
                out.append(scores.softmax(0) @ v[: t + 1, own])
            heads.append(torch.stack(out))
        rows.append(torch.cat(heads, dim=-1) @ module.out.weight.T)
    return torch.stack(rows)


def model_reference(model, ids):
    """The equations of the files' docstrings, without state, in float64."""
    c = model.config
    e = unit(model.embedding.table.weight[ids])
    shifted = torch.cat((torch.zeros_like(e[:, :1]), e[:, :-1]), dim=1)
    width = model.embedding.smear_gate.in_features
    gate = torch.sigmoid(e[..., :width] @ model.embedding.smear_gate.weight.T)
    x = x0 = unit(e + gate * model.embedding.smear_scale * shifted)
    for i, block in enumerate(model.blocks):
        x = block.keep * x + block.bring * x0
        table = i - (c.num_layers - c.num_value_embeddings)
        values = model.value_tables[table].weight[ids] if table >= 0 else None
        x = x + attention_reference(block.attention, unit(x), values, c.rope_base)
        hidden = unit(x) @ block.feed_forward.up.weight.T
        x = x + hidden.clamp_min(0).square() @ block.feed_forward.down.weight.T
    logits = unit(x) @ model.head_weight.T
    return c.logit_soft_cap * (logits / c.logit_soft_cap).tanh() if c.logit_soft_cap else logits


def test_the_model_is_its_definition(model):
    """In value and in every gradient: whatever is rearranged for speed has to stay this."""
    model, ids = model.double(), draw_ids(2, 6)
    ours, theirs = model(ids).logits, model_reference(model, ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # the rotary table is float32
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    parameters = list(model.parameters())
    grads = [torch.autograd.grad((y * weights).sum(), parameters) for y in (ours, theirs)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def unit(x):
    return x / x.square().mean(-1, keepdim=True).sqrt()


def turn_reference(x, base):
    time, width = x.shape
    columns = []
    for i in range(width // 2):
        angle = torch.arange(time, dtype=x.dtype) * base ** (-2 * i / width)
        a, b = x[:, 2 * i], x[:, 2 * i + 1]
        columns += [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("with_values", [True, False])
@pytest.mark.parametrize("num_heads", [1, 3])
def test_attention_is_its_definition(with_values, num_heads):
    """In value and in every gradient."""
    generator = torch.Generator().manual_seed(0)
    module = Attention(12, num_heads, with_values).double()
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    values = values if with_values else None
    ours, _ = module(x, rotary_table(5, 12 // num_heads, 7.0), values, None)
    theirs = attention_reference(module, x, values, 7.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # the table is float32
    inputs = [x, *module.parameters(), *([values] if with_values else [])]
    weights = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    grads = [torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
