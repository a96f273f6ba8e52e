"""The study of next bytes: its counted arms, and what each arm is scored by."""

import math
import random

import torch

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
