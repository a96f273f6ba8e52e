"""What a run says it read: counts, unused fields, and markers left in plain text."""

import json

import pytest

from reso_llm.data.errors import DataError
from reso_llm.data.files import Selection, choose_files, files_left_out
from reso_llm.data.inspection import inspect_data
from reso_llm.data.prepare import prepare
from reso_llm.data.sources import read_documents
from reso_llm.data.summary import DataSummary
from reso_llm.tokenizer import ResoTokenizer

TOKENIZER = ResoTokenizer.train(["x"], 261)
ROWS = [
    {"text": "### Human: q1### Assistant: a1"},
    {"text": "plain", "lang": "en"},
    {"text": "see `### Human:` here", "lang": "de"},
    {"messages": [["q2", "a2"], ["q3", "a3"]], "system": "s", "id": 4},
    {"text": 'and "<|im_start|>" too'},
]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


COUNTS = {
    "conversations": 2, "plain": 3, "turns": 6, "replies": 3, "system": 1,
    "unused_fields": {"lang": 2, "id": 1},
}  # fmt: skip


def test_inspection_as_json(rows):
    found = json.loads(inspect_data(rows, "json"))
    assert found == COUNTS | {
        "marker_warnings": [f"{rows}:3", f"{rows}:5"],
        "first": [
            [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}],
            [{"role": "text", "content": "plain"}],
        ],
    }


def test_inspection_for_people(rows):
    text = inspect_data(rows, "text")
    assert text.splitlines() == [
        f"read {rows}",
        "2 conversations with 6 turns (3 replies, 1 system message), 3 plain texts",
        "not used, with the number of documents: lang (2), id (1)",
        "warning: 2 plain texts have chat markers inside and would be trained as text: "
        f"{rows}:3, {rows}:5",
        "document 1:",
        "  user: 'q1'",
        "  assistant: 'a1'",
        "document 2:",
        "  text: 'plain'",
    ]


def test_the_token_cache_says_the_same(rows, tmp_path):
    built = prepare(rows, TOKENIZER, cache_dir=tmp_path / "cache")
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes((tmp_path / "rows.jsonl").read_bytes())
    opened = prepare(str(moved), TOKENIZER, cache_dir=tmp_path / "cache")
    assert opened.path == built.path
    assert opened.summary.lines() == [
        line.replace(rows, str(moved)) for line in built.summary.lines()
    ]
    assert built.summary.lines() == inspect_data(rows, "text").splitlines()[:4]


def test_names_of_columns_are_part_of_the_cache(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"q": "{i}", "a": "{i}", "text": "t{i}"}}\n' for i in range(9)))
    plain = prepare(str(path), TOKENIZER, cache_dir=tmp_path)
    named = prepare(str(path), TOKENIZER, cache_dir=tmp_path, columns="prompt=q,reply=a")
    assert (plain.summary.plain, named.summary.replies) == (9, 9)
    assert named.train.reply_mask.any()
    with pytest.raises(DataError, match=r"rows\.jsonl:1: columns: no column 'b'"):
        prepare(str(path), TOKENIZER, cache_dir=tmp_path, columns="prompt=q,reply=b")


def test_a_field_of_its_own_in_every_row_is_bounded(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "t", "\\u001b[31m{i}": 1}}\n' for i in range(1100)))
    summary = DataSummary()
    assert len(list(read_documents(str(path), summary=summary))) == 1100
    assert summary.unused_fields["other fields"] == 100
    assert len(summary.unused_fields) == 1001
    line = summary.lines()[-1]
    assert line.endswith("and 981 more")
    assert "\x1b" not in line


def test_markers_in_a_text_file_have_their_line(tmp_path, monkeypatch):
    monkeypatch.setattr("reso_llm.data.readers.PIECE_BYTES", 40)
    path = tmp_path / "book.txt"
    path.write_text("a line of prose\n" * 9 + "see ### Human: x\n" + "a line of prose\n" * 9)
    summary = DataSummary()
    pieces = list(read_documents(str(path), summary=summary))
    assert len(pieces) > 3
    assert (summary.plain, summary.marked, summary.marker_places) == (1, 1, [(str(path), 10)])
    assert "1 plain text has chat markers inside" in summary.lines()[-1]


def test_files_that_are_not_read_are_named(tmp_path):
    for name in ("train.jsonl", "test.jsonl", ".train.jsonl", "README.md"):
        (tmp_path / name).write_text('{"text": "plain"}\n')
    left_out = f"{tmp_path}/test.jsonl"
    lines = inspect_data(f"{tmp_path}/", "text").splitlines()
    assert lines[0] == f"read {tmp_path}/train.jsonl"
    assert lines[2] == f"not read, held out or of a second kind: {left_out}"
    assert json.loads(inspect_data(f"{tmp_path}/", "json"))["left_out"] == [left_out]


def test_a_second_kind_of_file_beside_the_first_is_named():
    names = ["a.parquet", "b.jsonl", "fr/a.parquet", "fr/b.jsonl", "README.md"]
    chosen = choose_files(names)
    assert chosen == ["a.parquet", "fr/a.parquet"]
    assert files_left_out(names, chosen) == ("b.jsonl", "fr/b.jsonl")
    assert files_left_out(names, ["fr/a.parquet"], Selection(subset="fr")) == ("fr/b.jsonl",)
    assert files_left_out(names, ["b.jsonl"], Selection(file="b.jsonl")) == ()
