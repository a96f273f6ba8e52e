"""Deepening replayed in batches: what is tried, what is kept, and what it costs."""

import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks.studies import deepening
from benchmarks.studies.deepening import again, replies
from benchmarks.tasks.srb.prompts import prompts
from reso_llm.decoding.controllers import SRB

V, END = 64, 63


def test_the_share_that_came_before_by_hand():
    assert again([1, 2, 3], [1, 2, 3]) == pytest.approx(1 / 3)  # 231, 312, 123
    assert again([1, 2, 3], [4, 5]) == 0
    assert again([1, 1, 1], [1]) == 1
    assert again([], [7]) == 0
    assert again([], [1, 1, 1, 1]) == 0.5  # of itself


@pytest.fixture(scope="module")
def writer():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5,
    )).eval()  # fmt: skip
    return SimpleNamespace(
        model=model, tokenizer=SimpleNamespace(eos_token_id=END),
        prompt_ids=lambda prompt: [1 + len(prompt[0][1]) % 7, 2, 3],
        spell=lambda ids: " ".join(f"w{token}" for token in ids),
    )  # fmt: skip


@pytest.mark.parametrize("design", deepening.DESIGNS)
def test_replies_end_and_count_what_was_tried(writer, monkeypatch, design):
    horizon = deepening.DESIGNS[design].horizon
    eager = {"deepen_nats": 0.0, "deepen_coherence_rise": 0.0, "end_nats": 0.0, "reserve": 0,
             "patience": math.inf}  # fmt: skip
    written = {}
    for name, changes in (("eager", eager), ("calm", eager | {"deepen_nats": 99.0})):
        rule = SRB(candidates=deepening.K, horizon=horizon, max_tokens=400, **changes)
        monkeypatch.setitem(deepening.DESIGNS, design, rule)
        monkeypatch.setattr(deepening, "CAP", 20)
        written[name] = replies(writer, prompts(1, 1)[:3], 0, design)
    for reply, tried in written["eager"] + written["calm"]:
        n = len(reply.ids)
        assert 1 <= n <= 20
        assert reply.stop_reason in ("length", "end")
        assert (reply.stop_reason == "end") == (reply.ids[-1] == END)
        assert len(reply.surprise_nats) == len(reply.entropy_nats) == n
        assert len(reply.end_nats) == n + 1
        assert tried % (deepening.K * horizon) == 0
    assert all(tried == 0 for _, tried in written["calm"])
    assert sum(tried for _, tried in written["eager"]) > 0
    again_written = replies(writer, prompts(1, 1)[:3], 0, design)
    assert [r.ids for r, _ in again_written] == [r.ids for r, _ in written["calm"]]


def test_a_fork_leaves_the_batch_as_it_was(writer):
    batch = deepening.Batch(writer)
    with torch.inference_mode():
        batch.start([[1, 2, 3], [4, 5]])
        fork = batch.fork([1, 1, 0])
        ahead = fork.step([0, 1, 2], [6, 7, 6])
        z = batch.step([0, 1], [6, 7])
    assert torch.allclose(ahead[[2, 1]], z, atol=0.05)
