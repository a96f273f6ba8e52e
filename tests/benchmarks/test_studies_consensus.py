"""The consensus study: mixtures of agents against slow twins."""

import math

import numpy as np
import pytest
import torch

from benchmarks.kit import heldout
from benchmarks.studies import consensus
from reso_llm.data.prepare import tokenise_all
from reso_llm.inference import ResoLLMInference
from reso_llm.session.entanglement import consensus_logits

STAGES = ("kuramoto", "temporal_smf", "echo")


@pytest.fixture
def engine(tiny_model, byte_tokenizer):
    model = tiny_model(stages=STAGES, vocab_size=261, max_seq_len=128)
    return ResoLLMInference(model, byte_tokenizer, model.config)


def test_product_is_that_of_consensus_logits():
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(3, 2, 4, 7, generator=generator).log_softmax(-1)
    weights = torch.rand(3, 2, 4, generator=generator)
    targets = torch.randint(7, (2, 4), generator=generator)
    found = consensus.product_nats(log_p, weights, targets)
    equal = consensus.product_nats(log_p, torch.ones(3, 1, 1), targets)
    for b in range(2):
        for t in range(4):
            for nats, w in ((found, weights[:, b, t]), (equal, torch.ones(3))):
                mixed = consensus_logits(log_p[:, b, t], w).log_softmax(-1)
                expected = -mixed[targets[b, t]]
                assert nats[b, t].item() == pytest.approx(expected.item(), rel=1e-5)


def test_document_nats_of_three_agents(tiny_model, byte_tokenizer, tmp_path):
    """Short documents: every way again with plain probabilities, and a long one token for token."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "abcdef"}\n{"text": "xyz"}\n')
    split = tokenise_all(str(path), byte_tokenizer)
    stages = ("kuramoto",)
    models = [tiny_model(seed, stages, vocab_size=261, max_seq_len=32) for seed in (0, 1)]
    models.append(tiny_model(2, (), vocab_size=261, max_seq_len=32))
    sums = consensus.document_nats(models, split)
    assert [*sums] == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    for n, ids in enumerate(heldout.document_ids(split)):
        ids = torch.from_numpy(ids)[None]
        with torch.no_grad():
            outputs = [model(ids[:, :-1]) for model in models]
        p = torch.stack([o.logits[0].softmax(-1) for o in outputs]).double()
        order = [o.diagnostics.get("coherence", torch.ones(1, len(p[0])))[0] for o in outputs]
        at = torch.arange(p.shape[1]), ids[0, 1:]
        for team in ((0, 1), (0, 2), (0, 1, 2)):
            r = torch.stack([order[a] for a in team]).double()
            members, nats = p[list(team)], sums[team][:, n].tolist()
            for way, w in (
                ("consensus", r / r.sum(0)),
                ("equal weights", torch.tensor(1 / len(team))),
            ):
                product = (members ** w.expand(r.shape).unsqueeze(-1)).prod(0)
                product = product / product.sum(-1, keepdim=True)
                expected = -product[at].log().sum().item()
                assert nats[consensus.WAYS.index(way)] == pytest.approx(expected, rel=1e-5)
            assert nats[2] == pytest.approx(-members.mean(0)[at].log().sum().item(), rel=1e-5)
            size, surprise = len(p[0]), [-m[at].log() for m in members]
            taken = [surprise[t * len(team) // size][t].item() for t in range(size)]
            assert nats[3] == pytest.approx(sum(taken), rel=1e-5)
            alone = torch.stack([m[at].log().sum() for m in members]).exp()
            assert nats[4] == pytest.approx(-alone.mean().log().item(), rel=1e-5)
        assert abs(sums[(0, 1)][0, n] - sums[(0, 1)][1, n]) > 1e-4  # weights do matter


def test_one_agent_twice_is_one_agent(tiny_model):
    model = tiny_model(stages=("kuramoto",))
    windows = [consensus.EvalWindow(np.arange(5, 14), np.arange(6, 15), np.arange(9) >= 4, 0)]
    nats = consensus.window_nats([model, model], windows, torch.tensor([9]))
    assert nats[(0, 1)].flatten().tolist() == pytest.approx([nats[(0,)].item()] * 4, rel=1e-5)


def test_compare_takes_the_best_agent_of_the_team():
    ways = [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [3.5, 3.0], [4.0, 5.0]]
    alone = [[4.0, 4.0]], [[1.0, 3.0]]
    sums = {(0,): torch.tensor(alone[0]), (1,): torch.tensor(alone[1]), (0, 1): torch.tensor(ways)}
    scaled = {team: nats.double() * math.log(2) for team, nats in sums.items()}
    rows = consensus.compare(scaled, torch.tensor([2.0, 2.0]), ["a", "b"])
    assert [row["way"] for row in rows] == ["single", "single", *consensus.WAYS]
    assert rows[1]["bits_per_byte"][0] == pytest.approx(1.0)
    assert rows[2]["minus_best_single"] == pytest.approx((-0.5, -1.0, 0.0))
    assert rows[2]["minus_one_text"][0] == pytest.approx(-1.75)
    assert "| a, b | consensus | 0.5000" in consensus.text(rows)


def test_agents_must_share_a_vocabulary(engine, tiny_model, byte_tokenizer):
    consensus.check([engine, engine])
    larger = tiny_model(vocab_size=300)
    other = ResoLLMInference(larger, byte_tokenizer, larger.config)
    for agents in ([engine], [engine, other]):
        with pytest.raises(ValueError, match="one tokenizer and vocabulary size"):
            consensus.check(agents)
