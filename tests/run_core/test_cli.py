"""train.py as its user meets it: options, signals, damaged data and disks, exit codes.

What a user must see is one line (exit 2: the command or the data is wrong; exit 1: the run cannot
go on; 130: interrupted) and never a traceback. Numbers such as FAULT 30 refer to the list of
faults the project was designed against.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from train_server import ROOT, TrainServer

from benchmarks.studies.crash import final_hash, kill_until_done
from cer.training import CERTrainConfig
from reso import train
from reso_llm.data import errors, hub
from reso_llm.training.config import TrainConfig
from run_core import exits

TINY = [
    "model.vocab_size=261", "model.dim=32", "model.num_layers=2", "model.num_heads=2",
    "model.max_seq_len=32", "model.dropout=0.1", "model.kuramoto.num_oscillators=4",
    "batch_size=2", "val_fraction=0.2",
    "validate_every=1000000", "save_every=1000000", "log_every=1", "sample_prompt=",
    "wandb=disabled", "device=cpu",
]  # fmt: skip


# --- options, without a process --------------------------------------------------------------


def parse(*args):
    """The configuration of a command line, and whether it resumes."""
    return train.read_config([str(a) for a in args])


def mistake(*args):
    """What a wrong command line prints; it must exit with 2 in a few lines."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as stop:
        parse(*args)
    assert stop.value.code == 2
    text = stderr.getvalue()
    assert len(text.splitlines()) <= 10
    assert "Traceback" not in text
    assert text.startswith("train.py: error: ")
    return text


def yaml_file(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["stepz=5"], "unknown option stepz; did you mean steps?"),
        (["--stepz", "5"], "unknown option stepz; did you mean steps?"),
        (["--minut", "3"], "unknown option minut; did you mean minutes?"),
        (["--model.num_layer=3"], "unknown option model.num_layer; did you mean model.num_layers?"),
        (["model.agency.enabeld=true"], "did you mean model.agency.enabled?"),
        (["optim.lr=1"], "unknown option optim.lr"),
        (["dropout=0.1"], "unknown option dropout; did you mean model.dropout?"),
        (["steps=many"], "steps = many: expected int or null"),
        (["steps=2.5"], "steps = 2.5: expected int or null"),
        (["tokens=1.5e0"], "tokens = 1.5e0: expected int or null"),
        (["steps=1", "model.num_layers=1000000000"], "num_layers = 1000000000: expected at most"),
        (["steps=1", "model.dim=10000000"], "dim = 10000000: expected at most"),
        (["--resume", "out=/nowhere"], "--resume: there is no run in /nowhere"),
        (["steps=true"], "steps = true: expected int or null"),
        (["minutes=nan"], "minutes = nan: expected float or null"),
        (["minutes=inf"], "minutes = inf: expected float or null"),
        (["optim.matrix_lr=x"], "optim.matrix_lr = x: expected float"),
        (["replies_only=perhaps"], "replies_only = perhaps: expected bool"),
        (["on_bad_row=maybe"], "on_bad_row = maybe: expected 'error', 'skip'"),
        (["wandb=on"], "wandb = on: expected 'offline', 'online', 'disabled'"),
        (["--steps"], "--steps: expected one argument"),
        (["steps=0"], "steps = 0: expected above 0"),
        (["minutes=-1"], "minutes = -1.0: expected above 0"),
        (["steps=1", "batch_size=0"], "batch_size = 0: expected at least 1"),
        (["steps=1", "seed=-1"], "seed = -1: expected 0 to 2^32 - 1"),
        (["steps=1", "val_fraction=1"], "val_fraction = 1.0: expected between 0 and 1"),
        (["steps=1", "optim.momentum=1"], "optim.momentum = 1.0: expected"),
        (["steps=1", "model.dropout=1"], "dropout = 1.0: expected"),
        (["steps=1", "device=gpu"], "device = 'gpu': expected auto, cpu or cuda"),
        (["steps=1", "out="], "out = '': expected a name"),
        (["steps=1", "model.dim=30", "model.num_heads=4"], "num_heads = 4: expected a number that"),
        ([], "no budget: give minutes, steps, tokens, epochs"),
        (["steps=1", "extra"], "unrecognized arguments: extra"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_names_the_key(args, told):
    """FAULT 30."""
    assert told in mistake(*args)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("stepz: 5\n", "unknown option stepz; did you mean steps?"),
        ("steps: 5\nmodel:\n  num_layer: 5\n", "did you mean model.num_layers?"),
        ("steps: 5\nmodel:\n  agency:\n    enabeld: true\n", "did you mean model.agency.enabled?"),
        ("steps: many\n", "steps = many: expected int or null"),
        ("steps: [5\n  x: : 3\n", "c.yaml:2: not YAML"),
        ("- 1\n- 2\n", "c.yaml: expected lines of `key: value`"),
        ("", "c.yaml: expected lines of `key: value`"),
        ("steps: 5\nmodel:\n  dim: 30\n", "num_heads = 4: expected a number that splits dim = 30"),
    ],
)
def test_a_wrong_yaml_file_names_the_key_or_the_line(tmp_path, content, told):
    """FAULT 30."""
    assert told in mistake("--config", yaml_file(tmp_path / "c.yaml", content))


def test_a_yaml_file_that_is_missing_or_binary_is_named(tmp_path):
    assert "nothere.yaml: No such file" in mistake("--config", tmp_path / "nothere.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert "c.yaml: not a text file" in mistake("--config", tmp_path / "c.yaml")


@pytest.mark.parametrize("first", [True, False])
def test_defaults_give_way_to_yaml_and_yaml_to_arguments(tmp_path, first):
    """Also when --config comes last."""
    path = yaml_file(tmp_path / "c.yaml", "steps: 7\nbatch_size: 3\nmodel:\n  dim: 128\n")
    args = ["--steps", "5", "model.num_layers=6"]
    config, _ = parse(*["--config", path, *args] if first else [*args, f"--config={path}"])
    assert (config.steps, config.batch_size, config.seed) == (5, 3, 0)
    assert (config.model.dim, config.model.num_layers, config.model.num_heads) == (128, 6, 4)


def test_the_forms_of_an_option_are_the_same():
    forms = [["--on_bad_row", "skip"], ["--on-bad-row=skip"], ["on_bad_row=skip"]]
    assert len({parse("steps=1", *form)[0] for form in forms}) == 1


def test_counts_may_be_written_with_an_exponent(tmp_path):
    assert parse("tokens=1e6")[0].tokens == 1_000_000
    assert parse("--config", yaml_file(tmp_path / "c.yaml", "tokens: 1.5e3\n"))[0].tokens == 1500
    assert parse("epochs=2")[0].epochs == 2.0


def test_a_value_may_look_like_an_assignment(tmp_path):
    config, _ = parse("--sample_prompt", "x=1+1", "--data", "a=b.jsonl", "--steps", "3")
    assert (config.sample_prompt, config.data, config.steps) == ("x=1+1", "a=b.jsonl", 3)


def test_the_printed_configuration_can_be_read_back(tmp_path, capsys):
    args = ["steps=5", "model.dim=128", "optim.matrix_lr=0.5", "sample_prompt=a: b # c"]
    with pytest.raises(SystemExit) as stop:
        parse(*args, "--print_config")
    assert stop.value.code == 0
    path = yaml_file(tmp_path / "c.yaml", capsys.readouterr().out)
    assert parse("--config", path) == parse(*args)


def test_a_run_is_resumed_with_its_own_configuration(tmp_path):
    config = TrainConfig(steps=9, batch_size=3, out=str(tmp_path))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert parse("--out", tmp_path, "--resume") == (config, True)
    assert parse("--out", tmp_path, "--resume", "steps=12")[0].steps == 12


def test_every_yaml_file_of_the_repository_is_valid():
    paths = sorted(ROOT.glob("configs/**/*.yaml"))
    assert paths
    for path in paths:
        options = ["--config", str(path)]
        config, _ = train.read_config(options)
        assert isinstance(config, CERTrainConfig if path.name.startswith("cer") else TrainConfig)


def test_help_describes_every_option_and_fits_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        parse("--help-all")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert max(map(len, text.splitlines())) <= 80
    described = re.sub(r"\s+", " ", text)
    for name in TrainConfig.__dataclass_fields__:
        assert re.search(rf"--{name}\b", text), name
    for words in ("budget in optimizer steps", "YAML file of options", "run in --out"):
        assert words in described


def test_help_and_mistakes_do_not_wait_for_torch():
    """Start-up of `train.py --help` was 2.6 s with torch and is 0.3 s without."""
    code = (
        "import sys; from reso import train\n"
        "try: train.read_config(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    for argument in ("--help", "stepz=3"):
        done = subprocess.run([sys.executable, "-c", code, argument], cwd=ROOT, capture_output=True)
        assert done.returncode == 0


def test_run_turns_expected_failures_into_one_line_and_no_others(capsys):
    def fails(error):
        def main():
            raise error

        return main

    for error, status in (
        (errors.DataError("bad row"), 2),
        (exits._failures()[0]("no"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(5), 5),
    ):
        with pytest.raises(SystemExit) as stop:
            exits.run(fails(error))
        assert stop.value.code == status
        assert len(capsys.readouterr().err.strip().splitlines()) <= 1
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        exits.run(fails(ZeroDivisionError()))


# --- runs as processes --------------------------------------------------------------------------


def write_rows(path, count=40):
    generator = random.Random(0)
    words = ["sea", "red", "fox", "runs", "over", "old", "hills", "and", "sings"]
    lines = []
    for number in range(count):
        ask, say = (" ".join(generator.choices(words, k=6)) for _ in range(2))
        text = f"### Human: {ask} {number}?### Assistant: {say}."
        lines.append(json.dumps({"text": text}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    env = {"RESO_CACHE": str(directory / "cache"), "HF_HOME": str(directory / "hf")}
    with TrainServer(directory, env) as server:
        yield server


@pytest.fixture
def args(tmp_path):
    """Arguments of a tiny run in tmp_path/run; later ones win."""
    data = write_rows(tmp_path / "rows.jsonl")
    return [*TINY, f"data={data}", f"out={tmp_path / 'run'}"]


def one_error(run, code, *words):
    """The run ended with `code` and one line that holds `words`."""
    assert run.wait() == code, run.stderr
    errors = [line for line in run.errors if line.startswith("error: ")]
    assert len(errors) == 1, run.stderr
    for word in words:
        assert word in errors[0]
    assert "Traceback" not in run.stderr
    assert len(run.errors) <= 10
    return errors[0]


def steps_logged(args):
    """Steps in the metrics of a run that may be going on."""
    path = Path(args[-1].removeprefix("out="), "metrics.jsonl")
    return path.read_text().count("loss_nats") if path.exists() else 0


def test_a_run_from_the_command_line(server, args, tmp_path):
    run = server.run(*args, "steps=3", "validate_every=2", "sample_prompt=Hi", "sample_length=4")
    assert run.code == 0, run.stderr
    *_, steps, score, picture, then = run.stdout.splitlines()
    out = args[-1].removeprefix("out=")
    assert re.fullmatch(rf"{re.escape(out)}: 3 steps in [\d.]+ minutes", steps)
    assert re.fullmatch(r"validation: [\d.]+ bits/byte on all of its text, lower is better", score)
    assert picture == f"picture: {Path(out, 'loss.png')}"
    assert Path(out, "loss.png").is_file()
    assert then == f"next: reso chat --checkpoint {out}"
    assert "'Hi' ->" in run.stdout
    assert "Traceback" not in run.stderr
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "best.json"}
    record = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert record["command"].startswith("train.py model.vocab_size=261")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_exits_with_0_and_the_resume_is_exact(server, args, tmp_path, number):
    """FAULT 11: whenever it comes."""
    args += ["steps=600"]
    whole = server.run(*args, f"out={tmp_path / 'whole'}")
    assert whole.code == 0, whole.stderr
    run = server.start(*args)
    run.wait_until(lambda: steps_logged(args[:-1]) >= 5)
    run.send_signal(number)
    sent = time.monotonic()
    assert run.wait() == 0, run.stderr
    assert time.monotonic() - sent < 10
    stopped = re.search(rf"stopped by {number.name} at step (\d+); --resume goes on", run.stdout)
    assert stopped, run.stdout
    assert 5 <= int(stopped[1]) < 600
    assert "Traceback" not in run.stderr
    again = server.run(*args, "--resume")
    assert again.code == 0, again.stderr
    assert f"step {stopped[1]}" in again.stdout
    assert final_hash(tmp_path / "run") == final_hash(tmp_path / "whole")


def test_a_closed_terminal_does_not_end_a_run_under_nohup(args):
    """nohup ignores SIGHUP for the command: the run must not take the signal back."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    command = ["nohup", sys.executable, "train.py", *args, "steps=40"]
    with subprocess.Popen(command, cwd=ROOT, **quiet) as run:
        while steps_logged(args) < 2:
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.01)
        run.send_signal(signal.SIGHUP)
        assert run.wait(60) == 0
    assert steps_logged(args) == 40


def test_a_second_ctrl_c_leaves_at_once(server, args):
    """FAULT 11: in a step that would take minutes."""
    run = server.start(*args, "steps=2", "grad_accumulation=20000")
    run.wait_until(lambda: "training" in run.stderr)
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    run.wait_until(lambda: "SIGINT: saving" in run.stdout)
    run.send_signal(signal.SIGINT)
    sent = time.monotonic()
    assert run.wait() == 130
    assert time.monotonic() - sent < 5
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_a_step_of_minutes_is_obeyed_within_seconds(server, args, number):
    run = server.start(*args, "steps=2", "grad_accumulation=1000000")
    run.wait_until(lambda: "training" in run.stderr.splitlines())
    time.sleep(0.5)
    run.send_signal(number)
    sent = time.monotonic()
    assert run.wait() == 0, run.stderr
    assert time.monotonic() - sent < 8  # 2 s on an idle machine
    assert f"stopped by {number.name} at step 0" in run.stdout


def test_ctrl_c_while_tokenising_is_no_traceback(server, args, tmp_path):
    """FAULT 11: the data take seconds to read, so the run is certainly there."""
    rows = write_rows(tmp_path / "rows.jsonl").read_text()
    (tmp_path / "many.jsonl").write_text(rows * 5000)
    given = ["tokenizer=default", "model.vocab_size=99999"]
    run = server.start(*args, f"data={tmp_path / 'many.jsonl'}", "steps=2", *given)
    run.wait_until(lambda: "tokenising" in run.stderr)
    run.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.stderr
    assert "Traceback" not in run.stderr
    assert run.errors[-1] == "interrupted"


def test_a_second_process_leaves_the_run_alone_and_a_killed_one_does_not_block_it(server, args):
    """FAULT 14."""
    first = server.start(*args, "steps=2", "grad_accumulation=20000")
    first.wait_until(lambda: "training" in first.stderr)
    for extra in ([], ["--resume"]):
        second = server.run(*args, "steps=2", *extra)
        one_error(second, 1, f"another process (pid {first.pid}) is writing to")
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -9
    third = server.run(*args, "steps=2", "grad_accumulation=1", "--resume")
    assert third.code == 0, third.stderr


def test_a_damaged_newest_checkpoint_is_set_aside_by_resume(server, args, tmp_path):
    """FAULT 4: truncated at random lengths; FAULT 5 is in test_training.py."""
    args += ["steps=6", "save_every=2", "keep_last=9"]
    assert server.run(*args).code == 0
    expected = final_hash(tmp_path / "run")
    generator = random.Random(4)
    for name in ("model.safetensors", "training.json", "MANIFEST.json"):
        path = tmp_path / "run" / "checkpoints" / "step_00000006" / name
        os.truncate(path, generator.randrange(path.stat().st_size))
        run = server.run(*args, "--resume")
        assert run.code == 0, run.stderr
        warnings = [line for line in run.stdout.splitlines() if "set aside" in line]
        assert len(warnings) == 1
        assert name in warnings[0]
        assert "at step 4" in run.stdout
        assert final_hash(tmp_path / "run") == expected


def test_all_checkpoints_damaged_is_an_error_that_lists_them(server, args, tmp_path):
    """FAULT 5: never a silent restart."""
    args += ["steps=4", "save_every=2"]
    assert server.run(*args).code == 0
    for step in (2, 4):
        os.truncate(tmp_path / f"run/checkpoints/step_{step:08d}/model.safetensors", 100)
    words = ("corrupt-step_00000002", "corrupt-step_00000004")
    one_error(server.run(*args, "--resume"), 1, "all are corrupt", *words)


def test_a_deleted_run_directory_is_one_line(server, args, tmp_path):
    """FAULT 8."""
    run = server.start(*args, "steps=100000")
    run.wait_until(lambda: steps_logged(args) >= 2)
    shutil.rmtree(tmp_path / "run")
    one_error(run, 1, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_disk_that_refuses_the_checkpoint_is_one_line_with_the_bytes(server, args, tmp_path):
    """FAULT 7: the earlier checkpoint is intact, nothing half written stays, the run goes on."""
    args += ["steps=4", "save_every=2"]
    assert server.run(*args, f"out={tmp_path / 'whole'}").code == 0
    assert server.run(*args, "steps=2").code == 0
    run = server.run(*args, "--resume", file_size=20_000)
    one_error(run, 1, "cannot write checkpoint", "step_00000004", "it needs", "File too large")
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["step_00000002"]
    run = server.run(*args, "--resume")
    assert run.code == 0, run.stderr


def test_a_read_only_run_directory_is_one_line(server, args, tmp_path):
    """FAULT 8."""
    if os.geteuid() == 0:
        target = "/proc/reso-run"  # where not even root may write
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        target = tmp_path / "locked" / "run"
    one_error(server.run(*args, f"out={target}", "steps=2"), 1, str(target))


# --- data -----------------------------------------------------------------------------------------


def bad_rows(path):
    """Forty good rows, and bad ones on lines 3, 5, 7 and 9."""
    lines = write_rows(path).read_bytes().splitlines()
    lines[2:2] = [b'{"text": "broken']
    lines[4:4] = [b'{"prompt": "no text"}']
    lines[6:6] = [b'{"text": "\xff\xfe"}']
    lines[8:8] = [b'{"text": null}']
    path.write_bytes(b"\n".join(lines) + b"\n")


def test_a_bad_row_stops_the_run_by_file_and_line(server, args, tmp_path):
    """FAULT 17."""
    bad_rows(tmp_path / "rows.jsonl")
    run = server.run(*args, "steps=2")
    one_error(run, 2, f"{tmp_path / 'rows.jsonl'}:3: broken JSON", "--on-bad-row skip")


def test_skipped_rows_are_counted_and_listed_also_from_the_cache(server, args, tmp_path):
    """FAULT 17, 18: each by its line and reason."""
    bad_rows(tmp_path / "rows.jsonl")
    for out in ("one", "two"):
        run = server.run(*args, "steps=2", "--on-bad-row", "skip", f"out={tmp_path / out}")
        assert run.code == 0, run.stderr
        assert "4 bad rows skipped:" in run.stdout
        for line, reason in ((3, "broken JSON"), (5, ""), (7, "invalid UTF-8"), (9, "")):
            assert f"rows.jsonl:{line}: {reason}" in run.stdout


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it has no rows"),
        (b"\n  \n\n", "no document in it"),
        (b'{"a": 1}\n[]\n', "rows.jsonl"),
        (b'{"text": "### Human: a### Assistant: b"}\n', "only one document"),
    ],
    ids=["empty", "blank", "invalid", "one row"],
)
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_data_without_rows_is_named_at_once(server, args, tmp_path, content, told, on_bad_row):
    """FAULT 19."""
    (tmp_path / "rows.jsonl").write_bytes(content)
    started = time.monotonic()
    run = server.run(*args, "steps=2", f"on_bad_row={on_bad_row}")
    one_error(run, 2, "rows.jsonl", told)
    assert time.monotonic() - started < 5


def test_data_that_is_not_there_is_named(server, args, tmp_path):
    for name in ("nothere.jsonl", tmp_path, "gunaco"):
        one_error(server.run(*args, f"data={name}", "steps=2"), 2, str(name))


def test_offline_guanaco_says_what_to_do_instead(server, args):
    """FAULT 21."""
    pytest.importorskip("huggingface_hub")
    started = time.monotonic()
    run = server.run(*args, "data=guanaco", "steps=2", HF_HUB_OFFLINE="1")
    one_error(run, 2, hub._instead(), "HF_HUB_OFFLINE is set")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_token_cache_is_rebuilt_with_one_line(server, args, tmp_path, damage):
    """FAULT 22."""
    env = {"RESO_CACHE": str(tmp_path / "cache")}
    assert server.run(*args, "steps=3", f"out={tmp_path / 'whole'}", **env).code == 0
    (tokens,) = tmp_path.glob("cache/*/train.tokens")
    data = bytearray(tokens.read_bytes())
    data[50] ^= 1
    tokens.write_bytes(data if damage == "flip" else data[:-9])
    run = server.run(*args, "steps=3", **env)
    assert run.code == 0, run.stderr
    warnings = [line for line in run.errors if "damaged token cache" in line]
    assert len(warnings) == 1, run.stderr
    assert "train.tokens" in warnings[0]
    assert final_hash(tmp_path / "run") == final_hash(tmp_path / "whole")


# --- wandb and crashes ----------------------------------------------------------------------------


def test_wandb_offline_needs_no_account(server, args, tmp_path):
    """FAULT 31: the default, without key, home or network; an empty variable is an unset one."""
    pytest.importorskip("wandb")
    home = {"HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path), "WANDB_MODE": ""}
    run = server.run(*args, "steps=3", "wandb=offline", **home)
    assert run.code == 0, run.stderr
    assert "wandb: " not in run.stdout + run.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert server.run(*args, "steps=3", f"out={tmp_path / 'without'}").code == 0
    assert final_hash(tmp_path / "run") == final_hash(tmp_path / "without")


def test_three_kills_leave_the_same_weights(server, args, tmp_path):
    """FAULT 1, 2: benchmarks/studies/crash.py does this twenty times with processes of its own."""
    args += ["steps=120", "save_every=10"]
    assert server.run(*args, f"out={tmp_path / 'whole'}").code == 0
    report = kill_until_done(
        lambda extra: server.start(*args, *extra),
        tmp_path / "run",
        kills=3,
        generator=random.Random(1),
        speed=40.0,
    )
    assert report.kills == 3
    assert report.in_save >= 1
    assert final_hash(tmp_path / "run") == final_hash(tmp_path / "whole")
    assert not [path for path in (tmp_path / "run").rglob(".t*")]
