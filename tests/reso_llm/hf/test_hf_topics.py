"""Goals of models that come without training text: calibrated on topics and replies of ours."""

import pytest
import tiny_engine
import torch

from reso_llm.hf.topics import REPLIES, topic_calibration


def bag(text):
    """A vector of a text's words, all texts sharing a direction."""
    vector = torch.zeros(512)
    for word in text.lower().replace(".", "").replace(",", "").split():
        vector[hash_of(word)] += 1
    return vector + 1


def hash_of(word):
    return sum(ord(c) * 31**i for i, c in enumerate(word)) % 512


def test_one_unrelated_pair_in_twenty_passes():
    found = topic_calibration(bag)
    vectors = [(bag(reply), bag(goal)) for goal, reply in REPLIES.items()]
    cosines = [
        found.cosine(vectors[i][0], vectors[j][1])
        for i in range(len(vectors))
        for j in range(len(vectors))
        if i != j
    ]
    assert sum(c >= found.threshold for c in cosines) / len(cosines) == pytest.approx(
        0.05, abs=0.01
    )
    assert found.centre == pytest.approx(sum(reply for reply, _ in vectors) / len(vectors))


def test_a_reply_of_the_goals_words_has_progress_and_no_warning():
    engine = tiny_engine.engine()
    result = engine.generate_with_goal([("user", "Well?")], "kites", 5, seed=1, temperature=3.0)
    assert 0 <= result.goal_progress["kites"] <= 1
    assert not [w for w in result.warnings if "calibration" in w]
