"""The scores of replies by hand, and the verdicts of the bars."""

import json

import pytest

from benchmarks.kit.first_questions import CHATS, FIRST
from benchmarks.kit.records import weights_hash
from benchmarks.making import ship
from benchmarks.tasks import talk

KNOWN = {"hello", "how", "are", "you"}


def said(text, ids=(5, 6, 7, 8, 9), asked=("Hi!",)):
    return talk.Said(text, ids, asked)


def test_the_questions_are_sixty_and_the_chats_thirty_of_three_turns():
    assert len(set(FIRST)) == 60
    assert {len(chat) for chat in CHATS} == {3}
    assert len(set(CHATS)) == 30
    last = {chat[-1] for chat in CHATS}
    assert set(talk.TOLD) <= last
    for chat in CHATS:
        if chat[-1] in talk.TOLD:
            assert talk.TOLD[chat[-1]] in " ".join(chat[:-1])


def test_scores_of_a_reply():
    good = talk.scores(said("Hello, how are you?"), KNOWN)
    assert good == {"long": True, "finished": True, "non-word": False, "rep-4": 0}
    assert talk.scores(said("Hello!", ids=(5, 6)), KNOWN)["long"] is False
    assert talk.scores(said("Hello, how are"), KNOWN)["finished"] is False
    assert talk.scores(said("Hello, Zorb."), KNOWN)["non-word"] is True
    assert talk.scores(said("Hello, Zorb.", asked=("I am Zorb.",)), KNOWN)["non-word"] is False
    assert talk.scores(said("Hello.", ids=(5, 6, 7, 8) * 2), KNOWN)["rep-4"] == pytest.approx(1 / 5)


def row(seed, commonest=1, **changed):
    values = {"long": 1.0, "finished": 1.0, "non-word": 0.0, "rep-4": 0.0} | changed
    shares = {name: [value, value, value] for name, value in values.items()}
    return {"checkpoint": "run", "data": "held", "seed": seed, "bits_per_byte": 1.6,
            "commonest": commonest, "told": [True, False], **shares}  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "missed"),
    [
        ([row(0), row(1)], []),
        ([row(0), row(1, commonest=4)], ["commonest"]),
        ([row(0, finished=0.95), row(1, finished=0.93)], ["finished"]),
        ([row(0, **{"non-word": 0.03, "rep-4": 0.03})], ["non-word", "rep-4"]),
    ],
)
def test_bars_that_are_missed(rows, missed):
    assert talk.missed(rows) == missed
    assert talk.text(rows).count("| no |") == len(missed)
    assert f"{len(rows)} of {2 * len(rows)}" in talk.text(rows)


def test_the_card_shows_twenty_replies_of_the_very_weights_and_names_what_they_miss(tmp_path):
    checkpoint, rows = tmp_path / "shipped", tmp_path / "talk.jsonl"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    replies = [f"reply {i}" for i in range(60)]
    mine = row(0, commonest=4) | {"weights": weights_hash(checkpoint), "replies": replies}
    rows.write_text(json.dumps(mine | {"weights": "other"}) + "\n")
    with pytest.raises(ValueError, match=r"talk\.jsonl: expected rows of .*shipped"):
        ship.talk_of(rows, checkpoint)
    rows.write_text(json.dumps(mine) + "\n")
    card = ship.talk_of(rows, checkpoint)
    assert card["verdict"] == "It misses its bars for commonest."
    assert card["replies"].count("reply ") == 20
    assert "reply 3 " in card["replies"]
