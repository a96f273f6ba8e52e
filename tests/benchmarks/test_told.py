"""The sixty facts are complete, and told apart by their names."""

from benchmarks.kit.told import MONTHS, OTHER_QUESTIONS, facts, names
from reso_llm.session.words import content_words


def test_sixty_facts_hold_their_answers_and_no_question_does():
    told = list(facts())
    assert len(told) == len({fact.text for fact in told}) == 60
    for fact in told:
        assert fact.answer in fact.text
        assert len(set(fact.questions)) == 3
        assert not any(fact.answer.lower() in q.lower() for q in fact.questions)


def test_names_are_of_one_fact_alone():
    told = [fact.text for fact in facts()]
    assert len(names()) == len(set(names())) == 65
    assert MONTHS.isdisjoint(names())
    assert all(sum(name in text for text in told) == 1 for name in names())


def test_no_fact_answers_another_question():
    answers = {fact.answer.lower() for fact in facts()}
    assert len(set(OTHER_QUESTIONS)) == len(OTHER_QUESTIONS) == 60
    assert answers.isdisjoint(word for q in OTHER_QUESTIONS for word in content_words(q))
