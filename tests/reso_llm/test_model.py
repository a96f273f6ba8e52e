"""The model: causal, carried state equal to a full pass, rows apart, forward pure.

For the plain control, every stage on it, the full stack, and the full stack without each stage.
"""

import dataclasses
import math
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import FULL, fitted_text, make_tiny_config
from references import (
    CountReference,
    attention_reference,
    clocks_reference,
    echo_reference,
    field_reference,
    synchronise_reference,
    unit,
)

from reso_llm.config import STAGES, TRAINED_STAGES, control_of, with_stage
from reso_llm.data.windows import Batch
from reso_llm.model import ResoLLMModel
from reso_llm.stages.cache import KVCache
from reso_llm.stages.echo import EchoState
from reso_llm.stages.goal import hindsight_goals
from reso_llm.stages.ngrams import FOLDS
from reso_llm.training.objective import StepObjective


def without(stage):
    """The full stack but a stage and those that need it."""
    config = with_stage(make_tiny_config(FULL), stage, False)
    return [name for name in FULL if getattr(config, name).enabled]


CONTROLS = {
    "control": {},
    "untied": dict(tie_embeddings=False),
    "no value tables": dict(num_value_embeddings=0),
    "all value tables": dict(num_value_embeddings=2),
    "no cap": dict(logit_soft_cap=0.0),
    "dropout": dict(dropout=0.3),
    "one layer, one wide head": dict(num_layers=1, num_heads=1),
    "narrow": dict(dim=8, num_heads=4, ffn_multiplier=1),  # narrower than the smear gate
    "window": dict(attention_window=3),
}
STACKS = {
    "full": dict(stages=FULL),
    "full, four layers": dict(stages=FULL, num_layers=4),
    "full, narrow": dict(stages=FULL, dim=8, num_heads=4, ffn_multiplier=1),
    "full, window": dict(stages=FULL, attention_window=3),
    "all, window": dict(stages=STAGES, attention_window=2),
    "untied full": dict(stages=FULL, tie_embeddings=False, num_value_embeddings=0),
    **{f"only {stage}": dict(stages=(stage,)) for stage in FULL},
    **{f"without {stage}": dict(stages=without(stage)) for stage in FULL},
}
CONFIGS = CONTROLS | STACKS
BATCH, TIME, VOCABULARY = 3, 9, 61


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def model(request, tiny_model):
    return tiny_model(**request.param)


def draw_ids(*shape, seed=0):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def goal_for(model, rows=BATCH, seed=7):
    """A goal for each row where the model takes goals, else None."""
    like = model.head_weight
    generator = torch.Generator().manual_seed(seed)
    goal = torch.randn(rows, like.shape[1], generator=generator, dtype=torch.float64).to(like)
    return goal if model.config.agency.enabled else None


def run_in_chunks(model, ids, sizes, state=None, goal=None):
    """Logits of `ids` read in pieces of these sizes with the state carried, and the last state."""
    state = model.init_state(len(ids)) if state is None else state
    logits = []
    for piece in ids.split(sizes, dim=1):
        output = model(piece, state, goal)
        state = output.state
        logits.append(output.logits)
    return torch.cat(logits, dim=1), state


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- causality and carried state ----------------------------------------------------------------


@torch.no_grad()
def test_causality(model):
    """Changing id t leaves the logits before t as they were, and does change those at t."""
    ids, goal = draw_ids(1, TIME), goal_for(model, 1)
    logits = model(ids, goal=goal).logits
    for t in range(TIME):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % VOCABULARY
        other = model(changed, goal=goal).logits
        close(other[:, :t], logits[:, :t])
        moved = (other[:, t:] - logits[:, t:]).abs().amax(-1)
        if not model.config.attention_window:  # a window sees so far back only
            assert (moved > 1e-4).all(), "every later position sees the change"
        assert moved[0, 0] > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1] * 9, [9], [4, 5], [4, 1, 1, 3], [1, 8], [8, 1]])
def test_carried_state_equals_one_pass(model, sizes):
    """With ids of the fitted text, so that the memory's contexts reach across the pieces."""
    ids, goal = text_ids(BATCH, TIME), goal_for(model)
    logits, state = run_in_chunks(model, ids, sizes, goal=goal)
    close(logits, model(ids, goal=goal).logits)
    assert state.length == TIME


def text_ids(rows, time):
    """Rows of the text that the fixture's memories are fitted to."""
    return torch.from_numpy(fitted_text(VOCABULARY)[: rows * time]).view(rows, time)


def echoing_ids(rows, time):
    """Rows of which each says its first four tokens again and again."""
    return text_ids(rows, 4).repeat(1, time // 4 + 1)[:, :time]


@torch.no_grad()
def test_the_context_can_be_filled_to_its_last_token(tiny_model):
    model = tiny_model(stages=FULL)
    ids = draw_ids(1, 12)
    close(run_in_chunks(model, ids, [11, 1])[0], model(ids).logits)


@torch.no_grad()
def test_two_continuations_of_one_state_do_not_see_each_other(tiny_model):
    """Guards the shared buffer: beam search and speculation continue one state many times."""
    model = tiny_model(stages=FULL)
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
    model = tiny_model(stages=FULL)
    states, state = [], model.init_state(1)
    for t in range(6):
        states.append((state, snapshot(state)))
        state = model(draw_ids(1, 1, seed=t), state).state
    model(draw_ids(1, 3, seed=8), states[2][0])
    for old, before in states:
        assert all(map(torch.equal, snapshot(old), before))


def snapshot(state):
    return [t.clone() for t in tensors_in(state)]


def tensors_in(value):
    """Tensors of a nested tuple; of a shared buffer, what is valid for this value."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, KVCache):
        return [value.keys, value.values]
    if isinstance(value, EchoState):
        return [torch.tensor(counts.buffer.log[: counts.length]) for counts in value.rows]
    if isinstance(value, dict):
        value = tuple(value[name] for name in sorted(value))
    return [t for v in value for t in tensors_in(v)] if isinstance(value, tuple) else []


@torch.no_grad()
def test_one_line_of_decoding_never_copies_its_cache(tiny_model):
    """Guards decoding speed: a copy for each token would cost O(T) for each token."""
    model = tiny_model(stages=FULL)
    state = model.init_state(1)
    buffers = [cache.buffer for cache in state.caches]
    for t in range(4):
        state = model(draw_ids(1, 1, seed=t), state).state
    assert all(c.buffer is b for c, b in zip(state.caches, buffers, strict=True))


@torch.no_grad()
@pytest.mark.parametrize(("capacity", "sizes"), [(None, [13]), (None, [11, 2]), (None, [12, 1])])
def test_more_than_the_context_is_refused(tiny_model, capacity, sizes):
    model = tiny_model(stages=FULL)
    with pytest.raises(ValueError, match="do not fit"):
        run_in_chunks(model, draw_ids(1, 13), sizes)
    with pytest.raises(ValueError, match="do not fit"):
        model(draw_ids(1, 13))


@torch.no_grad()
@pytest.mark.parametrize(("capacity", "sizes"), [(4, [4, 1]), (4, [3, 2]), (20, [11, 2])])
def test_more_than_the_capacity_of_a_state_is_refused(tiny_model, capacity, sizes):
    """With room for 20 but positions for 12, [11, 2] once broadcast one position over both."""
    model = tiny_model(stages=FULL)
    state = model.init_state(1, capacity)
    ids = draw_ids(1, sum(sizes))
    with pytest.raises(ValueError, match="do not fit"):
        run_in_chunks(model, ids, sizes, state)


@torch.no_grad()
def test_a_refused_step_leaves_the_state_usable(tiny_model):
    model = tiny_model(stages=FULL)
    ids = draw_ids(1, 12)
    _, state = run_in_chunks(model, ids[:, :10], [10])
    with pytest.raises(ValueError, match="do not fit"):
        model(draw_ids(1, 3), state)
    close(model(ids[:, 10:], state).logits, model(ids).logits[:, 10:])


# --- rows and purity ----------------------------------------------------------------------------


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other(model):
    ids, goal = text_ids(BATCH, TIME), goal_for(model)
    together = model(ids, goal=goal).logits
    for row in range(BATCH):
        own = slice(row, row + 1)
        alone = model(ids[own], goal=None if goal is None else goal[own]).logits
        close(alone, together[own])
    others = ids.clone()
    others[1:] = draw_ids(BATCH - 1, TIME, seed=5)
    close(model(others, goal=goal).logits[:1], together[:1])


@pytest.mark.parametrize("with_state", [False, True])
def test_forward_changes_nothing(model, with_state):
    """No attribute, buffer, parameter, gradient or global random state."""
    before = {name: t.clone() for name, t in everything(model).items()}
    attributes = {name: plain_attributes(m) for name, m in model.named_modules()}
    random_state = torch.get_rng_state()
    state = model.init_state(BATCH) if with_state else None
    model(draw_ids(BATCH, TIME), state, goal_for(model))
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
    return {k: pickle.dumps(v) for k, v in vars(module).items() if not k.startswith("_")}


@torch.no_grad()
@pytest.mark.parametrize("stages", [(), FULL, STAGES])
def test_train_and_eval_run_the_same_graph(tiny_model, stages):
    """In logits and loss, without gradients and with them."""
    model, ids = tiny_model(stages=stages, dropout=0.0), text_ids(1, TIME)
    goal, found = goal_for(model, 1), []
    for mode in (True, False):
        model.train(mode)
        found.append((model(ids, goal=goal).logits, model.loss(ids, ids, goal=goal)))
    assert all(map(torch.equal, *found))
    with torch.enable_grad():
        close(model(ids, goal=goal).logits, found[0][0])


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
    text = echoing_ids(BATCH, TIME + 1)
    model.loss(text[:, :-1], text[:, 1:], goal=goal_for(model)).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.norm() > 1e-7, name


@pytest.mark.parametrize("stages", [(), FULL])
@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_loss_is_the_cross_entropy_of_forward(tiny_model, stages, cap, tied, masked):
    """In value and in every gradient, in float64; and so is the mean of `nats`."""
    model = tiny_model(stages=stages, logit_soft_cap=cap, tie_embeddings=tied).double()
    text, goal = echoing_ids(BATCH, TIME + 1), goal_for(model)
    text[:, 6] = 3  # here the echo is wrong
    ids, targets = text[:, :-1], text[:, 1:]
    mask = draw_ids(BATCH, TIME, seed=2) % 2 == 0 if masked else torch.ones_like(ids) > 0
    loss = model.loss(ids, targets, mask if masked else None, goal)
    output = model(ids, goal=goal)
    expected = F.cross_entropy(output.logits[mask], targets[mask])
    torch.testing.assert_close(loss, expected)
    nats = model.nats(ids, targets, goal)
    torch.testing.assert_close(nats[mask].mean(), expected)
    each = F.cross_entropy(output.logits.transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(nats, each)
    if stages:
        deep = output.diagnostics["deep"]
        assert deep.any()
        assert not deep.all()
    parameters = list(model.parameters())
    ours = torch.autograd.grad(loss, parameters)
    theirs = torch.autograd.grad(expected, parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("stages", [(), FULL, STAGES])
def test_float64_works_and_float32_is_close_to_it(tiny_model, stages):
    ids = draw_ids(BATCH, TIME)
    narrow, wide = (tiny_model(stages=stages, num_layers=4) for _ in range(2))
    wide = wide.double()
    logits, _ = run_in_chunks(wide, ids, [4, 5])
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, wide(ids).logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(narrow(ids).logits, logits.float(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_bfloat16_weights_on_the_cpu(tiny_model):
    """With tau far from every doubt here, as a doubt that is rounded may cross it."""
    model, ids = tiny_model(stages=FULL), draw_ids(1, TIME)
    doubts = model.trunk(ids).evidence.doubt.flatten().sort().values
    gap = doubts.diff().argmax()
    model.gate.threshold.copy_((doubts[gap] + doubts[gap + 1]) / 2)
    expected = model(ids)
    assert 0 < expected.diagnostics["deep"].sum() < TIME
    logits, _ = run_in_chunks(model.bfloat16(), ids, [4, 5])
    assert logits.dtype == torch.bfloat16
    close_loosely(logits, expected.logits)


@pytest.mark.cuda
@torch.no_grad()
def test_cuda_equals_cpu(tiny_model):
    ids = draw_ids(BATCH, TIME)
    logits, _ = run_in_chunks(tiny_model(stages=FULL).cuda(), ids.cuda(), [4, 1, 4])
    expected = tiny_model(stages=FULL)(ids).logits
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_bfloat16_autocast(tiny_model, device):
    model, ids = tiny_model(stages=FULL).to(device), draw_ids(BATCH, TIME).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        logits, loss = model(ids).logits, model.loss(ids, ids)
    loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if not n.startswith("goal.")]
    assert all(torch.isfinite(grad).all() for grad in gradients)  # there is no goal here
    plain = tiny_model(stages=FULL)
    assert loss.item() == pytest.approx(plain.loss(ids.cpu(), ids.cpu()).item(), rel=0.05)
    close_loosely(logits.float().cpu(), plain(ids.cpu()).logits)


def close_loosely(a, b):
    relative = (a.float() - b.float()).norm() / b.float().norm()
    assert relative < 0.05


# --- initialisation -----------------------------------------------------------------------------


def test_same_seed_same_weights(tiny_config):
    def made(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return ResoLLMModel(tiny_config(FULL, tie_embeddings=False))

    first, again, other = made(3), made(3), made(4)
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(first.embedding.table.weight, other.embedding.table.weight)


@torch.no_grad()
@pytest.mark.parametrize("stages", [(), FULL])
@pytest.mark.parametrize("tied", [True, False])
def test_a_new_model_predicts_about_uniformly(tiny_config, stages, tied):
    """A wrong scale at the start costs the first hundred steps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResoLLMModel(tiny_config(stages, tie_embeddings=tied))
    loss = model.loss(draw_ids(BATCH, TIME), draw_ids(BATCH, TIME, seed=1))
    assert loss.item() == pytest.approx(torch.tensor(61.0).log().item(), rel=0.05)


def test_a_goal_needs_agency(tiny_model):
    with pytest.raises(ValueError, match="agency"):
        tiny_model()(draw_ids(1, 3), goal=torch.zeros(32))


# --- saving -------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_give_the_same_model(tiny_model, tmp_path, tied):
    """With all the memory has counted, whose size depends on the text."""
    model = tiny_model(stages=FULL, tie_embeddings=tied, num_value_embeddings=2, dropout=0.1)
    model.save_pretrained(tmp_path / "new" / "model")
    loaded = ResoLLMModel.from_pretrained(tmp_path / "new" / "model")
    assert loaded.config == model.config
    ids, goal = text_ids(BATCH, TIME), goal_for(model)
    assert torch.equal(loaded.eval()(ids, goal=goal).logits, model(ids, goal=goal).logits)
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    assert loaded.prsc.evidence.any()


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


@torch.no_grad()
def test_refused_weights_leave_the_binding_memory_as_it_is(tiny_model):
    """Its tables take the sizes of those that are read, but only once all the rest fits."""
    model, ids = tiny_model(stages=FULL), text_ids(BATCH, TIME)
    before = model(ids).logits
    other = tiny_model(stages=FULL, dim=16)
    other.fit_bindings(fitted_text(VOCABULARY, 100))
    with pytest.raises(ValueError, match="do not fit"):
        model.load_weights(other.state_dict(), "here")
    assert torch.equal(model(ids).logits, before)
    del (weights := model.state_dict())["prsc.keys"]
    with pytest.raises(ValueError, match=r"prsc\.keys is None"):
        model.load_weights(weights, "here")


# --- stages on and off ------------------------------------------------------------------------

IN_THE_MODEL = [s for s in STAGES if s not in ("stability", "entanglement")]
"""The others read the model's output."""
REPEATING = [5, 5, 5, 5, 5, 5, 5, 5, 5]


def pair(tiny_model, stage, **changes):
    """A model with one stage, and what that needs, and the same without it, equal in the rest."""
    model = tiny_model(stages=(stage,), **changes)
    return model, without_stage(model, stage)


def without_stage(model, stage):
    other = ResoLLMModel(with_stage(model.config, stage, False))
    shared = {n: t for n, t in model.state_dict().items() if n in other.state_dict()}
    other.load_weights(shared, "the other")
    return other.eval()


def outputs(model, ids):
    generator = torch.Generator().manual_seed(0)
    return model(ids, goal=goal_for(model, len(ids)), generator=generator).logits


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_acts_in_training_and_in_evaluation(tiny_model, stage, training):
    """Guards a stage that is computed and read by nobody."""
    model, control = pair(tiny_model, stage)
    ids = torch.cat((text_ids(2, TIME), torch.tensor([REPEATING])))
    one, other = outputs(model.train(training), ids), outputs(control.train(training), ids)
    if stage in IN_THE_MODEL:
        assert (one - other).abs().amax() > 1e-2
    else:
        assert torch.equal(one, other)


def silence(model, stage):
    """Silence one stage; attention gets no temperature."""
    if stage in model.stages():
        model.stages()[stage].silence()
    if stage == "resonant_attention":
        for block in model.blocks:
            block.attention.temperature.fill_(1.0)


@torch.no_grad()
@pytest.mark.parametrize("stage", STAGES)
def test_a_silent_stage_is_the_control(tiny_model, stage):
    """The golden ladder is a choice of rotary_base."""
    base = tiny_model(stages=("resonant_attention",)).config.rotary_base
    changes = dict(rope_base=base) if stage == "resonant_attention" else {}
    model, control = pair(tiny_model, stage, **changes)
    silence(model, stage)
    ids = echoing_ids(BATCH, TIME)
    torch.testing.assert_close(outputs(model, ids), outputs(control, ids), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_new_stack_starts_inert_where_it_says_so(tiny_config):
    """Primes, phases, goals and field start at zero; an unfitted memory has nothing to say.

    It has the same doubt about everything, so that all tokens go deep.
    """
    stages = "prime_embedding", "prsc", "coherence_gate", "kuramoto", "agency", "temporal_smf"
    for stage in stages:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = ResoLLMModel(tiny_config((stage,)))
        for block in model.blocks:
            block.feed_forward.down.weight.normal_(generator=torch.Generator().manual_seed(1))
        control = without_stage(model, stage)
        ids = text_ids(BATCH, TIME)
        torch.testing.assert_close(outputs(model, ids), outputs(control, ids), rtol=1e-6, atol=1e-6)


def test_a_stage_that_is_off_is_absent(tiny_config):
    """The full stack switched off piece by piece ends as the control, weight by weight."""
    config = tiny_config(STAGES)
    before = set(ResoLLMModel(config).state_dict())
    for stage in reversed(STAGES):
        config = with_stage(config, stage, enabled=False)
        names = set(ResoLLMModel(config).state_dict())
        assert (names < before) == (stage in TRAINED_STAGES), stage
        before = names
    assert config == control_of(tiny_config(STAGES)) == tiny_config()
    assert not dict(ResoLLMModel(config).named_buffers()).keys() - {"rotary"}


@torch.no_grad()
def test_noise_needs_a_generator_and_repetition(tiny_model):
    model = tiny_model(stages=STAGES)
    ids, looping = draw_ids(1, TIME), torch.tensor([REPEATING])

    def run(ids, seed=None):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return model(ids, generator=generator).logits

    assert torch.equal(run(ids, 0), run(ids))
    assert torch.equal(run(looping, 0), run(looping, 0))
    noisy, quiet = run(looping, 0), run(looping)
    assert torch.equal(noisy[:, :6], quiet[:, :6]), "six repetitions are the first that count"
    assert not torch.allclose(noisy[:, 6:], quiet[:, 6:], atol=1e-3)
    assert not torch.allclose(noisy, run(looping, 1), atol=1e-3)


@torch.no_grad()
def test_a_carried_state_remembers_the_repetition(tiny_model):
    model, looping = tiny_model(stages=STAGES), torch.tensor([REPEATING])
    state = model(looping[:, :8], model.init_state(1)).state
    noisy = model(looping[:, 8:], state, generator=torch.Generator().manual_seed(0)).logits
    assert not torch.allclose(noisy, model(looping[:, 8:], state).logits, atol=1e-3)


# --- the training objective -------------------------------------------------------------------


def loss_of(model, batch, seed):
    """The loss of a step of one batch."""
    return StepObjective(model, [batch], torch.Generator().manual_seed(seed)).pass_loss(0)


@torch.no_grad()
def test_training_leaves_out_the_counts_of_a_windows_own_fold(tiny_model):
    """Guards a gate that learns to trust what it will not have."""
    model = tiny_model(stages=("prsc",))
    starts = torch.tensor([0, 130, 390])
    text = torch.from_numpy(fitted_text(VOCABULARY))
    windows = torch.stack([text[s : s + TIME + 1] for s in starts])
    ids, targets = windows[:, :-1], windows[:, 1:]
    batch = Batch(ids, targets, torch.ones_like(ids) > 0, starts)
    loss = loss_of(model, batch, seed=0)
    folds = torch.tensor([0, 130 * FOLDS // 400, FOLDS - 1])
    assert torch.equal(loss, model.loss(ids, targets, fold=folds))
    assert loss > model.loss(ids, targets) + 0.1, "the own fold's counts would tell the targets"


@torch.no_grad()
def test_training_gives_hindsight_goals(tiny_model):
    """The goals are of the targets' embeddings, drawn from the generator alone."""
    model = tiny_model(stages=("agency",))
    ids, targets = draw_ids(8, TIME), draw_ids(8, TIME, seed=1)
    batch = Batch(ids, targets, torch.ones_like(ids) > 0, torch.zeros(8, dtype=torch.int64))
    vectors = model.embedding.table.weight[targets]
    goal = hindsight_goals(vectors, batch.reply, torch.Generator().manual_seed(5))
    loss = loss_of(model, batch, seed=5)
    torch.testing.assert_close(loss, model.loss(ids, targets, goal=goal))
    assert loss != loss_of(model, batch, seed=6)
    assert loss != model.loss(ids, targets)


# --- the definition -----------------------------------------------------------------------------


def synchronised_reference(model, x):
    """x with the clocks read into it, and gain * theta (B,T,N)."""
    stage = model.kuramoto
    theta, omega = (unit(x) @ stage.project.weight.T).chunk(2, dim=-1)
    z = torch.complex(*(unit(x) @ stage.turn.weight.T).chunk(2, dim=-1))
    theta, _ = synchronise_reference(theta, omega, model.config.kuramoto)
    h = clocks_reference(z, theta, stage.spokes)
    x = x + torch.cat((h.real, h.imag), dim=-1) @ stage.read.weight.T
    return x, model.phase_gain * theta


def memory_logits_reference(model, ids, x):
    """What the binding memory adds to each logit, from dictionaries of the fitted text."""
    memory, tokens = model.prsc, fitted_text(VOCABULARY)
    counts = CountReference(tokens, memory.num_orders, memory.slots, VOCABULARY)
    rows = []
    for row, x_row in zip(ids.tolist(), x, strict=True):
        for t in range(len(row)):
            _, found = counts.after(row[: t + 1])
            added = torch.zeros(VOCABULARY, dtype=x.dtype)
            for m, (count, evidence) in enumerate(found):
                alpha = memory.trust[m] + x_row[t] @ memory.gate[m] / x.shape[-1] ** 0.5
                alpha = alpha + memory.count_scale[m] * math.log1p(count)
                e = torch.tensor([evidence.get(v, 0.0) for v in range(VOCABULARY)]).to(x)
                added = added + alpha * e
            rows.append(added)
    return torch.stack(rows).view(*ids.shape, VOCABULARY)


def deep_reference(model, ids):
    """Which tokens (B,T) the memory doubts by at least tau, from the distributions it stands for.

    A doubt may equal tau, which is one of the fitted text's, so a rounding error is let pass.
    """
    memory, tokens = model.prsc, fitted_text(VOCABULARY)
    counts = CountReference(tokens, memory.num_orders, memory.slots, VOCABULARY)
    doubts = [[entropy(counts.after(r[: t + 1])[0]) for t in range(len(r))] for r in ids.tolist()]
    return torch.tensor(doubts) >= model.gate.threshold.item() - 1e-5


def entropy(p):
    return -sum(x * math.log(x) for x in p)


def echoed_reference(model, ids, x, logits):
    """Logits of p' for rows read from their start."""
    rows = []
    for row, x_row, z_row in zip(ids.tolist(), x, logits, strict=True):
        for t, z in enumerate(z_row):
            text = row[: t + 1], [1.0] * (t + 1)
            added = echo_reference(model.echo, x_row[t], [text], VOCABULARY)
            rows.append((z.softmax(0) + added).log() + z.logsumexp(0))
    return torch.stack(rows).view_as(logits)


def factor_sums_reference(embedding):
    """The sum of the rows of every token's factors, over the root of their number."""
    sums = torch.zeros_like(embedding.table.weight)
    for i, factors in enumerate(embedding.factors.tolist()):
        rows = [row for row in factors if row]
        sums[i] += embedding.factor_table[rows].sum(0) / max(1, len(rows)) ** 0.5
    return sums


def model_reference(model, ids, goal):
    """The equations of the files' docstrings, without state, in float64."""
    c, turns, table = model.config, None, model.embedding.table.weight
    if c.prime_embedding.enabled:
        table = table + factor_sums_reference(model.embedding)
    e = unit(table[ids])
    shifted = torch.cat((torch.zeros_like(e[:, :1]), e[:, :-1]), dim=1)
    smear = model.embedding.smear_gate.weight
    gate = torch.sigmoid(e[..., : smear.shape[1]] @ smear.T)
    x = unit(e + gate * model.embedding.smear_scale * shifted)
    if goal is not None:
        x = x + (goal @ model.goal.weight.T).unsqueeze(1)
    if c.kuramoto.enabled:
        x, turns = synchronised_reference(model, x)
    deep = deep_reference(model, ids) if c.coherence_gate.enabled else torch.ones_like(ids) > 0
    x0 = x
    for i, block in enumerate(model.blocks):
        x = block.residual_scale * x + block.input_scale * x0
        goes = deep.unsqueeze(-1) if i else 1.0
        number = i - (c.num_layers - c.num_value_embeddings)
        values = model.value_tables[number].weight[ids] if number >= 0 else None
        base = c.rotary_base
        x = x + goes * attention_reference(block.attention, unit(x), values, base, turns)
        hidden = unit(x) @ block.feed_forward.up.weight.T
        x = x + goes * (hidden.clamp_min(0).square() @ block.feed_forward.down.weight.T)
    if c.temporal_smf.enabled:
        empty = model.field.init_state(len(ids), x)
        x, _ = field_reference(model.field, x, empty)
    x = unit(x)
    logits = x @ (table if model.head is None else model.head.weight).T
    cap = c.logit_soft_cap
    logits = cap * (logits / cap).tanh() if cap else logits
    logits = logits + memory_logits_reference(model, ids, x) if c.prsc.enabled else logits
    return echoed_reference(model, ids, x, logits) if c.echo.enabled else logits


def test_the_model_is_its_definition(model):
    """In value and in every gradient: whatever is rearranged for speed has to stay this."""
    model, ids = model.double(), echoing_ids(2, 8)
    goal = goal_for(model, 2)
    ours, theirs = model(ids, goal=goal).logits, model_reference(model, ids, goal)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)  # float32 rotary and evidence
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    parameters = list(model.parameters())
    grads = [torch.autograd.grad((y * weights).sum(), parameters) for y in (ours, theirs)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4)


@torch.no_grad()
def test_every_switch_of_the_network_is_a_stage_of_it(tiny_model):
    """Guards a stage that the probes, the ablation or the state's bookkeeping would miss."""
    model = tiny_model(stages=STAGES)
    assert set(model.stages()) <= set(STAGES)
    missing = set(STAGES) - set(model.stages())
    assert missing == {"resonant_attention", "stability", "entanglement", "stochastic_resonance"}
    assert set(tiny_model().stages()) == {"prime_embedding"}, "the embedding exists without primes"
    carried = set(model(draw_ids(1, 3), model.init_state(1)).state.stages)
    assert carried == {"prime_embedding", "kuramoto", "temporal_smf", "echo"}


def test_weights_of_another_kind_of_number_are_refused_by_name(tiny_model):
    model = tiny_model(stages=("prsc",))
    weights = model.state_dict()
    assert len({tensor.is_floating_point() for tensor in weights.values()}) == 2
    for name, tensor in weights.items():
        other = tensor.long() if tensor.is_floating_point() else tensor.float()
        with pytest.raises(ValueError, match=rf"weights do not fit: {re.escape(name)} is of type"):
            model.load_weights(weights | {name: other}, "here")


def test_a_configuration_larger_than_its_weights_is_refused_before_it_is_built(
    tiny_model, monkeypatch
):
    model = tiny_model()
    larger = dataclasses.replace(model.config, num_layers=1000)
    monkeypatch.setattr(ResoLLMModel, "__init__", lambda *_: pytest.fail("it was built"))
    with pytest.raises(ValueError, match=r"it needs at least .* numbers, and there are"):
        ResoLLMModel.from_weights(larger, model.state_dict(), "here")
