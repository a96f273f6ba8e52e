"""What a reply so far is to SRB: its places, its structure, its repeats."""

import math

import pytest

from entropy_core.budget import Place
from reso_llm.decoding.draft import (
    Drafts,
    Repeats,
    Structure,
    Written,
    kind_of,
    num_steps,
    place_of,
)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", Place.INSIDE),
        ("It is", Place.INSIDE),
        ("It is ", Place.WORD),
        ("It is,", Place.WORD),
        ("It is\n", Place.LINE),
        ("It is.", Place.FINISHED),
        ("It is.\n\n", Place.FINISHED),
        ('He said "no!"', Place.FINISHED),
        ("Do this:\n\n3.", Place.WORD),  # the number of an item
        ("Do this.\n\n**Step 3:**", Place.WORD),
        ("It weighs 3.", Place.FINISHED),
        ("```python\nprint(1)  # One.", Place.INSIDE),  # inside a block
        ("```python\nprint(1)\n", Place.LINE),
        ("```python\nprint(1)\n```", Place.FINISHED),
        ("これは本です。", Place.FINISHED),
    ],
)
def test_places(text, place):
    assert place_of(text) is place


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Write a Python function that adds.", "code"),
        ("Give numbered instructions in exactly 5 steps: how to write a letter.", "steps"),
        ("Summarise the story of Hamlet.", "summary"),
        ("Write an essay on stories.", "essay"),
        ("Write a poem about snow.", "story"),
        ("Who are you?", "other"),
    ],
)
def test_kinds(question, kind):
    assert kind_of(question) == kind


def test_steps_are_counted_in_order_and_code_needs_a_closed_block():
    assert num_steps("1. a\n2. b\n2. c\n4. d") == 2
    steps, code = Structure("In exactly 2 numbered steps: how?"), Structure("Some Python, please.")
    assert [steps.done(t) for t in ("1. a.", "1. a.\n2. b.")] == [False, True]
    assert [code.done(t) for t in ("x = 1", "```\nx = 1", "```\nx = 1\n```")] == [False] * 2 + [
        True
    ]
    assert code.progress("```\nx = 1") == 1
    assert Structure("Who are you?").done("")


def test_repeats_are_the_share_of_ngrams_that_came_before():
    repeats = Repeats(order=2, window=4)
    assert repeats.add([1, 2, 3]) == 0
    assert repeats.add([1, 2, 3]) == 0.5  # 3 1 is new, 1 2 and 2 3 came before
    assert repeats.add([1, 2, 3, 1]) == 1
    assert repeats.add(range(10, 15)) == 0
    assert Repeats().add([7] * 40) == 1


def test_drafts_read_each_id_once():
    drafts, ids = Drafts("In 2 steps: how?", {"steps": 50}), [1, 2, 3, 4] * 12
    read = [drafts.read(Written("", "1. Go.", ids[:k], 1.5)).repeated for k in range(len(ids) + 1)]
    assert read == [Repeats().add(ids[:k]) for k in range(len(ids) + 1)]
    draft = drafts.read(Written("", "1. Go.", ids, 1.5))
    assert draft[:1] + draft[2:] == (1.5, Place.FINISHED, False, 1, 50)
    assert Drafts("Hello?", {"steps": 50}).budget == math.inf
