"""Starting from another run's weights and tokenizer: what is taken over, and what cannot fit."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from test_training import CONTROL, TINY, cache, make, metrics, one_thread, quiet, rows, write_rows

from reso import train as script
from reso_llm.stages.prsc import TABLES
from reso_llm.training import run as training_run
from reso_llm.training.initial import read_initial
from reso_llm.training.run import train
from run_core.checkpoint import CheckpointError, load_checkpoint
from run_core.run import TrainingError, checkpoint_path, resolve

__all__ = ["cache", "make", "one_thread"]  # fixtures


@pytest.fixture
def pretrained(make):
    """The directory of a finished run with a tokenizer of its own."""
    config = make("pretrained", model=dataclasses.replace(TINY, vocab_size=280))
    train(config, report=quiet)
    return config


@pytest.fixture
def tuned(make, tmp_path, pretrained):
    """Configurations that start from it, with other data."""
    other = write_rows(tmp_path / "other.jsonl", *rows(seed=7))

    def tuned(**changes):
        settings = dict(data=other, init_from=pretrained.out, model=pretrained.model)
        return make("tuned", **settings | changes)

    return tuned


def first_learner(config):
    """The learner of a run before its first step."""
    initial = read_initial(config)
    tokenizer = training_run._tokenizer(config, None, initial, quiet)
    data = training_run._prepare(config, tokenizer, quiet)
    trainer = training_run.Trainer(config, tokenizer, data, torch.device("cpu"), quiet, initial)
    return trainer.learner


def is_table(name):
    """Whether a tensor comes from counting the data: the tables, and the gate's threshold."""
    return name.removeprefix("prsc.") in TABLES or name == "gate.threshold"


def test_a_run_starts_from_the_weights_and_tokenizer_of_another(tuned, pretrained):
    """The optimizers start anew, and the binding memory counts the new data."""
    saved, documents = load_checkpoint(resolve(pretrained.out))
    learner = first_learner(tuned())
    state = learner.model.state_dict()
    for name, tensor in saved["model"].items():
        if not is_table(name):
            assert torch.equal(state[name], tensor), name
    assert not torch.equal(state["prsc.keys"], saved["model"]["prsc.keys"])
    assert all(not optimizer.state for optimizer in learner.optimizers.values())
    messages = []
    assert train(tuned(), report=messages.append).step == 6
    assert f"starting from the weights of {resolve(pretrained.out)}" in messages
    after = load_checkpoint(resolve(tuned().out))[1]
    assert after["tokenizer.json"] == documents["tokenizer.json"]
    assert metrics(tuned())[0]["step"] == 1


def test_keep_memory_takes_the_tables_over_and_a_resume_keeps_them(tuned, pretrained, monkeypatch):
    saved = load_checkpoint(resolve(pretrained.out))[0]["model"]
    config = tuned(keep_memory=True, save_every=3)
    train(config, report=quiet)
    path = checkpoint_path(config.out, 6)
    whole = load_checkpoint(path, ("model", "optimizer"))[0]
    for name in filter(is_table, saved):
        assert torch.equal(whole["model"][name], saved[name]), name
    digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    Path(config.out, "best.json").unlink(missing_ok=True)
    train(config, resume=True, report=quiet)
    assert hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() == digest


def test_a_resumed_run_does_not_read_where_it_started_from(tuned, pretrained):
    train(tuned(), report=quiet)
    Path(pretrained.out).rename(pretrained.out + "-moved")
    assert train(tuned(steps=7), resume=True, report=quiet).step == 7


def test_what_cannot_fit_is_refused_by_its_keys(tuned, pretrained):
    wider = dataclasses.replace(pretrained.model, dim=64, num_heads=4, dropout=0.3)
    with pytest.raises(TrainingError) as error:
        train(tuned(model=wider), report=quiet)
    text = str(error.value)
    assert "model.dim (32 -> 64)" in text
    assert "model.num_heads (2 -> 4)" in text
    assert "dropout" not in text
    with pytest.raises(TrainingError, match=r"model\.agency\.enabled \(True -> False\)"):
        train(tuned(model=dataclasses.replace(CONTROL, vocab_size=280)), report=quiet)
    free = dataclasses.replace(pretrained.model, dropout=0.3, max_seq_len=16)
    assert train(tuned(model=free), report=quiet).step == 6


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_checkpoint_that_is_no_language_model_is_one_message(tuned, monkeypatch, missing):
    config = tuned()
    tensors, documents = load_checkpoint(resolve(config.init_from))
    del documents[missing]
    monkeypatch.setattr(
        "reso_llm.training.initial.load_checkpoint", lambda path, parts=(): (tensors, documents)
    )
    reason = "no language model's" if missing == "config.json" else "has no tokenizer.json"
    with pytest.raises(TrainingError, match=f"init_from: .*{reason}"):
        train(config, report=quiet)


def test_a_missing_checkpoint_and_options_that_need_it_are_refused(make, tuned):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        train(make(init_from="nowhere"), report=quiet)
    with pytest.raises(ValueError, match="keep_memory = True: expected false without init_from"):
        make(keep_memory=True)
    with pytest.raises(ValueError, match=r"tokenizer = 'default': .*brings its tokenizer"):
        tuned(tokenizer="default")


def test_the_command_line_takes_the_model_from_the_checkpoint(pretrained, capsys):
    args = ["--init_from", pretrained.out, "--steps", "3"]
    config, resume = script.read_config(args)
    assert config.model == pretrained.model
    assert (config.steps, resume) == (3, False)
    assert script.read_config([*args, "model.dim=64"])[0].model.dim == 64
    config = script.read_config([*args, "--keep_memory", "true"])[0]
    assert config.keep_memory
    assert json.dumps(config.to_dict())
