"""Texts of which tokens are taken back: both engines against a loop that reads everything again."""

from itertools import pairwise

import pytest
import torch

from entropy_core.information import entropy_nats
from entropy_core.rewinding import RewindState, rewind_step
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import SRB, PhaseSlip
from reso_llm.generation.context import unwritable
from reso_llm.hf.control import controlled
from reso_llm.inference import ResoLLMInference
from tests.reso_llm.hf import tiny_engine

SLIP = PhaseSlip(repeat_length=2, rewind_tokens=6)
GREEDY = dict(temperature=0.0, auto_temperature=False)
STAGES = ("prsc", "echo", "kuramoto", "temporal_smf", "coherence_gate", "agency")


@pytest.fixture
def reso(tiny_model, byte_tokenizer):
    model = tiny_model(stages=STAGES, vocab_size=261, max_seq_len=256)
    return ResoLLMInference(model, byte_tokenizer, model.config)


@pytest.fixture(params=["reso", "hf"])
def engine(request):
    if request.param == "hf":
        return tiny_engine.engine(positions=256)
    return request.getfixturevalue("reso")


def few(engine, letters="abcde"):
    """A bias that leaves these letters, so that texts repeat soon."""
    return {engine.tokenizer.encode(letter)[0]: 30.0 for letter in letters}


@torch.inference_mode()
def logits_after(engine, prompt, new):
    """The model's logits (V,) after a prompt and new ids, read from the start."""
    if isinstance(engine, ResoLLMInference):
        state = engine.model.recollected_state(())
        for ids, weight in ((prompt, 1.0), (new, engine.model.echo.own_weight)):
            if ids:
                echo = state.stages["echo"]._replace(weight=weight)
                output = engine.model(torch.tensor([ids]), state.with_stage("echo", echo))
                state = output.state
        logits = output.logits[0, -1].float()
        return logits.index_fill(0, unwritable(engine.tokenizer, 261), -torch.inf)
    return engine.model(torch.tensor([[*prompt, *new]])).logits[0, -1].float()


def slow_text(engine, prompt, bias, length, options):
    """Ids, entropies and the number of rewinds of a greedy text."""
    ids, entropies, state, rewinds = [], [], RewindState(), 0
    head = engine.prompt_ids(prompt)
    while len(ids) < length:
        logits = logits_after(engine, head, ids)
        place, state = rewind_step(state, ids, entropies, options)
        excluded = []
        if place is not None:
            rewinds += 1
            del ids[place:], entropies[place:]
            logits, excluded = logits_after(engine, head, ids), [*state.excluded[place]]
        entropies.append(float(entropy_nats(logits)))
        logits = logits.clone()
        logits[[*bias]] += torch.tensor([*bias.values()])
        logits[excluded] = -torch.inf
        ids.append(int(logits.argmax()))
    return ids, entropies, rewinds


def test_a_text_is_that_of_the_slow_loop(engine):
    bias = few(engine)
    ids, entropies, rewinds = slow_text(engine, "abcab", bias, 24, SLIP)
    assert rewinds > 3
    result = engine.generate("abcab", 24, controllers=[SLIP], logit_bias=bias, seed=0, **GREEDY)
    assert list(result.token_ids) == ids
    assert result.entropy_trace == pytest.approx(entropies, abs=1e-4)
    assert len(result.events) == rewinds
    assert len(result.signals_trace) == len(result.temperature_trace) == 24
    plain = engine.generate("abcab", 24, logit_bias=bias, seed=0, **GREEDY)
    assert plain.token_ids != result.token_ids


def test_rows_of_a_batch_go_back_alone(engine):
    bias, prompts = few(engine), ["abcab", "e", "a longer prompt, which is read first"]
    options = dict(controllers=[SLIP], logit_bias=bias, **GREEDY)
    together = engine.generate_batch(prompts, 24, seed=0, **options)
    alone = [engine.generate(p, 24, seed=i, **options) for i, p in enumerate(prompts)]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert sum(len(r.events) for r in alone) > 3
    for one, other in zip(together, alone, strict=True):
        assert one.entropy_trace == pytest.approx(other.entropy_trace, abs=1e-4)


def test_everything_measured_is_that_of_the_text_that_stays(engine):
    """The same ids, forced one by one, give the same readings."""
    bias = few(engine)
    asked = dict(seed=0, **GREEDY)
    result = engine.generate("abcab", 20, controllers=[SLIP], logit_bias=bias, **asked)
    assert result.events

    class Forced:
        name, reach = "forced", 0

        def start(self):
            return self

        def decide(self, view):
            return None

    job = engine.start(["abcab"], engine_options(engine, [Forced()]), [0])
    (row,) = job.rows
    row.allowed = lambda logits: torch.full_like(logits, -torch.inf).index_fill_(
        1, torch.tensor([result.token_ids[len(row.new_ids)]]), 0.0
    )
    engine.finish(job)
    again = engine.close(job)[0]
    assert again.token_ids == result.token_ids
    for one, other in zip(again.signals_trace, result.signals_trace, strict=True):
        assert tuple(one) == pytest.approx(tuple(other), abs=1e-3, nan_ok=True)
    assert again.stability == result.stability
    assert again.coherence_trace == pytest.approx(result.coherence_trace, abs=1e-4)
    if result.attention_summary and engine.session.agency is not None:
        assert len(again.attention_summary) == len(result.attention_summary)


def engine_options(engine, controllers):
    from reso_llm.generation.options import GenerationOptions

    return GenerationOptions(max_length=20, controllers=controllers, **GREEDY)


def test_streamed_text_is_never_taken_back(engine):
    bias, pieces = few(engine), []
    options = dict(controllers=[SLIP], logit_bias=bias, seed=0, **GREEDY)
    result = engine.generate("abcab", 24, on_text=pieces.append, **options)
    assert result.events
    assert "".join(pieces) == result.text
    assert len(pieces) > 10


def test_a_text_has_no_repeat_within_its_budget(engine):
    """Sampled at temperature 1, five letters have 25 pairs: 20 tokens need none twice."""
    slip = PhaseSlip(repeat_length=2, rewind_tokens=20, max_attempts=5, max_share=50)
    asked = dict(controllers=[slip], logit_bias=few(engine), temperature=1.0)
    for seed in range(3):
        ids = engine.generate("x", 16, seed=seed, auto_temperature=False, **asked).token_ids
        pairs = list(pairwise(ids))
        assert len(set(pairs[:-1])) == len(pairs) - 1  # the last one has no token after it


def test_heat_and_noise_come_with_the_rewind(engine):
    hot = PhaseSlip(repeat_length=2, slip_temperature=5.0, noise=CacheNoise(scale=0.5))
    asked = dict(logit_bias=few(engine), **GREEDY)
    results = [engine.generate("abcab", 24, controllers=[hot], seed=s, **asked) for s in range(4)]
    assert len({r.token_ids for r in results}) > 1
    effects = {event.effect for event in results[0].events}
    assert any("temperature 5, full vocabulary, cache noise 0.5, took back" in e for e in effects)


def test_noise_stays_in_what_is_read_again(engine):
    """Noise alone, and so much that the text after the first rewind is another."""
    calm, loud = (PhaseSlip(repeat_length=2, noise=CacheNoise(scale=scale)) for scale in (0.0, 5.0))
    asked = dict(logit_bias=few(engine), seed=0, **GREEDY)
    plain = engine.generate("abcab", 24, controllers=[calm], **asked)
    noisy = engine.generate("abcab", 24, controllers=[loud], **asked)
    first = plain.events[0].step + 1
    assert noisy.token_ids[:first] == plain.token_ids[:first]
    assert noisy.entropy_trace[first] != pytest.approx(plain.entropy_trace[first], abs=1e-3)
    assert engine.generate_batch(["abcab", "e"], 24, controllers=[loud], **asked)[0].events


def test_it_goes_with_other_controllers_and_goals(engine):
    asked = dict(logit_bias=few(engine), seed=0, **GREEDY)
    result = engine.generate_with_goal(
        [("user", "abcab")],
        "music",
        24,
        min_tokens=24,
        controllers=[SRB(settled_nats=0), SLIP],
        **asked,
    )
    assert result.tokens_generated == 24
    assert {e.cause for e in result.events if e.controller == "phase_slip"} == {"repeat"}


def test_the_loop_of_transformers_refuses_it():
    model = tiny_engine.model()
    with pytest.raises(ValueError, match=r"takes tokens back.*PhaseSlip.published"):  # noqa: SIM117
        with controlled(model, [PhaseSlip()], seed=0):
            pass
