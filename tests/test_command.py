"""The command `reso`: dispatch, help, inspect, and what it says without a checkout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_engine
import transformers

import phase_slip
from reso import __main__ as command
from reso import evaluate, show, train
from reso_llm.config import KuramotoConfig, ResoLLMConfig
from reso_llm.inference import SHIPPED
from reso_llm.training.config import TrainConfig
from run_core import cli

ROOT = Path(__file__).resolve().parents[1]


def call(monkeypatch, *args):
    """Exit status of `reso` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["reso", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        command.run()
    return ended.value.code


# --- help


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_without_a_command_all_are_listed(monkeypatch, capsys, arguments):
    assert call(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in command.COMMANDS)


def test_help_is_short_light_and_narrow():
    """A process of its own: no torch, ten options, no line above 80 columns."""
    code = (
        "import sys; from reso import __main__ as m\n"
        "sys.argv = ['reso', 'train', sys.argv[1]]\n"
        "try: m.run()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    shown = {}
    for option in ("--help", "--help-all"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, option], cwd=ROOT,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        shown[option] = done.stdout
    short, whole = shown["--help"], shown["--help-all"]
    assert short.startswith("usage: reso train [options]")
    assert max(map(len, short.splitlines())) <= 80
    described = [line.split()[0] for line in short.splitlines() if line.startswith("  --")]
    assert described[-1] == "--help-all"
    assert len(described) == 11
    assert "kuramoto" not in short
    assert "--model.kuramoto.coupling" in whole


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["trian"], 2, "there is no command trian; did you mean train?"),
        (["xyzzy"], 2, "there is no command xyzzy: expected train, chat"),
        (
            ["train", "--config", "smal"],
            2,
            "config smal: expected a file, or one of cer, cer_guanaco, control",
        ),
        (["train", "stepz=1"], 2, "reso train: error: unknown option stepz; did you mean steps?"),
        (["export", "gguf", "a", "b"], 2, "invalid choice: 'gguf'"),
        (["export", "hf", "nowhere", "out"], 1, "nowhere"),
        (["inspect"], 2, "reso inspect: error"),
        (["inspect", "nowhere"], 2, "nowhere"),
        (["serve", "--port", "x"], 2, "port = x: expected int"),
        (["chat", "--checkpoint", "a", "--model", "b"], 2, "give one of them"),
    ],
)
def test_mistakes_are_one_message(monkeypatch, capsys, arguments, status, told):
    assert call(monkeypatch, *arguments) == status
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) <= 3


def test_evaluate_without_a_checkout_says_what_it_needs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(evaluate, "SCRIPT", tmp_path / "evaluate.py")
    assert call(monkeypatch, "evaluate", "lm") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs a checkout" in line


def test_evaluate_is_the_script_of_the_checkout():
    command = [sys.executable, "-m", "reso", "evaluate", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "setpoint" in done.stdout


def test_serve_without_its_extra_says_so_before_the_model_is_read(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("reso_llm.inference.load_engine", lambda *_: pytest.fail("read a model"))
    assert call(monkeypatch, "serve") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'uvicorn: pip install "reso-llm[web]"' in line


# --- options


@pytest.mark.parametrize("prog", ["reso chat", "python -m phase_slip", "x.py"])
def test_a_mistake_names_the_command_that_can_be_typed(prog, capsys):
    with pytest.raises(SystemExit):
        cli.Parser(prog=prog).read(["--nope"])
    typed = f"python {prog}" if prog == "x.py" else prog
    assert f"run `{typed} --help`" in capsys.readouterr().err


def parser():
    made = cli.Parser(prog="x.py")
    made.add_argument("--plot", type=bool, default=False)
    made.add_argument("--save_figure", type=str)
    made.add_argument("--metrics", type=bool | None)
    made.add_argument("--steps", type=int, default=1)
    return made


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--plot"], {"plot": True}),
        (["--no-plot"], {"plot": False}),
        (["--no_plot"], {"plot": False}),
        (["--plot", "true"], {"plot": True}),
        (["--plot=true", "--no-plot"], {"plot": False}),
        (["--plot", "steps=3"], {"plot": True, "steps": 3}),
        (["--metrics", "--plot"], {"metrics": True, "plot": True}),
        (["--no-metrics"], {"metrics": False}),
        (["--save-figure", "a.png"], {"save_figure": "a.png"}),
        (["--save_figure", "a.png"], {"save_figure": "a.png"}),
    ],
)
def test_flags_may_stand_without_a_value(arguments, expected):
    values = parser().read(arguments)
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize("arguments", [["--no-steps"], ["--no-plot", "true"], ["--plot", "maybe"]])
def test_what_is_no_flag_is_refused(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        parser().read(arguments)
    assert stop.value.code == 2


def test_a_flag_of_a_group():
    config, _ = train.read_config(["--steps=1", "--no-model.kuramoto.enabled", "--replies-only"])
    assert (config.model.kuramoto.enabled, config.replies_only) == (False, True)


@pytest.mark.parametrize("name", [file.stem for file in train.CONFIGS.glob("*.yaml")])
def test_a_shipped_configuration_is_found_by_its_name(name, monkeypatch, tmp_path):
    given = ["--config", name, "--steps", "1"]
    monkeypatch.chdir(tmp_path)
    by_path = ["--config", str(ROOT / "configs" / f"{name}.yaml"), "--steps", "1"]
    assert train.read_config(given) == train.read_config(by_path)


# --- inspect


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(run directory, data file) of a tiny finished training."""
    from reso_llm.training.run import train as train_model

    directory = tmp_path_factory.mktemp("inspected")
    data = directory / "rows.jsonl"
    rows = [f"### Human: question {i}?### Assistant: answer number {i}." for i in range(40)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    model = ResoLLMConfig(vocab_size=261, dim=32, num_layers=1, num_heads=2, max_seq_len=64,
                          kuramoto=KuramotoConfig(num_oscillators=4))  # fmt: skip
    out = str(directory / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESO_CACHE", str(directory / "cache"))
        train_model(TrainConfig(data=str(data), out=out, steps=3, wandb="disabled", model=model))
    return directory / "run", data


def test_inspect_says_what_a_run_is(run):
    lines = dict(show.described(run[0]))
    assert lines["what"] == "a ResoLLM"
    assert "1 layers, 32 wide, 2 heads, context 64, vocabulary 261" in lines["size"]
    assert "kuramoto" in lines["stages"]
    assert "entanglement" in lines["switched off"]
    assert lines["data"] == str(run[1])
    assert lines["trained"].startswith("3 steps in ")
    best = json.loads((run[0] / "best.json").read_text())["validation_bits_per_byte"]
    assert lines["score"].startswith(f"{best:.4f} bits/byte")


def test_inspect_of_the_shipped_checkpoint(monkeypatch, capsys):
    assert call(monkeypatch, "inspect", SHIPPED) == 0
    assert "every byte as its manifest says" in capsys.readouterr().out


def test_inspect_tells_a_damaged_checkpoint(run, monkeypatch, capsys, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in SHIPPED.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert call(monkeypatch, "inspect", damaged) == 1
    assert "model.safetensors" in capsys.readouterr().err


def test_inspect_of_data_is_that_of_train(run, monkeypatch, capsys):
    assert call(monkeypatch, "inspect", run[1]) == 0
    inspected = capsys.readouterr().out
    assert call(monkeypatch, "train", "--data", run[1], "--inspect") == 0
    assert capsys.readouterr().out == inspected
    assert "40 conversations" in inspected


# --- phase_slip


def test_the_sampler_is_greedy_between_its_shocks():
    engine = tiny_engine.engine()
    inner = engine.tokenizer.tokenizer
    calm = phase_slip.Sampler.published(
        engine.model, inner, spike_nats=100, stale_steps=float("inf")
    )
    greedy = engine.generate("once", 12, temperature=0.0)
    assert calm.generate("once", 12).token_ids == greedy.token_ids
    seen = []
    hot = phase_slip.Sampler.published(engine.model, inner, spike_nats=0.1, cooldown_steps=0)
    result = hot.generate("once", 12, seed=1, on_event=seen.append)
    assert result.token_ids != greedy.token_ids
    assert {event.controller for event in result.events} == {"phase_slip"}
    assert seen


def test_the_sampler_refuses_what_it_does_not_know():
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1)
    )
    with pytest.raises(ValueError, match="spike_nats"):
        phase_slip.Sampler(model, None, spike_nats=-1)
