"""Penalties: by hand, and those that transformers has against it."""

import math

import pytest
import torch

from reso_llm.decoding.penalties import (
    LONGEST_REPEAT,
    biased,
    penalize_counts,
    penalize_repeats,
    penalize_repetition,
    repeats,
)
from reso_llm.decoding.sampling import Marks, SamplingOptions, sample


def test_bias_by_hand():
    logits = torch.tensor([[1.0, 2.0, -math.inf], [0.0, 0.0, 0.0]])
    out = biased(logits, {0: 0.5, 2: -3.0})
    assert out.tolist() == [[1.5, 2.0, -math.inf], [0.5, 0.0, -3.0]]
    assert logits[0, 0] == 1.0


def test_presence_counts_once_and_frequency_each_time():
    logits = torch.zeros(2, 3)
    seen = torch.tensor([[0, 0, 2], [1, 1, 1]])
    assert penalize_counts(logits, seen, 1.0, 0.0).tolist() == [[-1, 0, -1], [0, -1, 0]]
    assert penalize_counts(logits, seen, 0.0, 0.5).tolist() == [[-1, 0, -0.5], [0, -1.5, 0]]
    assert penalize_counts(logits, seen, 1.0, 0.5).tolist() == [[-2, 0, -1.5], [0, -2.5, 0]]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], {}),
        ([1], {}),
        ([1, 2, 3], {}),
        ([1, 2, 3, 1], {2: 1}),
        ([1, 2, 3, 1, 2], {3: 2}),
        ([9, 1, 2, 3, 8, 1, 2, 4, 1, 2], {3: 2, 4: 2}),
        ([9, 1, 2, 3, 8, 2, 4, 9, 1, 2], {3: 3, 4: 1}),
        ([5, 5, 5, 5], {5: 3}),
    ],
)
def test_repeats_by_hand(ids, expected):
    assert repeats(ids) == expected


def test_a_repeat_ends_at_a_breaker():
    ids = [1, 2, 3, 4, 1, 2, 3]
    assert repeats(ids) == {4: 3}
    assert repeats(ids, {1}) == {4: 2}
    assert repeats(ids, {3}) == {}
    assert repeats(ids, {4}) == {}  # no breaker is penalised


def test_a_repeat_is_counted_up_to_a_length():
    assert repeats([7] * 200) == {7: LONGEST_REPEAT}


def test_dry_by_hand():
    logits = torch.zeros(2, 5)
    seen = torch.tensor([[1, 2, 3, 1, 2], [1, 2, 3, 4, 1]])
    out = penalize_repeats(logits, seen, 0.8, 2.0, 1)
    assert out[0].tolist() == pytest.approx([0, 0, 0, -1.6, 0])
    assert out[1].tolist() == pytest.approx([0, 0, -0.8, 0, 0])
    assert penalize_repeats(logits, seen, 0.8, 2.0, 2)[1].tolist() == [0] * 5
    assert logits.abs().sum() == 0


def test_dry_is_the_slow_definition():
    """For each token: the longest end of the text that stood before, followed by that token."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, 3, (20,), generator=generator).tolist()
        slow = {}
        for token in range(3):
            for length in range(1, len(ids)):
                tail = ids[-length:]
                starts = range(len(ids) - length)
                if any(ids[i : i + length] == tail and ids[i + length] == token for i in starts):
                    slow[token] = length
        assert repeats(ids) == slow


def test_equal_to_transformers():
    transformers = pytest.importorskip("transformers")
    generator = torch.Generator().manual_seed(3)
    logits, ids = torch.randn(4, 30, generator=generator), torch.arange(28).reshape(4, 7)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.3)(ids, logits.clone())
    assert torch.equal(penalize_repetition(logits, ids, 1.3), theirs)
    pairs = {(3,): 2.5, (8,): -1.0}
    bias = transformers.SequenceBiasLogitsProcessor(pairs)
    theirs = bias(ids, logits.clone())
    assert torch.equal(biased(logits, {token: b for (token,), b in pairs.items()}), theirs)


def test_greedy_knows_every_penalty():
    """Token 1 leads by .5; each penalty alone gives the text to token 2."""
    logits, seen = torch.tensor([[0.0, 2.5, 2.0]]), torch.tensor([[1, 0, 1, 0]])
    for option in (
        dict(repetition_penalty=1.5), dict(presence_penalty=0.6), dict(frequency_penalty=0.3),
        dict(dry_multiplier=0.6, dry_allowed_length=2), dict(logit_bias={1: -0.6}),
    ):  # fmt: skip
        options = SamplingOptions(temperature=0.0, **option)
        assert sample(logits, seen, options, None).tolist() == [[2]], option
    broken = Marks(breakers=frozenset({0}))
    options = SamplingOptions(temperature=0.0, dry_multiplier=0.6)
    assert sample(logits, seen, options, None, broken).tolist() == [[1]]
