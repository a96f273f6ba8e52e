"""A goal that is said in the system message: two prompts, one text, guided as by hand."""

import math

import pytest
import torch
from conftest import FULL

from reso_llm.generation.guidance import GuidedContext, Unaimed, guided
from reso_llm.generation.options import GenerationOptions
from reso_llm.inference import ResoLLMInference

ASKED = [("user", "Hi")]
SAID = [("system", "Your goal is to talk about bells."), *ASKED]


@pytest.fixture
def engine(tiny_model, byte_tokenizer):
    stages = [stage for stage in FULL if stage != "echo"]  # which reads own words otherwise
    model = tiny_model(stages=stages, vocab_size=264, max_seq_len=320)
    engine = ResoLLMInference(model, byte_tokenizer, model.config)
    engine.knows_system_messages = True
    return engine


def test_a_greedy_reply_is_that_of_two_prompts(engine):
    goal = engine.create_goal("bells.", "maintenance")
    result = engine.generate(ASKED, 6, temperature=0.0, guidance=3.0)
    engine.session.agency.drop_goal(goal)
    aimed, none = engine.prompt_ids(SAID), engine.prompt_ids(ASKED)
    assert result.prompt_tokens == len(aimed)
    forbidden = [1, 2, 3, *range(engine.tokenizer.vocab_size, 264)]
    for token in result.token_ids:
        with torch.no_grad():
            told, plain = (engine.model(torch.tensor([ids])).logits[0, -1] for ids in (aimed, none))
        told[forbidden] = -math.inf
        logits = guided(told, plain, 3.0)
        assert token == logits.argmax()
        aimed.append(token)
        none.append(token)


@pytest.mark.parametrize("guidance", [0, 1, 1.5])
def test_what_each_pass_reads(engine, guidance):
    engine.create_goal("bells", "maintenance")
    context = engine.start([ASKED], GenerationOptions(guidance=guidance), [0]).context
    guided = isinstance(context, GuidedContext)
    assert guided == (guidance == 1.5)
    assert context.rows[0].ids == engine.prompt_ids(ASKED if guidance == 0 else SAID)
    if guided:
        assert isinstance(context.none.rows[0], Unaimed)
        assert context.none.rows[0].ids == engine.prompt_ids(ASKED)
        assert context.goal.goal is context.none.goal is None


def test_plain_texts_and_models_without_system_messages_get_the_vector(engine):
    engine.create_goal("bells", "maintenance")
    options = GenerationOptions(guidance=1.5)
    assert engine.start(["Once"], options, [0]).context.goal.goal is not None
    engine.knows_system_messages = False
    context = engine.start([ASKED], options, [0]).context
    assert context.goal.goal is not None
    assert context.rows[0].ids == engine.prompt_ids(ASKED)


def test_what_the_user_told_stays_in_both(engine):
    """The user's own system message and stored texts are no part of the goal."""
    engine.update_memory("My dog is called Rex.")
    engine.create_goal("bells", "maintenance")
    asked = [("system", "Be kind."), ("user", "What is my dog called?")]
    context = engine.start([asked], GenerationOptions(), [0]).context
    texts = [engine.tokenizer.decode(rows[0].ids) for rows in (context.rows, context.none.rows)]
    for text in texts:
        assert "Be kind." in text
        assert "Rex" in text
    assert ["bells" in text for text in texts] == [True, False]


def test_rows_of_a_batch_do_as_they_would_alone(engine):
    engine.create_goal("bells", "maintenance")
    prompts = [ASKED, [("user", "And what do you say to that?")]]
    batch = engine.generate_batch(prompts, 8, temperature=5.0, seed=3)
    for i, (prompt, result) in enumerate(zip(prompts, batch, strict=True)):
        alone = engine.generate(prompt, 8, temperature=5.0, seed=3 + i)
        assert alone.token_ids == result.token_ids
