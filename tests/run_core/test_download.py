"""Downloads in a child process: what went wrong in words, and an end to what stands still."""

import socket
import time

import pytest

from run_core import download


def test_a_call_that_ends_well_says_nothing(tmp_path):
    assert download.fetch("pathlib:Path", ["x"], tmp_path, deadline=30) == ""


def test_an_error_becomes_its_first_line(tmp_path):
    problem = download.fetch("json:loads", ["{broken"], tmp_path, deadline=30)
    assert problem.startswith("the hub cannot be used (JSONDecodeError: Expecting property name")


def test_a_call_that_stands_still_is_ended(tmp_path):
    begin = time.monotonic()
    problem = download.fetch("signal:pause", [], tmp_path, deadline=0.5)
    assert problem == "the hub did not answer within 0.5 seconds"
    assert time.monotonic() - begin < 5


def test_a_probe_fails_when_nothing_answers(monkeypatch):
    monkeypatch.setattr(download, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
        download.probe(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_offline_is_said_by_either_variable(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert not download.is_offline()
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "yes")
    assert download.is_offline()
