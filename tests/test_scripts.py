"""evaluate.py, chat.py and demo.py on a tiny trained run, as a user calls them."""

import io
import json
import math
import sys
from pathlib import Path

import pytest

import evaluate
from reso import chat, demo
from reso import train as train_script
from reso_llm.chat.session import SAMPLING
from reso_llm.config import KuramotoConfig, ResoLLMConfig
from reso_llm.tour.stations import STATIONS
from reso_llm.training.config import TrainConfig
from reso_llm.training.run import train
from run_core import exits

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
        exits.run(script.main)
    return caught.value.code


def test_evaluate_counts_every_byte_of_the_file(run, monkeypatch, capsys):
    directory, data = run
    status = call(evaluate, monkeypatch, "lm", "--checkpoint", directory, "--data", data,
                  "--json", "-")  # fmt: skip
    (result,) = json.loads(capsys.readouterr().out)
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
    bits = json.loads(out.read_text())[0]["bits_per_byte"]
    assert f"| {bits:.4f} |" in capsys.readouterr().out


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


def test_a_pipe_shows_metrics_only_when_asked(run, monkeypatch, capsys):
    for options, shown in (([], 0), (["--metrics", "true"], 1)):
        pipe = io.TextIOWrapper(io.BytesIO(b"hi\n"), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", pipe)
        assert call(chat, monkeypatch, "--checkpoint", run[0], "--max_length", 4, *options) == 0
        assert capsys.readouterr().out.count("entropy") == shown


def test_the_chat_draws_as_a_session_does():
    defaults = vars(chat.make_parser().read([]))
    assert {name: defaults[name] for name in SAMPLING} == SAMPLING


@pytest.mark.parametrize(
    ("option", "controller"),
    [("srb", "SRB"), ("phase_slip", "PhaseSlip"), ("stochastic_resonance", "StochasticResonance"),
     ("stability_temperature", "StabilityTemperature")],
)  # fmt: skip
def test_controllers_of_the_chat(run, monkeypatch, option, controller):
    seen = []
    monkeypatch.setattr(
        "reso_llm.chat.commands.run_in_terminal", lambda session, *_: seen.append(session.options)
    )
    assert call(chat, monkeypatch, "--checkpoint", run[0], f"--{option}", "true") == 0
    assert [type(c).__name__ for c in seen[0]["controllers"]] == [controller]


@pytest.fixture
def short_tour(monkeypatch):
    monkeypatch.setattr("reso_llm.tour.greedy.GREEDY_LENGTH", 4)


@pytest.mark.usefixtures("short_tour")
def test_the_demo_visits_every_station(run, monkeypatch, capsys):
    assert call(demo, monkeypatch, "--checkpoint", run[0]) == 0
    out = capsys.readouterr().out
    assert all(f"{i}. {s.title}\n" in out for i, s in enumerate(STATIONS.values(), start=1))
    tour = out.partition("\nNext: ")[0]
    assert max(map(len, tour.splitlines())) <= 80
    assert "mechanisms change the reply" in "".join(tour.splitlines()[:2]), "first of all"
    option = f"--checkpoint {run[0]}"
    for then in (f"chat {option}", f"serve {option}", "train --data rows.jsonl"):
        assert f"python -m reso {then}" in out


@pytest.mark.usefixtures("short_tour")
def test_the_demo_trains_first_and_goes_on_with_the_run(run, monkeypatch, capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {run[1]}\nsteps: 2\nwandb: disabled\nmodel:\n  vocab_size: 261\n  dim: 32\n"
        "  num_layers: 1\n  num_heads: 2\n  max_seq_len: 64\n"
        "  kuramoto:\n    num_oscillators: 4\n"
    )
    monkeypatch.setattr(demo, "QUICKSTART", recipe)
    monkeypatch.setenv("RESO_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        assert call(demo, monkeypatch, "--train", tmp_path / "new") == 0
    assert (tmp_path / "new" / "config.yaml").is_file()
    assert "9. " in capsys.readouterr().out


@pytest.mark.parametrize(("mode", "told"), [("disabled", "disabled"), ("", "offline")])
def test_the_demo_reads_the_mode_of_wandb(monkeypatch, mode, told):
    seen = []
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(train_script, "main_language_model", lambda config, _: seen.append(config))
    demo.train_first("nowhere")
    assert [config.wandb for config in seen] == [told]


def test_the_demo_takes_one_model(monkeypatch, capsys):
    assert call(demo, monkeypatch, "--train", "a", "--checkpoint", "b") == 2
    assert "give one of them" in capsys.readouterr().err


def test_the_demo_checks_its_figure_before_the_work(monkeypatch, capsys, tmp_path):
    """Guards a training of minutes whose picture has no place to go."""
    options = ["--train", tmp_path / "run", "--save-figure", tmp_path / "away" / "x.png"]
    assert call(demo, monkeypatch, *options) == 2
    assert "no directory" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_demo_misses_matplotlib_at_once(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = ["--checkpoint", run[0], "--save-figure", "x.png"]
    assert call(demo, monkeypatch, *options) == 2
    captured = capsys.readouterr()
    assert "[plots]" in captured.err
    assert captured.out == ""


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


def test_inspect_prints_and_trains_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"q": "one", "a": "two"}\n')
    options = ["--data", "rows.jsonl", "--columns", "prompt=q,reply=a", "--inspect"]
    assert call(train_script, monkeypatch, *options) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "1 conversation with 2 turns (1 reply, 0 system messages)",
        "document 1:", "  user: 'one'", "  assistant: 'two'",
    ]  # fmt: skip
    assert call(train_script, monkeypatch, *options, "json") == 0
    assert json.loads(capsys.readouterr().out)["replies"] == 1
    assert call(train_script, monkeypatch, "--data", "rows.jsonl", "--inspect") == 2
    assert "--columns prompt=question,reply=answer" in capsys.readouterr().err
    assert call(train_script, monkeypatch, *options, "yaml") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_option_out_of_range_is_one_message(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n"), encoding="utf-8"))
    assert call(chat, monkeypatch, "--checkpoint", run[0], "--temperature", "-1") == 2
    assert "temperature" in capsys.readouterr().err
