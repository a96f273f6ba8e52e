"""The server's parts by themselves: sources of tokens, fitting prompts, addresses, its command."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from reso_llm.data.conversation import Message
from reso_llm.server.fitting import fitted
from reso_llm.server.guard import check_address
from reso_llm.server.serve import listening_socket, page_address, serve
from reso_llm.server.sources import Source, Sources

REPOSITORY = Path(__file__).resolve().parents[3]


def longest_run(text, place, read):
    """By definition: the longest n with the n tokens up to `place` somewhere in `read`."""
    runs = [0]
    for end in range(len(read)):
        n = 0
        while n <= min(place, end) and text[place - n] == read[end - n]:
            n += 1
        runs.append(n)
    return max(runs)


def test_a_source_is_the_longest_run(byte_tokenizer):
    prompt = list(b"<a blue whale sings low> whal")
    memory, other = list(b"a blue whale is big"), list(b"nothing here")
    written = list(b"e: a blue whale sings; a blue whale is big")
    sources = Sources(prompt, [("m", memory), ("o", other)], special={ord("<"), ord(">")})
    text = prompt + written
    for t, token in enumerate(written):
        source, place = sources.add(token), len(prompt) + t
        in_memory, in_prompt = (longest_run(text, place, r) for r in (memory, prompt))
        longest = max(in_memory, in_prompt)
        expected = None
        if longest >= 3:
            expected = Source("m" if in_memory == longest else "", min(longest, 16 + t + 1))
        assert source == expected, (t, bytes(text[: place + 1]))


def test_a_prompt_is_no_source_of_itself():
    sources = Sources(list(b"abcdef"), [], special=())
    assert sources.add(ord("g")) is None
    again = Sources(list(b"xabcdef yabc"), [], special=())
    assert again.add(ord("d")) == Source("", 4)


def test_a_special_token_ends_a_run():
    sources = Sources(list(b"a!bcd"), [], special={ord("!")})
    assert [sources.add(token) for token in b"a!bc"] == [None] * 4
    assert sources.add(ord("d")) == Source("", 3)


class CharacterEngine:
    """Counts a token for each character and one for each message."""

    context_length = 40

    def prompt_ids(self, messages):
        return [0] * sum(len(message.content) + 1 for message in messages)


SYSTEM, SHORT = Message("system", "s" * 4), Message("user", "u" * 4)
PAIR = [SHORT, Message("assistant", "a" * 4)]


@pytest.mark.parametrize(
    ("messages", "max_new", "left_out"),
    [
        ([SYSTEM, SHORT], 100, 0),
        ([SYSTEM, *PAIR, SHORT], 20, 0),  # 20 tokens fit exactly
        ([SYSTEM, *PAIR, *PAIR, SHORT], 20, 2),
        ([SYSTEM, *PAIR, *PAIR, SHORT], 10, 0),
        ([*PAIR, *PAIR, SHORT], 25, 2),
        ([SYSTEM, *PAIR * 9, SHORT], 20, 16),
        ([SYSTEM, *PAIR, Message("user", "u" * 90)], 5, 2),
        ([SYSTEM, Message("user", "u" * 90)], 5, 0),
        ([SYSTEM, SYSTEM], 5, 0),
        ([*PAIR * 9, Message("user", "u"), Message("assistant", "begun")], 20, 16),
    ],
)
def test_the_oldest_turns_are_left_out(messages, max_new, left_out):
    kept, notes = fitted(CharacterEngine(), messages, max_new)
    systems = [m for m in messages[:2] if m.role == "system"]
    assert kept == [*systems, *messages[len(systems) + left_out :]]
    assert [note.split()[5] for note in notes] == [str(left_out)] * bool(left_out)


def test_a_plain_text_stays_whole():
    assert fitted(CharacterEngine(), "x" * 999, 5) == ("x" * 999, ())


def test_an_address_for_others_needs_a_token():
    check_address("127.0.0.1", None)
    check_address("0.0.0.0", "sixteen-letters!")
    for host, token in (("0.0.0.0", None), ("example.org", None), ("localhost", "short"),
                        ("::1", "sixteen\nletters!!")):  # fmt: skip
        with pytest.raises(ValueError, match="token"):
            check_address(host, token)
    assert page_address("::1", 80, None) == "http://[::1]:80/"


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    for name in ("uvicorn", "fastapi"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ValueError, match=r"reso-llm\[web\]"):
                serve(None)


def test_a_port_that_is_taken_is_named():
    with listening_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            listening_socket("127.0.0.1", port)


def test_the_command_serves_and_ends(tmp_path, tiny_model, byte_tokenizer):
    pytest.importorskip("uvicorn", reason="the server needs the extra web")
    from conftest import save_tiny_checkpoint

    run = save_tiny_checkpoint(tmp_path / "m", tiny_model(vocab_size=261), byte_tokenizer)
    command = [sys.executable, "-m", "reso_llm.server", "--checkpoint", run, "--port", "0"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        address = process.stdout.readline().split()[-1]
        with urllib.request.urlopen(f"{address}v1/models", timeout=20) as answer:
            assert b'"reso"' in answer.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--host", "0.0.0.0"], "token"), (["--port", "x"], "port"), (["--chekpoint", "x"], "check")],
)
def test_a_wrong_command_is_refused_in_a_line(arguments, words):
    pytest.importorskip("uvicorn", reason="the server needs the extra web")
    command = [sys.executable, "-m", "reso_llm.server", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") <= 2
