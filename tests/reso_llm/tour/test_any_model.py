"""The tour of any engine, and its verdict: against counts of what was said."""

import re
import sys
from pathlib import Path

import pytest
from conftest import FULL

from reso_llm.inference import ResoLLMInference
from reso_llm.tour import any_model, verdict
from reso_llm.tour.stations import ANY_MODEL, stations_of, visit

sys.path.append(str(Path(__file__).parents[1] / "hf"))
import tiny_engine


@pytest.fixture
def engine():
    return tiny_engine.engine(positions=512)


def test_the_stations_of_a_model_that_is_no_resollm(engine):
    tour = stations_of(engine)
    assert list(tour) == list(ANY_MODEL) == ["goals", "memory", "stability", "control"]
    session = engine.session
    for station in tour.values():
        assert all(visit(engine, station, 0).lines)
    assert engine.session is session
    assert len(session.episodes) == 0


def test_memory_counts_the_replies_that_name_what_was_told(engine, monkeypatch):
    """A model that repeats what it was told, and one that says every answer before."""
    says = lambda texts: lambda question: Said(" ".join(texts()))  # noqa: E731
    memories = lambda: [m.text for m in engine.session.episodes.moments]  # noqa: E731
    monkeypatch.setattr(any_model, "reply", lambda e, q: says(memories)(q))
    assert any_model.say_what_was_told(engine, 0).numbers == {"before": 0, "after": 3}
    monkeypatch.setattr(any_model, "reply", lambda e, q: Said("Oslo Torvik Baroque"))
    assert any_model.say_what_was_told(engine, 0).numbers == {"before": 3, "after": 3}


class Said:
    def __init__(self, text):
        self.text = text


def test_words_of_a_goal_are_whole_words():
    assert any_model._words_of("music, bands and songs", "Musical bands, songs and MUSIC") == 3


def test_the_verdict_counts_what_changes_the_reply(engine, monkeypatch):
    said = verdict.verdict(engine, 0)
    count, total = map(int, re.match(r"(\d+) of (\d+) mechanisms", said).groups())
    assert total == 6  # a goal, four controllers, memory
    idle = said.partition("do not: ")[2]
    assert count == total - len([name for name in idle.split(", ") if name])
    monkeypatch.setattr(verdict, "_reply", lambda *args: "the same")
    assert verdict.verdict(engine, 0).startswith("1 of 6")  # the goal alone is not asked here


def test_the_verdict_asks_for_what_it_stores(engine):
    engine.update_memory(verdict.STORED)
    asked = any_model.asked(verdict.ASKED.question)
    assert engine.memories_of(asked).texts == (verdict.STORED,)


def test_the_verdict_on_a_resollm_switches_its_stages(tiny_model, byte_tokenizer):
    model = tiny_model(stages=FULL, vocab_size=261, max_seq_len=64)
    engine = ResoLLMInference(model, byte_tokenizer, model.config)
    stages = set(model.stages()) - {"agency"}
    names = {name for name, _ in verdict._switched(engine, 0)}
    assert names == stages | {c.name for c in verdict.CONTROLLERS} | {"goal", "memory"}
