"""The task next_byte: views counted in text, batches, and training from `train.py`."""

import dataclasses
import json

import pytest
import torch

from cer.next_byte import OUTCOMES, SUB, NextBytes, ascii_bytes, count_views, unigram
from cer.tasks import TaskConfig
from cer.training import CERTrainConfig, ReactorConfig, Trainer
from entropy_core.information import kl_nats_from_probs
from reso import train as script

TASK = TaskConfig("next_byte", num_outcomes=OUTCOMES, num_positions=2, val_fraction=0.25)
TEXTS = ["abcabc" * 20, "abcabc" * 20, "abcabc" * 20, "cabcab" * 20]
CONFIG = CERTrainConfig(
    reactor=ReactorConfig(hidden_dim=16, num_layers=1, num_heads=2, num_refinement_steps=1,
                          num_oscillators=2, target_entropy=1.2),
    task=TASK, steps=2, batch_size=4, val_size=8, wandb="disabled",
)  # fmt: skip


def seeded():
    return torch.Generator().manual_seed(0)


def test_a_run_of_other_characters_is_one_outcome():
    assert bytes(ascii_bytes(["né", "日本 x"]).tolist()) == f"n{SUB}\n{SUB} x".encode()


def test_views_are_witten_bell_of_the_counts_by_hand():
    text = ascii_bytes(["aabab"])  # after a: a, b, b; two after a: b, a
    a, b = ord("a"), ord("b")
    u = unigram(text)
    views = count_views(text, 2)
    torch.testing.assert_close(u.sum(), torch.tensor(1.0))
    torch.testing.assert_close(views.sum(-1), torch.ones(2, OUTCOMES))
    torch.testing.assert_close(views[0, a, b], (2 + 2 * u[b]) / 5)
    torch.testing.assert_close(views[1, a, a], (1 + 2 * u[a]) / 4)
    torch.testing.assert_close(views[0, ord("z")], u)  # never seen: the unigram


def test_a_batch_holds_the_views_of_the_bytes_before_the_nearest_last():
    data = NextBytes(TASK, TEXTS)
    batch = data.at(data.held_out, torch.tensor([2, 3]))
    one, two = data.held_out[1:3], data.held_out[:2]
    assert torch.equal(batch.x, torch.stack([data.views[1, two], data.views[0, one]], 1))
    assert batch.target[:, 0].argmax(-1).tolist() == data.held_out[2:4].tolist()
    certain = kl_nats_from_probs(batch.target[:, 0], batch.x[:, -1])
    assert certain.max() < 0.2  # a cycle of three: the bigram knows


def test_held_out_texts_are_not_counted():
    data = NextBytes(TASK, [*TEXTS[:3], "zyzyzyzy"])
    z, y = ord("z"), ord("y")
    assert torch.equal(data.views[0, z], unigram(data.train))
    held = data.batch(16, seeded(), held_out=True).target[:, 0].argmax(-1)
    assert set(held.tolist()) <= {z, y}


@pytest.mark.parametrize(
    ("changes", "texts", "message"),
    [
        ({"num_outcomes": 64}, TEXTS, "128 outcomes, num_outcomes is 64"),
        ({}, TEXTS[:1], "at least 2 texts, got 1"),
        ({}, ["a", "b"], "need more than 1 bytes"),
    ],
)
def test_unfit_texts_are_refused(changes, texts, message):
    with pytest.raises(ValueError, match=message):
        NextBytes(dataclasses.replace(TASK, **changes), texts)


def test_without_texts_the_task_is_refused():
    with pytest.raises(ValueError, match="needs texts"):
        Trainer(CONFIG)


def test_train_py_reads_what_a_language_model_reads(tmp_path, monkeypatch, capsys):
    rows = tmp_path / "rows.jsonl"
    turns = [f"### Human: {t}### Assistant: {t[::-1]}" for t in TEXTS]
    rows.write_text("".join(json.dumps({"text": t}) + "\n" for t in turns))
    monkeypatch.chdir(tmp_path)
    task = dataclasses.replace(TASK, data="rows.jsonl")
    config = dataclasses.replace(CONFIG, task=task, out="run")
    read, texts = script.read_texts(config)
    assert read.task.data == str(rows)
    assert texts == [f"{t}\n{t[::-1]}" for t in TEXTS]
    script.main_reactor(config, resume=False)
    assert "run: 2 steps, validation KL" in capsys.readouterr().out
    assert f"data: {rows}" in (tmp_path / "run" / "config.yaml").read_text()
