"""The study of told facts: what counts as an answer, and what each condition takes away."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.kit.told import facts
from benchmarks.studies import told as study
from reso_llm.config import EchoConfig
from reso_llm.inference import ResoLLMInference


@pytest.fixture
def engine(tiny_model, byte_tokenizer):
    """Its echo outweighs the model, the more the longer the context."""
    echo = EchoConfig(max_order=8)
    model = tiny_model(stages=("echo",), vocab_size=261, max_seq_len=512, echo=echo)
    model.echo.reset_parameters()
    with torch.no_grad():
        model.echo.trust.copy_(3 * torch.arange(1, 9))
    return ResoLLMInference(model, byte_tokenizer, model.config)


def test_an_answer_is_a_word_of_its_own():
    assert study.holds("It is in the TEAPOT.", "teapot")
    assert not study.holds("He has teapots", "teapot")
    fact = next(facts())
    assert study.mentions("Ylva lives in Torvik.", fact, "How are you?")
    assert not study.mentions("I like Torvik.", fact, "How are you?")
    assert not study.mentions("Torvik lives.", fact, "Where does my sister Ylva live? lives")
    assert study.is_verbatim("Yes: my dog is called Tom!", "My dog is called Tom.")
    assert not study.is_verbatim("Your dog is called Tom.", "My dog is called Tom.")


def test_each_condition_takes_away_what_it_names(engine, monkeypatch):
    monkeypatch.setattr(study, "OTHER_QUESTIONS", study.OTHER_QUESTIONS[:2])
    told = list(facts())[:8]
    row = study.measured(engine, told, [0])
    assert min(row["answered"][kind][0] for kind in ("all", "unseen")) > 0.3
    assert row["answered"]["verbatim"][0] == 0.0, "all three begin with 'My'"
    assert row["without_context"]["all"][0] > 0.3
    assert row["without_echo"]["all"][0] < row["answered"]["all"][0]
    assert row["untold"]["all"][0] == 0.0
    assert row["untold"]["verbatim"] is None
    assert row["left_alone"][0] == 1.0
    assert not len(engine.session.episodes)
    text = study.text({"model": "tiny", "facts": 3} | row)
    assert "| not told | 0.00" in text


def test_said_facts_are_the_first_message_of_a_chat(engine, monkeypatch):
    """Replies are here what the echo reads first: what memory brings, and nothing else."""

    def generate(prompt, *_, **__):
        memories = engine.memories_of(prompt)
        return SimpleNamespace(text=" ".join(memories.texts[: len(memories.echo)]))

    monkeypatch.setattr(engine, "generate", generate)
    told = list(facts())
    assert study.said(engine, told[0], 0) == [("user", told[0].text), ("assistant", "")]
    row = study.measured_said(engine, told, [0])
    assert row["answered"]["all"][0] > 0.95
    assert row["unaided"]["all"][0] == 0.0
    assert row["left_alone"][0] > 0.95
    text = study.text({"model": "tiny", "facts": 60} | row)
    assert "| unaided | 0.00" in text
    assert ", unaided 1.000" in text
