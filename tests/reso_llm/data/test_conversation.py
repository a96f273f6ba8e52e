"""Parsing of rows: each format, what stays verbatim, and the reason for what is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reso_llm.data.conversation import (
    Document,
    Message,
    RowError,
    document_from_row,
    document_from_text,
)

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def conversation(text: str) -> list[tuple[str, str]]:
    document = document_from_text(text)
    assert document.text is None
    assert document.num_bytes == len(text.encode())
    return [tuple(message) for message in document.messages]


# -- guanaco


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("### Human: a### Assistant: b", [("user", "a"), ("assistant", "b")]),
        # One space belongs to the marker, everything else to the content.
        ("### Human:  a \n### Assistant:b\n", [("user", " a \n"), ("assistant", "b\n")]),
        # Seen in guanaco_900: an empty reply, and content that ends in # (as "C#" would).
        ("### Human: ### Assistant: ### Human: b", [
            ("user", ""), ("assistant", ""), ("user", "b")]),
        ("### Human: C#### Assistant: ##\n", [("user", "C#"), ("assistant", "##\n")]),
        ("### Human: ### System: x", [("user", "### System: x")]),
        ("### Assistant: b", [("assistant", "b")]),
        ("### Human: <|assistant|></s>[INST]", [("user", "<|assistant|></s>[INST]")]),
    ],
)  # fmt: skip
def test_guanaco(text, expected):
    assert conversation(text) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(contents=st.lists(st.text().filter(lambda t: "###" not in t), min_size=1, max_size=6))
def test_guanaco_contents_are_kept_verbatim(contents):
    names = ["Human", "Assistant"] * 3
    pairs = list(zip(names, contents, strict=False))
    text = "".join(f"### {name}: {content}" for name, content in pairs)
    if not any(content.strip() for content in contents):
        with pytest.raises(RowError, match="the conversation is empty"):
            document_from_text(text)
        return
    roles = {"Human": "user", "Assistant": "assistant"}
    assert conversation(text) == [(roles[name], content) for name, content in pairs]


# -- Llama-2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<s>[INST] a [/INST] b </s>", [("user", "a"), ("assistant", "b")]),
        ("[INST] a [/INST] b", [("user", "a"), ("assistant", "b")]),
        (
            "<s>[INST] a [/INST] b </s><s>[INST] c [/INST] d </s>\n",
            [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
        ),
        ("<s>[INST] a [/INST]", [("user", "a")]),
        ("<s>[INST] a [/INST]  </s>", [("user", "a"), ("assistant", "")]),
        (
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\na [/INST] b </s>",
            [("system", "Be kind."), ("user", "a"), ("assistant", "b")],
        ),
        ("<s>[INST]  a\n [/INST]\nb\n</s>", [("user", " a\n"), ("assistant", "\nb\n")]),
        ("<s>[INST] a [/INST] b <s>[INST] c [/INST] d", [
            ("user", "a"), ("assistant", "b "), ("user", "c"), ("assistant", "d")]),
    ],
)  # fmt: skip
def test_llama2(text, expected):
    assert conversation(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<s>[INST] a", r"\[INST\] at character 0 has no \[/INST\]"),
        ("<s>[INST] a [/INST] b </s> and more", r"expected \[INST\] at character 26"),
        ("<s>[INST]  [/INST]", "the conversation is empty"),
    ],
)
def test_broken_llama2_has_a_reason(text, reason):
    with pytest.raises(RowError, match=reason):
        document_from_text(text)


# -- lists of messages


def test_messages_and_sharegpt_lists():
    expected = (Message("system", "s"), Message("user", "é"), Message("assistant", "a"))
    openai = [{"role": role, "content": content} for role, content in expected]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = [{"from": names[role], "value": content} for role, content in expected]
    for row in (
        {"messages": openai},
        {"conversations": sharegpt},
        {"conversation": openai},
        openai,
    ):
        assert document_from_row(row) == Document(expected, None, 4)


def test_prompt_and_completion():
    document = document_from_row({"prompt": "q", "completion": "a"})
    assert document.messages == (Message("user", "q"), Message("assistant", "a"))


def test_a_null_list_beside_a_text_is_passed_over():
    assert document_from_row({"messages": None, "text": "x"}) == Document((), "x", 1)


# -- plain text


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        " ### Human: a",
        "A chat. ### Human: a### Assistant: b",
        "see [INST]",
        "\0",
        "a\r\nb",
    ],
)
def test_text_without_a_marker_at_its_start_is_plain_and_unchanged(text):
    assert document_from_row({"text": text}) == Document((), text, len(text.encode()))


# -- bad rows


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "expected an object with a text, found null"),
        (7, "found a number"),
        (True, "found a boolean"),
        ({}, "no \"text\", .*it has nothing"),
        ({"body": "x"}, "no \"text\".*'body'"),
        ({"text": None}, '"text" is null, expected a string'),
        ({"text": 1.5}, '"text" is a number'),
        ({"text": ["x"]}, '"text" is a list'),
        ({"text": ""}, "the text is empty"),
        ({"text": " \n\t"}, "the text is empty"),
        ({"text": "ok \ud800"}, r"lone surrogate U\+D800 at character 3"),
        ({"messages": None}, "expected a list of messages, found null"),
        ({"messages": "hi"}, "expected a list of messages, found a string"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": ["hi"]}, "message 0: expected an object, found a string"),
        ({"messages": [{"role": "user"}]}, 'message 0: no "content"'),
        ({"messages": [{"content": "x"}]}, 'message 0: no "role"'),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unknown role 'tool'"),
        ({"messages": [{"role": 3, "content": "x"}]}, '"role" is a number'),
        ({"messages": [{"role": "user", "content": None}]}, '"content" is null'),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, "lone surrogate"),
        ({"messages": [{"role": "user", "content": " "}]}, "the conversation is empty"),
        ({"prompt": "a", "completion": None}, 'message 1: "content" is null'),
    ],
)  # fmt: skip
def test_bad_row_has_a_reason(row, reason):
    with pytest.raises(RowError, match=reason):
        document_from_row(row)


# -- the real files


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is absent")
    return DATA / name


def test_real_guanaco_rows_parse_completely():
    lines = real("guanaco_900.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    rows = [json.loads(line)["text"] for line in lines]
    documents = [document_from_text(row) for row in rows]
    assert sum(len(document.messages) for document in documents) == 2 * 1246
    for row, document in zip(rows, documents, strict=True):
        roles = {"user": "### Human: ", "assistant": "### Assistant: "}
        assert "".join(roles[role] + content for role, content in document.messages) == row


def test_real_llama2_rows_equal_the_guanaco_rows():
    parquet = pytest.importorskip("pyarrow.parquet")
    guanaco = real("guanaco_900.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    llama = parquet.read_table(real("guanaco_llama2_900.parquet"))["text"].to_pylist()
    for line, text in zip(guanaco, llama, strict=True):
        assert document_from_text(text).messages == document_from_row(json.loads(line)).messages
