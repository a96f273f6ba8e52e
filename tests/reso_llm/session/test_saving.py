"""A saved session is the session; a damaged, foreign or unfitting file is one line."""

import dataclasses
import json

import pytest
import torch
from conftest import FULL
from safetensors.torch import load_file, save_file

from reso_llm.inference import ResoLLMInference
from reso_llm.session.session import Session


@pytest.fixture
def engine(tiny_model, byte_tokenizer):
    model = tiny_model(stages=(*FULL,), vocab_size=264, max_seq_len=48)
    return ResoLLMInference(model, byte_tokenizer, model.config)


def used(engine):
    """The engine after a goal, two memories, a concept and a text."""
    model = engine.model
    model.create_goal("be kind", "maintenance")
    model.bind_concept("letter", 100)
    model.update_memory("Mara keeps the blue map.", importance=2.0)
    engine.generate("Once upon", 12, temperature=5.0, seed=2)
    model.update_memory("Tor sold a bell.", source="beta")
    return engine


def said(engine):
    return engine.generate("Where is the map?", 12, temperature=0.7, seed=3).to_dict() | {
        "generation_time_ms": 0
    }


def test_a_loaded_session_goes_on_as_the_saved_one(engine, tmp_path):
    path, session = tmp_path / "talk.session", used(engine).model.session
    session.save(path)
    loaded = Session.load(path, engine.config)
    assert loaded.clock == session.clock == 1.0
    assert loaded.get_attention_foci() == session.get_attention_foci() != ()
    (goal,), (other,) = loaded.get_active_goals(), session.get_active_goals()
    assert torch.equal(goal.vector, other.vector)
    assert (goal.description, goal.goal_type, goal.progress) == (
        "be kind",
        "maintenance",
        other.progress,
    )
    moments = ([(m.text, m.source) for m in s.episodes.moments] for s in (loaded, session))
    stored = [("Mara keeps the blue map.", ""), ("Tor sold a bell.", "beta")]
    assert next(moments) == next(moments) == stored
    assert loaded.compose(["letter"]).product == session.compose(["letter"]).product
    assert torch.equal(loaded.recollected_field(), session.recollected_field())
    before = said(engine)
    engine.model.session = Session.load(path, engine.config)
    assert said(engine) == before
    engine.model.session = Session(engine.config)
    assert said(engine) != before


def test_a_summed_field_is_saved(engine, tmp_path):
    config = dataclasses.replace(
        engine.config,
        temporal_smf=dataclasses.replace(engine.config.temporal_smf, episodic_tagging=False),
    )
    session = Session(config)
    field = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(0))
    session.remember("a", [5], importance=2.0, time=3.0, field=field)
    session.save(tmp_path / "s")
    loaded = Session.load(tmp_path / "s", config)
    assert torch.equal(loaded.recollected_field(now=5.0), session.recollected_field(now=5.0))
    assert loaded.clock == 3.0


def test_every_damaged_byte_is_found(engine, tmp_path):
    path = tmp_path / "s"
    used(engine).model.session.save(path)
    data = path.read_bytes()
    rng = torch.Generator().manual_seed(0)
    for place in torch.randint(len(data), (60,), generator=rng).tolist():
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with pytest.raises(ValueError, match=r"^[^\n]*s: not a saved session, or damaged[^\n]*$"):
            Session.load(path, engine.config)
    for size in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="not a saved session, or damaged"):
            Session.load(path, engine.config)


def test_a_foreign_file_is_named(engine, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a saved session"):
        Session.load(path, engine.config)


def test_a_session_of_another_model_is_refused(engine, tiny_model, tmp_path):
    used(engine).model.session.save(tmp_path / "s")
    with pytest.raises(ValueError, match="does not fit this model"):
        Session.load(tmp_path / "s", tiny_model().config)


@pytest.mark.parametrize("key", ["dim", "vocab_size"])
def test_a_session_of_a_model_of_another_size_is_refused(engine, tmp_path, key):
    """Guards a goal's vector, and concepts' tokens, that another model took as its own."""
    used(engine).model.session.save(tmp_path / "s")
    size = getattr(engine.config, key)
    other = dataclasses.replace(engine.config, **{key: 2 * size})
    with pytest.raises(ValueError, match=f"saved with {key} = {size}, this model has {2 * size}"):
        Session.load(tmp_path / "s", other)


@pytest.mark.parametrize("tagging", [True, False])
def test_a_session_whose_fields_have_another_shape_is_refused(engine, tmp_path, tagging):
    """Guards a traceback at the first text after loading: the field did not fit the state."""
    smf = dataclasses.replace(engine.config.temporal_smf, episodic_tagging=tagging)
    config = dataclasses.replace(engine.config, temporal_smf=smf)
    session = Session(config)
    session.remember("a", [5], importance=1.0, time=None, field=torch.ones(2, 2, 16))
    session.save(tmp_path / "s")
    wider = dataclasses.replace(config, temporal_smf=dataclasses.replace(smf, num_channels=64))
    message = r"^[^\n]*s: does not fit this model: its fields are \(2, 2, 16\), [^\n]*$"
    with pytest.raises(ValueError, match=message):
        Session.load(tmp_path / "s", wider)
    off = dataclasses.replace(wider, temporal_smf=dataclasses.replace(smf, enabled=False))
    assert Session.load(tmp_path / "s", off).recollected_field() is not None, "it is not read"


def test_an_engine_is_saved_whole(engine, tmp_path):
    """Model, tokenizer, what it learned from and the rule's thresholds; no session."""
    engine.knows_system_messages = True
    engine.srb = dataclasses.replace(engine.srb, patience=7, settled_nats=0.25)
    engine.save_pretrained(tmp_path / "deep" / "engine")
    again = ResoLLMInference.from_pretrained(tmp_path / "deep" / "engine")
    assert again.srb == engine.srb
    assert again.knows_system_messages
    assert again.tokenizer.fingerprint == engine.tokenizer.fingerprint
    assert said(again) == said(engine)
    names = {path.name for path in (tmp_path / "deep" / "engine").iterdir()}
    assert names == {
        "model.safetensors", "config.json", "tokenizer.json", "training.json", "MANIFEST.json"
    }  # fmt: skip
    stored = json.loads((tmp_path / "deep" / "engine" / "training.json").read_text())
    assert stored["srb"] == {"patience": 7, "settled_nats": 0.25}
    assert load_file(tmp_path / "deep" / "engine" / "model.safetensors")
