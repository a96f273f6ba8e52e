"""The checkpoint that comes with the package is whole, small, and what its card says."""

import re

import pytest
import torch

from entropy_core.budget import Place
from reso_llm.decoding.controllers import SRB
from reso_llm.decoding.draft import place_of
from reso_llm.inference import SHIPPED, ResoLLMInference


@pytest.fixture(scope="module")
def engine():
    return ResoLLMInference.from_pretrained()


def test_it_is_small():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 20e6


def test_half_precision_is_for_the_disk_alone(engine):
    """Guards tables or weights that stay float16, which a CPU is slow at."""
    tensors = engine.model.state_dict().values()
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}


def test_the_card_counts_what_is_there(engine):
    card = (SHIPPED / "README.md").read_text()
    parameters = sum(p.numel() for p in engine.model.parameters())
    assert f"{parameters:,} parameters" in card
    assert f"{len(engine.model.prsc.entry_ids) - 1:,} pairs" in card
    assert re.search(r"\| \d\.\d{4} \(\d\.\d{4} before rounding", card)


def test_goals_are_said_and_the_srb_rule_is_calibrated(engine):
    assert engine.knows_system_messages
    assert engine.srb != SRB()


def test_a_goal_shows_in_a_reply(engine):
    """Of replies to a question about nothing, most speak of pets where that is the goal."""
    asked, dogs = [("user", "Tell me something.")], "dogs, cats and other pets"

    def spoken(text):
        return any(word in text.lower() for word in ("dog", "cat", "pet"))

    options = dict(temperature=0.7, top_p=0.9)
    plain = [engine.generate(asked, 40, seed=seed, **options).text for seed in range(6)]
    aimed = [engine.generate_with_goal(asked, dogs, 40, seed=seed, **options) for seed in range(6)]
    assert sum(map(spoken, plain)) <= 1
    assert sum(spoken(result.text) for result in aimed) >= 3
    for result in aimed:
        assert (result.goal_progress[dogs] > 0) == spoken(result.text)


def test_the_stability_monitor_is_calibrated(engine):
    """A calibration of an earlier monitor is passed over, and no temperature would move."""
    assert engine.stability_calibration is not None


def test_it_answers_and_ends_its_turns(engine):
    ends = [
        engine.generate([("user", "Hi! How are you?")], 60, seed=seed).stop_reason
        for seed in range(5)
    ]
    assert ends.count("end") >= 3


def test_srb_ends_before_a_token_and_after_a_sentence(engine):
    """What is written until then is what is written without it."""
    asked = [("user", "Tell me a story about the sea.")]
    whole = engine.generate(asked, 60, seed=1)
    cut = engine.generate(asked, 60, seed=1, controllers=[SRB(end_nats=99.0, candidates=0)])
    assert cut.stop_reason == "srb_finished"
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids
    assert len(cut.signals_trace) == len(cut.token_ids) < len(whole.token_ids)
    assert place_of(cut.text) is Place.FINISHED
    dear = engine.generate(asked, 60, seed=1, controllers=[SRB(end_nats=0.0, candidates=0)])
    assert dear.token_ids == whole.token_ids


def test_it_has_learnt_something(engine):
    """Far below the entropy of a uniform guess, 8.3 nats."""
    result = engine.generate([("user", "What did you do today?")], 40, seed=0, temperature=0.7)
    assert sum(result.entropy_trace) / len(result.entropy_trace) < 5.5
