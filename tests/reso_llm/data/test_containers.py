"""Containers: packed files, other encodings, arrays, tables; and what must not fill the memory."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reso_llm.data import data_file, json_rows, sources
from reso_llm.data.errors import BadRows, DataError
from reso_llm.data.sources import read_documents

REPOSITORY = Path(__file__).resolve().parents[3]
ROWS = [{"text": "α"}, {"text": 'b , "c"\nd'}, {"text": "e"}]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'text,id\nα,1\n"b , ""c""\nd",2\ne,3\n'


def read(path: Path, **options) -> list[str]:
    return [document.text for document in read_documents(str(path), **options)]


FILES = {
    "rows.ndjson": LINES.encode(),
    "rows.jsonl.gz": gzip.compress(LINES.encode()),
    "rows.JSONL.GZ": gzip.compress(LINES.encode()),
    "rows.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "rows.csv": CSV.encode(),
    "rows.csv.gz": gzip.compress(("\ufeff" + CSV).replace("\n", "\r\n", 1).encode()),
    "semicolons.csv": re.sub(r",(id|\d)", r";\1", CSV).encode(),
    "tabs.csv": re.sub(r",(id|\d)", r"\t\1", CSV).encode(),
    "array.jsonl": json.dumps(ROWS).encode(),
    "pretty.jsonl": json.dumps(ROWS, indent=1).encode(),
    "object.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "little.jsonl": ("\ufeff" + LINES).encode("utf-16-le"),
    "big.jsonl": ("\ufeff" + LINES).encode("utf-16-be"),
    "wide.csv": CSV.encode("utf-32"),
}


@pytest.mark.parametrize("name", list(FILES))
def test_container(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    assert read(path) == TEXTS


def test_rows_beside_those_that_are_read_are_bad(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1], "tags": ["x"]}))
    with pytest.raises(DataError, match=r"under 'test' are not read beside .*'train'"):
        read(path)
    assert read(path, on_bad_row="skip") == TEXTS


def test_array_of_conversations_is_no_row(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "array.jsonl").write_text(json.dumps([turns, turns]))
    (tmp_path / "lines.jsonl").write_text(f"{json.dumps(turns)}\n" * 2)
    (tmp_path / "pairs.jsonl").write_text('[["q", "a"]]\n' * 2)
    for path in tmp_path.iterdir():
        found = [[tuple(m) for m in d.messages] for d in read_documents(str(path))]
        assert found == [[("user", "q"), ("assistant", "a")]] * 2, path


def test_zst(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "rows.jsonl.zst"
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(LINES.encode())
    assert read(path) == TEXTS


def test_zst_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(b"(\xb5/\xfd")
    with pytest.raises(DataError, match=r'reading \.zst needs pyarrow: pip install "reso-llm\[hf'):
        read(path)


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow(tmp_path, form):
    pyarrow = pytest.importorskip("pyarrow")
    ipc = pytest.importorskip("pyarrow.ipc")
    table = pyarrow.Table.from_pylist(ROWS)
    path = tmp_path / "rows.arrow"
    with pyarrow.OSFile(str(path), "wb") as file:
        new = ipc.new_stream if form == "stream" else ipc.new_file
        with new(file, table.schema) as writer:
            writer.write_table(table)
    assert read(path) == TEXTS


def test_packed_and_recoded_text_file_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("reso_llm.data.readers.PIECE_BYTES", 16)
    monkeypatch.setattr(data_file, "PIECE_BYTES", 16)
    text = "A line of prose, nothing else: 日本語 🫥\r\n" * 9
    path = tmp_path / "book.txt.gz"
    path.write_bytes(gzip.compress(text.encode("utf-16")))
    pieces = list(read_documents(str(path)))
    assert "".join(piece.text for piece in pieces) == text
    assert {piece.file_bytes for piece in pieces} == {len(text.encode())}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.jsonl.gz", b"\x1f\x8b no", "broken .gz file|cannot be read"),
        ("rows.jsonl.gz", gzip.compress(LINES.encode() * 99)[:-20], "broken .gz file"),
        ("rows.jsonl", b"\xff\xfea", "invalid utf-16-le"),
        ("rows.csv", b"text\ncaf\xe9\n", "invalid UTF-8"),
        ("rows.arrow", b"no arrow", "broken arrow file"),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\nsize 5\n", "git-lfs pointer"),
    ],
)
def test_broken_container_is_named(tmp_path, name, content, reason):
    if name.endswith(".arrow"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*({reason})"):
        read(path)


def test_csv_row_with_too_many_fields_is_bad(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,id\na,1\nb,2,3\nc,4\n")
    report = BadRows()
    assert read(path, on_bad_row="skip", report=report) == ["a", "c"]
    assert report.rows == [(str(path), 3, "more fields than the 2 of the header")]


def test_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl: is a pipe or a device"):
        read(tmp_path / "rows.jsonl")


# -- memory


def test_a_row_that_is_too_long_is_bad_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "ROW_BYTES", 64)
    path = tmp_path / "rows.jsonl"
    path.write_text('"a"\n"' + "x" * 200 + '"\n"b"\n')
    report = BadRows()
    assert read(path, on_bad_row="skip", report=report) == ["a", "b"]
    assert [row[1] for row in report.rows] == [2]
    assert "a row of more than" in report.rows[0].reason


def test_text_that_unpacks_to_far_more_than_its_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNPACKED_BYTES", 1 << 20)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'"' + b"x" * 9999 + b'"\n', 9) * 2 + gzip.compress(b'"y"\n'))
    assert len(read(path)) == 3
    monkeypatch.setattr(sources, "UNPACKED_RATIO", 2)
    monkeypatch.setattr(sources, "UNPACKED_BYTES", 1 << 10)
    with pytest.raises(DataError, match="unpacks to more than 2 times its size"):
        read(path)


BOMB = """
import resource, sys
import pyarrow, pyarrow.parquet
from reso_llm.data.errors import DataError
from reso_llm.data.sources import read_documents
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for document in read_documents(sys.argv[1]):
        pass
    print("read")
except DataError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_small_table_that_unpacks_to_gigabytes_is_refused_in_little_memory(tmp_path, dictionary):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    text = "bomb " * 20_000  # 100 kB
    path = tmp_path / "rows.parquet"
    if dictionary:  # 20,000 rows, 2 GB in all, of one text that is stored once
        indices = pyarrow.array([0] * 20_000, pyarrow.int32())
        column = pyarrow.DictionaryArray.from_arrays(indices, [text])
    else:
        column = pyarrow.array([text] * 1_500)
    table = pyarrow.table({"text": column})
    parquet.write_table(table, path, compression="zstd", use_dictionary=dictionary)
    assert path.stat().st_size < 200_000
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)], check=True, capture_output=True, text=True,
        cwd=REPOSITORY,
    )  # fmt: skip
    message, megabytes = done.stdout.splitlines()
    assert "unpacks" in message
    assert ("the column 'text'" in message) is not dictionary
    assert int(megabytes) < 400
