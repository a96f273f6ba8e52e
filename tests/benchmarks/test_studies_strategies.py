"""The study of strategies: texts of equal length, their measures and what is compared."""

import numpy as np
import pytest

from benchmarks.studies import strategies


@pytest.fixture
def pair(tiny_model, byte_tokenizer):
    models = [tiny_model(seed, ("echo",), vocab_size=261, max_seq_len=64) for seed in (0, 1)]
    return [strategies.Endless(model, byte_tokenizer, model.config) for model in models]


def test_texts_of_all_ways_have_the_same_length(pair):
    """The halves of a relay are the second's continuation of the first's."""
    found = strategies.texts(pair, "Hi", 10, seed=3)
    assert [*found] == ["single 0", "single 1", *strategies.STRATEGIES]
    assert {len(ids) for ids in found.values()} == {10}
    chat = [("user", "Hi")]
    first = pair[0].generate(chat, 5, seed=3)
    chat.append(("assistant", first.text))
    relay = [*first.token_ids, *pair[1].generate(chat, 5, seed=4).token_ids]
    assert found["sequential"] == relay
    assert found["parallel"][:5] == relay[:5]


def test_measures():
    assert strategies.measured([1, 2, 3, 4, 1, 2, 3, 4]) == (1 / 5, 1 - 3 / 7)


def test_a_way_is_compared_with_the_mean_of_the_singles():
    values = {way: np.full((2, 2), 0.5) for way in ("single 0", *strategies.STRATEGIES)}
    rows = strategies.compare(values | {"single 1": np.array([[0.1, 0.3], [0.3, 0.5]])})
    by_way = {row["way"]: row for row in rows}
    assert by_way["single"]["rep-4"][0] == pytest.approx(0.35)
    assert by_way["single"]["rep-4 - single"] == (0, 0, 0)
    assert by_way["parallel"]["rep-4 - single"] == pytest.approx((0.15, 0.1, 0.2))
    assert by_way["consensus"]["distinct-2 - single"][0] == pytest.approx(0.05)
    assert "| parallel | 0.500 [0.500, 0.500] | 0.150 [0.100, 0.200] |" in strategies.text(rows)


def test_questions_are_the_first_words_of_users(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"text": "plain"}\n{"text": "### Human: One?### Assistant: Yes."}\n'
        '{"text": "### Human: Two?### Assistant: No."}\n'
    )
    assert strategies.questions(str(path), 1) == ["One?"]
    assert strategies.questions(str(path), 5) == ["One?", "Two?"]
