"""Filters: by hand, and those that transformers has against it."""

import math

import pytest
import torch

from reso_llm.decoding.filters import (
    Mirostat,
    exclude_top_choices,
    min_p,
    top_k,
    top_n_sigma,
    top_p,
    typical_p,
)
from reso_llm.decoding.sampling import Marks, SamplingOptions, filter_logits, sample

PROBABILITIES = torch.tensor([[0.05, 0.5, 0.1, 0.25, 0.1]], dtype=torch.float64)
LOGITS = PROBABILITIES.log() + 1.3
NOTHING = torch.empty(1, 0, dtype=torch.int64)


def kept(logits):
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def some_logits(rows=40, vocabulary=97):
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda z: top_k(z, 5), ("TopKLogitsWarper", 5)),
        (lambda z: top_p(z, 0.7), ("TopPLogitsWarper", 0.7)),
        (lambda z: min_p(z, 0.2), ("MinPLogitsWarper", 0.2)),
        (lambda z: typical_p(z, 0.6), ("TypicalLogitsWarper", 0.6)),
        (lambda z: typical_p(z, 0.05), ("TypicalLogitsWarper", 0.05)),
    ],
)
def test_equal_to_transformers(ours, theirs):
    transformers = pytest.importorskip("transformers")
    name, value = theirs
    logits = some_logits()
    logits[:, 3] = -math.inf
    expected = getattr(transformers, name)(value)(None, logits.clone())
    assert torch.equal(ours(logits), expected)


def test_top_n_sigma_by_hand():
    """Deviation of 0, 1, 2, 3, 4 is sqrt(2): within one of the best are 3 and 4, within two 2."""
    logits = torch.tensor([[0.0, 1, 2, 3, 4], [4.0, 0, 0, 0, 0]])
    assert kept(top_n_sigma(logits, 1.0)) == [[3, 4], [0]]
    assert kept(top_n_sigma(logits, 1.5)) == [[2, 3, 4], [0]]
    assert kept(top_n_sigma(logits / 7, 1.5)) == [[2, 3, 4], [0]]  # no temperature changes it


def test_top_n_sigma_does_not_count_excluded_tokens():
    logits = torch.tensor([[0.0, 1, 2, 3, 4]])
    wider = torch.cat((logits, torch.full((1, 3), -math.inf)), 1)
    assert kept(top_n_sigma(wider, 1.5)) == kept(top_n_sigma(logits, 1.5))


def test_xtc_keeps_the_least_of_the_top_choices():
    assert kept(exclude_top_choices(LOGITS, 0.2)) == [[0, 2, 3, 4]]  # of 1 and 3, 3 stays
    assert kept(exclude_top_choices(LOGITS, 0.3)) == [[0, 1, 2, 3, 4]]  # 1 is the only one
    assert kept(exclude_top_choices(LOGITS, 0.04)) == [[0]]


def test_xtc_spares_the_row_of_a_protected_token():
    assert kept(exclude_top_choices(LOGITS, 0.2, [1])) == [[0, 1, 2, 3, 4]]
    assert kept(exclude_top_choices(LOGITS, 0.2, [3])) == [[0, 2, 3, 4]]  # it is not excluded
    two = torch.cat((LOGITS, LOGITS.flip(1)))
    assert kept(exclude_top_choices(two, 0.2, [1])) == [[0, 1, 2, 3, 4], [0, 1, 2, 4]]


def test_xtc_acts_with_its_probability():
    options = SamplingOptions(temperature=1.0, xtc_probability=0.5, xtc_threshold=0.2)
    generator = torch.Generator().manual_seed(0)
    ids = [int(sample(LOGITS, NOTHING, options, generator)) for _ in range(4000)]
    assert ids.count(1) / 4000 == pytest.approx(0.25, abs=0.03)  # .5 of its own .5
    marked = Marks(protected=frozenset({1}))
    ids = [int(sample(LOGITS, NOTHING, options, generator, marked)) for _ in range(4000)]
    assert ids.count(1) / 4000 == pytest.approx(0.5, abs=0.03)


def test_mirostat_bound_by_hand():
    """Surprises 4.3, 1, 3.3, 2, 3.3 bits: a bound of 2.2 leaves 1 and 3, of 2/3 and 1/3."""
    mirostat = Mirostat()
    assert kept(mirostat.filter(LOGITS, 1.1)) == [[1, 3]]
    mirostat.observe(1 / 3, target=1.1, rate=0.5)
    assert mirostat.bound == pytest.approx(2.2 - 0.5 * (math.log2(3) - 1.1))
    mirostat.bound = 0.1
    assert kept(mirostat.filter(LOGITS, 1.0)) == [[1]]  # the best one always stays


def test_mirostat_holds_its_target():
    """Two very different distributions in turn: the mean surprise is the target's."""
    flat, steep = torch.zeros(1, 400), -0.15 * torch.arange(400.0)[None]
    for target in (2.0, 4.0):
        options = SamplingOptions(temperature=1.0, mirostat_tau=target)
        generator, mirostat, bits = torch.Generator().manual_seed(0), Mirostat(), []
        for i in range(3000):
            logits = steep if i % 2 else flat + torch.linspace(0, 6, 400)
            before = mirostat.bound
            sample(logits, NOTHING, options, generator, mirostat=mirostat)
            if before is not None:
                bits.append((before - mirostat.bound) / 0.1 + target)
        assert sum(bits) / len(bits) == pytest.approx(target, abs=0.05)


def test_filters_act_in_the_documented_order():
    options = SamplingOptions(temperature=1.0, top_n_sigma=1.0, top_p=0.6, typical_p=0.9)
    logits = some_logits()
    expected = typical_p(top_p(top_n_sigma(logits, 1.0), 0.6), 0.9)
    assert torch.equal(filter_logits(logits, options), expected)
    other = top_n_sigma(top_p(typical_p(logits, 0.9), 0.6), 1.0)
    assert not torch.equal(expected, other)
