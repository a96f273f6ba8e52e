"""The study of answers: its questions, its scores, and what it makes of them."""

import numpy as np
import pytest

from benchmarks.kit.short_answers import Asked, known, told
from benchmarks.studies.answers import OWN, PLAIN, Answer, doubts, judged, selected, text
from reso_llm.decoding.text_class import DEFAULT

pytest.importorskip("scipy")


def test_two_hundred_questions_of_each_kind_and_the_prompt_tells_the_fact():
    for questions in (told(), known()):
        assert len({q.text for q in questions}) == len(questions) == 200
    assert told() == told()
    for question in told():
        assert all(value in question.text for value in (question.answer, *question.others))
    assert len({q.unit for q in told()}) <= 60


def test_a_right_answer_has_the_value_as_a_word_and_no_other():
    asked = Asked("x", "?", "Buenos Aires", ("Bogota",))
    assert asked.is_right("It is Buenos Aires.")
    assert not asked.is_right("It is Aires.")
    assert not asked.is_right("Buenos Aires or Bogotá")
    assert Asked("x", "?", "Brasilia").is_right("Brasília!")
    assert not Asked("x", "?", "C").is_right("Carbon")


def test_doubts_rise_with_surprise_and_with_loops():
    sure = Answer("a", [1, 2, 3, 4], [0.1] * 4, [0.3] * 4, 0.0)
    lost = Answer("b", [1, 2, 3, 4], [4.0] * 4, [3.0] * 4, 0.1)
    loop = Answer("c", [1, 2] * 8, [0.1] * 16, [0.3] * 16, 0.0)
    one, two, three = (doubts(answer, DEFAULT) for answer in (sure, lost, loop))
    assert all(two[name] > one[name] for name in one if name not in ("repetition", "tokens"))
    assert three["repetition"] > 0.9 > one["repetition"]
    assert three["warning"] > one["warning"]


def test_a_score_that_knows_and_one_that_does_not():
    rng, right = np.random.default_rng(0), np.arange(60) % 2 == 0
    names = (*OWN, *PLAIN)
    scores = {name: rng.normal(size=60) for name in names} | {"excess": 1.0 - right}
    row = judged(scores, right, np.arange(60), draws=100)
    assert row["auroc"]["excess"] == (1.0, 1.0, 1.0)
    assert row["accuracy"][0] == 0.5
    assert row["minus"]["excess"][1] > 0.2
    assert row["auroc"]["warning"][1] < 0.5 < row["auroc"]["warning"][2]
    assert row["kept_right"]["excess"] == [1.0, 1.0, pytest.approx(30 / 36), 0.625, 0.5]
    assert "**m**" in text([{"model": "m", "facts": "told", **row}])


def test_equal_doubts_keep_the_mean_of_their_orders():
    right = np.array([True, False, False, True])
    assert selected(np.zeros(4), right) == [0.5] * 5
