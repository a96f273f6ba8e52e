"""Lists of messages: each spelling of public data sets, and what is left out and named."""

import pytest

from reso_llm.data.conversation import (
    Document,
    Message,
    RowError,
    document_from_messages,
    role_of,
)


def messages(items) -> list[tuple[str, str]]:
    return [tuple(message) for message in document_from_messages(items).messages]


TURN = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    "items",
    [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        [{"role": "User", "content": "q"}, {"role": "ASSISTANT", "content": "a"}],
        [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        [{"from": "human", "value": "q"}, {"from": "chatgpt", "value": "a"}],
        [{"role": "prompter", "text": "q"}, {"role": "model", "text": "a"}],
        [{"sender": "human", "message": "q"}, {"sender": "bot", "message": "a"}],
        [{"speaker": "USER", "text": "q"}, {"speaker": "SYSTEM", "text": "a"}],
        # A table's struct has every key; those of the other spelling are null.
        [{"from": None, "value": None, "role": "user", "content": "q"},
         {"from": "gpt", "value": "a", "role": None, "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "q"}]},
         {"role": "assistant", "content": ["a"]}],
        [{"input": "q", "output": "a"}],
        [{"human": "q", "assistant": "a"}],
        [["q", "a"]],
        [{"from": "human", "value": "q", "role": float("nan")}, {"from": "gpt", "value": "a"}],
        ["q", "a"],
    ],
)  # fmt: skip
def test_spellings_of_a_turn(items):
    assert messages(items) == TURN


def test_roles_in_any_case():
    for name, role in {
        "Human": "user", "user": "user", "GPT": "assistant", "ChatGPT": "assistant",
        "System": "system", "developer": "system", "Assistant ": "assistant", "bot": "assistant",
        "tool": None, "Function_Call": None, "observation": None, "function-call": None,
    }.items():  # fmt: skip
        assert role_of(name) == role
    with pytest.raises(RowError, match=r"unknown role 'narrator' \(known: agent, ai, assistant"):
        role_of("narrator")


def test_what_is_left_out_is_named():
    document = document_from_messages(
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "q"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
            {"role": "tool", "content": "{}", "name": "f"},
            {"role": "assistant", "content": "a", "tool_calls": []},
        ]
    )
    assert document == Document(
        (Message("system", "s"), *(Message(*turn) for turn in TURN)), None, 3,
        unused=("part image_url", "messages[].tool_calls", "null content", "messages[].name",
                "tool"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ("hi", "expected a list of messages, found a string"),
        ([], "the conversation is empty"),
        ([7], "message 0: expected an object, found a number"),
        ([{"role": "user"}], 'message 0: no "content"'),
        ([{"content": "x"}], 'message 0: no "role"'),
        ([{"role": "narrator", "content": "x"}], "message 0: unknown role 'narrator'"),
        ([{"role": 3, "content": "x"}], 'message 0: "role" is a number'),
        ([{"role": "user", "content": 3}], 'message 0: "content" is a number'),
        ([{"role": "user", "content": None}], "the conversation is empty"),
        ([{"role": "tool", "content": "x"}], "the conversation is empty"),
        ([{"role": "user", "content": "\udc00"}], "lone surrogate"),
        ([{"role": "user", "content": " "}], "the conversation is empty"),
    ],
)
def test_bad_list_has_a_reason(items, reason):
    with pytest.raises(RowError, match=reason):
        document_from_messages(items)
