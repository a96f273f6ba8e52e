"""chat.py and demo.py as processes whose reader leaves, or that have no standard stream at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def start(script, *args, **streams):
    """A process of a script on the shipped model."""
    command = [sys.executable, ROOT / script, *args]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, **streams)


def test_a_chat_ends_when_nobody_reads_it(tmp_path):
    """Guards `yes | chat.py | head -1`, which would go on for ever."""
    lines = tmp_path / "lines"
    lines.write_text("hi\n" * 100_000)
    with (
        lines.open() as stdin,
        start("chat.py", "--max_length=4", stdin=stdin, stdout=subprocess.PIPE) as chat,
    ):
        assert chat.stdout.readline()
        chat.stdout.close()
        assert chat.stderr.read() == b""
    assert chat.returncode == 0


def test_a_demo_whose_reader_leaves_is_no_failure():
    with start("demo.py", stdout=subprocess.PIPE) as demo:
        assert demo.stdout.readline()
        demo.stdout.close()
        assert demo.stderr.read() == b""
    assert demo.returncode == 0


def close_stdin_and_stdout():
    os.close(0)
    os.close(1)


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors before the program starts")
def test_a_chat_without_standard_streams():
    """`chat.py <&- >&-`."""
    with start("chat.py", stdin=subprocess.DEVNULL, preexec_fn=close_stdin_and_stdout) as chat:
        assert chat.stderr.read() == b""
    assert chat.returncode == 0
