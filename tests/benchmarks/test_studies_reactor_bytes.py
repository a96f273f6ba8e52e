"""The study of next bytes: its counted arms, and what each arm is scored by."""

import math
import random
from dataclasses import replace

import torch

from benchmarks.kit import records
from benchmarks.studies import reactor_bytes
from benchmarks.studies.reactor_bytes import arms, row_of
from cer.tasks import TaskConfig
from cer.training import CERTrainConfig, ReactorConfig, Trainer

CONFIG = CERTrainConfig(
    reactor=ReactorConfig(hidden_dim=16, num_layers=1, num_heads=2, num_refinement_steps=1,
                          num_oscillators=2, target_entropy=1.2),
    task=TaskConfig("next_byte", num_outcomes=128, num_positions=2),
    steps=2, batch_size=4, wandb="disabled",
)  # fmt: skip


def texts():
    """Nine bytes in ten are not the one two back: the trigram knows it, the bigram cannot."""
    rng = random.Random(0)
    rows = []
    for _ in range(8):
        row = rng.choices("ab", k=2)
        while len(row) < 400:
            other = "b" if row[-2] == "a" else "a"
            row.append(other if rng.random() < 0.9 else row[-2])
        rows.append("".join(row))
    return rows


def test_each_arm_knows_what_it_is_told():
    weights = Trainer(CONFIG, texts=texts()).reactors.state_dict()
    scored = {name: (size, values) for name, size, values in arms(CONFIG, texts(), weights, 256)}
    assert list(scored) == ["unigram", "bigram", "trigram", "smoothed_views", "log_linear",
                            "untrained", "reactor", "mlp_pooled"]  # fmt: skip
    mean = {name: values.mean().item() for name, (_, values) in scored.items()}
    assert all(math.isfinite(value) and value > 0 for value in mean.values())
    assert mean["trigram"] < mean["log_linear"] + 0.05 < mean["bigram"] - 0.1
    assert torch.equal(scored["untrained"][1], scored["reactor"][1])  # its weights are the start's
    assert scored["log_linear"][0] == 3
    value, low, high = row_of("trigram", 0, scored["trigram"][1], scored["bigram"][1])[
        "minus_bigram"
    ]
    assert low < value < high < 0


def test_a_run_that_is_scored_is_not_scored_again(results, monkeypatch):
    """Its seed, steps and places name it."""
    measured = []

    def few(config, *_):
        measured.append(config.seed)
        for name in (reactor_bytes.BASELINE, reactor_bytes.LAST):
            yield name, 0, torch.ones(4)

    monkeypatch.setattr(reactor_bytes, "arms", few)
    monkeypatch.setattr(reactor_bytes, "read_config", lambda options: [options[1]])
    monkeypatch.setattr(
        reactor_bytes, "read_texts", lambda run: (replace(CONFIG, seed=int(run[-1])), [])
    )
    monkeypatch.setattr(reactor_bytes, "resolve", lambda run: run)
    documents = {"training.json": {"step": 2}}
    monkeypatch.setattr(reactor_bytes, "load_checkpoint", lambda *_: ({"model": {}}, documents))
    for run in ("run_0", "run_1", "run_0"):
        reactor_bytes.score(run, 4)
    reactor_bytes.score("run_0", 5)
    assert measured == [0, 1, 0]
    rows = records.read_rows("reactor_bytes")
    assert [(row["seed"], row["places"]) for row in rows[::2]] == [(0, 4), (1, 4), (0, 5)]
