"""What a generation reports: traces, events, stops, goals, words, memories; and how it is asked."""

import dataclasses
import json
import math

import pytest
import torch
from conftest import FULL

from reso_llm.decoding.controllers import SRB, PhaseSlip, StabilityTemperature, StochasticResonance
from reso_llm.generation.loop import finish
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.results import result_of, written_text
from reso_llm.generation.targets import word_places
from reso_llm.generation.text_stream import TextStream
from reso_llm.inference import ResoLLMInference
from reso_llm.session import agency
from reso_llm.tokenizer import ResoTokenizer

HOT = dict(temperature=5.0, seed=3)  # cooler texts of a random model end at once
SEEDS = range(60)
TRACES = (
    "entropy_trace", "lyapunov_trace", "temperature_trace", "coherence_trace", "signals_trace",
    "layers_trace",
)  # fmt: skip
SETTLES = SRB.published(
    settled_nats=99, settled_delta_nats=99, settled_coherence=-1, patience=3, candidates=0
)
BUDGET = SRB.published(settled_nats=0, max_tokens=5, candidates=0)
NEVER = (
    SRB.published(settled_nats=0, max_tokens=10**6, candidates=0),
    PhaseSlip.published(spike_nats=99, confident_nats=0, stale_steps=math.inf),
    StochasticResonance(amplitude=0),
    StabilityTemperature(),
)


@pytest.fixture
def make_engine(tiny_model, byte_tokenizer):
    def make(**changes):
        model = tiny_model(**(dict(stages=FULL, vocab_size=264, max_seq_len=48) | changes))
        return ResoLLMInference(model, byte_tokenizer, model.config)

    return make


@pytest.fixture
def engine(make_engine):
    return make_engine()


def lengths(result):
    return {name: len(getattr(result, name)) for name in TRACES}


# --- a report changes nothing -------------------------------------------------------------------


def finished_job(engine, prompts=("A red fox ran",)):
    options = GenerationOptions(max_length=12, temperature=5.0)
    job = engine.start(prompts, options, range(3, 3 + len(prompts)))
    finish(job.steps, job.rows)
    return job


def results_of(engine, job):
    session = engine.model.session
    with torch.inference_mode():
        texts = [written_text(job.context, b, job.goals) for b in range(len(job.rows))]
        return [
            result_of(row, text, session, job.goals, job.context.warnings(b), 1.0).to_dict()
            for b, (row, text) in enumerate(zip(job.rows, texts, strict=True))
        ]


def test_a_result_may_be_asked_for_twice(engine, monkeypatch):
    """Guards reports that moved goals, foci and the clock: asked twice, they counted twice."""
    monkeypatch.setattr(agency, "share_said", lambda goal, text: 1.0)  # all achieve it
    goal = engine.model.create_goal("be kind")
    job, session = finished_job(engine), engine.model.session
    first, second = results_of(engine, job), results_of(engine, job)
    assert first == second
    assert first[0]["goals_achieved"] == ["be kind"]
    assert first[0]["attention_summary"]
    assert (session.clock, session.get_attention_foci(), goal.progress) == (0.0, (), 0.0)
    closed = engine.close(job)[0].to_dict()
    assert closed | {"generation_time_ms": 1.0} == first[0]
    assert (session.clock, goal.progress, goal.achieved) == (1.0, 1.0, True)
    assert session.get_attention_foci()
    assert results_of(engine, job) == first, "also after the session took note"


def test_the_session_notes_each_row_once(engine):
    engine.close(finished_job(engine, ["Once upon", "a time"]))
    assert engine.model.session.clock == 2.0


def test_rows_of_a_batch_achieve_a_goal_each(engine, monkeypatch):
    monkeypatch.setattr(agency, "share_said", lambda goal, text: 1.0)
    engine.model.create_goal("anything")
    results = engine.generate_batch(["x", "y"], 8, **HOT)
    assert [r.goals_achieved for r in results] == [("anything",), ("anything",)]
    assert engine.model.get_active_goals() == ()


# --- traces, events, stops ----------------------------------------------------------------------


def test_every_trace_has_one_value_a_token(engine):
    result = engine.generate("Once upon", 30, **HOT)
    assert result.tokens_generated == len(result.token_ids) > 10
    assert set(lengths(result).values()) == {result.tokens_generated}
    assert result.prompt_tokens == len(engine.prompt_ids("Once upon"))
    assert all(0 <= r <= 1 for r in result.coherence_trace)
    assert set(result.layers_trace) <= {1, 2}


UNWATCHED = tuple(stage for stage in FULL if stage != "stability")


@pytest.mark.parametrize("stages", [FULL, (), ("stochastic_resonance",), ("agency",), UNWATCHED])
def test_without_metrics_the_text_is_the_same_and_nothing_is_measured(make_engine, stages):
    engine = make_engine(stages=stages)
    full = engine.generate("A red fox ran", 20, **HOT)
    foci = engine.model.session.agency and engine.model.get_attention_foci()
    bare = engine.generate("A red fox ran", 20, metrics=False, **HOT)
    assert (bare.token_ids, bare.text) == (full.token_ids, full.text)
    assert set(lengths(bare).values()) == {0}
    assert (bare.attention_summary, bare.attention_sentence) == ((), "")
    assert (bare.stability, math.isnan(bare.lyapunov)) == ("", True)
    assert bool(full.attention_summary) == ("agency" in stages)
    if foci:
        assert engine.model.get_attention_foci() == foci


@pytest.mark.parametrize(
    ("controller", "reason", "tokens"), [(SETTLES, "srb_settled", 4), (BUDGET, "srb_budget", 5)]
)
def test_srb_ends_the_text_and_says_why(engine, controller, reason, tokens):
    for metrics in (True, False):
        result = engine.generate("Once upon", 40, controllers=[controller], metrics=metrics, **HOT)
        assert (result.stop_reason, result.tokens_generated) == (reason, tokens)
        (event,) = result.events
        assert (event.step, event.controller, event.effect) == (tokens - 1, "srb", "stop")
        assert f"srb_{event.cause}" == reason


def test_controllers_that_never_act_change_nothing(make_engine):
    engine = make_engine()
    plain = engine.generate("Once upon", 40, **HOT)
    ruled = engine.generate("Once upon", 40, controllers=NEVER, **HOT)
    assert ruled.events == ()
    assert ruled.token_ids == plain.token_ids
    assert ruled.temperature_trace == plain.temperature_trace
    assert ruled.entropy_trace == plain.entropy_trace


def test_the_stability_temperature_needs_the_monitor_and_no_metrics(make_engine):
    options = dict(controllers=[StabilityTemperature()], **HOT)
    engine = make_engine()
    with_metrics = engine.generate("x", 20, **options)
    assert engine.generate("x", 20, metrics=False, **options).token_ids == with_metrics.token_ids
    without = make_engine(stages=UNWATCHED)
    with pytest.raises(ValueError, match="monitor, which is off"):
        without.generate("x", 20, **options)


def test_stochastic_resonance_of_the_model_repeats_with_the_seed(make_engine):
    """In a loop the model is noisy, and the noise follows the seed."""
    engine = make_engine(stages=("stochastic_resonance",))
    prompt = "ababababababababababab"
    first, again = (engine.generate(prompt, 12, **HOT) for _ in range(2))
    assert first.token_ids == again.token_ids
    assert first.entropy_trace == again.entropy_trace
    other = engine.generate(prompt, 12, temperature=5.0, seed=4)
    assert other.entropy_trace[0] != first.entropy_trace[0]


@pytest.mark.parametrize("at", range(1, 8))
def test_ctrl_c_ends_the_text_and_keeps_it(engine, monkeypatch, at):
    """Wherever it falls: while a token is read, measured, or told."""
    told = []

    def tell(piece):
        told.append(piece)
        if len(told) == at:
            raise KeyboardInterrupt

    result = engine.generate("Once upon", 40, on_text=tell, **HOT)
    assert result.stop_reason == "interrupted"
    assert result.text.startswith("".join(told[:at]))
    assert set(lengths(result).values()) == {result.tokens_generated}
    from reso_llm.decoding.row import Row

    observe, count = Row.observe, []

    def interrupted(self, *args):
        observe(self, *args)
        count.append(1)
        if len(count) == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(Row, "observe", interrupted)
    result = engine.generate(
        "Once upon", 40, controllers=[PhaseSlip.published(spike_nats=0.1)], **HOT
    )
    assert (result.stop_reason, result.tokens_generated) == ("interrupted", at - 1)
    assert set(lengths(result).values()) == {at - 1}
    assert all(event.step < at - 1 for event in result.events)


# --- piece by piece -----------------------------------------------------------------------------


def streamed(stream):
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


@pytest.mark.parametrize("options", [{}, dict(stop=["e", "\ufffd"]), dict(metrics=False)])
def test_a_stream_is_the_generation(make_engine, options):
    expected = make_engine().generate("Once upon", 30, **HOT, **options)
    pieces, result = streamed(make_engine().stream("Once upon", 30, **HOT, **options))
    assert "".join(pieces) == result.text
    assert all(pieces)
    same = {"generation_time_ms": 0.0}
    assert str(dataclasses.replace(result, **same)) == str(dataclasses.replace(expected, **same))


def test_streams_at_the_same_time_do_not_meet(make_engine):
    """Each has a monitor of its own; the session's is that of the one begun last."""
    alone = [make_engine().generate(p, 12, **HOT) for p in ("one", "another")]
    engine = make_engine()
    streams = [engine.stream(p, 12, **HOT) for p in ("one", "another")]
    ends = {}
    while len(ends) < 2:
        for i, stream in enumerate(streams):
            try:
                next(stream)
            except StopIteration as end:
                ends.setdefault(i, end.value)
    for i in (0, 1):
        assert ends[i].token_ids == alone[i].token_ids
        assert str(ends[i].lyapunov_trace) == str(alone[i].lyapunov_trace)


def test_a_stop_string_is_found_wherever_it_begins(byte_tokenizer):
    """Only the end of the text is searched for it."""
    stream = TextStream(byte_tokenizer, ("ab", "bcd"), None)
    assert [stream.add(t) for t in byte_tokenizer.encode("xxbcab")] == [False] * 5 + [True]
    assert stream.close() == "xxbc"


# --- goals --------------------------------------------------------------------------------------


def test_progress_is_that_of_the_new_words(engine):
    """The prompt says all of its goal, the reply none."""
    engine.model.create_goal("be kind, be kind", "maintenance")
    result = engine.generate("kind", 12, temperature=1.0, seed=1)
    assert result.text
    assert result.goal_progress == {"be kind, be kind": 0.0}
    assert result.goals_achieved == ()


def test_a_goal_is_achieved_once_and_dropped(engine, monkeypatch):
    monkeypatch.setattr(agency, "share_said", lambda goal, text: 1.0)
    result = engine.generate_with_goal("x", "anything", 8, **HOT)
    assert (result.goals_achieved, dict(result.goal_progress)) == (("anything",), {"anything": 1.0})
    assert engine.model.get_active_goals() == ()


def test_a_goal_steers_also_past_the_context(make_engine, tiny_model):
    """Reading again knows the goal: the tokens are those of full passes with it."""
    engine = make_engine(max_seq_len=10)
    model, tokenizer = engine.model, engine.tokenizer
    model.create_goal("somewhere else")
    result = engine.generate("0123456789", 6, temperature=0.0, guidance=0.5)
    plain = make_engine(max_seq_len=10).generate("0123456789", 6, temperature=0.0)
    assert result.entropy_trace != pytest.approx(plain.entropy_trace, abs=1e-3)
    ids = engine.prompt_ids("0123456789")
    window = [ids[0], *ids[-4:]]
    with torch.no_grad():
        goal = model.session.steered_by(model.get_active_goals())[None]
        aimed, none = (model(torch.tensor([window]), goal=g).logits[0, -1] for g in (goal, None))
        logits = none + 0.5 * (aimed - none)
    logits[[1, 2, 3, *range(tokenizer.vocab_size, 264)]] = -math.inf
    p = logits.softmax(-1)
    entropy = -(p[p > 0] * p[p > 0].log()).sum().item()
    assert result.entropy_trace[0] == pytest.approx(entropy, abs=1e-4)


# --- words, memories, the clock -----------------------------------------------------------------


def test_the_words_of_a_text():
    """Content words whole, as first written; not the last one, which the length may have cut."""
    tokenizer = ResoTokenizer.train(["the cat, the café; 日本 x" * 9], 300)
    text = "The Cat, the café isn't (12) - 日本 x."
    ids = [0, *tokenizer.encode(text), 4, 2, *tokenizer.encode("cat unfin")]
    places = word_places(tokenizer, ids)
    assert list(places)[:3] == ["Cat", "café", "12"]
    assert "".join(list(places)[3:]) == "日本"
    for word, at in places.items():
        assert word.lower() in tokenizer.decode([ids[i] for i in at]).lower()
    assert tokenizer.decode([ids[i] for i in places["Cat"]]).lower().count("cat") == 2
    assert not {0, ids.index(4), ids.index(2)} & {i for at in places.values() for i in at}
    assert word_places(tokenizer, []) == {}


def test_the_summary_is_of_this_text_alone(make_engine):
    """What an earlier text attended to is in the session's foci, not in this result."""
    fresh = make_engine().generate("red blue", 10, **HOT)
    engine = make_engine()
    engine.generate("something else was said before", 30, temperature=5.0, seed=1)
    later = engine.generate("red blue", 10, **HOT)
    assert later.attention_summary == fresh.attention_summary
    foci = later.attention_summary
    assert 0 < len(foci) <= engine.config.agency.max_foci
    assert [f.salience for f in foci] == sorted((f.salience for f in foci), reverse=True)
    said = "red blue" + later.text
    assert all(f.target in said for f in foci)
    assert engine.model.get_attention_foci()[0].salience >= foci[0].salience
    assert all(f.target in later.attention_sentence for f in foci)


def test_the_clock_runs_on_by_one_a_text(engine):
    clock = lambda: engine.model.session.clock  # noqa: E731
    engine.generate("x", 2)
    assert clock() == 1
    engine.generate_batch(["a", "b", "c"], 2)
    assert clock() == 4
    streamed(engine.stream("x", 2))
    assert clock() == 5
    engine.generate_multi_agent("x", [engine], max_length=2)
    assert clock() == 7


def test_json_holds_everything_and_no_nan(engine):
    engine.model.create_goal("be kind")
    result = engine.generate(
        "A red fox", 12, controllers=[PhaseSlip.published(spike_nats=0.1)], **HOT
    )
    assert math.isnan(result.signals_trace[0].delta_nats)
    told = json.loads(result.to_json())
    assert told.keys() == {field.name for field in dataclasses.fields(result)}
    assert told["signals_trace"][0]["delta_nats"] is None
    assert told["signals_trace"][1]["delta_nats"] == result.signals_trace[1].delta_nats
    assert told["events"][0] == result.events[0]._asdict()
    assert told["attention_summary"][0]["target"] == result.attention_summary[0].target
    assert told["goal_progress"] == {"be kind": 0.0}
    assert told["lyapunov"] == result.lyapunov


def test_damage_is_told_with_and_without_metrics(make_engine):
    engine = make_engine(tie_embeddings=False)
    with torch.no_grad():
        engine.model.head.weight[7, 0] = math.nan
    for metrics in (True, False):
        with pytest.raises(FloatingPointError, match="not finite"):
            engine.generate_batch(["x", "yy"], 3, metrics=metrics)
        with pytest.raises(FloatingPointError, match="not finite"):
            engine.generate_multi_agent("x", [engine], "consensus", 3, metrics=metrics)


@pytest.mark.parametrize("description", [5, None, ["be kind"]])
def test_a_goal_that_is_no_text_is_refused(engine, description):
    with pytest.raises(ValueError, match=r"goal_description = .*: expected a string"):
        engine.generate_with_goal("x", description, 2)
