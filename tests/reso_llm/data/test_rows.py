"""Rows: which columns become which turns, what is named as unused, and what is refused."""

import json

import pytest

from reso_llm.data.conversation import Document, Message, RowError
from reso_llm.data.errors import DataError
from reso_llm.data.rows import Columns, document_from_row, parse_columns

QA = [("user", "q"), ("assistant", "a")]
SYSTEM = ("system", "s")
PAIR = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns")

ROWS = {
    "string": ("### Human: q### Assistant: a", QA, ()),
    "list": (PAIR, QA, ()),
    **{key: ({key: PAIR}, QA, ()) for key in LISTS},
    "json string": ({"messages": '[["q", "a"]]'}, QA, ()),
    "markers under a list's key": ({"conversation": "### Human: q### Assistant: a"}, QA, ()),
    "nested": ({"data": {"dialogue": PAIR}, "id": 1}, QA, ("id",)),
    "nested strings": ({"id": "1", "data": ["q", "a"]}, QA, ("id",)),
    "system column": ({"system": "s", "conversations": PAIR}, [SYSTEM, *QA], ()),
    "system twice": ({"system": "t", "messages": [{"role": "system", "content": "s"}, *PAIR]},
                     [SYSTEM, *QA], ("system",)),
    "system of a text": ({"system_prompt": "s", "text": "### Human: q### Assistant: a"},
                         [SYSTEM, *QA], ()),
    "empty list": ({"messages": [], "text": "### Human: q### Assistant: a"}, QA, ()),
    "null list": ({"messages": None, "text": "### Human: q### Assistant: a"}, QA, ()),
    "list of nothing": ({"messages": PAIR, "text": "", "tools": [], "x": {"y": None}}, QA, ()),
    "empty text": ({"text": "", "messages": PAIR}, QA, ()),
    "alpaca": ({"instruction": "q", "input": "", "output": "a"}, QA, ()),
    "alpaca input": ({"instruction": "q", "input": "i", "output": "a"},
                     [("user", "q\n\ni"), QA[1]], ()),
    "dolly": ({"instruction": "q", "context": "c", "response": "a", "category": "k"},
              [("user", "q\n\nc"), QA[1]], ("category",)),
    "history": ({"instruction": "r", "output": "b", "history": [["q", "a"]]},
                [*QA, ("user", "r"), ("assistant", "b")], ()),
    "open orca": ({"system_prompt": "s", "question": "q", "response": "a"}, [SYSTEM, *QA], ()),
    "capitals": ({"Question": "q", "Answer": "a"}, QA, ()),
    "prompt and completion": ({"prompt": "q", "completion": " a"},
                              [QA[0], ("assistant", " a")], ()),
    "prompt and response": ({"prompt": "q", "response": "a"}, QA, ()),
    "prompt and text": ({"prompt": "write", "text": "once"}, None, ("prompt",)),
    "conversational": ({"prompt": PAIR[:1], "completion": PAIR[1:]}, QA, ()),
    "preference": ({"prompt": "q", "chosen": "a", "rejected": "b"}, QA, ("rejected",)),
    "preference lists": ({"prompt": "q", "chosen": PAIR, "rejected": PAIR}, QA, ("rejected",)),
    "hh": ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "x"}, QA, ("rejected",)),
    "markers in the prompt": ({"prompt": "### Human: q### Assistant:", "completion": " a"}, QA, ()),
    "markers in the input": ({"input": "### Human: q ### Assistant:", "output": "a",
                              "text": "### Human: q ### Assistant:"}, QA, ("text",)),
    "alpaca prompt": ({"prompt": "Do it.\n\n### Instruction:\nq\n\n### Response:", "output": "a"},
                      [("system", "Do it."), *QA], ()),
    "llama prompt": ({"prompt": "[INST] q [/INST]", "response": "a"}, QA, ()),
    "markers in the text": ({"text": "### Human: q ### Assistant:", "output": "a"}, QA, ()),
    "question in the text": ({"text": "### Human: q", "response": "a"}, QA, ()),
    "open prompt": ({"text": "### Human: q ### Assistant:"}, QA[:1], ("empty reply",)),
    "empty reply": ({"messages": [PAIR[0], {"role": "assistant", "content": " "}]}, QA[:1],
                    ("empty reply",)),
    "empty reply between": ({"messages": [PAIR[0], PAIR[1] | {"content": ""}, *PAIR]},
                            [QA[0], *QA], ("empty reply",)),
    "gemini": ({"contents": [{"role": "user", "parts": [{"text": "q"}]},
                             {"role": "model", "parts": [{"text": "a"}]}]}, QA, ()),
    "ends of a marked answer": ({"prompt": "[INST] q [/INST]", "response": "a</s>"}, QA, ()),
    "turns as json texts": ({"messages": list(map(json.dumps, PAIR))}, QA, ()),
    "text and response": ({"text": "q", "response": "a"}, QA, ()),
    "list of one answer": ({"question": "q", "answer": ["a"]}, QA, ()),
    "messages of another name": ({"items": PAIR, "id": 3}, QA, ("id",)),
    "mapping of lists": ({"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}},
                         QA, ()),
    "python text": ({"messages": "[{'role': 'user', 'content': 'q'}, ['x', 'y']]"},
                    [QA[0], ("user", "x"), ("assistant", "y")], ()),
    "list under text": ({"text": PAIR}, QA, ()),
    "list that says nothing": ({"messages": [{"role": "user", "content": ""}], "text": "once"},
                               None, ("messages",)),
    "white space": ({"prompt": " ", "question": "q", "answer": "a"}, QA, ()),
    "only column with a chat": ({"sample": "### Human: q### Assistant: a", "id": "x"}, QA, ("id",)),
    "problem": ({"problem": "q", "solution": "a"}, QA, ()),
    "user and assistant": ({"user": "q", "assistant": "a"}, QA, ()),
    "user and target are no turn": ({"user": "bob", "target": "0", "text": "once"},
                                    None, ("user", "target")),
    "text": ({"text": "once", "lang": "en", "score": 0.5}, None, ("lang", "score")),
    "content": ({"content": "once", "size": 4}, None, ("size",)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ROWS))
def test_row(name):
    row, turns, unused = ROWS[name]
    document = document_from_row(row)
    if turns is None:
        assert (document.messages, document.text) == ((), "once")
    else:
        assert [tuple(message) for message in document.messages] == turns
    assert document.unused == unused


def test_the_size_of_columns_is_that_of_their_contents():
    document = document_from_row({"system": "é", "question": "é", "answer": "a"})
    assert document.num_bytes == 5


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "expected an object with a text, found null"),
        (7, "found a number"),
        (True, "found a boolean"),
        ({}, 'no "text", .*it has nothing'),
        ({"body": "x"}, "no \"text\".*'body'.*--columns prompt=question,reply=answer"),
        ({"text": None}, '"text" is null'),
        ({"text": 1.5}, '"text" is a number'),
        ({"text": ["x"]}, '"text" is a list'),
        ({"text": ""}, '"text" is empty'),
        ({"messages": []}, '"messages" is empty'),
        ({"messages": "hi"}, "no \"text\".*'messages'"),
        ({"messages": [{"role": "user"}]}, 'message 0: no "content"'),
        ({"question": "q", "answer": 3}, '"answer" is a number, expected a string'),
        ({"question": "q", "answer": ["a", "b"]}, '"answer" is a list, expected a string'),
        ({"items": ["a", "b"]}, "no \"text\".*'items'"),
        ({"prompt": "q", "completion": None}, '"completion" is empty'),
        ({"prompt": None, "response": "a"}, '"prompt" is empty'),
        ({"role": "user", "text": "x"}, 'one message a row .*"message_id" and "parent_id"'),
        ({"role": "assistant", "content": "x"}, "one message a row"),
        ({"from": "human", "text": "x"}, "one message a row"),
    ],
)
def test_bad_row_has_a_reason(row, reason):
    with pytest.raises(RowError, match=reason):
        document_from_row(row)


# -- columns that the user names


def test_named_columns():
    row = {"q": "a question", "a": "an answer", "rules": "s", "more": "m", "text": "t"}
    columns = parse_columns("prompt=q, reply=a,system=rules,context=more")
    assert columns == Columns("q", "a", "rules", "more")
    document = document_from_row(row, columns)
    assert document == Document(
        (Message("system", "s"), Message("user", "a question\n\nm"),
         Message("assistant", "an answer")),
        None, 23, unused=("text",),
    )  # fmt: skip
    body = document_from_row({"body": "x", "text": "t"}, parse_columns("text=body"))
    assert (body.text, body.unused) == ("x", ("text",))
    turns = document_from_row({"log": PAIR}, parse_columns("messages=log"))
    assert [tuple(message) for message in turns.messages] == QA


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ("promt=q,reply=a", "unknown role 'promt'; did you mean prompt"),
        ("prompt=q", "name prompt and reply, or messages, or text"),
        ("prompt=,reply=a", "prompt needs the name of a column"),
        ("", "name prompt and reply"),
        ("prompt=q,prompt=p,reply=a", "prompt=p names a role or a column twice"),
        ("prompt=q,reply=q", "reply=q names a role or a column twice"),
        ("prompt=q,reply=a,text=t", "name prompt and reply, or messages, or text"),
        ("messages=m,context=c", "name prompt and reply, or messages, or text"),
    ],
)
def test_mapping_that_cannot_be_read(mapping, reason):
    with pytest.raises(DataError, match=reason):
        parse_columns(mapping)


def test_unknown_column_names_the_nearest():
    with pytest.raises(RowError, match="no column 'qestion'; did you mean question"):
        document_from_row({"question": "q", "answer": "a"}, Columns("qestion", "answer"))
    columns = Columns("question", "answer", system="rules")
    row = {"question": "q", "answer": "a"}
    assert len(document_from_row(row, columns).messages) == 2
    with pytest.raises(RowError, match="no column 'rules'; did you mean rule"):
        document_from_row(row | {"rule": "s"}, columns)
    with pytest.raises(RowError, match='"answer" is empty'):
        document_from_row({"question": "q", "answer": ""}, Columns("question", "answer"))
