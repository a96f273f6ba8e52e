"""evaluate.py, chat.py and demo.py on a tiny trained run, as a user calls them."""

import io
import json
import math
import sys

import pytest

import chat
import demo
import evaluate
from reso_llm import cli
from reso_llm.config import KuramotoConfig, ResoLLMConfig
from reso_llm.train_config import TrainConfig
from reso_llm.training import train

ROWS = [f"### Human: question {i}?### Assistant: answer number {i}." for i in range(40)]
TINY = {"vocab_size": 261, "dim": 32, "num_layers": 1, "num_heads": 2, "max_seq_len": 64,
        "kuramoto": KuramotoConfig(num_oscillators=4)}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(run directory, data file) of a tiny finished training."""
    directory = tmp_path_factory.mktemp("scripts")
    data = directory / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in ROWS))
    patch = pytest.MonkeyPatch()
    patch.setenv("RESO_CACHE", str(directory / "cache"))
    options = {"data": str(data), "out": str(directory / "run"), "steps": 3, "wandb": "disabled"}
    train(TrainConfig(**options, model=ResoLLMConfig(**TINY)))
    patch.undo()
    return directory / "run", data


def call(script, monkeypatch, *args):
    """Exit status of `script` called with `args`."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        cli.run(script.main)
    return caught.value.code


def test_evaluate_counts_every_byte_of_the_file(run, monkeypatch, capsys):
    directory, data = run
    status = call(evaluate, monkeypatch, "lm", "--checkpoint", directory, "--data", data,
                  "--json", "-")  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert status == 0
    assert result["bytes"] == sum(len(text.encode()) for text in ROWS)
    assert result["documents"] == len(ROWS)
    assert result["bits_per_byte"] == pytest.approx(
        result["nats_per_token"] * result["tokens"] / math.log(2) / result["bytes"]
    )


def test_evaluate_writes_its_json(run, monkeypatch, capsys, tmp_path):
    directory, data = run
    out = tmp_path / "score.json"
    call(evaluate, monkeypatch, "lm", "--checkpoint", directory, "--data", data, "--json", out)
    bits = json.loads(out.read_text())["bits_per_byte"]
    assert f"{bits:.4f} bits/byte" in capsys.readouterr().out


def test_evaluate_skips_bad_rows_only_when_asked(run, monkeypatch, capsys, tmp_path):
    directory, data = run
    bad = tmp_path / "bad.jsonl"
    bad.write_text(data.read_text() + "{broken\n")
    options = ["lm", "--checkpoint", directory, "--data", bad]
    assert call(evaluate, monkeypatch, *options) == 2
    assert "bad.jsonl:41" in capsys.readouterr().err
    assert call(evaluate, monkeypatch, *options, "--on-bad-row", "skip") == 0
    assert "bad.jsonl:41" in capsys.readouterr().err


def test_piped_chat_answers_each_line(run, monkeypatch, capsys):
    pipe = io.TextIOWrapper(io.BytesIO(b"hi\n\ncaf\xe9\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", pipe)
    status = call(chat, monkeypatch, "--checkpoint", run[0], "--max_length", 8, "--seed", 1)
    captured = capsys.readouterr()
    assert status == 0
    assert len(captured.out) >= 2
    assert captured.out.count("\n") >= 2
    assert captured.err == ""


def test_demo_shows_every_prompt(run, monkeypatch, capsys):
    assert call(demo, monkeypatch, "--checkpoint", run[0]) == 0
    out = capsys.readouterr().out
    assert all(prompt in out for prompt in demo.PROMPTS)
    assert out.count("ended by:") == len(demo.PROMPTS)


def test_sparkline_is_bounded_and_ordered():
    assert demo.sparkline((0.0, 4.0, 8.0, 99.0), top=8.0) == " ▄██"
    assert len(demo.sparkline(tuple(range(1000)), top=8.0)) <= 60


@pytest.mark.parametrize(
    ("script", "args", "status", "named"),
    [
        (evaluate, ["lm", "--checkpoint", "nowhere", "--data", "x"], 1, "nowhere"),
        (evaluate, ["lm", "--checkpont", "nowhere"], 2, "checkpoint"),
        (chat, ["--checkpoint", "nowhere"], 1, "nowhere"),
        (chat, ["--temprature", "1"], 2, "temperature"),
        (demo, ["--checkpoint", "nowhere"], 1, "nowhere"),
    ],
)
def test_mistakes_are_one_message(script, args, status, named, monkeypatch, capsys):
    assert call(script, monkeypatch, *args) == status
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 10


def test_an_option_out_of_range_is_one_message(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n"), encoding="utf-8"))
    assert call(chat, monkeypatch, "--checkpoint", run[0], "--temperature", "-1") == 2
    assert "temperature" in capsys.readouterr().err
