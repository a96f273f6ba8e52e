"""The compared models: GPT-2 with our echo, texts that they share, and what they need."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_config

from benchmarks.kit import learners, variants
from benchmarks.kit.gpt2 import EchoingGPT2
from reso_llm.config import ResoLLMConfig, control_of
from reso_llm.data.sources import read_documents
from reso_llm.model import ResoLLMModel
from reso_llm.stages.fused import rms_norm
from reso_llm.training.config import OptimConfig
from reso_llm.training.document_past import DocumentPast

STAGES = ("prsc", "coherence_gate", "echo", "kuramoto")


@pytest.fixture
def task():
    """Ids that follow each other often, so that the echo has something to say."""
    draws = np.random.default_rng(0).integers(8, size=600).astype(np.uint16)
    split = learners.one_document(draws)
    config = make_tiny_config(STAGES)
    return learners.Task(split, split, config, {"reso": 4, "gpt2": 4}, OptimConfig(), stride=6)


def gpt2(echo):
    pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EchoingGPT2(make_tiny_config(("echo",) if echo else ())).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))
    return model


@torch.no_grad()
def test_gpt2s_nats_are_of_its_logits_mixed_by_the_echo():
    """Against the echo's own parallel form, which mixes whole distributions."""
    ids = torch.randint(5, (2, 13), generator=torch.Generator().manual_seed(0))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    plain, echoing = gpt2(echo=False), gpt2(echo=True)
    logits = plain.body(inputs).logits
    nats = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(plain.nats(inputs, targets), nats, rtol=1e-4, atol=1e-5)
    x = rms_norm(echoing.body.transformer(inputs).last_hidden_state)
    logits, _ = echoing.echo(echoing.body(inputs).logits, x, inputs, None)
    mixed = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(echoing.nats(inputs, targets), mixed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed, F.cross_entropy(
        echoing.body(inputs).logits.transpose(1, 2), targets, reduction="none"))  # fmt: skip
    torch.testing.assert_close(echoing.loss(inputs, targets), mixed.mean())


def test_every_part_of_the_echoing_gpt2_learns(task):
    pytest.importorskip("transformers")
    learner = learners.gpt2_learner(task, seed=0, echo=True)
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    learners.train_steps({"": learner}, {"": 2})
    assert [n for n, p in learner.model.named_parameters() if torch.equal(p, before[n])] == []


def test_half_of_gpt2s_windows_know_nothing_too(task, monkeypatch):
    """Guards a comparison in which the peer alone was trained to lean on the document's past."""
    pytest.importorskip("transformers")
    told, original = [], DocumentPast.evidence

    def evidence(past, starts, time, known=None):
        told.append(known)
        return original(past, starts, time, known)

    learner = learners.gpt2_learner(task, seed=0, echo=True)
    monkeypatch.setattr(DocumentPast, "evidence", evidence)
    learners.train_steps({"": learner}, {"": 3})
    assert all(known is not None and known.shape == (4,) for known in told)
    assert 0 < torch.cat(told).sum() < 12


def test_protocols_differ_only_for_a_model_that_remembers(task):
    config = task.config
    plain = learners.score(learners.reso_learner(task, control_of(config), 0), task)
    assert plain["bits_per_byte"] == plain["windowed_bits_per_byte"]
    full = learners.score(learners.reso_learner(task, config, 0), task)
    assert full["bits_per_byte"] < full["windowed_bits_per_byte"]
    assert full["bits_per_byte"] == pytest.approx(
        full["nats_per_token"] * 599 / np.log(2) / task.val.num_bytes
    )


def test_shared_counts_are_those_of_each_model(task):
    """Tables of the binding memory are counted once, and charged to every model."""
    first, second = (learners.reso_learner(task, task.config, 0) for _ in range(2))
    own = ResoLLMModel(task.config)
    own.fit_bindings(task.train.tokens)
    for (name, wanted), (_, found) in zip(
        own.named_buffers(), second.model.named_buffers(), strict=True
    ):
        assert torch.equal(found, wanted), name
    assert second.model.prsc.num_fitted == own.prsc.num_fitted > 0
    assert second.model.prsc.keys is first.model.prsc.keys
    assert min(first.seconds, second.seconds) >= sum(s for _, s in task.counts.values()) > 0


def test_each_learner_makes_its_own_number_of_steps(task):
    pair = {str(i): learners.reso_learner(task, control_of(task.config), 0) for i in (1, 3)}
    learners.train_steps(pair, {"1": 1, "3": 3})
    assert {name: learner.steps for name, learner in pair.items()} == {"1": 1, "3": 3}


def test_guanaco_holds_out_its_last_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [f"### Human: what is {i}?### Assistant: a number, {i * i}." for i in range(30)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    task = learners.guanaco(str(path))
    assert (task.train.num_documents, task.val.num_documents) == (27, 3)
    sizes = [document.num_bytes for document in read_documents(str(path))]
    assert (task.train.num_bytes, task.val.num_bytes) == (sum(sizes[:27]), sum(sizes[27:]))
    assert task.val.doc_starts[0] == 0
    assert task.val.tokens[0] == task.train.tokens[0], "both begin with <|bos|>"
    assert len(task.val.tokens) == task.val.num_tokens < 0.2 * task.train.num_tokens


def test_no_two_variants_are_equal_and_each_has_its_reference():
    configs = variants.variants(ResoLLMConfig())
    assert len({*configs.values()}) == len(configs)
    assert {"full - echo", "control + echo", "full - prsc"} <= configs.keys()
    assert {variants.reference_of(name) for name in configs} <= configs.keys()
    assert variants.reference_of("control + coherence_gate") == "control + prsc"


def test_a_gpu_machine_needs_little():
    """torch, numpy, tqdm, einops, safetensors, tokenizers are all that training imports."""
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import benchmarks.studies.equal_time
"""
    missing = ("jsonargparse", "wandb", "transformers", "yaml", "scipy", "matplotlib", "pandas")
    done = subprocess.run([sys.executable, "-c", code, *missing], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
