"""The exponent of the states: its slope, its fork, and that it never touches the text."""

import math

import pytest
import torch
from conftest import make_tiny_model

from reso_llm.generation.nudge import (
    FIRST_FORK,
    FOLLOWED,
    Nudged,
    growth,
    nudged,
    text_exponents,
)
from reso_llm.inference import ResoLLMInference

STAGES = ("kuramoto", "temporal_smf")


@pytest.mark.parametrize("rate", [-0.3, 0.2])
def test_growth_is_the_rate_of_an_exponential(rate):
    x = torch.ones(2, 6, 4)
    other = x + 1e-3 * torch.exp(rate * torch.arange(6.0))[None, :, None]
    assert growth(x, other) == pytest.approx([rate, rate], abs=1e-3)
    assert growth(x, x) == [0.0, 0.0]


@torch.inference_mode()
def test_a_nudged_state_differs_and_the_state_stays():
    model = make_tiny_model(stages=STAGES, max_seq_len=64)
    ids = torch.randint(5, 50, (1, 12), generator=torch.Generator().manual_seed(0))
    state = model(ids, model.init_state()).state
    before = [cache.keys.clone() for cache in state.caches]
    copy = nudged(state)
    first, second = (model(ids[:, :1], s).diagnostics["hidden"] for s in (state, copy))
    assert 0 < (first - second).norm() < 0.2 * first.norm()
    for keys, cache in zip(before, state.caches, strict=True):
        assert torch.equal(keys, cache.keys)


@torch.inference_mode()
def test_following_a_text_gives_the_exponent_of_the_text():
    model = make_tiny_model(stages=STAGES, max_seq_len=64)
    ids = torch.randint(5, 50, (1, 20), generator=torch.Generator().manual_seed(1))
    state = model(ids[:, :-FOLLOWED], model.init_state()).state
    fork = Nudged(model, state)
    for t in range(20 - FOLLOWED, 20):
        assert not fork.complete
        output = model(ids[:, t : t + 1], state)
        state = output.state
        fork.follow(ids[:, t], output.diagnostics["hidden"][:, 0].numpy())
    assert fork.complete
    assert fork.exponents() == pytest.approx(text_exponents(model, ids), abs=0.02)
    assert text_exponents(model, ids[:, :4]) == [0.0]
    assert math.isfinite(text_exponents(model, ids[:, :5])[0])


@pytest.fixture
def make_engine(tiny_model, byte_tokenizer):
    def make():
        stages = (*STAGES, "stability")
        model = tiny_model(stages=stages, vocab_size=byte_tokenizer.vocab_size, max_seq_len=128)
        return ResoLLMInference(model, byte_tokenizer, model.config)

    return make


def test_the_measurement_changes_no_token_and_its_exponent_is_finite(make_engine):
    told = dict(seed=2, temperature=5.0, auto_temperature=False)
    engine = make_engine()
    watched = engine.generate("Once upon", FIRST_FORK + FOLLOWED + 40, **told)
    assert engine.session.stability.measured
    assert watched.lyapunov_trace[FIRST_FORK + FOLLOWED - 2] == 0.0 != watched.lyapunov
    assert math.isfinite(watched.lyapunov)
    plain = make_engine()
    alone = plain.generate("Once upon", FIRST_FORK + FOLLOWED + 40, metrics=False, **told)
    assert watched.token_ids == alone.token_ids


def test_a_reply_shorter_than_the_first_fork_pays_nothing(make_engine, monkeypatch):
    monkeypatch.setattr("reso_llm.generation.context.Nudged", None)  # called, it fails
    result = make_engine().generate("Once", FIRST_FORK - 1, seed=2, temperature=5.0)
    assert result.stop_reason == "length"
    assert result.lyapunov == 0.0
