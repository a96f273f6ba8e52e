"""Chats inside one string: every layout is read, and nothing that is not one."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reso_llm.data.conversation import Document, RowError
from reso_llm.data.layouts import document_from_text, marker_position
from reso_llm.data.rows import document_from_row

SHARED = Path(__file__).resolve().parents[4] / "shared"
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


def turns(text: str) -> list[tuple[str, str]]:
    document = document_from_text(text)
    assert document.text is None, "read as plain text"
    assert document.num_bytes == len(text.encode())
    return [tuple(message) for message in document.messages]


QA = [(USER, "How so?"), (ASSISTANT, "Because.")]
TWICE = [*QA, (USER, "And then?"), (ASSISTANT, "Nothing.")]

CHATS = {
    "guanaco": ("### Human: How so?### Assistant: Because.", QA),
    "guanaco twice": (
        "### Human: How so?### Assistant: Because.### Human: And then?### Assistant: Nothing.",
        TWICE,
    ),
    "no space": ("### Human: How so?###Assistant: Because.", QA),
    "no spaces": ("###Human: How so? ###Assistant: Because.", QA),
    "capitals": ("### HUMAN: How so?\n### ASSISTANT: Because.", QA),
    "user": ("### User: How so?\n### Assistant: Because.", QA),
    "lines": ("### Human:\nHow so?\n\n### Assistant:\nBecause.", QA),
    "crlf": ("### Human:\r\nHow so?\r\n\r\n### Assistant:\r\nBecause.\r\n", QA),
    "white space before": (" \n### Human: How so?### Assistant: Because.", QA),
    "end of text": ("### Human: How so?### Assistant: Because.</s>", QA),
    "header system": ("### System:\nBe kind.\n\n### User:\nHow so?\n\n### Response:\nBecause.",
                      [(SYSTEM, "Be kind."), *QA]),
    "preamble": ("A visitor asks a machine. ### Human: How so? ### Assistant: Because.",
                 [(SYSTEM, "A visitor asks a machine."), *QA]),
    "preamble on lines": ("Be kind\n\n###Human: How so?\n###Assistant: Because.",
                          [(SYSTEM, "Be kind"), *QA]),
    "preamble with a quotation": ('Say "yes." ### Human: How so? ### Assistant: Because.',
                                  [(SYSTEM, 'Say "yes."'), *QA]),
    "preamble to a prompt": ("Be kind. ### Human: How so? ### Assistant:",
                             [(SYSTEM, "Be kind."), QA[0]]),
    "alpaca": ("Here is a task. Answer it.\n\n### Instruction:\nHow so?\n\n### Response:\nBecause.",
               [(SYSTEM, "Here is a task. Answer it."), *QA]),
    "alpaca input": ("### Instruction:\nTranslate.\n\n### Input:\nHow so?\n\n### Response:\nWarum?",
                     [(USER, "Translate.\n\nHow so?"), (ASSISTANT, "Warum?")]),
    "question": ("### Question: How so?\n### Answer: Because.", QA),
    "chatml": ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHow so?<|im_end|>\n"
               "<|im_start|>assistant\nBecause.<|im_end|>\n", [(SYSTEM, "Be kind."), *QA]),
    "llama 2": ("<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHow so? [/INST] Because. </s>",
                [(SYSTEM, "Be kind."), *QA]),
    "mistral": ("<s>[INST] How so? [/INST] Because.</s>[INST] And then? [/INST] Nothing.</s>",
                TWICE),
    "llama 2 without ends": ("[INST] How so? [/INST] Because. [INST] And then? [/INST] Nothing.",
                             TWICE),
    "reply about llama 2": ("<s>[INST] How so? [/INST] It begins with [INST]. </s>",
                            [QA[0], (ASSISTANT, "It begins with [INST].")]),
    "reply about llama 2 without end": ("[INST] How so? [/INST] It begins with [INST].",
                                        [QA[0], (ASSISTANT, "It begins with [INST].")]),
    "llama 3": ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nHow so?<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nBecause.<|eot_id|>",
                [(SYSTEM, "Be kind."), *QA]),
    "gemma": ("<bos><start_of_turn>user\nHow so?<end_of_turn>\n<start_of_turn>model\nBecause."
              "<end_of_turn>\n", QA),
    "zephyr": ("<|system|>\nBe kind.</s>\n<|user|>\nHow so?</s>\n<|assistant|>\nBecause.</s>",
               [(SYSTEM, "Be kind."), *QA]),
    "phi": ("<|user|>\nHow so?<|end|>\n<|assistant|>\nBecause.<|end|>\n", QA),
    "open assistant": ("<|prompter|>How so?<|endoftext|><|assistant|>Because.<|endoftext|>", QA),
    "openchatkit": ("<human>: How so?\n<bot>: Because.", QA),
    "deepseek": ("<｜begin▁of▁sentence｜><｜User｜>How so?<｜Assistant｜>Because."
                 "<｜end▁of▁sentence｜>", QA),
    "vicuna": ("A chat of two. It is polite. USER: How so? ASSISTANT: Because.</s>USER: And then? "
               "ASSISTANT: Nothing.</s>", [(SYSTEM, "A chat of two. It is polite."), *TWICE]),
    "hh": ("\n\nHuman: How so?\n\nAssistant: Because.", QA),
    "names": ("User: How so?\nAssistant: Because.", QA),
    "vicuna system": ("SYSTEM: Be kind. USER: How so? ASSISTANT: Because.",
                      [(SYSTEM, "Be kind."), *QA]),
    "human and ai": ("Human: How so?\nAI: Because.", QA),
    "openchat": ("GPT4 Correct User: How so?<|end_of_turn|>GPT4 Correct Assistant: Because."
                 "<|end_of_turn|>", QA),
    "names in a line": ("Human: How so? Assistant: Because.", QA),
    "names and a list": ("User: How so?\nAssistant: Take:\nIngredients:\n- flour",
                         [QA[0], (ASSISTANT, "Take:\nIngredients:\n- flour")]),
    "hh and a note": ("\n\nHuman: How so?\n\nAssistant: Because.\n\nNote: perhaps.",
                      [QA[0], (ASSISTANT, "Because.\n\nNote: perhaps.")]),
    "preamble with a colon": ("The following is a conversation:\n\n### Human: How so?\n"
                              "### Assistant: Because.",
                              [(SYSTEM, "The following is a conversation:"), *QA]),
    "user and bot": ("User: How so?\nBot: Because.", QA),
    "alpaca headings": ("### Instruction\nHow so?\n\n### Response\nBecause.", QA),
    "chatml in a line": ("<|im_start|>user How so?<|im_end|><|im_start|>assistant Because."
                         "<|im_end|>", QA),
    "chatml prompt": ("<|im_start|>user\nHow so?<|im_end|>\n<|im_start|>assistant", QA[:1]),
    "phi 4": ("<|im_start|>user<|im_sep|>How so?<|im_end|><|im_start|>assistant<|im_sep|>Because."
              "<|im_end|>", QA),
    "command r": ("<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>How so?<|END_OF_TURN_TOKEN|>"
                  "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Because.<|END_OF_TURN_TOKEN|>", QA),
    "quoted marker stays": ('### Human: How so?### Assistant: Write "### Human:" first.',
                            [QA[0], (ASSISTANT, 'Write "### Human:" first.')]),
    "quotation at the end": ('### User: Say "yes."### Assistant: Yes',
                             [(USER, 'Say "yes."'), (ASSISTANT, "Yes")]),
    "headings": ("### Human\nHow so?\n\n### Assistant\nBecause.", QA),
    "wide colon": ("### Human：How so?### Assistant：Because.", QA),
    "end marker": ("### Instruction:\nHow so?\n\n### Response:\nBecause.\n\n### End", QA),
    "indentation stays": ("### Human: How so?\n### Assistant:\n    x = 1\n    y = 2\n",
                          [QA[0], (ASSISTANT, "    x = 1\n    y = 2")]),
    "other headings stay": ("### Human: ### System: x### Assistant: ### Step 1\n### Input: y",
                            [(USER, "### System: x"), (ASSISTANT, "### Step 1\n### Input: y")]),
    "content of #": ("### Human: C#### Assistant: ##", [(USER, "C#"), (ASSISTANT, "##")]),
    "empty turns": ("### Human: ### Assistant: ### Human: b",
                    [(USER, ""), (ASSISTANT, ""), (USER, "b")]),
    "reply first": ("### Assistant: b", [(ASSISTANT, "b")]),
    "other tokens stay": ("### Human: <|assistant|></s>[INST]",
                          [(USER, "<|assistant|></s>[INST]")]),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CHATS))
def test_chat(name):
    text, expected = CHATS[name]
    assert turns(text) == expected


QUOTED = "Like so:\n```\n### Human: hi\n### Assistant: hello\n```\nThat is all."


def test_markers_in_a_code_fence_are_content():
    text = f"### Human: Show me### Assistant: {QUOTED}### Human: Thanks"
    assert turns(text) == [(USER, "Show me"), (ASSISTANT, QUOTED), (USER, "Thanks")]


@pytest.mark.parametrize(
    "opened", ["Mend:\n```\ncode", "Mend:\n```python\ncode\n", "Mend:\n~~~\ncode\n"]
)
def test_a_fence_that_is_never_closed_does_not_swallow_the_answer(opened):
    answer = "So:\n```python\nfixed\n```"
    expected = [(USER, opened.rstrip()), (ASSISTANT, answer)]
    assert turns(f"### Human: {opened}### Assistant: {answer}") == expected


PLAIN = {
    "prose about markers": "Rows hold `### Human:` and `### Assistant:` in one string.",
    "prose that quotes": 'The marker "### Human:" comes first, then "### Assistant:". That is all.',
    "second marker quoted": "It asks. ### Human: what? It is answered `### Assistant:` here.",
    "prose with an example": "A row looks like ### Human: hi ### Assistant: hello. One a line.",
    "prose after a colon": "For example: ### Human: hi ### Assistant: hello.",
    "example on lines": "The layout is this:\n\n### Human: hi\n### Assistant: hello\n\nSimple.",
    "example in a fence": "# Format\n\n```\n### Human: hi\n### Assistant: hello\n```\n",
    "nothing but a fence": "```\n### Human: hi\n### Assistant: hello\n```\n",
    "example in another fence": "It is.\n\n~~~\n### Human: hi\n### Assistant: hello\n~~~\n",
    "example in a fence alone": "It is.\n\n```\n### Human: hi\n### Assistant: hello\n```\nSo.\n",
    "indented example": "It is.\n\n    ### Human: hi\n    ### Assistant: hello\n\nSo.\n",
    "example in a quotation": "It is.\n\n> ### Human: hi\n> ### Assistant: hello\n",
    "markers explained": "Two markers. ### Human: is a question, ### Assistant: is an answer.",
    "constant in code": 'P = """Be kind.\n### Human: {q}\n### Assistant: {a}\n"""\n',
    "article with headings": "# Robots\n\nAll.\n\n### User: asks\n\n### Assistant: answers",
    "markdown": "# Title\n\n### Input\n\nA file.\n\n### Response:\n\nJSON.\n\n### Notes\n",
    "one heading": "### Instruction: read this first\n\nThen go on.",
    "one question": "### Question: what is it?\n\nNobody knows.",
    "page of questions": "### Question: is it?\n\n### Answer: yes.\n\n### See also: this.\n",
    "template": "template: |\n  ### Human: {q}\n  ### Assistant: {a}\n",
    "heading among others": "### Human: a word\n\nIt is old.\n\n### Robot\n\nIt is not.\n",
    "questions in a row": "### User: one\n### User: two\n### Assistant: three\n",
    "user page": "### User: settings\n\nChange your name here.",
    "code": "def f(text):\n    return text.split('### Assistant:')[1]  # ### Human:\n",
    "chatml in code": 'PROMPT = "<|im_start|>user\\n{q}<|im_end|>"\n',
    "play": "HAMLET: To be.\nHORATIO: Or not?\nHAMLET: That is the question.\n",
    "shakespeare": "First Citizen:\nBefore we proceed any further, hear.\n\nAll:\nSpeak.\n",
    "play with a human": "Human: Who goes there?\nAssistant: I.\nGuard: Halt!\n",
    "play with names above": "Human:\nWho?\n\nAssistant:\nMe.\n\nGuard:\nHalt!\n",
    "manual": "### Instruction\nAdd two.\n\n### Response\nA number.\n\n### Errors\nNone.\n",
    "chatml in prose": "<|im_start|>user is how a turn begins. <|im_start|> is a token.",
    "play with a bot": "User: Hark!\nBot: What?\nKing: Silence!\n",
    "play in capitals": "USER: Hark!\nASSISTANT: What?\nKING: Silence!\n",
    "log": "USER: root\nHOST: x\n",
    "inst inside": "see [INST] and [/INST]",
    "control token": "a <|user|> b <|assistant|> c",
    "nothing odd": "a\r\nb\0 ",
}


@pytest.mark.parametrize("name", list(PLAIN))
def test_nothing_else_is_read_as_a_chat(name):
    text = PLAIN[name]
    assert document_from_text(text) == Document((), text, len(text.encode()))


def test_plain_text_with_markers_says_where():
    assert marker_position("a ### Human: b") == 2
    assert marker_position("x\nsee <|im_start|>") == 6
    tokens = "<|start|>user<|message|>a", "<|start_header|>a", "### Response\nb", "x\nBot: b"
    assert all(marker_position(text) is not None for text in tokens)
    for text in ("### Notes\nnone", PLAIN["play"], PLAIN["shakespeare"], "A user: me", "5 <| 3"):
        assert marker_position(text) is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(contents=st.lists(st.text().filter(lambda t: "###" not in t), min_size=1, max_size=6))
def test_contents_are_kept_but_for_the_white_space_at_markers(contents):
    names = ["Human", "Assistant"] * 3
    # An end-of-text token at a reply's end belongs to the layout, a fence may hide a marker.
    contents = [re.sub(r"</s>|`|~", "", content) for content in contents]
    pairs = list(zip(names, contents, strict=False))
    text = "".join(f"### {name}: {content}" for name, content in pairs)
    if not any(content.strip() for content in contents):
        with pytest.raises(RowError, match="the conversation is empty"):
            document_from_text(text)
        return
    roles = {"Human": USER, "Assistant": ASSISTANT}
    found = [(role, content.strip(" \t\r\n")) for role, content in turns(text)]
    expected = [(roles[name], content.strip(" \t\r\n")) for name, content in pairs]
    # A last marker that no answer follows is a prompt's end.
    ends_open = expected[-1][0] == ASSISTANT and not expected[-1][1].strip()
    assert found == (expected[:-1] if ends_open else expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the text is empty"),
        (" \n\t", "the text is empty"),
        ("ok \ud800", r"lone surrogate U\+D800 at character 3"),
        ("<s>[INST] a", r"\[INST\] at character 0 has no \[/INST\]"),
        ("<s>[INST] a [/INST] b </s> and more", r"expected \[INST\] at character 26"),
        ("<s>[INST]  [/INST]", "the conversation is empty"),
        ("<|im_start|>narrator\nOnce<|im_end|>", "unknown role 'narrator'"),
    ],
)
def test_broken_text_has_a_reason(text, reason):
    with pytest.raises(RowError, match=reason):
        document_from_text(text)


# -- the real files


def real(name: str) -> Path:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def guanaco_rows() -> list[str]:
    lines = real("guanaco_900.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [json.loads(line)["text"] for line in lines]


def test_real_guanaco_rows_parse_completely():
    rows = guanaco_rows()
    documents = [document_from_text(row) for row in rows]
    assert sum(len(document.messages) for document in documents) == 2 * 1246
    for row, document in zip(rows, documents, strict=True):
        roles = {"user": "### Human: ", "assistant": "### Assistant: "}
        assert "".join(roles[role] + content for role, content in document.messages) == row


def test_real_llama2_rows_equal_the_guanaco_rows():
    parquet = pytest.importorskip("pyarrow.parquet")
    llama = parquet.read_table(real("guanaco_llama2_900.parquet"))["text"].to_pylist()
    for row, text in zip(guanaco_rows(), llama, strict=True):
        assert document_from_text(text).messages == document_from_row({"text": row}).messages


def test_real_tinyshakespeare_is_plain():
    text = real("tinyshakespeare.txt").read_text()
    assert document_from_text(text).text == text
    assert marker_position(text) is None
