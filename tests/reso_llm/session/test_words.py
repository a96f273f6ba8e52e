"""Words of a text: which are content, and which are forms of one."""

import pytest

from reso_llm.session.words import STOP_WORDS, content_words, stem, words


def test_words_are_letters_and_digits_in_lower_case():
    assert words("Olga's key, No. 42: l’heure_bleue!") == [
        "olga's", "key", "no", "42", "l'heure", "bleue",
    ]  # fmt: skip
    assert words("...") == []


def test_content_words_leave_out_what_every_text_holds():
    text = "What's my sister's name, and don't I know where'd Olga live?"
    assert content_words(text) == ["sister", "name", "olga", "live"]
    assert content_words("I am who I am, x") == []
    assert STOP_WORDS.isdisjoint({"important", "context", "key", "live"})


@pytest.mark.parametrize(
    "forms",
    ["live lives living lived", "call called calls calling", "city cities", "study studied",
     "run running runs", "stop stopped", "glass glasses", "name names", "box boxes", "key keys"],
)  # fmt: skip
def test_forms_of_a_word_have_one_stem(forms):
    assert len({stem(word) for word in forms.split()}) == 1


def test_short_words_and_others_stay_apart():
    assert [stem(w) for w in ("bus", "king", "red", "spring")] == ["bus", "king", "red", "spring"]
    assert len({stem(w) for w in ("oslo", "olga", "order", "orange", "teapot", "tea")}) == 6
