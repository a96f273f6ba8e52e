"""The stepper against its twin, the model: the same logits, hidden states, states and refusals."""

import math

import numpy as np
import pytest
import torch
from conftest import FULL

from reso_llm.config import CoherenceGateConfig, EchoConfig, PRSCConfig, small_config
from reso_llm.generation import threads
from reso_llm.generation.states import padded
from reso_llm.generation.stepper import Stepper
from reso_llm.model import ResoLLMModel
from reso_llm.stages.echo import EchoState, TextCounts

PREFILL, STEPS = 5, 20
ROOM = 1 + PREFILL + 2 * STEPS
STAGES = (*FULL, "prsc,coherence_gate,kuramoto")
VARIANTS = {
    "full": dict(stages=FULL),
    "control": {},
    "untied head": dict(stages=FULL, tie_embeddings=False),
    "no value embeddings": dict(stages=FULL, num_value_embeddings=0),
    "value embeddings everywhere": dict(num_value_embeddings=2),
    "no soft cap": dict(stages=FULL, logit_soft_cap=0.0),
    "wide heads": dict(stages=FULL, dim=48, num_heads=3),
    "one head": dict(num_heads=1),
    "long contexts of the echo": dict(stages=FULL, echo=EchoConfig(max_order=9)),
    "many layers, few tokens deep": dict(
        stages=FULL, num_layers=4, coherence_gate=CoherenceGateConfig(deep_share=0.1)
    ),
    **{stage: dict(stages=stage.split(",")) for stage in STAGES},
}


def ids_of(model, number, seed=1):
    """Tokens of the frequent half, whose contexts the memory has counted, and then any."""
    vocab = model.config.vocab_size
    draws = np.random.default_rng(seed).random(number)
    return ((vocab * (0.5 + draws**4)).astype(int) % vocab).tolist()


def prefilled(model, ids, goal=None, state=None):
    state = model.init_state() if state is None else state
    with torch.inference_mode():
        return model(torch.tensor([ids]), state, goal).state


def compare(model, stepper, state, ids, goal=None, tolerance=1e-4):
    """Feed ids to both; the model's state after them."""
    for token in ids:
        with torch.inference_mode():
            expected = model(torch.tensor([[token]]), state, goal)
        got, state = stepper.step([token]), expected.state
        close(got.logits[0], expected.logits[0, 0], tolerance)
        close(got.hidden[0], expected.diagnostics["hidden"][0, 0], tolerance)
        coherence = expected.diagnostics.get("coherence")
        if coherence is None:
            assert math.isnan(got.coherence[0])
        else:
            assert got.coherence[0] == pytest.approx(coherence.item(), abs=tolerance)
        deep = expected.diagnostics.get("deep")
        assert got.layers_used[0] == (len(model.blocks) if deep is None or deep.item() else 1)
    return state


def close(array, tensor, tolerance=1e-4):
    assert array.dtype == np.float32
    assert array.shape == tensor.shape
    np.testing.assert_allclose(array, tensor.numpy(), rtol=tolerance, atol=tolerance)


def reading(state, texts, max_order):
    """The state whose echo has read stored texts before."""
    return state.with_stage("echo", EchoState((TextCounts.of_texts(texts, max_order),)))


def leaves(value):
    """All tensors and numbers of a state; of a shared buffer, what is valid for this value."""
    if isinstance(value, TextCounts):
        return [torch.tensor(value.buffer.log[: value.length])]
    if hasattr(value, "buffer"):
        return [value.keys, value.values]
    if isinstance(value, dict):
        value = tuple(value[name] for name in sorted(value))
    if isinstance(value, tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [] if value is None else [torch.as_tensor(value)]


def assert_equal_states(one, other, tolerance=1e-4):
    pairs = list(zip(leaves(one), leaves(other), strict=True))
    assert pairs
    for a, b in pairs:
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_equal_the_model(tiny_model, name):
    model = tiny_model(max_seq_len=ROOM, **VARIANTS[name])
    ids = ids_of(model, PREFILL + 2 * STEPS)
    state = prefilled(model, ids[:PREFILL])
    stepper = Stepper(model, [state])
    after = compare(model, stepper, state, ids[PREFILL : PREFILL + STEPS])
    assert_equal_states(stepper.states[0], after)
    # Either goes on from the state that the other left.
    compare(model, Stepper(model, [after]), stepper.states[0], ids[PREFILL + STEPS :])


def test_the_small_model():
    """The real shape; its parameters moved off their start, a quarter of the text deep."""
    torch.manual_seed(0)
    model = ResoLLMModel(small_config()).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model.fit_bindings(np.random.default_rng(0).integers(64, size=2000))
    ids = np.random.default_rng(1).integers(64, size=PREFILL + STEPS).tolist()
    state = prefilled(model, ids[:PREFILL])
    compare(model, Stepper(model, [state]), state, ids[PREFILL:])


def test_all_layers_or_the_first_alone(tiny_model):
    model = tiny_model(stages=FULL, num_layers=4, max_seq_len=ROOM)
    ids = ids_of(model, PREFILL + STEPS)
    state = prefilled(model, ids[:PREFILL])
    stepper = Stepper(model, [state])
    assert {stepper.step([token]).layers_used[0] for token in ids[PREFILL:]} == {1, 4}
    assert_equal_states(
        compare(model, Stepper(model, [state]), state, ids[PREFILL:]), stepper.states[0]
    )


def test_an_empty_memory_and_an_empty_state(tiny_model):
    """Nothing counted, and not a token read before."""
    model = tiny_model(stages=FULL)
    empty = ResoLLMModel(model.config).prsc
    empty.load_state_dict(
        {name: t for name, t in model.prsc.state_dict().items() if name in ("gate", "trust")},
        strict=False,
    )
    model.prsc = empty.eval()
    state = model.init_state()
    stepper = Stepper(model, [state])
    assert_equal_states(stepper.states[0], state)
    assert not stepper.states[0].stages["prime_embedding"].last.any()
    compare(model, stepper, state, ids_of(model, 8))


def test_no_more_entries_are_read_than_there_are_slots(tiny_model):
    """Tables counted with more slots: the model reads the first of each context."""
    tables = tiny_model(stages=("prsc",)).prsc.state_dict()
    model = tiny_model(stages=("prsc",), prsc=PRSCConfig(max_slots=8))
    model.prsc.make_room(tables)
    model.prsc.load_state_dict(tables)
    sizes = np.diff(model.prsc.bounds.numpy(), axis=1)
    assert sizes.max() > max(model.prsc.slots)
    state = model.init_state()
    compare(model, Stepper(model, [state]), state, ids_of(model, 12))


@pytest.mark.parametrize("name", ["full", "control", "many layers, few tokens deep"])
@pytest.mark.parametrize("window", [0, 4])
def test_rows_in_step_equal_the_model(tiny_model, name, window):
    """Rows of unlike lengths, one of them padded, each with its own goal; some go deep."""
    model = tiny_model(max_seq_len=ROOM, attention_window=window, **VARIANTS[name])
    R, lengths = 4, (1, 3, 7, 2)
    texts = [ids_of(model, n + STEPS, seed=n) for n in lengths]
    goals = torch.randn(R, 32, generator=torch.Generator().manual_seed(1))
    goals = goals if model.goal is not None else None
    one_goal = [None if goals is None else goals[r : r + 1] for r in range(R)]
    starts = [padded(model.init_state(), 2 * (r == 3)) for r in range(R)]
    states = [
        prefilled(model, text[:n], goal, start)
        for text, n, goal, start in zip(texts, lengths, one_goal, starts, strict=True)
    ]
    stepper = Stepper(model, states, goals)
    depths = set()
    for t in range(STEPS):
        step = stepper.step([text[n + t] for text, n in zip(texts, lengths, strict=True)])
        depths.add(tuple(step.layers_used))
        for r, (text, n) in enumerate(zip(texts, lengths, strict=True)):
            with torch.inference_mode():
                expected = model(torch.tensor([[text[n + t]]]), states[r], one_goal[r])
            close(step.logits[r], expected.logits[0, 0])
            close(step.hidden[r], expected.diagnostics["hidden"][0, 0])
            states[r] = expected.state
    assert model.gate is None or any(len(set(layers)) > 1 for layers in depths)
    for one, other in zip(stepper.states, states, strict=True):
        if not window:  # else the caches may hold tokens that no later one sees
            assert_equal_states(one, other)
    # The rows part and meet again in another order.
    rest = Stepper(model, [stepper.states[2], states[0]], None if goals is None else goals[[2, 0]])
    after = rest.step([5, 6])
    for r, i in ((0, 2), (1, 0)):
        with torch.inference_mode():
            expected = model(torch.tensor([[5 + r]]), states[i], one_goal[i])
        close(after.logits[r], expected.logits[0, 0])


@pytest.mark.parametrize("window", [1, 4, 9])
def test_a_window_goes_on_past_max_seq_len(tiny_model, window):
    model = tiny_model(stages=FULL, attention_window=window)
    ids = ids_of(model, PREFILL + 3 * STEPS)
    state = prefilled(model, ids[:PREFILL])
    stepper = Stepper(model, [state])
    after = compare(model, stepper, state, ids[PREFILL:])
    assert after.length > 2 * model.config.max_seq_len + 2 * window
    compare(model, Stepper(model, [after]), stepper.states[0], ids_of(model, STEPS, seed=2))


@pytest.mark.parametrize(("window", "padding"), [(0, 3), (4, 3), (4, 7)])
def test_padding_stays_unseen(tiny_model, window, padding):
    """A row whose first tokens stand in a later column, as in a batch of prompts."""
    model = tiny_model(stages=FULL, attention_window=window, max_seq_len=ROOM)
    ids, empty = ids_of(model, 2 + STEPS), padded(model.init_state(), padding)
    state = prefilled(model, ids[:2], state=empty)
    stepper = Stepper(model, [state])
    after = compare(model, stepper, state, ids[2:4])
    compare(model, Stepper(model, [stepper.states[0]]), after, ids[4:])
    compare(model, Stepper(model, [empty]), empty, ids)


def test_goals(tiny_model):
    model = tiny_model(stages=("agency", "kuramoto"), max_seq_len=ROOM)
    ids, goal = ids_of(model, PREFILL + STEPS), torch.linspace(-1, 1, 32)[None]
    state = prefilled(model, ids[:PREFILL], goal)
    compare(model, Stepper(model, [state], goal), state, ids[PREFILL:], goal)
    steered, free = Stepper(model, [state], goal).step([3]), Stepper(model, [state]).step([3])
    assert abs(steered.logits - free.logits).max() > 1e-2


def test_stored_texts_echo(tiny_model):
    """Beside the text being read, and with a weight for the words that come next."""
    long = PRSCConfig(max_order=6)  # reads more of the past than the echo does
    model = tiny_model(stages=("echo", "prsc"), max_seq_len=ROOM, prsc=long)
    order = model.echo.max_order
    ids = ids_of(model, PREFILL + STEPS)
    texts = [([*ids[3:12], 60, *ids[9:20], 7], 1.0), ([9, *ids[8:14]], 0.3)]
    state = prefilled(model, ids[:PREFILL], state=reading(model.init_state(), texts, order))
    lighter = state.with_stage("echo", state.stages["echo"]._replace(weight=0.5))
    for given in (state, lighter):
        after = compare(model, Stepper(model, [given]), given, ids[PREFILL:])
        assert after.stages["echo"].weight == given.stages["echo"].weight
    plain = prefilled(model, ids[:PREFILL])
    silent = Stepper(model, [plain]).step([ids[PREFILL]])
    heard = [([ids[PREFILL], 60], 1.0)]
    heard = prefilled(model, ids[:PREFILL], state=reading(model.init_state(), heard, order))
    heard = Stepper(model, [heard]).step([ids[PREFILL]])
    assert abs(heard.logits - silent.logits).max() > 1e-2
    assert np.array_equal(heard.hidden, silent.hidden)


def test_a_given_state_stays_and_forks(tiny_model):
    """Two steppers and the model go on from one state; none sees another."""
    model = tiny_model(stages=FULL, max_seq_len=ROOM)
    ids, others = ids_of(model, PREFILL + STEPS), ids_of(model, STEPS, seed=7)
    state = prefilled(model, ids[:PREFILL])
    before = [leaf.clone() for leaf in leaves(state)]
    one, two = Stepper(model, [state]), Stepper(model, [state])
    for mine, other in zip(ids[PREFILL:], others, strict=True):
        one.step([mine]), two.step([other])
    for a, b in zip(leaves(state), before, strict=True):
        assert torch.equal(a, b)
    assert_equal_states(
        compare(model, Stepper(model, [state]), state, ids[PREFILL:]), one.states[0]
    )
    assert_equal_states(compare(model, Stepper(model, [state]), state, others), two.states[0])


def test_a_state_handed_back_is_a_value(tiny_model):
    """It does not change when its stepper goes on, or when the model goes on with it."""
    model = tiny_model(stages=FULL, max_seq_len=ROOM)
    ids, others = ids_of(model, PREFILL + STEPS), ids_of(model, STEPS, seed=7)
    given = prefilled(model, ids[:PREFILL])
    stepper = Stepper(model, [given])
    for token in ids[PREFILL : PREFILL + 4]:
        stepper.step([token])
    handed = stepper.states[0]
    before = [leaf.clone() for leaf in leaves(handed)]
    prefilled(model, others, state=handed)  # first the model writes behind it, then the stepper
    rest = ids[PREFILL + 4 :]
    after = compare(model, stepper, handed, rest)
    for a, b in zip(leaves(handed), before, strict=True):
        assert torch.equal(a, b)
    assert_equal_states(stepper.states[0], after)


def test_reading_is_a_step_that_the_echo_does_not_hear_of(tiny_model):
    model = tiny_model(stages=FULL, max_seq_len=ROOM)
    ids = ids_of(model, PREFILL + STEPS)
    state = prefilled(model, ids[:PREFILL])
    stepping, reading = Stepper(model, [state]), Stepper(model, [state])
    for token in ids[PREFILL:]:
        step, read = stepping.step([token]), reading.read([token])
        np.testing.assert_array_equal(read.x, step.hidden)
        assert read.coherence == step.coherence
    heard, unheard = (stepper.states[0].stages["echo"].rows[0] for stepper in (stepping, reading))
    assert (heard.length, unheard.length) == (len(ids), PREFILL)


def test_steps_own_their_arrays(tiny_model):
    model = tiny_model(stages=FULL)
    stepper = Stepper(model, [prefilled(model, [3, 4])])
    first = stepper.step([5])
    logits, hidden = first.logits.copy(), first.hidden.copy()
    stepper.step([6])
    assert np.array_equal(first.logits, logits)
    assert np.array_equal(first.hidden, hidden)


def test_damaged_weights_show_without_a_warning(tiny_model):
    model = tiny_model(stages=FULL)
    state = prefilled(model, [3, 4])
    for parameter in (model.field.gate_bias, model.blocks[0].residual_scale):
        for damage in (torch.inf, torch.nan):
            torch.nn.init.constant_(parameter, damage)
            with torch.inference_mode():
                logits = model(torch.tensor([[5]]), state).logits[0, 0]
            found = np.isnan(Stepper(model, [state]).step([5]).logits[0])
            assert np.array_equal(found, logits.isnan().numpy())
        assert found.all()


def test_large_scores_do_not_overflow(tiny_model):
    model = tiny_model(stages=FULL)
    with torch.no_grad():
        model.blocks[0].attention.temperature.mul_(100)
        model.field.gate_bias.mul_(-300)
        model.echo.trust.fill_(500)
    state = prefilled(model, [3, 4])
    compare(model, Stepper(model, [state]), state, [5, 6, 3, 4], tolerance=1e-3)


@pytest.mark.skipif(threads._openblas() is None, reason="numpy has another BLAS")
def test_numpy_has_one_thread_during_a_step(tiny_model, monkeypatch):
    """And the number it had again afterwards, even after an error. More may wait on a busy core."""
    get, put = threads._openblas()
    before, seen = get(), []
    model = tiny_model(stages=FULL)
    stepper = Stepper(model, [model.init_state()])
    look_up = stepper.prsc.look_up
    monkeypatch.setattr(stepper.prsc, "look_up", lambda t: seen.append(get()) or look_up(t))
    monkeypatch.setattr(stepper.prsc, "add", lambda *_: 1 / 0)
    try:
        put(2)
        if get() != 2:
            pytest.skip("OpenBLAS was built for one thread")
        with pytest.raises(ZeroDivisionError):
            stepper.step([3])
        assert (seen, get()) == ([1], 2)
    finally:
        put(before)


def test_what_is_supported(tiny_model):
    model = tiny_model(stages=FULL)
    assert Stepper.supports(model)
    assert not Stepper.supports(model.train())
    assert not Stepper.supports(model.eval().double())
    assert not Stepper.supports(model.bfloat16())
    assert not Stepper.supports(tiny_model(stages=("stochastic_resonance",)))
    with pytest.raises(ValueError, match="float32"):
        Stepper(model, [model.init_state()])


def test_what_does_not_fit_is_refused(tiny_model):
    model, plain = tiny_model(stages=FULL), tiny_model()
    goal = torch.zeros(1, 32)
    for arguments, message in [
        ((model, [model.init_state(2)]), "has 2 rows"),
        ((model, [plain.init_state()]), "another model"),
        ((model, [model.init_state(), plain.init_state()]), "another model"),
        ((plain, [model.init_state()]), "another model"),
        ((model, [tiny_model(stages=FULL, num_layers=3).init_state()]), "another model"),
        ((model, [tiny_model(stages=FULL, num_heads=4).init_state()]), "another model"),
        ((plain, [plain.init_state()], goal), "agency"),
        ((model, [model.init_state()], goal.expand(2, 32)), "goals of shape"),
        ((model, [model.init_state()], goal[0]), "goals of shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            Stepper(*arguments)
    stepper = Stepper(model, [model.init_state()])
    for token in (-1, 61):
        with pytest.raises(ValueError, match=f"token = {token}"):
            stepper.step([token])


@pytest.mark.parametrize("capacity", [4, 100])
def test_a_full_state_takes_no_more(tiny_model, capacity):
    """Full is where the caches or max_seq_len end, whichever is first, as in the model."""
    model = tiny_model(stages=FULL)
    stepper = Stepper(model, [model.init_state(capacity=capacity)])
    room = min(capacity, model.config.max_seq_len)
    for token in range(room):
        stepper.step([token])
    for refuses in (stepper.step, lambda ids: prefilled(model, ids, state=stepper.states[0])):
        with pytest.raises(ValueError, match=f"{room} . 1 tokens do not fit"):
            refuses([5])
    assert stepper.states[0].length == room
