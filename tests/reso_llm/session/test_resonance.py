"""Which texts answer to a query: weights by hand, forms and typos, and what is asked for."""

import math

import pytest

from benchmarks.kit.told import OTHER_QUESTIONS, facts
from reso_llm.session.resonance import WordIndex, features, is_misspelling


def index_of(*texts):
    index = WordIndex()
    for number, text in enumerate(texts):
        index.add(number, text)
    return index


def asked_for(query, *texts):
    matches = index_of(*texts).matches(query)
    return [text for number, text in enumerate(texts) if number in matches and matches[number][2]]


def test_resonance_by_hand():
    """One word of two texts, one of one, one of none, and a common one that nobody holds."""
    index = index_of("red roses", "red tulips", "white lilies")
    matches = index.matches("Do red roses live in Rome?")
    red, roses = math.log(104 / 3), math.log(104 / 2)
    total = red + roses + math.log(104 / (1 + 100 / 3)) + math.log(104)
    assert {n: m.nats for n, m in matches.items()} == pytest.approx({0: red + roses, 1: red})
    assert matches[0].resonance == pytest.approx((red + roses) / total)
    assert index_of("roses").matches("roses")[0].resonance == 1


def test_features_are_stems_and_speakers():
    assert features("My dogs' names: I LIKED them.") == {"i", "dog", "nam", "lik"}
    assert features("Is it yours?") == {"your"}
    assert features("What am I called?") == features("my name")
    assert features("我喜欢 music") == {"我", "喜", "欢", "music"}


@pytest.mark.parametrize(
    "query", ["important", "IMPORTANT!", "What is important?", "importantly", "importnat",
              "imporant", "importtant", "inportant"],
)  # fmt: skip
def test_case_inflection_and_typos(query):
    assert asked_for(query, "Important context to remember", "My key is red")


def test_a_misspelt_word_counts_less_than_the_word_and_only_where_no_text_holds_it():
    index = index_of("the lantern", "the lanterns of Lanten")
    assert {n for n in index.matches("lantern")} == {0, 1}
    assert index.matches("lanterm")[0].resonance == pytest.approx(0.8)


def test_misspellings_are_one_letter_apart_behind_the_same_first():
    for typo in ("hose", "housse", "hoxse", "huose", "hous"):
        assert is_misspelling(typo, "house") == is_misspelling("house", typo) is True
    for other in ("house", "mouse", "hxxse", "ho", "ouse", "hsuoe"):
        assert not is_misspelling(other, "house")
    assert not is_misspelling("Olga", "Olgu"), "too short"


def test_what_is_asked_for():
    sister, name = "My sister Olga lives in Oslo.", "My name is Otto."
    for query in ("Where does my sister live?", "where does olga live", "Who is Olga?"):
        assert asked_for(query, sister, name) == [sister]
    assert asked_for("What is my name?", sister, name) == [name]
    for query in ("Where do penguins live?", "Where does Peter live?", "Where do you live?",
                  "What is your name?", "Do you have a sister?", "Hello!", ""):  # fmt: skip
        assert asked_for(query, sister, name) == []


def test_each_of_sixty_facts_is_asked_for_by_its_questions_alone():
    told = list(facts())
    index = index_of(*(fact.text for fact in told))
    for number, fact in enumerate(told):
        for question in fact.questions:
            matches = index.matches(question)
            best = max(matches, key=lambda n, m=matches: m[n].resonance)
            assert (best, matches[best].asked_for) == (number, True), question
    wrong = [q for q in OTHER_QUESTIONS if any(m.asked_for for m in index.matches(q).values())]
    assert wrong == ["I lost my keys this morning."], "five of the facts are about a spare key"


def test_a_removed_text_leaves_nothing():
    index = index_of("red roses", "red tulips")
    index.remove(0)
    assert set(index.matches("red roses")) == {1}
    assert index.matches("roses") == {}
    index.remove(1)
    assert not index._holders
    assert not any(index._by_letter.values())
