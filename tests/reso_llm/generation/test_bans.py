"""Least length, ids that end a text, banned words, the marks of DRY and XTC, in both engines."""

import math

import pytest
import torch

from reso_llm.generation.bans import Bans, marks_of
from reso_llm.generation.options import GenerationOptions
from reso_llm.inference import ResoLLMInference
from reso_llm.tokenizer import ResoTokenizer
from tests.reso_llm.hf import tiny_engine

HOT = dict(temperature=1.5, auto_temperature=False)


@pytest.fixture
def reso(tiny_model, byte_tokenizer):
    model = tiny_model(vocab_size=261, max_seq_len=64)
    return ResoLLMInference(model, byte_tokenizer, model.config)


@pytest.fixture(params=["reso", "hf"])
def engine(request):
    return tiny_engine.engine() if request.param == "hf" else request.getfixturevalue("reso")


def forced(engine, *tokens):
    """A bias that leaves these tokens alone likely."""
    return {token: 100.0 for token in tokens}


def test_the_end_waits_for_the_least_length(engine):
    end = engine.tokenizer.end_ids[0]
    asked = dict(seed=0, temperature=0.0, logit_bias=forced(engine, end))
    assert engine.generate("ab", 20, **asked).stop_reason == "end"
    result = engine.generate("ab", 20, min_tokens=7, **asked)
    assert (len(result.token_ids), result.stop_reason) == (8, "end")
    assert end not in result.token_ids[:7]


def test_an_id_ends_the_text_and_is_no_part_of_it(engine):
    (a,) = engine.tokenizer.encode("A")
    asked = dict(seed=0, temperature=0.0, logit_bias=forced(engine, a))
    assert set(engine.generate("ab", 5, **asked).text) == {"A"}
    result = engine.generate("ab", 5, stop_token_ids=[a], **asked)
    assert (result.text, result.stop_reason, result.token_ids) == ("", "stop", (a,))
    waited = engine.generate("ab", 5, stop_token_ids=[a], min_tokens=3, **asked)
    assert len(waited.token_ids) == 4
    assert "A" not in waited.text


def test_a_banned_word_is_never_in_the_text(engine):
    """A bias makes the model write the two letters; one order of them is banned."""
    letters = [engine.tokenizer.encode(letter)[0] for letter in "AB"]
    asked = dict(seed=3, logit_bias=dict.fromkeys(letters, 50.0), **HOT)
    free = engine.generate("x", 40, **asked).text
    assert "AB" in free
    assert "BBB" in free or "AAA" in free
    text = engine.generate("x", 40, bad_words=["AB", "AAA"], **asked).text
    assert "AB" not in text
    assert "AAA" not in text
    assert len(text) >= 20


def test_words_are_found_in_bytes_however_they_are_cut():
    """With merges: the word ends within a token, begins in one, lies in one, is several."""
    tokenizer = ResoTokenizer.train(["the elephant and the elegant elephants"] * 20, 300)
    names = tokenizer.names
    options = GenerationOptions(bad_words="elephant")
    bans = Bans(options, tokenizer)
    for text in ("", "the ele", "the elephan", "eleeleph", "elegant"):
        ids = tokenizer.encode(text)
        logits = bans.allowed(torch.zeros(1, len(names)), ids)[0]
        for token, name in enumerate(names):
            banned = b"elephant" in text.encode() + name
            assert (logits[token] == -math.inf) == banned, (text, name)


def test_a_ban_of_everything_says_so(reso):
    a, b = (reso.tokenizer.encode(letter)[0] for letter in "ab")
    logits = torch.full((1, 261), -math.inf)
    logits[0, [a, b, reso.tokenizer.end_id]] = 0.0
    bans = Bans(GenerationOptions(bad_words=["a", "b"], min_tokens=5), reso.tokenizer)
    assert bans.allowed(logits, [a] * 5)[0].isfinite().sum() == 1
    with pytest.raises(ValueError, match="leave no token"):
        bans.allowed(logits, [])


def test_marks_are_the_tokens_that_hold_a_breaker(engine):
    options = GenerationOptions(dry_multiplier=0.8).sampling
    marks = marks_of(options, engine.tokenizer)
    decoded = {engine.tokenizer.names[i] for i in marks.breakers}
    assert decoded == {b"", b"\n", b":", b'"', b"*"}  # "" is that of an end
    assert {engine.tokenizer.names[i] for i in marks.protected} == {b"", b"\n"}
    assert set(engine.tokenizer.end_ids) <= marks.protected
    assert not marks_of(GenerationOptions().sampling, engine.tokenizer).breakers


@pytest.mark.parametrize(
    "options",
    [
        dict(dry_multiplier=3.0, dry_allowed_length=1),
        dict(presence_penalty=2.0),
        dict(frequency_penalty=2.0),
        dict(top_n_sigma=0.5),
        dict(typical_p=0.2),
        dict(xtc_probability=1.0),
        dict(mirostat_tau=0.5),
    ],
)
def test_every_step_is_felt_in_a_text(engine, options):
    few = {engine.tokenizer.encode(letter)[0]: 20.0 for letter in "abcd"}
    asked = dict(seed=1, temperature=0.9, auto_temperature=False, logit_bias=few)
    plain = engine.generate("aaaa", 20, **asked)
    moved = engine.generate("aaaa", 20, **asked, **options)
    assert moved.token_ids != plain.token_ids


def test_mirostat_begins_anew_in_each_text(engine):
    asked = dict(seed=1, mirostat_tau=1.0, **HOT)
    assert (
        engine.generate("a", 20, **asked).token_ids == engine.generate("a", 20, **asked).token_ids
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(min_tokens=-1), "min_tokens = -1: expected"),
        (dict(min_tokens=1.5), "min_tokens = 1.5: expected"),
        (dict(stop_token_ids=5), "stop_token_ids = 5: expected"),
        (dict(stop_token_ids="5"), "stop_token_ids = '5': expected"),
        (dict(stop_token_ids=[-1]), r"stop_token_ids = \[-1\]: expected"),
        (dict(stop_token_ids=[9999]), "stop_token_ids = 9999: expected an id from 0 to"),
        (dict(logit_bias={9999: 1}), "logit_bias = 9999: expected an id from 0 to"),
        (dict(bad_words=[5]), r"bad_words = \[5\]: expected"),
        (dict(bad_words=["a", ""]), "bad_words contains an empty string"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(engine, options, message):
    with pytest.raises(ValueError, match=message):
        engine.generate("x", 5, **options)
