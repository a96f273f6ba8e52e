"""Stop strings: the first one ends a text, and the beginning of one is held back."""

import itertools

import pytest

from reso_llm.generation.stop_strings import first_stop, overlap
from reso_llm.generation.text_stream import TextStream

STOPS = ("ab", "bcd")
TEXTS = ["".join(letters) for n in range(1, 6) for letters in itertools.product("abcd", repeat=n)]


def test_the_first_stop_string_is_found_from_any_start_without_one():
    for text in TEXTS:
        expected = min((text.find(stop) for stop in STOPS if stop in text), default=None)
        searched = next(
            n for n in range(len(text), -1, -1) if not any(s in text[:n] for s in STOPS)
        )
        assert first_stop(text, STOPS, searched) == expected
        assert first_stop(text, STOPS, 0) == expected


def test_the_overlap_is_the_longest_end_that_begins_a_stop_string():
    beginnings = ["a", "b", "bc"]
    for text in TEXTS:
        assert overlap(text, STOPS) == max(
            (len(x) for x in beginnings if text.endswith(x)), default=0
        )
    assert overlap("abc", ()) == 0


@pytest.mark.parametrize(("text", "pieces"), [("xbcx", "x bcx"), ("xbcd", "x"), ("xbc", "x bc")])
def test_on_text_never_receives_a_part_of_a_stop_string(byte_tokenizer, text, pieces):
    received = []
    stream = TextStream(byte_tokenizer, STOPS, received.append)
    for token in byte_tokenizer.encode(text):
        stream.add(token)
    assert stream.close() == "".join(received) == pieces.replace(" ", "")
    assert received == pieces.split()
