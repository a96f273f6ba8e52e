"""Guidance: two passes by hand, rows of a batch, no cost without goals, noise in both caches."""

import math

import pytest
import torch
from conftest import FULL

from reso_llm.decoding.controllers import SRB, PhaseSlip
from reso_llm.generation.context import Context
from reso_llm.generation.guidance import GuidedContext, guided
from reso_llm.generation.options import GenerationOptions
from reso_llm.inference import ResoLLMInference

HOT = dict(temperature=5.0, seed=3)


@pytest.fixture
def engine(tiny_model, byte_tokenizer):
    model = tiny_model(stages=FULL, vocab_size=264, max_seq_len=48)
    return ResoLLMInference(model, byte_tokenizer, model.config)


def context_of(engine, **options):
    return engine.start(["Once upon"], GenerationOptions(**options), [0]).context


def test_a_greedy_text_is_that_of_the_mixed_logits_of_full_passes(tiny_model, byte_tokenizer):
    stages = [stage for stage in FULL if stage != "echo"]  # which reads own words otherwise
    model = tiny_model(stages=stages, vocab_size=264, max_seq_len=48)
    engine = ResoLLMInference(model, byte_tokenizer, model.config)
    model.create_goal("bells and drums")
    result = engine.generate("Once upon", 8, temperature=0.0, guidance=3.0)
    ids, goal = engine.prompt_ids("Once upon"), model.session.steered_by(model.get_active_goals())
    forbidden = [1, 2, 3, *range(engine.tokenizer.vocab_size, 264)]
    for token, entropy in zip(result.token_ids, result.entropy_trace, strict=True):
        with torch.no_grad():
            none, aimed = (
                model(torch.tensor([ids]), goal=g).logits[0, -1] for g in (None, goal[None])
            )
        aimed[forbidden] = -math.inf
        logits = none + 3.0 * (aimed - none)
        far = aimed < aimed.max() + math.log(0.02)
        logits[far] = torch.minimum(logits, aimed + math.log(0.02))[far]
        assert token == logits.argmax()
        p = logits.softmax(-1)
        assert entropy == pytest.approx(-(p[p > 0] * p[p > 0].log()).sum().item(), abs=1e-3)
        ids.append(token)


def test_strengths_0_and_1_are_plain_texts_without_and_with_the_goal(engine):
    plain = engine.generate("Once upon", 12, **HOT)
    engine.model.create_goal("bells and drums")
    assert engine.generate("Once upon", 12, guidance=0, **HOT).token_ids == plain.token_ids
    kinds = [type(context_of(engine, guidance=s)) for s in (0, 1, 1.5)]
    assert kinds == [Context, Context, GuidedContext]
    assert context_of(engine, guidance=0).goal is None
    assert context_of(engine, guidance=1).goal is not None


def test_what_neither_context_knows_is_not_lifted():
    """A token of 1e-6 told and 1e-12 untold would outgrow the best one at strength 3."""
    goal, none = torch.tensor([[0.9, 0.1, 1e-6]]).log(), torch.tensor([[0.9, 0.1, 1e-12]]).log()
    assert (none + 3 * (goal - none)).argmax() == 2
    found = guided(goal, none, 3.0)
    assert found[0, :2].tolist() == pytest.approx(goal[0, :2].tolist(), abs=1e-5)
    assert found[0, 2].item() == pytest.approx(math.log(2e-8), abs=1e-4)
    assert guided(goal, none, 0.5)[0, 2].item() == pytest.approx(math.log(1e-9), abs=1e-4)
    assert guided(goal, none, 1.0).tolist() == goal.tolist()


def test_without_a_goal_nothing_is_read_twice(engine):
    assert isinstance(context_of(engine, guidance=1.5), Context)


def test_rows_of_a_batch_do_as_they_would_alone(engine):
    engine.model.create_goal("bells and drums", "maintenance")
    prompts = ["A fox ran", "a much longer beginning than that"]
    batch = engine.generate_batch(prompts, 10, **HOT)
    for i, (prompt, result) in enumerate(zip(prompts, batch, strict=True)):
        alone = engine.generate(prompt, 10, temperature=5.0, seed=3 + i)
        assert alone.token_ids == result.token_ids
        assert alone.attention_summary


def test_controllers_act_on_a_guided_text(engine):
    """Slips heat both caches with one draw of noise; deepening looks ahead."""
    engine.model.create_goal("bells and drums")
    slips = [PhaseSlip.published(spike_nats=0.1), SRB.published(settled_nats=0, candidates=2)]
    results = [engine.generate("Once upon", 12, controllers=slips, **HOT) for _ in range(2)]
    assert results[0].token_ids == results[1].token_ids
    assert "spike" in {event.cause for event in results[0].events}


def test_both_caches_get_the_same_noise(engine):
    engine.model.create_goal("bells and drums")
    context, noise = context_of(engine), PhaseSlip.published().noise
    with torch.inference_mode():
        context.predict()
        before = [c.stepper.states[0].caches[0].keys.clone() for c in (context.goal, context.none)]
        context.heat(0, noise, torch.Generator().manual_seed(1))
        after = [c.stepper.states[0].caches[0].keys for c in (context.goal, context.none)]
    moved = [a - b for a, b in zip(after, before, strict=True)]
    assert all(m.any() for m in moved)
    normal = [m / m.std() for m in moved]
    assert torch.corrcoef(torch.stack([m.flatten() for m in normal]))[0, 1] > 0.99


def test_what_either_rules_out_stays_out_and_damage_is_seen():
    goal = torch.tensor([[1.0, -math.inf, 2.0, math.nan]])
    none = torch.tensor([[0.0, -math.inf, -math.inf, 1.0]])
    mixed = guided(goal, none, 2.0)[0]
    assert mixed[0] == 2.0
    assert (mixed[1:3] == -math.inf).all()
    assert mixed[3].isnan()


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf, "much", True])
def test_guidance_out_of_range_is_refused(engine, wrong):
    with pytest.raises(ValueError, match="guidance"):
        engine.generate("x", 2, guidance=wrong)
