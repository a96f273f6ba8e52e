"""The context of several rows against the same rows alone, and against full passes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FULL

from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import SRB, PhaseSlip
from reso_llm.generation.attention_received import received_attention
from reso_llm.generation.context import Context
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.row import TextRow
from reso_llm.generation.stepper import Stepper
from reso_llm.inference import ResoLLMInference
from reso_llm.stages.echo import EchoState, TextCounts

PROMPTS = ("a prompt, longer than the rest", "", "short", "a prompt, longer than the rest")
VARIANTS = {
    "full": dict(stages=FULL),
    "control": {},
    "untied": dict(stages=FULL, tie_embeddings=False, num_layers=3),
    "one layer": dict(stages=FULL, num_layers=1),
    "window": dict(stages=FULL, attention_window=5),
    "wide window": dict(stages=FULL, attention_window=40),
    "full contexts": dict(stages=FULL, max_seq_len=10),
    "hardly any context": dict(stages=FULL, max_seq_len=3),
    **{stage: dict(stages=(stage,)) for stage in FULL},
}


@pytest.fixture
def make_engine(tiny_model, byte_tokenizer):
    def make(**changes):
        model = tiny_model(**(dict(stages=FULL, vocab_size=264, max_seq_len=64) | changes))
        return ResoLLMInference(model, byte_tokenizer, model.config)

    return make


@pytest.fixture
def by_torch(monkeypatch):
    """From here on the model reads every token itself."""

    def switch():
        monkeypatch.setattr(Stepper, "supports", staticmethod(lambda model: False))

    return switch


def assert_same(one, other, heated=False):
    """One result twice. A pass at the end does not know the noise that was in a cache."""
    assert one.token_ids == other.token_ids
    assert (one.text, one.stop_reason, one.seed) == (other.text, other.stop_reason, other.seed)
    assert (one.events, one.layers_trace) == (other.events, other.layers_trace)
    for name in ("entropy_trace", "coherence_trace", "temperature_trace"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4, nan_ok=True)
    assert dropped(one) == dropped(other)
    if heated:
        return
    for a, b in zip(one.attention_summary, other.attention_summary, strict=True):
        assert a.intensity == pytest.approx(b.intensity, abs=1e-4)
        assert a.salience == pytest.approx(b.salience, abs=1e-4)


def dropped(result):
    return [w for w in result.warnings if "dropped" in w]


# --- several rows -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_of_a_batch_equal_the_same_rows_alone(make_engine, name):
    """Lengths differ, rows end one by one, and contexts run full: nobody notices the others."""
    engine = make_engine(**({"stages": ()} | VARIANTS[name]))
    options = dict(temperature=5.0)  # hot, or texts of a random model end at once
    rows = engine.generate_batch(PROMPTS, 18, seed=4, **options)
    assert max(row.tokens_generated for row in rows) == 18
    for i, (prompt, row) in enumerate(zip(PROMPTS, rows, strict=True)):
        assert_same(row, engine.generate(prompt, 18, seed=4 + i, **options))


def test_a_row_that_ended_stays_as_it_was(make_engine, by_torch):
    """It ends with the last token that its context had room for; the other goes on past that."""
    engine = make_engine(max_seq_len=16)
    model, tokenizer = engine.model, engine.tokenizer
    by_torch()
    forward = model.forward

    def speak(ids, *args):
        output = forward(ids, *args)
        logits = torch.full_like(output.logits, -50.0)
        logits[:, -1, 70] = 50.0
        logits[ids[:, -1] == tokenizer.encode("!")[0], -1, tokenizer.end_id] = 100.0
        return output._replace(logits=logits)

    model.forward = speak
    ended, other = engine.generate_batch(["it ends here..!", "goes on"], 40, seed=0)
    assert (ended.stop_reason, ended.tokens_generated, ended.warnings) == ("end", 1, ())
    assert (other.stop_reason, other.tokens_generated) == ("length", 40)
    assert dropped(other)
    assert [len(r.entropy_trace) for r in (ended, other)] == [1, 40]


def test_controllers_of_rows_act_on_their_own_row(make_engine):
    """Deepening looks ahead from its row; heat is that row's, in values, which know no column."""
    engine = make_engine()
    srb = SRB.published(
        deepen_nats=0.0, deepen_coherence_rise=0.0, candidates=3, horizon=2, patience=99,
        max_tokens=99,
    )  # fmt: skip
    noise = CacheNoise(scale=0.5, values_only=True)
    slip = PhaseSlip.published(spike_nats=0.01, cooldown_steps=3, noise=noise)
    options = dict(temperature=5.0, controllers=[srb, slip])
    rows = engine.generate_batch(PROMPTS, 10, seed=4, **options)
    for i, (prompt, row) in enumerate(zip(PROMPTS, rows, strict=True)):
        assert_same(row, engine.generate(prompt, 10, seed=4 + i, **options), heated=True)
        assert {event.controller for event in row.events} == {"srb", "phase_slip"}


def test_noise_in_the_cache_moves_no_draw(make_engine):
    engine = make_engine()

    def written(scale):
        slip = PhaseSlip.published(spike_nats=0.01, cooldown_steps=3, noise=CacheNoise(scale=scale))
        return engine.generate("x", 30, temperature=5.0, seed=2, controllers=[slip])

    silent, faint, loud = map(written, (0, 1e-7, 0.9))
    assert faint.token_ids == silent.token_ids
    assert loud.entropy_trace[1] != pytest.approx(silent.entropy_trace[1], abs=1e-3)


def test_only_what_is_asked_for_is_watched(make_engine):
    engine = make_engine()
    for metrics in (True, False):
        options = GenerationOptions(metrics=metrics)
        assert engine.start(["x"], options, [0]).context.attending is metrics


def test_a_batch_of_one_and_of_none(make_engine):
    engine = make_engine()
    (row,) = engine.generate_batch(["one"], 8, seed=3)
    assert_same(row, engine.generate("one", 8, seed=3))
    for nothing in ([], "a text"):
        with pytest.raises(ValueError, match="at least one prompt"):
            engine.generate_batch(nothing, 8)


# --- one row, by the stepper and by the model ---------------------------------------------------


@pytest.mark.parametrize("max_seq_len", [24, 64])
@pytest.mark.parametrize(
    "noise",
    [CacheNoise(scale=0.5), CacheNoise(scale=0.5, protect_prompt=True, values_only=True, window=6)],
)
def test_a_phase_slip_by_the_stepper_equals_the_model(make_engine, by_torch, max_seq_len, noise):
    engine = make_engine(max_seq_len=max_seq_len)
    slip = PhaseSlip.published(spike_nats=0.01, cooldown_steps=3, noise=noise)
    options = dict(temperature=5.0, controllers=[slip], seed=2)
    stepped = engine.generate("Once upon", 40, **options)
    by_torch()
    assert_same(stepped, engine.generate("Once upon", 40, **options), heated=True)
    assert len(stepped.events) > 1


def test_deepening_by_the_stepper_equals_the_model(make_engine, by_torch):
    engine = make_engine(max_seq_len=24)
    srb = SRB.published(
        deepen_nats=0.0, deepen_coherence_rise=0.0, candidates=3, horizon=2, patience=99,
        max_tokens=99,
    )  # fmt: skip
    options = dict(temperature=5.0, controllers=[srb], seed=2)
    stepped = engine.generate("Once upon", 20, **options)
    by_torch()
    assert_same(stepped, engine.generate("Once upon", 20, **options))
    assert any("compared" in event.effect for event in stepped.events)


def test_heat_stays_in_its_row_and_spares_what_is_protected(make_engine):
    engine = make_engine()
    prompts = [engine.prompt_ids(p) for p in ("the first row", "row 2")]
    noise = CacheNoise(scale=0.8)

    @torch.inference_mode()
    def logits(heated, noise=noise):
        context = new_context(engine, prompts)
        context.predict()
        for row in heated:
            context.heat(row, noise, torch.Generator().manual_seed(1))
        for row in (0, 1):
            context.rows[row].ids.append(80)
        return context.predict().logits

    plain, first, second = logits([]), logits([0]), logits([1])
    assert torch.equal(plain, logits([0, 1], CacheNoise(scale=0.8, protect_prompt=True)))
    assert torch.equal(plain[1], first[1])
    assert torch.equal(plain[0], second[0])
    assert not torch.allclose(plain[0], first[0])
    assert not torch.allclose(plain[1], second[1])


def test_the_first_token_counts_as_prompt_once_the_prompt_is_gone(make_engine):
    engine = make_engine(max_seq_len=8)
    context = new_context(engine, [engine.prompt_ids("abc")])
    with torch.inference_mode():
        for token in range(60, 72):
            context.predict()
            context.rows[0].ids.append(token)
        context.predict()
    assert context.dropped[0] > context.rows[0].num_prompt
    before = context.stepper.states[0]
    context.heat(0, CacheNoise(scale=0.8, protect_prompt=True), torch.Generator().manual_seed(1))
    for old, new in zip(before.caches, context.stepper.states[0].caches, strict=True):
        assert torch.equal(old.keys[:, :, 0], new.keys[:, :, 0])
        assert not torch.equal(old.keys[:, :, 1], new.keys[:, :, 1])


# --- looking ahead ------------------------------------------------------------------------------


@torch.no_grad()
def lookahead_reference(engine, ids, candidate, horizon, goal):
    """Greedy continuation by full passes; what may not be written is not considered.

    The prompt is all ids but the last, which is the model's own word.
    """
    tokenizer, total, num_prompt = engine.tokenizer, 0.0, len(ids) - 1
    ids, unusable = [*ids, candidate], [1, 2, 3, *range(tokenizer.vocab_size, 264)]
    for _ in range(horizon):
        if ids[-1] in (tokenizer.end_id, tokenizer.bos_id) or len(ids) > engine.config.max_seq_len:
            break
        logits = logits_after(engine.model, ids, num_prompt, goal[None])
        logits[unusable] = -math.inf
        p = logits.softmax(-1)
        total += math.log(p.max())
        ids.append(int(p.argmax()))
    return total


def logits_after(model, ids, num_prompt, goal=None, before=()):
    """Logits (V,) after a prompt and own words; `before` are ids that the echo read, by weight."""
    state = model.init_state()
    counts, own = TextCounts.empty(model.echo.max_order), model.echo.own_weight
    for token, weight in before:
        counts = counts.read(token, weight)
    for part, weight in ((ids[:num_prompt], 1.0), (ids[num_prompt:], own)):
        if part:
            state = state.with_stage("echo", EchoState((counts,), weight))
            output = model(torch.tensor([part]), state, goal)
            state = output.state
            (counts,) = state.stages["echo"].rows
    return output.logits[0, -1]


@pytest.mark.parametrize("others", [[], ["a longer"]])
def test_the_beginning_of_a_reply_counts_as_own_words(make_engine, others):
    """An agent that goes on from another, and `continue` in the chat, do not echo the reply."""
    engine = make_engine(max_seq_len=64)
    asked = [("user", "ab"), ("assistant", "ba"), ("user", "abc")]
    begun = engine.prompt_ids([*asked, ("assistant", "abab")])
    num_given = len(engine.prompt_ids(asked))
    context = new_context(engine, [begun, *map(engine.prompt_ids, others)])
    with torch.inference_mode():
        found = context.predict().logits[0].softmax(-1)
        expected, as_read = (
            context._allowed(logits_after(engine.model, begun, n)[None])[0].softmax(-1)
            for n in (num_given, len(begun))
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (found - as_read).abs().max() > 1e-3


@pytest.mark.parametrize("max_seq_len", [10, 12, 64])
@pytest.mark.parametrize("others", [[], ["a longer"]])
def test_lookahead_is_a_greedy_continuation(make_engine, max_seq_len, others):
    """Also where the context ends first; the state is as it was afterwards."""
    engine = make_engine(max_seq_len=max_seq_len)
    prompts = [engine.prompt_ids(p) for p in ["prompt", *others]]
    goal = torch.randn(engine.config.dim, generator=torch.Generator().manual_seed(0))
    context = new_context(engine, prompts, goal=goal)
    with torch.inference_mode():
        context.predict()
        for row in range(len(prompts)):
            context.rows[row].ids.append(77)
        context.predict()
        candidates = torch.tensor([70, 4, 0, 33, 260])
        found, again = (context.lookahead(0, candidates, 4) for _ in range(2))
        room = context.model.config.max_seq_len - len(context.rows[0].ids)
    expected = [
        lookahead_reference(engine, context.rows[0].ids, c, min(4, room), goal)
        for c in candidates.tolist()
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    assert torch.equal(found, again)
    assert expected[1] == expected[2] == 0.0
    assert max_seq_len < 64 or expected[0] != 0


def test_lookahead_never_says_what_may_not_be_written(make_engine):
    """All logits are equal, 258 tokens may be written, and the first of them ends the text."""
    engine = make_engine(stages=(), tie_embeddings=False, logit_soft_cap=0.0)
    with torch.no_grad():
        engine.model.head.weight.zero_()
    context = new_context(engine, [[0, 50]])
    with torch.inference_mode():
        context.predict()
        found = context.lookahead(0, torch.tensor([60]), 3)
    assert found.item() == pytest.approx(-math.log(258), abs=1e-4)


def new_context(engine, prompts, **options):
    device = torch.device("cpu")
    rows = [
        TextRow(ids, GenerationOptions(), engine.tokenizer, seed=0, device=device)
        for ids in prompts
    ]
    return Context(engine.model, engine.tokenizer, rows, **options)


def test_what_ends_a_text(byte_tokenizer):
    assert set(byte_tokenizer.end_ids) == {byte_tokenizer.end_id, byte_tokenizer.bos_id}


# --- attention received -------------------------------------------------------------------------


@torch.no_grad()
def received_reference(model, ids, num_new, goal=None):
    """One pass for each new token, its weights by the formula, skipped layers left out.

    Queries and keys are caught where they are asked for: all at once, or of deep tokens alone.
    """
    total, window = np.zeros(len(ids)), model.config.attention_window
    looks = []

    class Looks:
        def add(self, q, k, window, times):
            looks.extend((q[0, :, i], k[0]) for i, t in enumerate(times) if t == k.shape[2] - 1)

    for t in range(len(ids) - num_new, len(ids)):
        looks.clear()
        text = torch.tensor([ids[: t + 1]])
        deep = model.trunk(text, goal=goal, received=Looks()).diagnostics["deep"]
        assert len(looks) == (len(model.blocks) if deep[0, -1] else 1)
        first = max(0, t + 1 - window) if window else 0
        for q, k in looks:  # (H,K), (H,T,K)
            for head in range(len(q)):
                scores = k[head, first:] @ q[head] / q.shape[-1] ** 0.5
                total[first : t + 1] += F.softmax(scores, -1).double().numpy()
    return total


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("goal", [None, 1])
def test_attention_received_equals_its_slow_twin(tiny_model, window, goal):
    """By a pass at the end and by the stepper, with layers skipped now and then."""
    model = tiny_model(stages=FULL, num_layers=4, attention_window=window, max_seq_len=12)
    ids = [0, 40, 41, 50, 45, 40, 41, 33, 50, 51, 40, 41]
    if goal:
        goal = torch.randn(1, model.config.dim, generator=torch.Generator().manual_seed(0))
    expected = received_reference(model, ids, 8, goal)
    found = received_attention(model, torch.tensor([ids]), 8, goal)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with torch.inference_mode():
        state = model(torch.tensor([ids[:4]]), model.init_state(), goal).state
    stepper = Stepper(model, [state], goal, attending=True)
    used = {stepper.step([token]).layers_used[0] for token in ids[4:]}
    np.testing.assert_allclose(stepper.received(0), expected, atol=1e-4)
    assert used == {1, 4}  # else nothing was skipped, or everything


@pytest.mark.parametrize("window", [0, 4])
def test_received_is_a_share_by_place_in_the_text(make_engine, by_torch, window):
    """Past the context: the pass at the end and the stepper agree, and all shares sum to 1."""
    engine = make_engine(max_seq_len=12, attention_window=window)

    def received():
        context = new_context(engine, [engine.prompt_ids("prompt")], attending=True)
        with torch.inference_mode():
            for token in range(60, 90):
                context.predict()
                context.rows[0].ids.append(token)
        assert bool(context.dropped[0]) == (not window)
        return context.received(0)

    stepped = received()
    assert stepped.shape == (37,)
    assert stepped.sum() == pytest.approx(1)
    assert stepped[-1] == 0 < stepped[-2]  # the newest was not read yet
    assert np.count_nonzero(stepped[7:-1]) == 29
    by_torch()
    np.testing.assert_allclose(received(), stepped, atol=1e-5)


def test_heat_does_not_make_anybody_forget_where_was_looked(make_engine):
    engine = make_engine()

    @torch.inference_mode()
    def received(scale):
        context = new_context(engine, [engine.prompt_ids("prompt")], attending=True)
        for token in range(60, 70):
            context.predict()
            if scale and token == 65:
                context.heat(0, CacheNoise(scale=scale), torch.Generator().manual_seed(0))
            context.rows[0].ids.append(token)
        return context.received(0)

    np.testing.assert_allclose(received(1e-6), received(0), atol=1e-5)


def test_nothing_is_received_before_a_new_token_was_read(make_engine):
    engine = make_engine()
    context = new_context(engine, [engine.prompt_ids("x")], attending=True)
    with torch.inference_mode():
        context.predict()
    context.rows[0].ids.append(70)
    assert context.received(0).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="attending=True"):
        new_context(engine, [[0]]).received(0)
    with pytest.raises(ValueError, match="attending=True"):
        Stepper(engine.model, [engine.model.init_state()]).received(0)


def test_a_window_of_the_stepper_outgrows_the_context(make_engine):
    """Columns are counted from the start of the text, however long it is."""
    engine = make_engine(max_seq_len=8, attention_window=4)
    stepper = Stepper(engine.model, [engine.model.init_state()], attending=True)
    for token in range(60, 100):
        stepper.step([token])
    received = stepper.received(0)
    assert received.shape == (40,)
    assert (received > 0).all()
    looks = received.sum() / engine.config.num_heads
    assert looks == pytest.approx(round(looks), abs=1e-4)
