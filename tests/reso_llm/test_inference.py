"""The engine against a slow twin that has no cache and reads the whole window for every token."""

import dataclasses
import json
import math

import pytest
import torch
from conftest import FULL

from reso_llm.data.conversation import Message
from reso_llm.decoding.sampling import SamplingOptions, sample
from reso_llm.generation.context import Context
from reso_llm.generation.results import GenerationResult
from reso_llm.generation.stepper import Stepper
from reso_llm.inference import ResoLLMInference
from reso_llm.stages.echo import EchoState, TextCounts
from reso_llm.tokenizer import SPECIAL_TOKENS, ResoTokenizer
from run_core.checkpoint import save_directory

VOCABULARY = 264  # 261 tokens and three ids without one
CONTROL = {ResoTokenizer.system_id, ResoTokenizer.user_id, ResoTokenizer.assistant_id}


@pytest.fixture
def engine(make_engine):
    return make_engine()


@pytest.fixture
def make_engine(tiny_model, byte_tokenizer):
    def make(**changes):
        model = tiny_model(
            **({"stages": FULL, "vocab_size": VOCABULARY, "max_seq_len": 32} | changes)
        )
        return ResoLLMInference(model, byte_tokenizer, model.config)

    return make


@pytest.fixture
def every_forward_counts(monkeypatch):
    """The model itself reads every token, so that a test may put words into its mouth."""
    monkeypatch.setattr(Stepper, "supports", staticmethod(lambda model: False))


@pytest.fixture
def scripted(make_engine, byte_tokenizer, every_forward_counts):
    """An engine whose model says the given ids, whatever it is asked."""

    def make(says, **changes):
        ids = byte_tokenizer.encode(says) if isinstance(says, str) else list(says)
        engine = make_engine(**changes)
        step = iter([*ids, *[byte_tokenizer.end_id] * 100])
        forward = engine.model.forward

        def speak(*args, **options):
            output = forward(*args, **options)
            logits = torch.full_like(output.logits, -50.0)
            logits[:, -1, next(step)] = 50.0
            return output._replace(logits=logits)

        engine.model.forward = speak
        return engine

    return make


def read_window(model, everything, num_given, opening, dropped):
    """Logits (1,V) after ids of which some between the opening and the newest were dropped.

    The echo has read those before, as a text apart; the model's own words count less.
    """
    state = model.init_state()
    counts, own_weight = TextCounts.empty(model.echo.max_order), model.echo.own_weight
    for i in range(opening, opening + dropped):
        counts = counts.read(everything[i], 1.0 if i < num_given else own_weight)
    counts = counts.read(-1) if dropped else counts
    window = [*range(opening), *range(opening + dropped, len(everything))]
    for weight, own in ((1.0, False), (own_weight, True)):
        ids = [everything[i] for i in window if (i >= num_given) == own]
        if ids:
            state = state.with_stage("echo", EchoState((counts,), weight))
            output = model(torch.tensor([ids]), state)
            state = output.state
            (counts,) = state.stages["echo"].rows
    return output.logits[:, -1].clone()


@torch.no_grad()
def generate_reference(engine, prompt_ids, max_length, options, seed):
    """The stated policy, plainly: for every token the whole window is read anew.

    A window that is full is replaced by its opening (<|bos|> and a short system message) and the
    newest tokens, half of the context together.
    """
    tokenizer, context = engine.tokenizer, engine.config.max_seq_len
    opening = prompt_ids[:1]
    if prompt_ids[1:2] == [tokenizer.system_id]:
        system = prompt_ids[: prompt_ids.index(tokenizer.end_id) + 1]
        opening = system if len(system) <= context // 4 + context // 8 else opening
    last_turn = [i for i, token in enumerate(prompt_ids) if token == tokenizer.assistant_id]
    given = last_turn[-1] + 1 if last_turn else len(prompt_ids)  # the rest is the model's own
    generator = torch.Generator().manual_seed(seed)
    everything, new, entropies, dropped = list(prompt_ids), [], [], 0
    while len(new) < max_length:
        if len(everything) - dropped > context:
            newest = max(1, context // 2 - len(opening))
            dropped = len(everything) - newest - len(opening)
        logits = read_window(engine.model, everything, given, len(opening), dropped)
        logits[:, [*CONTROL, *range(tokenizer.vocab_size, engine.config.vocab_size)]] = -math.inf
        p = logits.softmax(-1)[0]
        entropies.append(-(p[p > 0] * p[p > 0].log()).sum().item())
        words = [i for i in new if i >= len(SPECIAL_TOKENS)]
        token = int(sample(logits, torch.tensor([words]).long(), options, generator))
        new.append(token)
        if token in (tokenizer.end_id, tokenizer.bos_id):
            break
        everything.append(token)
    return new, entropies, dropped


def same_as_reference(engine, prompt, max_length, seed=0, **options):
    result = engine.generate(prompt, max_length, seed=seed, **options)
    if isinstance(prompt, str):
        prompt_ids = [engine.tokenizer.bos_id, *engine.tokenizer.encode(prompt)]
    else:
        prompt_ids = engine.tokenizer.encode_prompt(prompt)
    ids, entropies, dropped = generate_reference(
        engine, prompt_ids, max_length, SamplingOptions(**options), seed
    )
    assert list(result.token_ids) == ids
    assert result.entropy_trace == pytest.approx(entropies, abs=1e-4)
    told = [w for w in result.warnings if "dropped" in w]
    assert [str(dropped) in w for w in told] == [True] * bool(dropped)
    return result


# --- against the slow twin ----------------------------------------------------------------------

NO_END = dict(top_p=0.9, temperature=1.5)


@pytest.mark.parametrize("max_length", [0, 1, 10])
def test_within_the_context(engine, max_length):
    result = same_as_reference(engine, "Once upon", max_length, **NO_END)
    assert result.warnings == ()
    assert result.tokens_generated <= max_length


@pytest.mark.parametrize("max_seq_len", [2, 3, 4, 9, 32])
@pytest.mark.parametrize("prompt", ["", "a", "a prompt that is longer than the whole context is."])
def test_past_the_context(make_engine, max_seq_len, prompt):
    """Generation never stops for lack of room, whatever is full: prompt, context or both."""
    engine = make_engine(max_seq_len=max_seq_len)
    result = same_as_reference(engine, prompt, 60, seed=3, **NO_END)
    longest = len(prompt) + 1 + result.tokens_generated - 1
    assert any("dropped" in w for w in result.warnings) == (longest > max_seq_len)


@pytest.mark.parametrize("size", [0, 3, 12, 13, 60])
def test_a_system_message_stays_when_the_context_is_full(make_engine, monkeypatch, size):
    """One of at most three eighths of the context, 12 bytes here, whatever of the text is long."""
    engine = make_engine(max_seq_len=40)
    t, openings = engine.tokenizer, []
    read_alone = Context._read_alone
    monkeypatch.setattr(
        Context,
        "_read_alone",
        lambda self, kept, padding: (
            openings.append((kept.given + kept.own)[:3]) or read_alone(self, kept, padding)
        ),
    )
    for question in ("hi", "a question that is longer than the whole context is."):
        chat = [Message("system", "s" * size), Message("user", question)]
        same_as_reference(engine, chat, 60, seed=3, **NO_END)
    system = tuple(t.encode_conversation(chat)[0][:3])
    assert len(openings) >= 4
    assert all((opening == system) == (size <= 12) for opening in openings[1:])


def test_a_reply_that_an_assistant_message_begins_goes_on(engine):
    chat = [Message("user", "Hi"), Message("assistant", "Well, ")]
    result = same_as_reference(engine, chat, 20)
    ids = [*engine.tokenizer.encode_prompt(chat[:1]), *engine.tokenizer.encode("Well, ")]
    assert result.prompt_tokens == len(ids)
    assert generate_reference(engine, ids, 20, SamplingOptions(), 0)[0] == list(result.token_ids)


def test_a_conversation(engine):
    chat = [Message("system", "Be kind."), Message("user", "Hi <|end|>")]
    same_as_reference(engine, chat, 20)
    assert (
        engine.generate([tuple(m) for m in chat], 20, seed=0).token_ids
        == engine.generate(chat, 20, seed=0).token_ids
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=0.0),
        dict(top_k=3),
        dict(min_p=0.2),
        dict(repetition_penalty=1.5),
        dict(temperature=0.0, repetition_penalty=1.3),
    ],
)
def test_with_options(make_engine, options):
    same_as_reference(make_engine(max_seq_len=16), "options", 30, **options)


@torch.no_grad()
def test_greedy_is_the_argmax_of_full_passes(engine):
    prompt = "full"
    result = engine.generate(prompt, 12, temperature=0.0)
    ids = [engine.tokenizer.bos_id, *engine.tokenizer.encode(prompt)]
    for token in result.token_ids:
        logits = engine.model(torch.tensor([ids])).logits[0, -1].clone()
        logits[[*CONTROL, 261, 262, 263]] = -math.inf
        assert token == int(logits.argmax())
        ids.append(token)


def test_repetition_penalty_is_felt(engine):
    """After a prompt from which the model, left alone, says something twice."""
    prompts = [c * 4 for c in "abcdefghijklmnop"]
    results = [(p, engine.generate(p, 20, temperature=0.0)) for p in prompts]
    repeating = [r for r in results if len(set(r[1].token_ids)) < r[1].tokens_generated]
    prompt, plain = repeating[0]
    punished = engine.generate(prompt, 20, temperature=0.0, repetition_penalty=50.0)
    assert len(set(punished.token_ids)) == len(punished.token_ids)
    assert punished.token_ids != plain.token_ids


# --- repeatability ------------------------------------------------------------------------------


def test_same_seed_same_text(engine):
    first = engine.generate("hello", 20, seed=7)
    engine.generate("something else in between", 5, seed=1)
    again = engine.generate("hello", 20, seed=7)
    others = {engine.generate("hello", 20, seed=seed).token_ids for seed in range(8, 14)}
    assert first.token_ids == again.token_ids
    assert first.text == again.text
    assert len(others) > 1


def test_a_drawn_seed_is_reported_and_repeats(engine):
    first = engine.generate("hello", 20)
    again = engine.generate("hello", 20, seed=first.seed)
    assert first.token_ids == again.token_ids
    assert engine.generate("hello", 20).seed != first.seed


def test_generation_leaves_the_global_generator_alone(engine):
    """Without a seed it once reseeded torch: a sample drawn in training changed the training."""
    state = torch.get_rng_state()
    engine.generate("hello", 5)
    assert torch.equal(torch.get_rng_state(), state)


# --- stopping and streaming ---------------------------------------------------------------------


def streamed(engine, prompt="", max_length=100, **options):
    pieces = []
    result = engine.generate(prompt, max_length, on_text=pieces.append, **options)
    assert "".join(pieces) == result.text
    assert all(pieces)
    return result, pieces


def test_the_model_ends_its_turn(scripted, byte_tokenizer):
    result, _ = streamed(scripted("hello"))
    assert (result.text, result.stop_reason, result.tokens_generated) == ("hello", "end", 6)
    assert result.token_ids == (*byte_tokenizer.encode("hello"), byte_tokenizer.end_id)
    assert len(result.entropy_trace) == 6


def test_a_new_document_is_an_end_too(scripted, byte_tokenizer):
    ids = [*byte_tokenizer.encode("hi"), byte_tokenizer.bos_id, *byte_tokenizer.encode("more")]
    result, _ = streamed(scripted(ids))
    assert (result.text, result.stop_reason) == ("hi", "end")


def test_length(scripted):
    result, _ = streamed(scripted("hello"), max_length=3)
    assert (result.text, result.stop_reason, result.tokens_generated) == ("hel", "length", 3)


def test_no_tokens_at_all(scripted):
    result, pieces = streamed(scripted("hello"), max_length=0)
    assert (result.text, result.stop_reason, result.token_ids) == ("", "length", ())
    assert (pieces, result.entropy_trace, result.warnings) == ([], (), ())


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (["STOP"], "one ST two STO three "),  # split over tokens, after two false starts
        (["two"], "one ST "),
        (["zzz", "STO"], "one ST two "),
        (["STO", "STOP"], "one ST two "),
        (["ST", "e S"], "on"),  # the one that is complete first
        (["TO", "STO"], "one ST two "),  # the longer of two that end together
        (["STOP more", "P m"], "one ST two STO three STO"),
        ("two", "one ST "),  # a string is one stop, not three letters
        (["o"], ""),
    ],
)
def test_stop_strings(scripted, stop, text):
    result, _ = streamed(scripted("one ST two STO three STOP more"), stop=stop)
    assert (result.text, result.stop_reason) == (text, "stop")


def test_a_stop_string_that_does_not_come(scripted):
    """What was held back as its possible beginning is told at the end."""
    result, pieces = streamed(scripted("one STO"), stop=["STOP"])
    assert (result.text, result.stop_reason) == ("one STO", "end")
    assert pieces[-1] == "STO"


def test_a_stop_string_that_overlaps_itself(scripted):
    result, _ = streamed(scripted("xaaab"), stop=["aab"])
    assert (result.text, result.stop_reason) == ("xa", "stop")


def test_text_before_a_stop_string_inside_one_token_is_told(tiny_model, every_forward_counts):
    """A token may hold the end of the text, the stop string, and what comes after it."""
    tokenizer = ResoTokenizer.train(["abcd " * 50], 264)
    (token,) = tokenizer.encode("abcd")
    model = tiny_model(stages=FULL, vocab_size=264)
    engine = ResoLLMInference(model, tokenizer, model.config)
    logits = torch.full((1, 1, 264), -50.0).index_fill(-1, torch.tensor([token]), 50.0)
    forward = model.forward
    model.forward = lambda *args: forward(*args)._replace(logits=logits)
    result, pieces = streamed(engine, stop=["bc"])
    assert (result.text, pieces, result.tokens_generated) == ("a", ["a"], 1)


@pytest.mark.parametrize("text", ["né à Zürich", "日本語です", "ok 👩‍👩‍👧 ok", "สวัสดี"])
def test_streaming_never_emits_half_a_character(scripted, text):
    """Byte tokens: every character beyond ASCII takes several."""
    result, pieces = streamed(scripted(text))
    assert result.text == text
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) == len(text)


def test_a_character_cut_by_the_length_shows_as_one(scripted):
    result, pieces = streamed(scripted("aé"), max_length=2)
    assert (result.text, pieces) == ("a\ufffd", ["a", "\ufffd"])


def test_random_bytes_stream_to_the_same_text(engine, byte_tokenizer):
    for seed in range(5):
        result, _ = streamed(engine, max_length=40, temperature=3.0, seed=seed, stop=["\n\n"])
        if result.stop_reason != "stop":
            assert result.text == byte_tokenizer.decode(result.token_ids)


# --- what is never generated, and what is refused -----------------------------------------------


def test_control_tokens_and_ids_without_a_token_are_never_generated(scripted, byte_tokenizer):
    """The model wants nothing else; the engine does not let it (FAULTS 23)."""
    wanted = [*CONTROL, 261, 262, 263] * 3
    result = scripted(wanted).generate("x", len(wanted), seed=0)
    assert not set(result.token_ids) & {*CONTROL, 261, 262, 263}
    assert all(math.isfinite(h) for h in result.entropy_trace)


def test_damaged_weights_are_told(make_engine):
    engine = make_engine(tie_embeddings=False)
    with torch.no_grad():
        engine.model.head.weight[7, 0] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.generate("x", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_length=-1), "max_length = -1"),
        (dict(temperature=-1.0), "temperature"),
        (dict(top_p=math.nan), "top_p"),
        (dict(stop=["a", ""]), "empty string"),
        (dict(stop=""), "empty string"),
        (dict(prompt=[("robot", "hi")]), "unknown role 'robot'"),
        (dict(prompt="\ud800"), "lone surrogate"),
    ],
)
def test_wrong_arguments_are_refused(engine, options, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(**({"prompt": "x"} | options))


# --- the three belong together (FAULTS 24) ------------------------------------------------------


def test_a_tokenizer_with_too_many_tokens_is_refused(tiny_model, byte_tokenizer):
    model = tiny_model(vocab_size=260)
    with pytest.raises(ValueError, match="261 tokens, but the model knows 260"):
        ResoLLMInference(model, byte_tokenizer, model.config)


def test_another_configuration_is_refused(tiny_model, byte_tokenizer):
    model = tiny_model(vocab_size=261)
    other = dataclasses.replace(model.config, max_seq_len=64)
    with pytest.raises(ValueError, match="config differs"):
        ResoLLMInference(model, byte_tokenizer, other)


@pytest.fixture
def saved(tiny_model, tmp_path):
    def save(tokenizer, fingerprint, drop=()):
        model = tiny_model(stages=FULL, vocab_size=VOCABULARY)
        documents = {
            "config.json": model.config.to_dict(),
            "tokenizer.json": tokenizer.to_json(),
            "training.json": {"tokenizer_fingerprint": fingerprint},
        }
        kept = {name: body for name, body in documents.items() if name not in drop}
        save_directory(tmp_path / "m", tensors={"model": model.state_dict()}, documents=kept)
        return model, tmp_path / "m"

    return save


def test_from_pretrained_generates_as_the_saved_model_did(saved, byte_tokenizer):
    model, path = saved(byte_tokenizer, byte_tokenizer.fingerprint)
    loaded = ResoLLMInference.from_pretrained(path)
    expected = ResoLLMInference(model, byte_tokenizer, model.config).generate("hi", 20, seed=1)
    assert loaded.generate("hi", 20, seed=1).token_ids == expected.token_ids


def test_a_swapped_tokenizer_of_the_same_size_is_refused(saved):
    ours, theirs = (ResoTokenizer.train([text * 20], 263) for text in ("aabb ", "ccdd "))
    assert ours.vocab_size == theirs.vocab_size
    _, path = saved(theirs, ours.fingerprint)
    with pytest.raises(ValueError, match="not the tokenizer this model was trained with"):
        ResoLLMInference.from_pretrained(path)


@pytest.mark.parametrize("path", [3, ["runs/first"], b"runs/first"])
def test_a_path_of_another_type_is_named(path):
    with pytest.raises(ValueError, match=r"directory = .*: expected the path of a checkpoint"):
        ResoLLMInference.from_pretrained(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "training.json"])
def test_a_directory_that_is_no_checkpoint_says_what_is_missing(saved, byte_tokenizer, name):
    _, path = saved(byte_tokenizer, byte_tokenizer.fingerprint, drop=[name])
    with pytest.raises(ValueError, match=f"has no {name}"):
        ResoLLMInference.from_pretrained(path)


# --- the result ---------------------------------------------------------------------------------


def test_the_result_is_frozen_and_goes_through_json(engine):
    result = engine.generate("hello", 5, seed=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.text = "other"
    again = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert again.keys() == {f.name for f in dataclasses.fields(GenerationResult)}
    assert (again["text"], again["seed"], again["tokens_generated"]) == (
        result.text, result.seed, len(result.token_ids),
    )  # fmt: skip
    assert result.generation_time_ms > 0


def test_uniform_logits_have_the_entropy_of_the_usable_tokens(make_engine):
    """Before temperature and filters: ln 258, of 261 tokens without the three turn openers."""
    engine = make_engine(stages=(), tie_embeddings=False)
    with torch.no_grad():
        engine.model.head.weight.zero_()
    result = engine.generate("x", 5, seed=0, temperature=0.3, top_k=1)
    assert result.entropy_trace == pytest.approx([math.log(258)] * len(result.entropy_trace))


@pytest.mark.parametrize(
    ("method", "value", "said"),
    [
        ("update_memory", 3, "text = 3: expected a string"),
        ("recall", 3, "query = 3: expected a string"),
    ],
)
def test_a_text_of_another_type_is_named(engine, method, value, said):
    with pytest.raises(ValueError, match=said):
        getattr(engine, method)(value)


def test_a_goal_without_a_word_is_named(engine):
    with pytest.raises(ValueError, match="goal_description = ' ': expected a string with a word"):
        engine.generate_with_goal("Hi", " ", 3)
