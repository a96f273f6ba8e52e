"""The GPU script on the CPU: the parts run, and what fails is named while the others go on."""

import json

import pytest
import torch

from benchmarks.kit import gpu_checks
from benchmarks.kit.bounds import matrix_numbers
from benchmarks.kit.gpt2 import gpt2_like, llama_like
from benchmarks.kit.gpu_setting import NotHere, Setting
from benchmarks.studies import gpu
from reso_llm.config import small_config

# Compiled decoding is left out: tracing it takes half of a minute.
CHECKS = ("parity", "compile/control", "training", "decoding/full/engine", "decoding/full/eager",
          "decoding/gpt2", "quality")  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    text = "### Human: What is {0} and {0}, and why?### Assistant: It is {1}, for {0} is {0}."
    lines = (json.dumps({"text": text.format(i, 2 * i)}) for i in range(40))
    path.write_text("\n".join(lines))
    return path


@pytest.mark.filterwarnings("ignore")  # of torch.compile's own
def test_the_script_runs_on_a_cpu(rows, tmp_path):
    pytest.importorskip("transformers")
    found = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--tiny", "--data", str(rows), "--json", str(found)]
    assert gpu.main([*options, "--only", *CHECKS]) == 0
    row = json.loads(found.read_text())
    assert row["failed"] == row["left_out"] == []
    checks = row["checks"]
    assert checks["compile/control"]["graphs"] == 1
    assert checks["parity/full/bfloat16"]["logits"] > checks["parity/full/float32"]["logits"]
    assert {name for name in checks if name.startswith("training/")} == {
        f"training/small/{model}" for model in ("full", "control", "gpt2", "llama")
    }
    assert checks["quality"]["full"]["steps"] == 1


def test_a_check_that_fails_is_named_and_the_others_go_on():
    def broken():
        raise ValueError("no such thing\nmore of it")

    def elsewhere():
        raise NotHere("needs CUDA")

    checks = [gpu.Check("a", broken), gpu.Check("b", elsewhere), gpu.Check("c", dict)]
    found = gpu.run(iter(checks), minutes=1)
    assert found["a"]["failed"] == "ValueError: no such thing"
    assert found["b"]["left_out"] == "needs CUDA"
    assert found["c"].keys() == {"check_seconds"}
    assert gpu.run(iter(checks), minutes=-1)["c"] == {"left_out": "-1 minutes were over"}


def test_a_wrong_gradient_is_no_parity(monkeypatch):
    plain = gpu_checks.logits_loss_norm
    calls = []

    def once_wrong(model, ids):
        calls.append(1)
        logits, loss, norm = plain(model, ids)
        return logits, loss, norm * (1.1 if len(calls) == 2 else 1)

    monkeypatch.setattr(gpu_checks, "logits_loss_norm", once_wrong)
    setting = Setting(torch.device("cpu"), True, None)
    with pytest.raises(ValueError, match="gradient_norm"):
        gpu_checks.parity(setting, setting.sizes["small"], "float32")


def test_an_unknown_part_and_a_record_of_nothing_are_refused(capsys):
    for options in (["--only", "speed"], ["--tiny", "--record"]):
        with pytest.raises(SystemExit):
            gpu.main(options)
    assert "expected some of tests, parity" in capsys.readouterr().err


def test_the_peers_are_as_large_as_ours():
    pytest.importorskip("transformers")
    config = small_config()
    numbers = [matrix_numbers(make(config), config) for make in (gpt2_like, llama_like)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.01)
