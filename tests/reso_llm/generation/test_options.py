"""What a `generate` takes and refuses: prompts, options and seeds, before the first token."""

import math

import numpy as np
import pytest
import torch

from reso_llm.data.conversation import Message
from reso_llm.decoding.controllers import SRB
from reso_llm.generation.options import GenerationOptions
from reso_llm.inference import ResoLLMInference


@pytest.fixture
def engine(tiny_model, byte_tokenizer):
    model = tiny_model(vocab_size=261, max_seq_len=64)
    return ResoLLMInference(model, byte_tokenizer, model.config)


SPOKEN = [("system", "be brief"), ("user", "hello")]


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": role, "content": content} for role, content in SPOKEN],
        [Message(*pair) for pair in SPOKEN],
        [list(pair) for pair in SPOKEN],
        [SPOKEN[0], {"role": "User", "content": [{"type": "text", "text": "hello"}]}],
        tuple({"role": role, "content": content, "name": None} for role, content in SPOKEN),
    ],
)
def test_every_spelling_of_a_conversation_is_the_same_prompt(engine, prompt):
    expected = engine.tokenizer.encode_prompt(SPOKEN)
    assert engine.prompt_ids(prompt) == expected
    texts = [engine.generate(p, 5, seed=0).token_ids for p in (prompt, SPOKEN)]
    assert texts[0] == texts[1]
    batch = engine.generate_batch([prompt, "x"], 5, seed=0)
    assert batch[0].token_ids == texts[0]


def test_numbers_of_numpy_are_numbers(engine):
    plain = engine.generate("x", 5, seed=3, top_k=9, temperature=0.5)
    given = dict(top_k=np.int32(9), temperature=np.float32(0.5))
    result = engine.generate("x", np.int64(5), seed=np.uint8(3), **given)
    assert result.token_ids == plain.token_ids
    options = GenerationOptions(max_length=np.int64(5), **given)
    assert options == GenerationOptions(max_length=5, top_k=9, temperature=0.5)
    assert {type(options.max_length), type(options.sampling.top_k)} == {int}
    assert type(options.temperature) is type(options.sampling.temperature) is float
    batch = engine.generate_batch(["x", "x"], 5, seed=np.int64(3), top_k=9, temperature=0.5)
    assert batch[0].token_ids == plain.token_ids
    agents = engine.generate_multi_agent("x", [engine], "parallel", np.int8(5), seed=np.int8(3))
    assert agents[1].seed == 4


NAN = math.nan
HUGE = 10**400


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_length", [NAN, 2.5, 2.0, True, "5", None, -1, 2**63, 2**64, np.float64(3)]),
        ("seed", [NAN, 2.5, True, "5", 2**63, 2**64, -(2**64), np.bool_(True), [1]]),
        ("temperature", [NAN, True, "0.8", None, -1, HUGE, 1 + 2j, math.inf, np.float32("nan")]),
        ("top_k", [NAN, 2.5, True, "5", None, -1]),
        ("top_p", [NAN, True, "0.9", None, 0, 2.5, HUGE]),
        ("min_p", [NAN, True, "0.1", None, -0.1, 2.5]),
        ("repetition_penalty", [NAN, True, "1", None, 0, HUGE]),
        ("stop", [5, None, b"x", ["a", 5], {"a": 1}]),
        ("controllers", [SRB(), SRB, [SRB], None, ["srb"], "srb"]),
        ("signals", [None, 8, {"window": 8}]),
        ("metrics", [None, 1, "yes"]),
        ("on_text", [5, "print"]),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_before_the_first_token(engine, name, values):
    engine.model.trunk = None  # no token is read
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} = ") as caught:
            engine.generate("x", **{"max_length": 5, name: value})
        assert "\n" not in str(caught.value)
        assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "prompt is NoneType"),
        (5, "prompt is int"),
        (b"x", "prompt is bytes"),
        (torch.tensor([1, 2]), "prompt is Tensor"),
        ({"role": "user", "content": "x"}, "prompt is dict"),
        (["a", "b"], "prompt is a list of strings.*generate_batch"),
        (("user", "x"), "prompt is a list of strings"),
        ([("user", "x"), "y"], "prompt is a mixed list"),
        ([5], "message 0: expected an object"),
        ([{"role": "user"}], 'message 0: no "content"'),
        ([{"content": "x"}], 'message 0: no "role"'),
        ([("user", "x"), {"role": "robot", "content": "x"}], "message 1: unknown role 'robot'"),
        ([("user", 5)], 'message 0: "content" is a number'),
        ([{"role": 5, "content": "x"}], 'message 0: "role" is a number'),
        ([{"role": "user", "content": None}], "null content"),
        ([{"role": "tool", "content": "x"}], "no place for tool"),
        ([{"role": "user", "content": "x", "name": "Ann"}], r"no place for prompt\[\]\.name"),
        ([{"role": "user", "content": [{"type": "image"}]}], "no place for part image"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused_in_one_line(engine, prompt, message):
    with pytest.raises(ValueError, match=message) as caught:
        engine.generate(prompt, 5)
    assert str(caught.value).startswith("prompt")
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_named_with_the_nearest_one(engine):
    for call in (
        engine.generate,
        engine.generate_batch,
        lambda p, **o: next(engine.stream(p, **o)),
    ):
        with pytest.raises(
            TypeError, match=r"unknown option temprature; did you mean temperature?"
        ):
            call(["x"], temprature=0.5)
    with pytest.raises(TypeError, match="unknown option sampling"):
        engine.generate("x", sampling=None)
    with pytest.raises(TypeError, match=r"unknown option topk; did you mean top_k?"):
        engine.generate_multi_agent("x", [engine], topk=3)


@pytest.mark.parametrize("prompts", [None, "x", b"x", [], 5, {"a": 1}])
def test_a_batch_is_a_list_of_prompts(engine, prompts):
    with pytest.raises(ValueError, match=r"^prompts = "):
        engine.generate_batch(prompts)


def test_the_last_seed_of_a_batch_must_be_a_seed(engine):
    with pytest.raises(ValueError, match=r"^seed = "):
        engine.generate_batch(["x", "y"], 1, seed=2**63 - 2)
    assert engine.generate_batch(["x"], 1, seed=2**63 - 2)[0].seed == 2**63 - 2
