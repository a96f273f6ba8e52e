"""Evidence of a whole text, found by sorting, against counting it token by token."""

import itertools

import numpy as np
import pytest

from reso_llm.stages.echo import TextCounts, text_evidence


def counted(ids, max_order):
    """Score first, then count, with the counts that generation keeps."""
    counts, found = TextCounts.empty(max_order), np.zeros((3, max(len(ids) - 1, 0), max_order))
    for t, (token, target) in enumerate(itertools.pairwise(ids)):
        counts = counts.read(token)
        for m, entry in enumerate(counts.buffer.found):
            share = entry.counts.get(target, 0) / entry.total
            found[:, t, m] = share, entry.total, len(entry.counts)
    return found


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 300])
@pytest.mark.parametrize("vocab_size", [1, 2, 50])
@pytest.mark.parametrize("max_order", [1, 3, 6])
def test_sorting_finds_what_counting_finds(size, vocab_size, max_order):
    ids = np.random.default_rng(size).integers(vocab_size, size=size).astype(np.uint16)
    found = text_evidence(ids, max_order)
    np.testing.assert_allclose(found, counted(ids.tolist(), max_order), rtol=1e-6)
    assert found.dtype == np.float32
