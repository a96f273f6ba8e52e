"""Inputs that users bring: each file of ../shared/cases becomes what its README says."""

import json
from pathlib import Path

import pytest

from reso_llm.data.errors import DataError
from reso_llm.data.inspection import inspect_data
from reso_llm.data.sources import read_documents

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases"
QUESTION = {"role": "user", "content": "How do I clean a kettle number 0?"}
ANSWER = {
    "role": "assistant",
    "content": "First, find the kettle. Then clean it slowly, about 1 times, "
    "and let it rest for 0 minutes.",
}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


# name: (documents, first document, unused fields)
CHATS = {
    **dict.fromkeys(
        (
            "alpaca.jsonl", "chatml_text.jsonl", "guanaco_nl2.jsonl", "guanaco_nospace.jsonl",
            "messages_caps.jsonl", "messages_empty_plus_text.jsonl", "messages_parts.jsonl",
            "minigpt4_nospace.jsonl", "prompt_completion_conv.jsonl",
            "prompt_completion_markers.jsonl", "prompt_response.jsonl", "qa.jsonl",
            "sharegpt_chatgpt.jsonl", "user_assistant.jsonl",
        ),
        (8, [QUESTION, ANSWER], {}),
    ),
    **dict.fromkeys(
        ("array.jsonl", "csv.csv", "guanaco.jsonl", "guanaco.jsonl.gz"),
        (60, [QUESTION, ANSWER], {}),
    ),
    "alpaca_text.jsonl": (8, [QUESTION, ANSWER], {"text": 8}),
    "qlora_text_output.jsonl": (8, [QUESTION, ANSWER], {"text": 8}),
    "oasst1_flat.jsonl": (4, [QUESTION, ANSWER], {"lang": 4}),
    "sharegpt_tools.jsonl": (
        8, [QUESTION, ANSWER], {"function_call": 8, "observation": 8, "tools": 8}
    ),
    "qlora_generations.jsonl": (
        8, [system("Some preamble."), QUESTION, ANSWER],
        {"question_id": 8, "text": 8, "category": 8},
    ),
    "preamble.jsonl": (
        8, [system("A dialogue of a visitor and a helpful machine."), QUESTION, ANSWER], {}
    ),
    "sharegpt_system_col.jsonl": (
        8, [system("You are the shopkeeper kettle."), QUESTION, ANSWER], {}
    ),
    "messages_developer.jsonl": (8, [system("Be brief."), QUESTION, ANSWER], {}),
}  # fmt: skip


def case(name: str) -> str:
    if not (CASES / name).exists():
        pytest.skip(f"{CASES / name} is absent")
    return str(CASES / name)


@pytest.mark.parametrize("name", list(CHATS))
def test_chat(name):
    count, first, unused = CHATS[name]
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    found = json.loads(inspect_data(case(name), "json"))
    assert found.pop("first")[0] == first
    assert found == {
        "conversations": count,
        "plain": 0,
        "turns": 2 * count,
        "replies": count,
        "system": count * (first[0]["role"] == "system"),
        "unused_fields": unused,
        "marker_warnings": [],
    }


@pytest.mark.parametrize(
    ("name", "answer"), [("empty_messages.parquet", "a39"), ("mixed_struct.parquet", "a39 so")]
)
def test_table(name, answer):
    pytest.importorskip("pyarrow")
    documents = list(read_documents(case(name)))
    assert len(documents) == 40
    assert documents[-1].messages == (("user", "q39"), ("assistant", answer))


def test_utf16_is_plain_text():
    text = Path(case("utf16.txt")).read_text(encoding="utf-16")
    assert "".join(piece.text for piece in read_documents(case("utf16.txt"))) == text


@pytest.mark.parametrize("name", ["lfs.jsonl", "lfs.txt"])
def test_pointer_is_refused_with_its_cause(name):
    with pytest.raises(DataError, match=r"git-lfs pointer, not the data: .* git lfs pull"):
        inspect_data(case(name), "json")


@pytest.mark.parametrize(
    ("spec", "names", "count"),
    [
        ("me/mychats", ["chat", "contest", "developer_questions", "retrieval"], 240),
        ("me/cons", ["chat", "constraints"], 70),
        ("me/cons:constraints", ["constraints"], 10),
        ("me/cons/chat.jsonl", ["chat"], 60),
    ],
)
def test_hub_cache(monkeypatch, spec, names, count):
    pytest.importorskip("huggingface_hub", reason="needs the hf extra")
    monkeypatch.setenv("HF_HUB_CACHE", case("hub_cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repo = "/".join(spec.partition(":")[0].split("/")[:2])
    lines = inspect_data(spec, "text").splitlines()
    assert lines[0] == "read " + ", ".join(f"{repo}/{name}.jsonl" for name in names)
    assert lines[1].startswith(f"{count} conversations with {2 * count} turns ({count} replies")


def test_a_split_the_hub_dataset_has_not(monkeypatch):
    pytest.importorskip("huggingface_hub", reason="needs the hf extra")
    monkeypatch.setenv("HF_HUB_CACHE", case("hub_cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"no file for @test; it has chat\.jsonl, contest\.jsonl"):
        inspect_data("me/mychats@test", "text")
