"""Sources: every row is read or reported with its place, from every kind of file (FAULTS 17-21)."""

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reso_llm.data import data_file, json_rows, readers
from reso_llm.data import sources as module
from reso_llm.data.conversation import Document, Message
from reso_llm.data.errors import BadRows, DataError
from reso_llm.data.files import Selection, choose_files
from reso_llm.data.hub import dataset_files
from reso_llm.data.sources import absolute, read_documents, resolve

REPOSITORY = Path(__file__).resolve().parents[3]
DATA = REPOSITORY.parent / "shared" / "data"
SHA = "0123456789abcdef0123456789abcdef01234567"


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def texts(spec: str, **options) -> list[str]:
    return [d.text or d.messages[0].content for d in read_documents(spec, **options)]


def row(text: str) -> str:
    return json.dumps({"text": text}, ensure_ascii=False) + "\n"


# -- jsonl: bad rows (FAULTS 17, 18)

BAD_LINES = {
    "broken": (b'{"text": "x"', "broken JSON: Expecting ',' delimiter"),
    "not json": (b"hello", "broken JSON: Expecting value"),
    "two values": (b'{"text": "a"} {"text": "b"}', "broken JSON: Extra data"),
    "missing": (b'{"body": "x"}', 'no "text"'),
    "null": (b'{"text": null}', '"text" is null'),
    "null row": (b"null", "found null"),
    "type": (b'{"text": 5}', '"text" is a number'),
    "number": (b"17", "found a number"),
    "empty": (b'{"text": ""}', '"text" is empty'),
    "blank": (b'{"text": " \\n"}', '"text" is empty'),
    "utf-8": (b'{"text": "caf\xe9"}', "invalid UTF-8 at byte 13 of the line"),
    "overlong": (b'{"text": "\xc0\x80"}', "invalid UTF-8 at byte 10"),
    "surrogate": (b'{"text": "a\\ud83d"}', "lone surrogate U+D83D at character 1"),
    "deep": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "second BOM": (b'\xef\xbb\xbf{"text": "x"}', "broken JSON"),
    "huge number": (b'{"text": ' + b"9" * 5000 + b"}", "broken JSON"),
    "messages": (b'{"messages": [{"role": "user"}]}', 'message 0: no "content"'),
}


@pytest.mark.parametrize("case", list(BAD_LINES))
def test_bad_row_stops_or_is_listed_with_its_line(tmp_path, case):
    line, reason = BAD_LINES[case]
    path = write(tmp_path / "rows.jsonl", row("one").encode() + b"\n" + line + b"\n" + b'"two"\n')
    with pytest.raises(DataError) as error:
        texts(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert reason in str(error.value)
    assert "--on-bad-row skip" in str(error.value)
    report = BadRows()
    assert texts(path, on_bad_row="skip", report=report) == ["one", "two"]
    assert report.count == 1
    assert report.rows[0][:2] == (path, 3)
    assert reason in report.rows[0].reason
    assert report.summary() == f"1 bad row skipped:\n{report.rows[0]}"


def test_all_bad_rows_are_listed_in_order(tmp_path):
    lines = [line for line, _ in BAD_LINES.values()]
    path = write(tmp_path / "rows.jsonl", b"\n".join([*lines, b'"good"']))
    report = BadRows()
    assert texts(path, on_bad_row="skip", report=report) == ["good"]
    assert [bad.line for bad in report.rows] == list(range(1, len(lines) + 1))
    assert report.summary(2).splitlines()[-1] == f"... and {len(lines) - 2} more"


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_bom_crlf_nul_and_blank_lines_are_fine_and_content_is_unchanged(tmp_path, end):
    contents = ["nul \0 here", "cr\r\nlf", "\ufeffbom inside", "sep \u2028 \x85 \x1c", "last"]
    body = ("\n" + end).join(row(c).rstrip("\n") for c in contents) + end
    path = write(tmp_path / "rows.jsonl", b"\xef\xbb\xbf" + body.encode())
    assert texts(path) == contents


def test_unknown_policy_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", row("x"))
    with pytest.raises(ValueError, match='expected "error" or "skip"'):
        texts(path, on_bad_row="ignore")


# -- nothing to read (FAULTS 19)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "txt"])
@pytest.mark.parametrize("content", [b"", b"\n \n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_empty_or_blank_file_is_named(tmp_path, suffix, content):
    path = write(tmp_path / f"nothing.{suffix}", content)
    begin = time.monotonic()
    for policy in ("error", "skip"):
        with pytest.raises(DataError, match=rf"nothing\.{suffix}: no (document|text) in it"):
            texts(path, on_bad_row=policy)
    assert time.monotonic() - begin < 1


def test_file_with_only_bad_rows_is_named_with_the_reasons(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"text": ""}\nnonsense\n' * 400)
    with pytest.raises(
        DataError, match=r"rows\.jsonl: no document in it, 800 bad rows skipped"
    ) as e:
        texts(path, on_bad_row="skip")
    assert f"{path}:2: broken JSON" in str(e.value)


# -- json


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "α"}, {"text": "b [, ] \\" c"},\n\n  "d"]\n',
        '\ufeff[{"text":"α"},{"text":"b [, ] \\" c"},{"text":"d"}]',
        '{"text": "α"}\n{"text": "b [, ] \\" c"}\n{"text": "d"}\n',
        '{"text": "α"}{"text": "b [, ] \\" c"} "d"',
        '{\n "text": "α"\n}\n{"text":\n"b [, ] \\" c"}\n"d"',
    ],
)
def test_json_array_or_values_in_blocks_of_any_size(tmp_path, monkeypatch, content, size):
    monkeypatch.setattr(json_rows, "PIECE_BYTES", size)
    assert texts(write(tmp_path / "rows.json", content)) == ["α", 'b [, ] " c', "d"]


def test_bad_value_in_json_array_has_its_line(tmp_path):
    path = write(tmp_path / "rows.json", '[\n{"text": "a"},\n{"text":\n null},\n"b"]')
    report = BadRows()
    assert texts(path, on_bad_row="skip", report=report) == ["a", "b"]
    assert report.rows == [(path, 3, 'nothing to read in this row: "text" is null')]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[\n"a",\n"b"', r":3: broken JSON: the array has no end"),
        ('[\n"a"\n"b"]', r":3: broken JSON: expected , or \]"),
        ('["a",\n{"text": }]', r":2: broken JSON: Expecting value"),
        ('["a"]\n["b"]', r":2: broken JSON: more text after the end"),
        ('["a",\n' + "[" * 100_000, ":2: broken JSON: nested too deeply"),
        (b'["a", "caf\xe9"]', ": invalid UTF-8 near byte 10"),
    ],
)
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_json_that_cannot_be_followed_any_more_is_always_an_error(
    tmp_path, content, reason, policy
):
    path = write(tmp_path / "rows.json", content)
    with pytest.raises(DataError, match=r"rows\.json" + reason):
        texts(path, on_bad_row=policy)


# -- parquet


def test_parquet_rows_and_their_numbers(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    values = pyarrow.array([b"a", None, b"caf\xe9", b"### Human: d"] * 200, pyarrow.binary())
    table = pyarrow.table({"text": values.view(pyarrow.string())})
    path = str(tmp_path / "rows.parquet")
    parquet.write_table(table, path)
    report = BadRows()
    assert texts(path, on_bad_row="skip", report=report) == ["a", "d"] * 200
    assert report.rows[0] == (path, 2, 'nothing to read in this row: "text" is null')
    assert report.rows[1][:2] == (path, 3)
    assert "invalid UTF-8 at byte 3" in report.rows[1].reason
    assert report.rows[-1].line == 799
    messages = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]]
    parquet.write_table(pyarrow.table({"id": [1], "messages": messages}), path)
    assert list(read_documents(path)) == [
        Document((Message("user", "q"), Message("assistant", "a")), None, 2, unused=("id",), line=1)
    ]


def test_broken_parquet_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    path = write(tmp_path / "rows.parquet", b"PAR1 not really")
    with pytest.raises(DataError, match=r"rows\.parquet: broken parquet file"):
        texts(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write(tmp_path / "rows.parquet", b"PAR1")
    with pytest.raises(DataError, match=r'pip install "reso-llm\[hf\]"'):
        texts(path)


# -- txt


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1 << 20])
def test_plain_text_comes_in_pieces_that_join_to_the_file(tmp_path, monkeypatch, size):
    text = "First line\r\n日本語 🫥 without end " * 20 + "\n\n\nlast\0 line"
    path = write(tmp_path / "book.txt", "\ufeff" + text)
    monkeypatch.setattr(readers, "PIECE_BYTES", size)
    pieces = list(read_documents(path))
    assert "".join(piece.text for piece in pieces) == text
    total = len(text.encode())
    assert {piece.file_bytes for piece in pieces} == {total}
    start = 0
    for piece in pieces:
        assert (piece.start, piece.num_bytes) == (start, len(piece.text.encode()))
        start += piece.num_bytes
    assert start == total
    # Cut at line ends wherever a piece of this size has one.
    if size == 64:
        assert all(piece.text.endswith("\n") for piece in pieces[:2])


@pytest.mark.parametrize("size", [3, 1 << 20])
def test_invalid_utf8_in_txt_is_an_error_at_its_byte(tmp_path, monkeypatch, size):
    monkeypatch.setattr(readers, "PIECE_BYTES", size)
    path = write(tmp_path / "book.txt", b"\xef\xbb\xbfabc\ndef caf\xe9 \n")
    with pytest.raises(DataError, match=r"book\.txt: invalid UTF-8 at byte 11 of the text"):
        texts(path, on_bad_row="skip")


def test_unfinished_character_at_the_end_of_txt_is_an_error(tmp_path):
    path = write(tmp_path / "book.txt", "abc 🫥".encode()[:-1])
    with pytest.raises(DataError, match="invalid UTF-8 at byte 4"):
        texts(path)


def turns(spec: str) -> list[list[str]]:
    return [[m.content for m in d.messages] for d in read_documents(spec)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # One row per line, as guanaco is written: a marker at a line start is a new conversation.
        ("### Human: a### Assistant: b\n\nc\n### Human: d### Assistant: e\n", [
            ["a", "b\n\nc"], ["d", "e"]]),
        # One message per line: only a blank line ends a conversation.
        ("\n### Human: a\n### Assistant: b\n### Human: c\n### Assistant: d\n\n\n### Human: e\n", [
            ["a", "b", "c", "d"], ["e"]]),
        ("### Human: a\n\n### Assistant: b\n\n### Human: c\n", [["a", "b"], ["c"]]),
        ("<s>[INST] a [/INST] b </s><s>[INST] c [/INST] d </s>\n<s>[INST] e [/INST] f </s>\n", [
            ["a", "b", "c", "d"], ["e", "f"]]),
        ("[INST] a [/INST] b\n[INST] c [/INST] d\n\n[INST] e [/INST] f", [
            ["a", "b", "c", "d"], ["e", "f"]]),
    ],
)  # fmt: skip
def test_txt_of_conversations(tmp_path, text, expected):
    assert turns(write(tmp_path / "chat.txt", text)) == expected


def test_txt_with_a_preamble_is_one_conversation_or_plain(tmp_path):
    one = "A chat.\n\n### Human: a\n### Assistant: b\n"
    assert turns(write(tmp_path / "one.txt", one)) == [["A chat.", "a", "b"]]
    assert texts(write(tmp_path / "two.txt", one * 2)) == [one * 2]


def test_txt_of_conversations_reports_the_line_of_a_bad_one(tmp_path):
    path = write(tmp_path / "chat.txt", "<s>[INST] a [/INST] b </s>\n\n<s>[INST] c\n")
    with pytest.raises(DataError, match=r"chat\.txt:3: \[INST\] at character 0 has no"):
        turns(path)


def test_real_rows_written_as_txt_read_back_the_same(tmp_path):
    if not (DATA / "guanaco_900.jsonl").exists():
        pytest.skip(f"{DATA} is absent")
    rows = [d.messages for d in read_documents(str(DATA / "guanaco_900.jsonl"))]
    names = {"user": "### Human: ", "assistant": "### Assistant: "}
    lines = ["".join(names[role] + content for role, content in row) for row in rows]
    path = write(tmp_path / "chat.txt", "\n".join(lines) + "\n")
    again = ["".join(c for _, c in d.messages) for d in read_documents(path)]
    assert again == ["".join(c for _, c in row).rstrip("\r\n") for row in rows]


# -- sample


def test_sample_is_the_whole_dataset():
    pytest.importorskip("chitchat_dataset", reason="needs the sample extra")
    documents = list(read_documents("sample"))
    assert len(documents) == 7168
    for document in documents:
        roles = [message.role for message in document.messages]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
    text = "\n".join(m.content for d in documents for m in d.messages)
    assert text.count("\n") + 1 >= 258_145  # one line or more per utterance: none is lost


def test_sample_joins_utterances_and_neighbouring_turns(tmp_path):
    def turn(sender, *lines):
        return [{"text": line, "timestamp": "", "sender": sender} for line in lines]

    good = [turn("x", "a", "b"), turn("x", "c"), turn("y", "d"), turn("x", "")]
    content = {"1": {"messages": good}, "2": {"messages": [[{"text": "no sender"}]]}}
    path = tmp_path / "dataset.json"
    write(path, json.dumps(content))
    source = data_file.Source("sample", path, "sample")
    report = BadRows()
    documents = list(module.read_source(source, on_bad_row="skip", report=report))
    assert documents[0].messages == (("user", "a\nb\nc"), ("assistant", "d"), ("user", ""))
    assert documents[0].num_bytes == 6
    assert report.rows[0][:2] == ("sample", 2)


def test_sample_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_PACKAGE", "no-such-package-here")
    with pytest.raises(DataError, match=r'pip install "reso-llm\[sample\]"'):
        resolve("sample")


# -- what --data names


def test_several_sources_are_joined_with_plus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text(row("a"))
    Path("b.jsonl").write_text(row("b"))
    Path("a+b.jsonl").write_text(row("both"))
    assert texts("a.jsonl+b.jsonl") == ["a", "b"]
    assert texts("a+b.jsonl") == ["both"]
    assert texts("b.jsonl+a+b.jsonl+a.jsonl") == ["b", "both", "a"]


def test_directories_globs_and_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "mine"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.jsonl", "a.jsonl", "deep/c.txt", "test.jsonl", "retrieval.jsonl"):
        (folder / name).write_text(row(name))
    (folder / "README.md").write_text("# mine")
    (folder / "state.json").write_text("{}")
    assert [source.path.name for source in resolve(str(folder))] == [
        "a.jsonl", "b.jsonl", "c.txt", "retrieval.jsonl",
    ]  # fmt: skip
    assert texts("~/mine/b.jsonl") == texts(f"{folder}/b.json*") == ["b.jsonl"]
    assert [s.path.name for s in resolve(f"{folder}/**/*")] == [
        "a.jsonl", "b.jsonl", "c.txt", "retrieval.jsonl", "state.json", "test.jsonl",
    ]  # fmt: skip
    with pytest.raises(DataError, match="no data called"):
        resolve(f"{folder}/*.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no .*\.jsonl.* file in this directory"):
        resolve(str(tmp_path / "empty"))


def test_a_directory_of_a_name_does_not_hide_the_name(tmp_path, monkeypatch, hub_cache):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("guanaco", "other"):
        Path(name).mkdir()
        Path(name, "rows.jsonl").write_text(row(name))
    with pytest.raises(DataError, match="timdettmers/openassistant-guanaco"):
        resolve("guanaco")
    assert texts("./guanaco") == texts("guanaco/") == ["guanaco"]
    with pytest.raises(DataError, match=r"A path needs a slash or a suffix: \./other"):
        resolve("other")


def test_absolute_paths_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a+b.jsonl").write_text(row("x"))
    Path("data").mkdir()
    saved = absolute("guanaco+a+b.jsonl+data/+owner/name:subset@test+data/*.jsonl")
    assert saved == f"guanaco+{tmp_path}/a+b.jsonl+{tmp_path}/data+owner/name:subset@test+" + (
        "data/*.jsonl"  # matches nothing yet
    )
    monkeypatch.chdir("/")
    assert texts(absolute(f"{tmp_path}/a+b.jsonl")) == ["x"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rows.jsonl", "no data called 'rows.jsonl': there is no such file"),
        ("data/rows.parquet", "no data called 'data/rows.parquet'"),
        ("sampel", "Did you mean sample?"),
        ("guanoco", "Did you mean guanaco?"),
        ("", "no data called ''"),
        ("a\0b", "no data called"),
        ("x" * 5000 + ".jsonl", "there is no such file"),
        (".", "file in this directory"),
        ("folder", "a hub dataset as owner/name"),
    ],
)
def test_unknown_data_says_what_can_be_given(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        texts(spec)
    assert message in str(error.value)


def test_unknown_kind_of_file_is_named(tmp_path):
    path = write(tmp_path / "rows.xlsx", "a,b\n")
    with pytest.raises(DataError, match=r"unknown kind of file '\.xlsx'; expected one of .*jsonl"):
        texts(path)


# -- a line of 30 MB (FAULTS 20)

BIG_LINE = """
import itertools, json, resource, sys
from reso_llm.data.sources import read_documents
from reso_llm.tokenizer import create_default_tokenizer
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
tokenizer, before, tokens = create_default_tokenizer(), peak(), 0
for document in read_documents(sys.argv[1]):
    texts = [message.content for message in document.messages] or [document.text]
    # Some pieces are enough: encoding all of it at once would be over before the first one.
    pieces = itertools.islice(tokenizer.encode_pieces(texts), 20)
    tokens += sum(len(ids) for _, ids in pieces)
print(json.dumps([before, peak(), tokens]))
"""


def test_a_30_mb_line_needs_less_than_ten_times_its_memory(tmp_path):
    path = write(tmp_path / "rows.jsonl", row("### Human: " + "why not? " * (30 << 20 >> 3)))
    size = os.path.getsize(path)
    assert size > 30 << 20
    output = subprocess.run(
        [sys.executable, "-c", BIG_LINE, path],
        check=True, capture_output=True, cwd=REPOSITORY, env={"RAYON_NUM_THREADS": "1"},
    ).stdout  # fmt: skip
    before, peak, tokens = json.loads(output)
    assert tokens > 100_000
    assert peak - before < 10 * size


# -- the hub (FAULTS 21)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache of our own."""
    pytest.importorskip("huggingface_hub", reason="needs the hf extra")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "hf" / "hub"


def assert_says_what_to_do(error) -> None:
    assert "--data sample" in str(error.value)
    assert 'pip install "reso-llm[sample]"' in str(error.value)
    assert "--data path/to/file.jsonl" in str(error.value)


def test_hub_offline_fails_at_once(hub_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"timdettmers/openassistant-guanaco.*HF_HUB_OFFLINE") as e:
        texts("guanaco")
    assert time.monotonic() - begin < 2
    assert_says_what_to_do(e)


def test_hub_without_network_fails_within_seconds(hub_cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")  # closed: refused
    begin = time.monotonic()
    with pytest.raises(DataError, match="the hub cannot be used") as error:
        texts("guanaco")
    assert time.monotonic() - begin < 15
    assert_says_what_to_do(error)


def test_hub_that_never_answers_is_given_up(hub_cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        begin = time.monotonic()
        with pytest.raises(DataError, match="did not answer within 1 seconds") as error:
            texts("owner/name", hub_deadline=1.0)
        assert time.monotonic() - begin < 10
    assert_says_what_to_do(error)
    assert module.DEFAULT_HUB_DEADLINE < 55  # the same path, with the deadline of the command


class FakeHub(BaseHTTPRequestHandler):
    """Just enough of the hub for one dataset; `files`, `pause` and `stall` are set by the test."""

    files: dict[str, bytes]
    pause = 0.0
    stall = False
    requests: list[str]

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        prefix = f"/datasets/owner/name/resolve/{SHA}/"
        if self.path.startswith("/api/datasets/owner/name"):
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "owner/name", "sha": SHA, "siblings": siblings, "tags": []}
            self.send(json.dumps(info).encode(), "application/json", body)
        elif self.path.startswith(prefix):
            self.send(self.files[self.path.removeprefix(prefix)], "text/plain", body)
        else:
            self.send_error(404)

    def send(self, data: bytes, kind: str, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{len(data)}"')
        self.send_header("X-Repo-Commit", SHA)
        self.end_headers()
        if not body:
            return
        if kind != "text/plain":
            self.wfile.write(data)
            return
        for start in range(0, len(data), 1 << 17):
            self.wfile.write(data[start : start + (1 << 17)])
            time.sleep(3600 if self.stall and start else self.pause)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(hub_cache, monkeypatch):
    """A working hub on this machine with a dataset of three files."""

    class Handler(FakeHub):
        files = {  # noqa: RUF012
            "README.md": b"# data",
            "name_train.jsonl": (row("hello") + row("x" * 1_000_000)).encode(),
            "name_eval.jsonl": row("held out").encode(),
        }
        requests: list[str] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield Handler
    server.shutdown()
    server.server_close()
    thread.join()
    gc.collect()


def test_hub_dataset_is_downloaded_once_and_then_works_offline(hub, hub_cache, monkeypatch):
    assert list(dataset_files("owner/name", Selection(), deadline=30)) == ["name_train.jsonl"]
    assert texts("owner/name")[0] == "hello"
    asked = len(hub.requests)
    for offline in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        assert len(texts("owner/name")) == 2
    assert 0 < len([r for r in hub.requests if "train" in r]) <= asked == len(hub.requests)
    [source] = resolve("owner/name")
    assert source.name == "owner/name/name_train.jsonl"
    assert source.left_out == ("owner/name/name_eval.jsonl",)


def test_slow_download_is_not_given_up_while_it_moves(hub, hub_cache):
    hub.pause = 0.75  # 8 blocks: longer in total than the deadline
    begin = time.monotonic()
    assert len(texts("owner/name", hub_deadline=5.0)) == 2
    assert time.monotonic() - begin > 5.0


def test_stalled_download_is_given_up_and_never_used_by_halves(hub, hub_cache, monkeypatch):
    hub.stall = True
    with pytest.raises(DataError, match="did not answer within 3 seconds"):
        texts("owner/name", hub_deadline=3.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        texts("owner/name")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.stall = False
    assert len(texts("owner/name", hub_deadline=30)) == 2


def test_dataset_without_data_files_says_what_it_has(hub, hub_cache):
    hub.files = {"README.md": b"x", "image.png": b"y"}
    with pytest.raises(DataError, match=r"no \.parquet.*only README\.md, image\.png"):
        texts("owner/name", hub_deadline=30)


def test_hub_without_its_library_says_what_to_install(hub_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r'pip install "reso-llm\[hf\]"') as error:
        texts("guanaco")
    assert_says_what_to_do(error)


def test_files_of_a_hub_dataset_are_selected(hub, hub_cache):
    hub.files = {
        "fr/train-0.jsonl": row("french").encode(),
        "en/train-0.jsonl": row("en").encode(),
        "en/test-0.jsonl": row("test").encode(),
    }
    assert texts("owner/name:en", hub_deadline=30) == ["en"]
    assert texts("owner/name:en@test", hub_deadline=30) == ["test"]
    assert texts("owner/name/fr/train-0.jsonl", hub_deadline=30) == ["french"]
    assert texts("owner/name", hub_deadline=30) == ["en", "french"]
    with pytest.raises(DataError, match=r"no file for :de; it has en/test-0\.jsonl"):
        texts("owner/name:de", hub_deadline=30)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["openassistant_best_replies_train.jsonl", "openassistant_best_replies_eval.jsonl"],
         ["openassistant_best_replies_train.jsonl"]),
        (["data/train-0.parquet", "data/train-1.parquet", "data/test-0.parquet", "x.jsonl"],
         ["data/train-0.parquet", "data/train-1.parquet"]),
        (["dataset_infos.json", "b.json", "a.json", "README.txt"], ["a.json", "b.json"]),
        (["a.jsonl", "validation.jsonl"], ["a.jsonl"]),
        (["test.jsonl"], ["test.jsonl"]),
        (["README.md"], []),
        (["chat.jsonl", "retrieval.jsonl", "contest.jsonl", "constraints.jsonl"],
         ["chat.jsonl", "constraints.jsonl", "contest.jsonl", "retrieval.jsonl"]),
        (["a_test.csv", "evaluation.csv", "developer.csv", "b_Train.csv.gz"], ["b_Train.csv.gz"]),
        (["data/training/0.arrow", "data/dev/0.arrow", "dataset_info.json", "state.json"],
         ["data/training/0.arrow"]),
    ],
)  # fmt: skip
def test_choice_of_files(names, chosen):
    assert choose_files(names) == chosen


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(split="test"), ["en/test.jsonl", "fr/chat-test.jsonl"]),
        (Selection(split="validation"), ["en/dev.jsonl"]),
        (Selection(subset="fr"), ["fr/chat-train.jsonl"]),
        (Selection(subset="chat"), ["fr/chat-train.jsonl"]),
        (Selection(subset="ch"), []),
        (Selection(subset="en", split="dev"), ["en/dev.jsonl"]),
        (Selection(file="en/dev.jsonl"), ["en/dev.jsonl"]),
        (Selection(split="es"), []),
    ],
)
def test_selection_of_files(selection, chosen):
    names = ["en/train.jsonl", "en/dev.jsonl", "en/test.jsonl", "fr/chat-train.jsonl"]
    assert choose_files([*names, "fr/chat-test.jsonl"], selection) == chosen
