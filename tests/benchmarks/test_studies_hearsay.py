"""The study of heard facts: what a listener gains, by fidelity, on a tiny model."""

import pytest
import torch

from benchmarks.kit.facts import forget
from benchmarks.kit.replies import reply_nats
from benchmarks.studies import hearsay
from reso_llm.inference import ResoLLMInference

CHAT = [("user", "Hi")]


@pytest.fixture
def make_engine(tiny_model, byte_tokenizer):
    def make(seed=0):
        stages = ("kuramoto", "temporal_smf", "echo")
        model = tiny_model(seed, stages=stages, vocab_size=261, max_seq_len=256)
        return ResoLLMInference(model, byte_tokenizer, model.config)

    return make


def test_reply_nats_is_that_of_a_full_pass(make_engine):
    engine = make_engine()
    prompt, reply = engine.prompt_ids(CHAT), engine.tokenizer.encode("all of it")
    with torch.no_grad():
        logits = engine.model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]
    logits[:, [1, 2, 3]] = -torch.inf  # turn openers, which the engine may not write
    expected = -logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None]).mean()
    engine.model.echo.own_weight = 1.0  # as one pass counts them
    assert reply_nats(engine, CHAT, "all of it") == pytest.approx(expected.item(), rel=1e-4)
    assert engine.model.session.clock == 0
    with pytest.raises(ValueError, match="with a token"):
        reply_nats(engine, CHAT, "")


def test_gains_grow_with_fidelity(make_engine):
    teller, listener = make_engine(), make_engine(1)
    rows = hearsay.gains(teller, listener, seed=0, count=2)
    told = {row["fidelity"]: row["told"][0] for row in rows}
    assert [*told] == [*hearsay.FIDELITIES, "itself"]
    assert told[0.25] == told[0.5] == 0 < told[0.55] < told[0.75] < told[1.0]
    text = hearsay.text([{"listener": "tiny"} | row for row in rows])
    assert "| tiny | 0.25 | 0.00 [0.00, 0.00] | 0.00 [0.00, 0.00] |" in text


def test_a_listener_gains_what_it_would_by_being_told(make_engine):
    """At fidelity 1, with the teller's weights."""
    rows = {row["fidelity"]: row for row in hearsay.gains(make_engine(), make_engine(), 0, 2)}
    for kind in ("told", "untold"):
        assert rows[1.0][kind] == pytest.approx(rows["itself"][kind], abs=1e-6)


def test_each_fact_meets_a_listener_that_knows_nothing(make_engine):
    teller, listener = make_engine(), make_engine(1)
    hearsay.hears(teller, listener, "one", 1.0)
    hearsay.hears(teller, listener, "two", 1.0)
    assert [m.text for m in listener.model.session.episodes.moments] == ["two"]
    forget(listener.model)
    assert not listener.model.session.episodes.moments
