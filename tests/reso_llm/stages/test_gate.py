"""The coherence gate: its definition, its exact zero, skipped work, and the price of depth."""

import dataclasses

import pytest
import torch
from conftest import FULL

from reso_llm.config import CoherenceGateConfig, KuramotoConfig, ResoLLMConfig, control_of
from reso_llm.stages.gate import CoherenceGate

BATCH, TIME, DIM, LAYERS = 2, 9, 6, 4


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make_gate(threshold, seed=0, coherent=True):
    config = dataclasses.replace(
        control_of(ResoLLMConfig(dim=DIM, num_heads=3, kuramoto=KuramotoConfig(enabled=False))),
        coherence_gate=CoherenceGateConfig(threshold=threshold, skip_below=0.0),
        kuramoto=KuramotoConfig(enabled=coherent, num_oscillators=1),
    )
    gate = CoherenceGate(config).double()
    with torch.no_grad():
        for i, p in enumerate(gate.parameters()):
            p.copy_(0.5 * draw(*p.shape, seed=seed + i))
    return gate


@pytest.mark.parametrize("coherent", [True, False])
@pytest.mark.parametrize("threshold", [0.3, 1.2, 5.0])
def test_the_gate_is_what_accumulated_halting_leaves(threshold, coherent):
    """g_l = max(0, 1 - sum h / threshold), against the sum; its gradient is that of the sum.

    So the gradient passes where the gate is closed: what a layer would bring can open it again.
    """
    gates = [make_gate(threshold, 10 * i, coherent) for i in range(LAYERS)]
    xs = draw(LAYERS, BATCH, TIME, DIM, seed=3).requires_grad_()
    r = draw(BATCH, TIME, seed=4).sigmoid().requires_grad_()
    left, halted, ours, theirs, uncut = None, 0.0, [], [], []
    for gate, x in zip(gates, xs, strict=True):
        left = gate(x, r if coherent else None, left)
        z = x @ gate.halting.weight[0] + gate.halting.bias
        z = z + gate.coherence_scale * r if coherent else z
        halted = halted + 1 / (1 + torch.exp(-z))
        ours.append(left.squeeze(-1))
        uncut.append(1 - halted / threshold)
        theirs.append(uncut[-1].clamp_min(0))
    ours, theirs, uncut = torch.stack(ours), torch.stack(theirs), torch.stack(uncut)
    torch.testing.assert_close(ours, theirs)
    assert (ours[1:] <= ours[:-1]).all(), "what is skipped once stays skipped"
    assert (threshold > LAYERS) == (ours > 0).all()
    leaves = [xs, *([r] if coherent else []), *(p for gate in gates for p in gate.parameters())]
    weights = draw(*ours.shape, seed=5)
    grads = [torch.autograd.grad((y * weights).sum(), leaves) for y in (ours, uncut)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_at_the_threshold_the_gate_is_exactly_zero():
    gate = make_gate(0.5, coherent=False)
    with torch.no_grad():
        gate.halting.weight.zero_()
        gate.halting.bias.fill_(0.0)  # sigma(0) = 0.5
    assert gate(draw(1, 2, DIM), None, None).tolist() == [[[0.0], [0.0]]]
    gate.threshold = 1.0
    assert gate(draw(1, 2, DIM), None, None).tolist() == [[[0.5], [0.5]]]


def test_what_is_little_is_cut_to_nothing():
    gate = make_gate(1.0, coherent=False)
    x = draw(1, 64, DIM)
    whole = gate(x, None, None)
    gate.skip_below = whole.median().item()
    cut = gate(x, None, None)
    assert torch.equal(cut, torch.where(whole > gate.skip_below, whole, 0.0))
    assert 0 < (cut == 0).sum() < cut.numel()


def test_a_new_gate_uses_nearly_all_of_a_layer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gate = CoherenceGate(ResoLLMConfig())
    left = gate(torch.ones(1, 3, 256), torch.full((1, 3), 0.7), None)
    assert ((left > 0.95) & (left < 1)).all()


# --- on the path ------------------------------------------------------------------------------


@pytest.fixture
def halting_model(tiny_model):
    """A full stack in which some tokens skip some of the layers, and others do not."""
    model = tiny_model(stages=FULL, num_layers=LAYERS)
    with torch.no_grad():
        for block in model.blocks[1:]:
            block.gate.halting.bias.fill_(-2.0)
    return model


def draw_ids(*shape):
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(2))


def decode(model, ids):
    """Logits and gates of one row, a token at a time, and how often each feed-forward ran."""
    calls, logits, gates, state = [0] * LAYERS, [], [], model.init_state(1)

    def count(number):
        def hook(*_):
            calls[number] += 1

        return hook

    hooks = [b.feed_forward.register_forward_hook(count(i)) for i, b in enumerate(model.blocks)]
    for token in ids.split(1, dim=1):
        output = model(token, state)
        state = output.state
        logits.append(output.logits)
        gates.append(output.diagnostics["gates"])
    for hook in hooks:
        hook.remove()
    return torch.cat(logits, 1), torch.cat(gates, 1), calls, state


@torch.no_grad()
def test_skipping_a_layer_changes_nothing(halting_model):
    """A full pass computes every layer and multiplies by zero; decoding leaves it out."""
    ids = draw_ids(1, TIME)
    halting_model.double()
    logits, gates, calls, state = decode(halting_model, ids)
    whole = halting_model(ids)
    torch.testing.assert_close(logits, whole.logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gates, whole.diagnostics["gates"])
    used = [TIME, *(gates[0] > 0).sum(0).tolist()]
    assert calls == used, "skipped work is not done"
    assert TIME > used[-1] > 0, "some tokens skip, some do not"
    assert used[1] > used[-1]
    assert all(cache.length == TIME for cache in state.caches), "keys and values are written"


@torch.no_grad()
def test_a_layer_runs_while_one_row_of_a_batch_needs_it(halting_model):
    ids = draw_ids(4, TIME)
    state, logits = halting_model.init_state(4), []
    for token in ids.split(1, dim=1):
        output = halting_model(token, state)
        state = output.state
        logits.append(output.logits)
    for row in range(4):
        alone = decode(halting_model, ids[row : row + 1])[0]
        torch.testing.assert_close(torch.cat(logits, 1)[row], alone[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_a_skipping_token_writes_is_seen_by_later_tokens(halting_model):
    """Guards a skipped layer whose keys and values are left empty."""
    ids = draw_ids(1, TIME)
    _, gates, _, state = decode(halting_model, ids)
    skipped = gates[0, :, -1] == 0
    keys, values = state.caches[-1].keys, state.caches[-1].values
    assert skipped.any()
    assert keys[0, :, skipped].abs().amax(-1).min() > 0.1
    assert values[0, :, skipped].abs().amax(-1).min() > 1e-3


def test_the_price_of_depth_is_in_the_gradient_and_not_in_the_value(halting_model):
    model, ids, targets = halting_model.double(), draw_ids(2, TIME), draw_ids(2, TIME).flip(1)

    def at(weight):
        gate = dataclasses.replace(model.config.coherence_gate, ponder_weight=weight)
        model.config = dataclasses.replace(model.config, coherence_gate=gate)
        loss = model.loss(ids, targets)
        return loss, torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    (free, plain), (dear, priced) = at(0.0), at(0.25)
    assert free.item() == pytest.approx(dear.item(), abs=1e-12)
    depth = model(ids).diagnostics["gates"].sum(-1).mean()
    expected = torch.autograd.grad(0.25 * depth, list(model.parameters()), allow_unused=True)
    moved = 0
    for a, b, extra in zip(plain, priced, expected, strict=True):
        if extra is not None:
            torch.testing.assert_close(b - a, extra, rtol=1e-6, atol=1e-9)
            moved += bool(extra.abs().max() > 1e-9)
    assert moved > 3


def test_the_price_grows_with_the_training(halting_model):
    """Guards a layer that is given up before it has learnt anything."""
    model, ids, targets = halting_model.double(), draw_ids(2, TIME), draw_ids(2, TIME).flip(1)
    bias = model.blocks[-1].gate.halting.bias

    def gradient(progress):
        return torch.autograd.grad(model.loss(ids, targets, progress=progress), bias)[0].item()

    start, half, end = map(gradient, (0.0, 0.5, 1.0))
    assert half - start == pytest.approx(end - half)
    assert abs(end - start) > 1e-6


def test_a_step_along_the_price_makes_the_model_shallower(halting_model):
    """Guards the sign."""
    model, ids = halting_model.double(), draw_ids(2, TIME)
    biases = [block.gate.halting.bias for block in model.blocks[1:]]
    depth = model(ids).diagnostics["gates"].sum(-1).mean()
    for grad in torch.autograd.grad(depth, biases):
        assert grad.item() < 0, "more halting, less depth"
