"""The terminal chat: what reaches the screen, what is remembered, how it ends."""

import pytest

from reso_llm.chat import ChatSession, printable, run_chat
from reso_llm.config import KuramotoConfig, ResoLLMConfig
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import ResoTokenizer


@pytest.fixture
def session():
    config = ResoLLMConfig(
        vocab_size=261, dim=32, num_layers=1, num_heads=2, max_seq_len=64,
        kuramoto=KuramotoConfig(num_oscillators=4),
    )  # fmt: skip
    engine = ResoLLMInference(ResoLLMModel(config), ResoTokenizer.train([], 261), config)
    return ChatSession(engine, max_length=8, seed=0)


def chat(session, *lines):
    pieces = []
    run_chat(session, lines, pieces.append)
    return "".join(pieces)


def test_replies_are_streamed_and_remembered(session):
    text = chat(session, "hi\n", "more\n")
    roles = [turn.role for turn in session.turns]
    assert roles == ["user", "assistant"] * 2
    assert text == "".join(f"{printable(t.content)}\n" for t in session.turns[1::2])


def test_exit_and_blank_lines(session):
    assert chat(session, "\n", "  \n", "exit\n", "never read\n") == ""
    assert session.turns == []


def test_no_control_character_reaches_the_terminal():
    """Guards against a reply that clears the screen, sets colours or reorders a line."""
    hostile = "a\x1b[2Jb\x07c\x9bd\u202ee\u2066f\rg\x7f\n\th"
    shown = printable(hostile)
    assert shown == "a\ufffd[2Jb\ufffdc\ufffdd\ufffde\ufffdf\ufffdg\ufffd\n\th"


def test_streamed_text_is_printable(session, monkeypatch):
    def generate(turns, max_length, on_text, **options):
        on_text("\x1b[31mred")
        raise KeyboardInterrupt

    monkeypatch.setattr(session.engine, "generate", generate)
    assert chat(session, "hi") == "\ufffd[31mred\n[stopped; this turn is not remembered]\n"


def test_an_interrupted_reply_is_not_kept(session, monkeypatch):
    def generate(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.engine, "generate", generate)
    chat(session, "hi", "again")
    assert session.turns == []


def test_oldest_turns_are_forgotten_and_told(session):
    """The prompt leaves room for the reply; the newest user turn always stays."""
    text = chat(session, *["twenty characters..."] * 4)
    prompt = session.engine.tokenizer.encode_prompt(session.turns[:-1])
    assert session.forgotten > 0
    assert len(prompt) <= 64 - 8
    assert session.turns[-2].content == "twenty characters..."
    assert f"the {session.forgotten} oldest turns are forgotten" in text


def test_undecodable_bytes_of_a_pipe(session):
    """stdin is read with surrogateescape; the tokenizer refuses lone surrogates."""
    chat(session, b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert session.turns[0].content == "caf\ufffd"
