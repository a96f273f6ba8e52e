"""The coherence gate: its rule, causality, skipped work against a naive twin, its threshold."""

import pytest
import torch
from conftest import FULL, fitted_text
from torch import nn

from reso_llm.config import CoherenceGateConfig
from reso_llm.generation.states import padded, stacked
from reso_llm.generation.stepper import Stepper
from reso_llm.model import ResoLLMModel
from reso_llm.stages.attention import AttentionReceived
from reso_llm.stages.block import Block
from reso_llm.stages.fused import rms_norm
from reso_llm.stages.gate import CoherenceGate, DeepTokens

VOCABULARY, TIME, LAYERS = 61, 12, 4
VARIANTS = {
    "full": dict(stages=FULL),
    "gate alone": dict(stages=("coherence_gate",)),
    "window": dict(stages=FULL, attention_window=4),
    "no value tables": dict(stages=FULL, num_value_embeddings=0),
    "value tables": dict(stages=FULL, num_value_embeddings=LAYERS),
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request, tiny_model):
    return tiny_model(num_layers=LAYERS, max_seq_len=24, **request.param)


@pytest.fixture
def full(tiny_model):
    return tiny_model(num_layers=LAYERS, max_seq_len=24, stages=FULL)


def text_ids(rows, time=TIME, start=0):
    """Rows of the text that the fixture's memories are fitted to: some tokens are in doubt."""
    text = fitted_text(VOCABULARY)[start : start + rows * time]
    return torch.from_numpy(text).view(rows, time)


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def mixed(deep):
    """Guards the tests below: some tokens go deep, and some do not."""
    assert deep.any()
    assert not deep.all()
    return deep


# --- the rule -------------------------------------------------------------------------------------


def test_a_token_goes_deep_at_the_threshold_and_above():
    gate = CoherenceGate(CoherenceGateConfig())
    doubts = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert gate(doubts).all(), "before a text was counted"
    gate.threshold.fill_(2.0)
    assert gate(doubts).tolist() == [[False, False, True, True]]
    assert gate.stepper(None)(doubts[0].tolist()) == [2, 3]
    gate.silence()
    assert gate(doubts).all()
    assert not list(gate.parameters())


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("number", [1, 7, 1000])
def test_the_threshold_lets_that_share_go_deep(share, number):
    gate = CoherenceGate(CoherenceGateConfig(deep_share=share))
    doubts = torch.randperm(number, generator=torch.Generator().manual_seed(0)).float()
    gate.fit(doubts)
    wanted = max(1, share * number)
    assert wanted <= gate(doubts).sum() < wanted + 1
    gate.fit(doubts.view(1, -1) - 1000.0)
    assert gate(doubts - 1000.0).sum() == gate(doubts - 1000.0 + 1e-6).sum(), "fitted again"


@pytest.mark.parametrize("share", [0.1, 0.25, 0.6])
def test_about_that_share_of_the_fitted_text_goes_deep(tiny_model, share):
    """Each span read as in training: with the counts of the others, its rows on their own."""
    gate = CoherenceGateConfig(deep_share=share)
    model = tiny_model(stages=("coherence_gate",), coherence_gate=gate)
    text = fitted_text(VOCABULARY, 4000)
    model.fit_bindings(text)
    starts = torch.arange(0, len(text), 50)
    ids = torch.from_numpy(text).view(-1, 50)
    tail = torch.full((len(ids), model.prsc.tail_length), -1)
    doubt = model.prsc(ids, tail, model.prsc.fold_of(starts)).doubt
    assert model.gate(doubt).float().mean().item() == pytest.approx(share, abs=0.08)


def test_deep_tokens_are_numbered_row_by_row():
    deep = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool()
    tokens = DeepTokens.of(deep)
    assert tokens.row.tolist() == [0, 0, 2, 2]
    assert tokens.time.tolist() == [1, 2, 0, 3]
    assert tokens.slot.tolist() == [0, 1, 0, 1]
    assert tokens.flat.tolist() == [1, 2, 8, 11]
    assert tokens.num_slots == 2
    assert DeepTokens.of(deep[1:2]).num_slots == 0


@torch.no_grad()
def test_what_the_network_says_of_a_token_is_its_doubt(model):
    ids = text_ids(3)
    output = model(ids)
    doubt = model.trunk(ids).evidence.doubt
    assert torch.equal(mixed(output.diagnostics["deep"]), doubt >= model.gate.threshold)


# --- skipped work against a naive twin ------------------------------------------------------------


class NaiveBlock(nn.Module):
    """The layer by its definition: computed for every token, times [deep]."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x, shared, value, cache, tokens):
        b = self.block
        x = b.residual_scale * x + b.input_scale * shared.x0
        deep = torch.ones_like(x[..., :1])
        if tokens is not None:
            deep = deep.flatten(0, 1).zero_().index_fill(0, tokens.flat, 1).view_as(deep)
        y, cache = b.attention(rms_norm(x), shared.rotary, value, cache, shared.padding)
        x = x + deep * y
        return x + deep * b.feed_forward(rms_norm(x)), cache


def naive(model):
    """A copy that shares the weights and computes every layer for every token."""
    twin = ResoLLMModel(model.config).to(model.embedding.table.weight.dtype).eval()
    twin.load_weights(model.state_dict(), "the model")
    twin.blocks = nn.ModuleList(NaiveBlock(block) for block in model.blocks)
    for name, p in model.named_parameters():
        if not name.startswith("blocks"):
            owner, _, last = name.rpartition(".")
            setattr(twin.get_submodule(owner), last, p)
    return twin


@pytest.mark.parametrize("rows", [1, 3])
def test_gathered_tokens_equal_the_naive_twin_in_value_and_gradient(model, rows):
    model.double()
    twin, text = naive(model), text_ids(rows, TIME + 1)
    ids, targets = text[:, :-1], text[:, 1:]
    mixed(model(ids).diagnostics["deep"])
    parameters = list(model.parameters())
    ours, theirs = model.loss(ids, targets), twin.loss(ids, targets)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    grads = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (ours, theirs)]
    moved = 0
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
            moved += bool(a.abs().max() > 1e-6)
    assert moved > 20


@torch.no_grad()
def test_a_batch_whose_rows_have_unlike_numbers_of_deep_tokens(model):
    """One row without any, one of them alone; in one pass, and carried on from a state."""
    ids = text_ids(3)
    deep = model(ids).diagnostics["deep"]
    shallow, doubted = ids[~deep][0], ids[deep][0]
    ids[1], ids[2] = shallow, doubted
    deep = mixed(model(ids).diagnostics["deep"])
    assert len(set(deep.sum(1).tolist())) > 1
    twin = naive(model)
    close(model(ids).logits, twin(ids).logits)
    state, other = model.init_state(3), twin.init_state(3)
    for piece in ids.split([5, 1, 6], dim=1):
        one, two = model(piece, state), twin(piece, other)
        close(one.logits, two.logits)
        state, other = one.state, two.state


@torch.no_grad()
@pytest.mark.parametrize("threshold", [-torch.inf, torch.inf])
def test_all_or_no_tokens_deep(model, threshold):
    model.gate.threshold.fill_(threshold)
    ids, twin = text_ids(2), naive(model)
    assert model(ids).diagnostics["deep"].all() == (threshold < 0)
    close(model(ids).logits, twin(ids).logits)
    if threshold > 0:  # layer 1 and the scales of the others are all that is left
        calls = count_rows(model)
        model(ids)
        assert calls == [2 * TIME] + [0] * (LAYERS - 1)


def count_rows(model):
    """Rows that the feed-forward of each layer has read, as a list that grows."""
    rows = [0] * len(model.blocks)

    def counting(number):
        def hook(_, inputs, __):
            rows[number] += inputs[0].shape[:-1].numel()

        return hook

    for i, block in enumerate(model.blocks):
        block.feed_forward.register_forward_hook(counting(i))
    return rows


def test_the_work_of_shallow_tokens_is_not_done(full):
    """In training, in evaluation, and token by token."""
    ids = text_ids(3, TIME + 1)
    number = int(mixed(full(ids[:, :-1]).diagnostics["deep"]).sum())
    expected = [3 * TIME] + [number] * (LAYERS - 1)
    rows = count_rows(full)

    def done():
        found, rows[:] = list(rows), [0] * LAYERS
        return found

    full.loss(ids[:, :-1], ids[:, 1:]).backward()
    assert done() == expected
    with torch.no_grad():
        state = full.init_state(3)
        full(ids[:, :-1], state)
        assert done() == expected
        for token in ids[:, :-1].split(1, dim=1):
            state = full(token, state).state
        assert done() == expected


# --- causality and steps --------------------------------------------------------------------------


@torch.no_grad()
def test_a_later_token_never_changes_an_earlier_one(model):
    """A row-wise top share, as in Mixture-of-Depths, would."""
    ids = text_ids(2)
    before = model(ids)
    mixed(before.diagnostics["deep"])
    for t in range(TIME):
        changed = ids.clone()
        changed[:, t:] = torch.randint(
            VOCABULARY, changed[:, t:].shape, generator=torch.Generator().manual_seed(t)
        )
        after = model(changed)
        close(after.logits[:, :t], before.logits[:, :t])
        deep = after.diagnostics["deep"][:, :t]
        assert torch.equal(deep, before.diagnostics["deep"][:, :t])


def test_nor_does_it_reach_the_loss_of_an_earlier_one(full):
    """The loss of the first half has no gradient in what is read later, and no value of it."""
    text = text_ids(2, TIME + 1)
    changed = text.clone()
    changed[:, 8:] = changed[:, 8:].flip(1)
    early = (torch.arange(TIME) < 7).expand(2, TIME)
    found = []
    for rows in (text, changed):
        loss = full.loss(rows[:, :-1], rows[:, 1:], early)
        grads = torch.autograd.grad(loss, list(full.parameters()), allow_unused=True)
        found.append([loss, *(grad for grad in grads if grad is not None)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_one_pass_equals_steps_of_torch_and_of_numpy(model):
    ids = text_ids(1)
    whole = model(ids)
    deep = mixed(whole.diagnostics["deep"])[0]
    state, stepper = model.init_state(), Stepper(model, [model.init_state()])
    for t, token in enumerate(ids[0].tolist()):
        output, step = model(ids[:, t : t + 1], state), stepper.step([token])
        state = output.state
        close(output.logits[:, 0], whole.logits[:, t])
        close(torch.from_numpy(step.logits[0]), whole.logits[0, t])
        assert output.diagnostics["deep"].item() == deep[t].item()
        assert step.layers_used == [LAYERS if deep[t] else 1]


@torch.no_grad()
def test_rows_behind_padding_equal_the_same_rows_alone(model):
    rows = [text_ids(1, n, start=40)[0].tolist() for n in (9, 4, 6)]
    alone, behind = [], []
    for ids in rows:
        alone.append(model(torch.tensor([ids]), model.init_state()).state)
        start = padded(model.init_state(), 9 - len(ids))
        behind.append(model(torch.tensor([ids]), start).state)
    state, deep = stacked(behind), []
    for piece in text_ids(3, 6, start=90).split([1, 3, 1, 1], dim=1):
        output = model(piece, state)
        state = output.state
        deep.append(output.diagnostics["deep"])
        for row in range(3):
            expected = model(piece[row : row + 1], alone[row])
            alone[row] = expected.state
            close(output.logits[row], expected.logits[0])
    mixed(torch.cat(deep, dim=1))


@torch.no_grad()
def test_keys_and_values_of_a_shallow_token_are_seen_by_later_ones(full):
    """Guards a skipped layer whose keys and values are left empty, in both forms."""
    ids = text_ids(1)
    output, stepper = full(ids, full.init_state()), Stepper(full, [full.init_state()])
    for token in ids[0].tolist():
        stepper.step([token])
    shallow = ~mixed(output.diagnostics["deep"])[0]
    for cache, other in zip(output.state.caches, stepper.states[0].caches, strict=True):
        assert cache.length == TIME
        close(other.keys, cache.keys)
        close(other.values, cache.values)
        assert cache.keys[0, :, shallow].abs().amax(-1).min() > 0.1
        assert cache.values[0, :, shallow].abs().amax(-1).min() > 1e-3
    # A later deep token reads them: another value there moves its logits.
    first = int(shallow.nonzero()[0])
    state = full(ids[:, :-1], full.init_state()).state
    token = ids[output.diagnostics["deep"]][:1].view(1, 1)
    full.gate.threshold.fill_(-torch.inf)
    before = full(token, state).logits
    state.caches[-1].values[0, :, first] += 5.0
    assert (full(token, state).logits - before).abs().max() > 1e-3


@torch.no_grad()
def test_attention_that_deep_tokens_give_is_summed(full):
    """Each layer gives one unit a head for every token that it reads."""
    ids, received = text_ids(1), AttentionReceived(num_new=5)
    deep = mixed(full.trunk(ids, received=received).diagnostics["deep"])[0, -5:]
    units = full.config.num_heads * (5 + (LAYERS - 1) * int(deep.sum()))
    assert 0 < deep.sum() < 5
    assert received.total.sum().item() == pytest.approx(units, rel=1e-4)


@torch.no_grad()
def test_the_noise_of_deep_tokens_is_their_own(tiny_model):
    """Two tokens in turn, of which one goes deep: noise from where they have come again."""
    model = tiny_model(stages=(*FULL, "stochastic_resonance"))
    ids, scales = text_ids(1)[:, :2].repeat(1, 6), []
    model.gate.threshold.copy_(model.trunk(ids).evidence.doubt[0, -2:].max())
    for block in model.blocks:
        block.feed_forward.register_forward_pre_hook(lambda _, args: scales.append(args[1].scale))
    deep = mixed(model(ids, generator=torch.Generator().manual_seed(0)).diagnostics["deep"])
    every, some = scales
    assert mixed(every > 0).shape == (1, TIME, 1)
    assert torch.equal(some, every[deep])
    mixed(some > 0)


# --- saving ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_threshold_is_saved_and_loaded(full, tmp_path):
    full.save_pretrained(tmp_path / "m")
    loaded, ids = ResoLLMModel.from_pretrained(tmp_path / "m").eval(), text_ids(2)
    assert torch.isfinite(full.gate.threshold)
    assert torch.equal(loaded.gate.threshold, full.gate.threshold)
    assert torch.equal(loaded(ids).diagnostics["deep"], mixed(full(ids).diagnostics["deep"]))
    assert "gate.threshold" in full.state_dict()
