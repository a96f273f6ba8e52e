"""Sampling: every filter on five tokens by hand."""

import dataclasses
import math

import pytest
import torch

from reso_llm.decoding.penalties import penalize_repetition
from reso_llm.decoding.sampling import SamplingOptions, filter_logits, sample

PROBABILITIES = torch.tensor([[0.05, 0.5, 0.1, 0.25, 0.1]], dtype=torch.float64)
LOGITS = PROBABILITIES.log() + 1.3  # a constant changes nothing
NEUTRAL = SamplingOptions(temperature=1.0)
NOTHING_SEEN = torch.empty(1, 0, dtype=torch.int64)


def kept(**options):
    """Ids that survive, and their probabilities."""
    options = dataclasses.replace(NEUTRAL, **options)
    p = filter_logits(LOGITS, options).softmax(-1)[0]
    ids = p.nonzero().flatten().tolist()
    return ids, p[ids]


def expect(result, ids, weights):
    assert result[0] == ids
    weights = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(result[1], weights / weights.sum(), rtol=1e-6, atol=1e-9)


def draw(logits, options, seed=0, seen=NOTHING_SEEN):
    return sample(logits, seen, options, torch.Generator().manual_seed(seed))


# --- one filter at a time -----------------------------------------------------------------------


def test_neutral_options_are_plain_softmax():
    expect(kept(), [0, 1, 2, 3, 4], PROBABILITIES[0].tolist())
    for options in (dict(top_k=5), dict(top_k=99), dict(top_p=1.0), dict(min_p=0.0)):
        expect(kept(**options), [0, 1, 2, 3, 4], PROBABILITIES[0].tolist())


def test_temperature_raises_probabilities_to_its_inverse():
    expect(kept(temperature=0.5), [0, 1, 2, 3, 4], PROBABILITIES[0].square().tolist())
    expect(kept(temperature=2.0), [0, 1, 2, 3, 4], PROBABILITIES[0].sqrt().tolist())


def test_top_k():
    expect(kept(top_k=1), [1], [1])
    expect(kept(top_k=2), [1, 3], [0.5, 0.25])
    expect(kept(top_k=4), [1, 2, 3, 4], [0.5, 0.1, 0.25, 0.1])


def test_top_k_keeps_ties():
    """Neither of two equal tokens is better; which one stays must not depend on their ids."""
    expect(kept(top_k=3), [1, 2, 3, 4], [0.5, 0.1, 0.25, 0.1])


def test_top_p_keeps_the_fewest_that_reach_it():
    expect(kept(top_p=0.01), [1], [1])  # the first always stays
    expect(kept(top_p=0.49), [1], [1])
    expect(kept(top_p=0.51), [1, 3], [0.5, 0.25])
    expect(kept(top_p=0.74), [1, 3], [0.5, 0.25])
    assert len(kept(top_p=0.76)[0]) == 3
    expect(kept(top_p=0.94), [1, 2, 3, 4], [0.5, 0.1, 0.25, 0.1])
    expect(kept(top_p=0.96), [0, 1, 2, 3, 4], PROBABILITIES[0].tolist())


def test_min_p_is_relative_to_the_best():
    expect(kept(min_p=0.21), [1, 3], [0.5, 0.25])
    expect(kept(min_p=0.19), [1, 2, 3, 4], [0.5, 0.1, 0.25, 0.1])
    expect(kept(min_p=0.09), [0, 1, 2, 3, 4], PROBABILITIES[0].tolist())
    expect(kept(min_p=1.0), [1], [1])


def test_filters_act_in_the_documented_order():
    """Temperature before top-p: at T = 0.5 the best token alone holds 0.74 of the mass."""
    expect(kept(temperature=0.5, top_p=0.7), [1], [1])
    expect(kept(top_p=0.7), [1, 3], [0.5, 0.25])
    # top-k before top-p: of the two left, the best holds 2/3
    expect(kept(top_k=2, top_p=0.66), [1], [1])


def test_excluded_tokens_stay_excluded():
    logits = LOGITS.clone()
    logits[0, 1] = -math.inf
    for options in (dict(), dict(top_k=2), dict(top_p=0.5), dict(min_p=0.1), dict(temperature=3.0)):
        p = filter_logits(logits, dataclasses.replace(NEUTRAL, **options)).softmax(-1)
        assert p[0, 1] == 0
        assert torch.isfinite(p).all()


def test_rows_are_filtered_apart():
    logits = torch.stack((LOGITS[0], LOGITS[0].flip(0) - 5))
    for options in (dict(top_k=2), dict(top_p=0.7), dict(min_p=0.2)):
        both = filter_logits(logits, dataclasses.replace(NEUTRAL, **options))
        torch.testing.assert_close(both[1] + 5, both[0].flip(0))


def test_repetition_penalty_by_hand():
    """Positive logits are divided, negative ones multiplied, repeats count once."""
    logits = torch.tensor([[2.0, -2.0, 0.0, 4.0, -math.inf]])
    out = penalize_repetition(logits, torch.tensor([[0, 1, 1, 2, 4]]), 2.0)
    assert out.tolist() == [[1.0, -4.0, 0.0, 4.0, -math.inf]]
    assert logits.tolist() == [[2.0, -2.0, 0.0, 4.0, -math.inf]]
    assert penalize_repetition(logits, torch.tensor([[0]]), 0.5).tolist()[0][0] == 4.0
    assert penalize_repetition(logits, torch.tensor([[0]]), 1.0) is logits
    assert penalize_repetition(logits, NOTHING_SEEN, 2.0) is logits


def test_repetition_penalty_keeps_rows_apart():
    logits = torch.ones(2, 3)
    out = penalize_repetition(logits, torch.tensor([[0], [2]]), 2.0)
    assert out.tolist() == [[0.5, 1.0, 1.0], [1.0, 1.0, 0.5]]


# --- drawing ------------------------------------------------------------------------------------


def test_greedy_takes_the_most_probable():
    options = SamplingOptions(temperature=0.0, top_k=3, top_p=0.5)
    assert all(draw(LOGITS, options, seed).tolist() == [[1]] for seed in range(5))


def test_greedy_knows_the_penalty():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    options = SamplingOptions(temperature=0.0, repetition_penalty=2.0)
    assert draw(logits, options, seen=torch.tensor([[1]])).tolist() == [[2]]


def test_a_seed_repeats_and_leaves_the_global_generator_alone():
    logits = LOGITS.expand(50, 5)
    state = torch.get_rng_state()
    first, again, other = (draw(logits, NEUTRAL, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "options", [dict(), dict(temperature=2.0), dict(top_k=2), dict(top_p=0.9), dict(min_p=0.3)]
)
def test_frequencies_follow_the_probabilities(options):
    """20,000 draws: the standard error is at most 0.0036; the bound is more than 4 of them."""
    options = dataclasses.replace(NEUTRAL, **options)
    ids = draw(LOGITS.expand(20_000, 5), options)
    frequencies = torch.bincount(ids.flatten(), minlength=5).double() / len(ids)
    p = filter_logits(LOGITS, options).softmax(-1)[0]
    assert (frequencies - p).abs().max() < 0.015
    assert (frequencies[p == 0] == 0).all()


@pytest.mark.parametrize("temperature", [1e-6, 1e30])
def test_extreme_temperatures_can_still_be_drawn_from(temperature):
    logits = LOGITS.float().clone()
    logits[0, 0] = -math.inf
    ids = draw(logits.expand(100, 5), SamplingOptions(temperature=temperature))
    assert 0 not in ids
    assert (ids == 1).all() == (temperature < 1)


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 1e-12),  # overflows float32 logits: NaN probabilities
        ("temperature", math.inf),  # -inf / inf is NaN
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", math.inf),
        ("repetition_penalty", math.nan),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("dry_multiplier", -0.1),
        ("dry_base", 0.5),
        ("dry_allowed_length", 0),
        ("top_n_sigma", -1.0),
        ("typical_p", 0.0),
        ("xtc_probability", 1.1),
        ("xtc_threshold", 0.6),
        ("mirostat_tau", math.inf),
        ("mirostat_eta", 0.0),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"1": 1.0}),
        ("logit_bias", [1]),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name} = .*expected"):
        SamplingOptions(**{name: value})


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NEUTRAL.top_k = 3
