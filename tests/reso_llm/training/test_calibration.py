"""Goal calibration of a training run against the obvious loop."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reso_llm.data.token_cache import Split
from reso_llm.session.agency import calibrate
from reso_llm.training import calibration
from reso_llm.training.calibration import goal_calibration


def conversations(pairs):
    """A split of (question ids, reply ids), with control tokens as the chat template sets them."""
    tokens, mask, starts = [], [], []
    for question, reply in pairs:
        starts.append(len(tokens))
        tokens += [0, 2, *question, 4, 3, *reply, 4]
        mask += [0] * (len(question) + 4) + [1] * (len(reply) + 1)
    return Split(
        np.array(tokens, dtype=np.uint16), np.array(mask, dtype=np.uint8), np.array(starts),
        len(tokens), len(tokens), len(starts),
    )  # fmt: skip


def some_pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda: rng.integers(5, 60, rng.integers(3, 9)).tolist()  # noqa: E731
    return [(draw(), draw()) for _ in range(count)]


def table(seed=0):
    return torch.randn(60, 16, generator=torch.Generator().manual_seed(seed))


def text_reference(E, ids):
    """Vector of a text: rms-normalised rows, each by its rarity under Zipf's law."""
    total = 0
    for i in ids:
        frequency = 1 / ((i + 2.7) * math.log(1 + len(E) / 2.7))
        total += E[i] / E[i].square().mean().sqrt() * 1e-3 / (1e-3 + frequency)
    return total / total.square().mean().sqrt()


def test_it_is_the_quantile_of_replies_with_questions_of_others():
    pairs, E = some_pairs(30), table()
    centre, cosines = sum(text_reference(E, reply) for _, reply in pairs) / len(pairs), []
    for i, (_, reply) in enumerate(pairs):
        for k in range(1, calibration.PARTNERS + 1):
            question = pairs[i - k][0]
            a, b = (text_reference(E, ids) - centre for ids in (reply, question))
            cosines.append(F.cosine_similarity(a, b, dim=0))
    found, expected = goal_calibration(conversations(pairs), E), calibrate(torch.stack(cosines))
    assert found[:3] == pytest.approx(expected[:3], abs=1e-5)
    assert found.centre == pytest.approx(centre.tolist(), abs=1e-5)


def test_few_conversations_or_none_with_both_sides_are_not_calibrated():
    assert (
        goal_calibration(conversations(some_pairs(calibration.MIN_CONVERSATIONS - 1)), table())
        is None
    )
    silent = [(question, reply[:1]) for question, reply in some_pairs(30)]
    assert goal_calibration(conversations(silent), table()) is None


def test_a_table_that_knows_the_topics_separates_a_reply_from_strangers():
    """Question and reply share a topic word: a reply passes for its own question."""
    rng = np.random.default_rng(1)
    topics = list(range(10, 60))
    pairs = [([t, t, 5 + rng.integers(5)], [t, t, 5 + rng.integers(5)]) for t in topics]
    E = table(1)
    found = goal_calibration(conversations(pairs), E)
    own = [found.cosine(text_reference(E, a), text_reference(E, b)) for a, b in pairs]
    assert np.mean([cosine >= found.threshold for cosine in own]) > 0.8
