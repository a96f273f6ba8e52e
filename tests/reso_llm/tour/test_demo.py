"""The tour: each measurement against a slow twin, and what it says of models without a stage."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import FULL

from reso_llm import network as network_module
from reso_llm.config import STAGES
from reso_llm.decoding.controllers import PhaseSlip
from reso_llm.inference import ResoLLMInference
from reso_llm.stages.fused import soft_cap
from reso_llm.tour import greedy, measurements, stations
from reso_llm.tour.figures import check_figure, save_figure
from reso_llm.tour.measurements import VISIBLE
from reso_llm.tour.probes import (
    DIALOGUES,
    bits_per_byte,
    dialogue_ids,
    goal_vector,
    next_tokens,
    probability,
    read,
    recollected,
    repeated_share,
    warning_trace,
    without,
)
from reso_llm.tour.stations import STATIONS, stations_of, visit

IDS = [0, 2, 72, 105, 33, 4, 3, 90, 91]


@pytest.fixture
def make_engine(tiny_model, byte_tokenizer):
    def make(stages=FULL, max_seq_len=64):
        model = tiny_model(stages=stages, vocab_size=261, max_seq_len=max_seq_len)
        return ResoLLMInference(model, byte_tokenizer, model.config)

    return make


@pytest.fixture
def engine(make_engine):
    return make_engine()


def logits_of(model, ids, state=None, goal=None):
    with torch.no_grad():
        return model(torch.tensor([ids]), state, goal).logits[0].float()


# --- probes


def test_read_is_token_by_token_what_the_model_says(engine):
    model, seen = engine.model, read(engine.model, IDS)
    for t in range(1, len(IDS)):
        p = logits_of(model, IDS[:t])[-1].double().softmax(-1)
        assert seen.surprise_nats[t - 1] == pytest.approx(-math.log(p[IDS[t]]), abs=1e-4)
        assert seen.entropy_nats[t - 1] == pytest.approx(float(-(p * p.log()).sum()), abs=1e-4)
        output = model(torch.tensor([IDS[:t]]))
        assert seen.coherence[t - 1] == pytest.approx(output.diagnostics["coherence"][0, -1].item())
        assert seen.layers_used[t - 1] == (2 if output.diagnostics["deep"][0, -1] else 1)
    assert len(seen.hidden) == len(seen.coherence) == len(IDS) - 1
    assert len(seen.layers_used) == len(IDS)


def test_next_tokens_are_the_most_probable(engine):
    p = logits_of(engine.model, IDS)[-1].softmax(-1)
    found = next_tokens(engine.model, IDS, 3)
    assert [i for i, _ in found] == p.argsort(descending=True)[:3].tolist()
    assert [q for _, q in found] == pytest.approx(p.sort(descending=True).values[:3].tolist())


def test_without_the_binding_memory_the_head_alone_speaks(engine):
    model = engine.model
    x = model.trunk(torch.tensor([IDS])).x
    expected = soft_cap(F.linear(x, model.head_weight), model.config.logit_soft_cap)[0]
    torch.testing.assert_close(logits_of(without(model, "prsc"), IDS), expected.detach())
    assert not torch.allclose(logits_of(model, IDS), expected)


def test_without_phases_attention_is_not_turned_and_no_clock_is_read(engine, monkeypatch):
    before, silenced = logits_of(engine.model, IDS), without(engine.model, "kuramoto")
    found = logits_of(silenced, IDS)
    turned = network_module.turned_by_phases
    monkeypatch.setattr(
        network_module, "turned_by_phases", lambda r, theta, gain: turned(r, theta, 0 * gain)
    )
    engine.model.kuramoto.read.weight.data.zero_()
    torch.testing.assert_close(found, logits_of(engine.model, IDS))
    assert not torch.allclose(found, before)


def test_without_the_field_x_passes_it_unchanged(engine, monkeypatch):
    before, found = (
        logits_of(engine.model, IDS),
        logits_of(without(engine.model, "temporal_smf"), IDS),
    )
    monkeypatch.setattr(engine.model.field, "forward", lambda x, state: (x, state))
    torch.testing.assert_close(found, logits_of(engine.model, IDS))
    assert not torch.allclose(found, before)


def test_without_the_gate_every_token_goes_deep(engine):
    engine.model.gate.threshold.fill_(torch.inf)
    assert set(read(engine.model, IDS).layers_used) == {1}
    assert set(read(without(engine.model, "coherence_gate"), IDS).layers_used) == {2}


def test_without_the_echo_what_was_read_is_not_said_again(engine):
    ids = [*IDS, *IDS]
    told = read(without(engine.model, "echo"), ids).surprise_nats
    engine.model.echo = None
    plain = read(engine.model, ids).surprise_nats
    assert told == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("stage", ["prsc", "kuramoto", "temporal_smf", "coherence_gate", "echo"])
def test_the_model_itself_is_left_alone(engine, stage):
    engine.model.gate.threshold.fill_(torch.inf)
    before = {name: t.clone() for name, t in engine.model.state_dict().items()}
    ids = [*IDS, *IDS]
    found = logits_of(without(engine.model, stage), ids)
    for name, t in engine.model.state_dict().items():
        assert torch.equal(t, before[name])
    assert not torch.allclose(found, logits_of(engine.model, ids))


def test_an_unknown_stage(engine):
    with pytest.raises(ValueError, match="memory"):
        without(engine.model, "memory")


@pytest.mark.parametrize("replies_only", [False, True])
def test_bits_per_byte_counts_the_bytes_that_are_said(engine, replies_only):
    """Control tokens are neither scored nor bytes; a text is cut at the context."""
    t, goal = engine.tokenizer, goal_vector(engine.model, engine.tokenizer, "kites")
    nats = size = 0.0
    for d in DIALOGUES:
        ids = dialogue_ids(t, d)[0][:64]
        start = ids.index(t.assistant_id) if replies_only and t.assistant_id in ids else 0
        start = start if t.assistant_id in ids or not replies_only else len(ids)
        log_p = logits_of(engine.model, ids, goal=goal[None]).log_softmax(-1)
        for at in range(max(1, start), len(ids)):
            if ids[at] >= 5:
                nats -= float(log_p[at - 1, ids[at]])
                size += 1  # a token is a byte here
    expected = nats / math.log(2) / size
    goals = [goal] * len(DIALOGUES)
    found = bits_per_byte(engine.model, t, goals, replies_only=replies_only)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != pytest.approx(bits_per_byte(engine.model, t, replies_only=replies_only))


def test_a_goal_vector_is_what_a_goal_steers_by(engine):
    """It is trusted for less than a goal of training, whose vector has a root mean square of 1."""
    session, words = engine.model.session, "kites and boats"
    engine.model.create_goal(words)
    steering = session.steered_by(session.get_active_goals())
    torch.testing.assert_close(goal_vector(engine.model, engine.tokenizer, words), steering)
    assert steering.square().mean().sqrt().item() == pytest.approx(0.618, abs=1e-3)


def test_probability_is_the_product_over_the_answer(engine):
    model, t = engine.model, engine.tokenizer
    model.update_memory("Olga lives in Oslo")
    ids, expected = [t.bos_id, *t.encode("Olga lives in")], 1.0
    for token in t.encode(" Oslo"):
        p = logits_of(model, ids, recollected(model, "Olga lives in"))[-1].softmax(-1)
        expected, ids = expected * float(p[token]), [*ids, token]
    assert probability(model, t, "Olga lives in", " Oslo") == pytest.approx(expected, rel=1e-3)
    assert probability(model, t, "Olga lives in", " Oslo", recollect=False) < expected


def test_a_loop_warns(engine):
    calm, _ = warning_trace(engine.model, list(range(60, 90)))
    looping, label = warning_trace(engine.model, [60, 61] * 30)
    assert len(looping) == 59
    assert looping[-1] > 0.9 > max(calm)
    assert label == "periodic"


@pytest.mark.parametrize(
    ("ids", "share"),
    [([1, 2, 3], 0.0), ([1, 2, 3, 1, 2, 3], 0.25), ([7] * 12, 0.9), ([1, 2, 3, 4, 5], 0.0)],
)
def test_repeated_share(ids, share):
    assert repeated_share(ids) == pytest.approx(share)


def test_repeated_share_of_nothing():
    assert math.isnan(repeated_share([1, 2]))


# --- the tour


@pytest.fixture(scope="module")
def toured():
    """A tour of a tiny model with every stage, and the engine."""
    from conftest import make_tiny_model

    from reso_llm.tokenizer import ResoTokenizer

    model = make_tiny_model(stages=FULL, vocab_size=261, max_seq_len=64)
    engine = ResoLLMInference(model, ResoTokenizer.train(["bytes alone"], 261), model.config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy, "GREEDY_LENGTH", 24)
        return engine, {name: visit(engine, station, 0) for name, station in STATIONS.items()}


def test_stations_come_in_the_order_of_the_stages(engine):
    ordered = stations_of(engine)
    assert ordered.keys() == STATIONS.keys()
    stages = [station.stage for station in ordered.values()]
    assert stages[-1] == ""
    assert stages[:-1] == sorted(stages[:-1], key=STAGES.index)


def test_a_stage_without_a_station_gets_one(engine, monkeypatch):
    """Guards a new stage that the tour passes by."""
    others = {name: station for name, station in STATIONS.items() if name != "synchrony"}
    monkeypatch.setattr(stations, "STATIONS", others)
    station = stations_of(engine)["kuramoto"]
    saved = visit(engine, station, 0).saved["kuramoto"]
    whole = bits_per_byte(engine.model, engine.tokenizer)
    silenced = bits_per_byte(without(engine.model, "kuramoto"), engine.tokenizer)
    assert saved == pytest.approx(silenced - whole)
    assert "entanglement" not in stations_of(engine)  # nothing of it is in the network


def test_every_station_has_something_to_say_and_leaves_no_trace(toured):
    engine, findings = toured
    for finding in findings.values():
        values = finding.saved | finding.numbers
        assert finding.lines
        assert values
        assert all(math.isfinite(value) for value in values.values())
    assert len(engine.model.session.episodes) == 0
    assert engine.model.get_active_goals() == ()


def test_numbers_are_those_of_the_probes(toured):
    engine, findings = toured
    t, whole = engine.tokenizer, bits_per_byte(engine.model, engine.tokenizer)
    for name, stage in (("bindings", "prsc"), ("synchrony", "kuramoto"),
                        ("field", "temporal_smf"), ("depth", "coherence_gate")):  # fmt: skip
        absent = bits_per_byte(without(engine.model, stage), t)
        assert findings[name].saved[stage] == pytest.approx(absent - whole)
    own = [goal_vector(engine.model, t, d.topic) for d in DIALOGUES]
    pays = bits_per_byte(engine.model, t, replies_only=True) - bits_per_byte(
        engine.model, t, own, replies_only=True
    )
    assert findings["goals"].saved["goal, against none"] == pytest.approx(pays)
    others = bits_per_byte(engine.model, t, own[1:] + own[:1], replies_only=True)
    aims = others - bits_per_byte(engine.model, t, own, replies_only=True)
    assert findings["goals"].saved["goal, against another's"] == pytest.approx(aims)
    for name, trace in findings["stability"].traces.items():
        assert findings["stability"].numbers[name] == max(trace[32:])  # of 63


def test_what_is_bad_is_told(toured):
    """Guards a tour that praises whatever happens."""
    for name in ("bindings", "synchrony", "field"):
        (gain,), last = toured[1][name].saved.values(), toured[1][name].lines[-1]
        word = "helps" if gain > 0 else "HURTS"
        assert (word if abs(gain) >= VISIBLE else "nothing visible") in last


def test_a_small_effect_is_called_none(toured, monkeypatch):
    monkeypatch.setattr(measurements, "VISIBLE", 100.0)
    assert "nothing visible" in visit(toured[0], STATIONS["field"], 0).lines[-1]


def test_slips_are_those_of_the_controller(toured, monkeypatch):
    """Guards a comparison of a text with itself."""
    monkeypatch.setattr(greedy, "GREEDY_LENGTH", 8)
    monkeypatch.setattr(greedy, "SLIPPING", PhaseSlip.published(spike_nats=0.0, cooldown_steps=0))
    finding = visit(toured[0], STATIONS["control"], 0)
    assert finding.traces["slips"]
    assert finding.traces["greedy"] != finding.traces["with slips"]
    assert "spike" in finding.lines[1]


def test_memory_tells_a_fact_and_fades(toured):
    before, after, later = toured[1]["memory"].numbers.values()
    assert before < later < after
    without_echo = float(toured[1]["memory"].lines[2].rpartition(": ")[2])
    assert without_echo < 0.1 * after
    assert "100 texts ago" in toured[1]["memory"].lines[-1]


def test_the_bag_is_exact(toured):
    assert toured[1]["primes"].numbers == {"exact": 1.0}


def test_the_monitor_warns_of_the_loop(toured):
    """Guards a text called looping that does not repeat itself."""
    highest = toured[1]["stability"].numbers
    assert highest["looping"] > 0.5 > highest["clean"]


def test_the_same_seed_gives_the_same_tour(toured):
    engine, findings = toured
    assert visit(engine, STATIONS["stability"], 0) == findings["stability"]
    assert visit(engine, STATIONS["stability"], 1) != findings["stability"]


def test_a_model_without_stages_says_so(make_engine, tmp_path, monkeypatch):
    monkeypatch.setattr(greedy, "GREEDY_LENGTH", 8)
    engine = make_engine(stages=())
    findings = {name: visit(engine, station, 0) for name, station in STATIONS.items()}
    absent = [n for n, s in STATIONS.items() if s.stage]
    assert all("trained without it" in findings[name].lines[0] for name in absent)
    save_figure(findings, tmp_path / "plain.png")
    assert (tmp_path / "plain.png").stat().st_size > 10_000


# --- the figure


def test_the_figure(toured, tmp_path):
    pytest.importorskip("matplotlib")
    save_figure(toured[1], tmp_path / "tour.png")
    assert (tmp_path / "tour.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("tour.docx", ".png"), ("tour", ".png"), ("away/tour.png", "no directory"),
     ("here.png", "a directory"), ("locked.png", "may not write"), ("shut/tour.png", "may not")],
)  # fmt: skip
def test_a_figure_that_cannot_be_written_is_refused(tmp_path, monkeypatch, name, reason):
    pytest.importorskip("matplotlib")
    (tmp_path / "here.png").mkdir()
    (tmp_path / "locked.png").touch()
    (tmp_path / "shut").mkdir()
    for allowed in ("tour.png", "TOUR.PDF", "locked.png", "shut/tour.svg"):
        check_figure(tmp_path / allowed)
    # The owner of these tests may be root, who may write everywhere.
    monkeypatch.setattr("os.access", lambda path, _: path.name not in ("locked.png", "shut"))
    with pytest.raises(ValueError, match=f"^save_figure = .*{name}.*{reason}"):
        check_figure(tmp_path / name)


def test_a_figure_without_matplotlib_is_one_message(toured, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"\[plots\]"):
        save_figure(toured[1], tmp_path / "tour.png")
