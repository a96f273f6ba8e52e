"""The studies of Phase-Slip and of consensus: measures, scorers and mixtures against slow twins."""

import argparse
import math

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")  # the peer model of benchmarks.common

from benchmarks import consensus, heldout, phase_slip
from reso_llm.data import tokenise_all
from reso_llm.entanglement import consensus_logits
from reso_llm.generation import GenerationOptions
from reso_llm.inference import ResoLLMInference
from reso_llm.tokenizer import SPECIAL_TOKENS

STAGES = ("kuramoto", "temporal_smf")


@pytest.fixture
def engine(tiny_model, byte_tokenizer):
    model = tiny_model(stages=STAGES, vocab_size=261, max_seq_len=128)
    return ResoLLMInference(model, byte_tokenizer, model.config)


def text_of(ids, slips=()):
    return phase_slip.Text(tuple(ids), "", dict(slips))


# --- measures of a text


def test_repeated_grams_are_those_seen_before():
    ids = torch.randint(3, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    for n in (2, 4):
        seen, again = [], 0
        for i in range(60 - n + 1):
            again += ids[i : i + n] in seen
            seen.append(ids[i : i + n])
        assert 0 < again < 60 - n + 1
        assert phase_slip.repeated_grams(ids, n) == (again, 60 - n + 1)
    assert phase_slip.repeated_grams([1, 2, 3], 4) == (0, 0)


def test_looping_waits_for_a_window_that_repeats_itself():
    """40 new tokens, then a period of 5: true once 12 tokens equal those 5 before them."""
    loop = [*range(40), *[100, 101, 102, 103, 104] * 5]
    expected = [t >= 40 + 5 + 12 - 1 for t in range(65)]
    assert phase_slip.looping(loop) == expected
    assert not any(phase_slip.looping(range(200)))
    assert sum(phase_slip.looping([*range(64), *range(64)])) == 64 - 11
    assert not any(phase_slip.looping([*range(65), *range(65)]))


def test_published_diversity():
    assert phase_slip.published_diversity("The cat. the cat, THE dog 3.5") == 4 / 7
    assert phase_slip.published_diversity("") == 0


def test_measures_of_an_escape():
    stuck, free = text_of([7] * 20), text_of(range(20), {"spike": 3, "loop": 1})
    found = phase_slip.measures_of(free, "a prompt", stuck)
    assert found["escaped"] == (True, True)
    assert found["ends"] == (False, 1)
    assert found["distinct-2"] == (19, 19)
    assert found["rep-4"] == (0, 17)
    assert found["as greedy"] == (False, 1)
    assert found["diversity"] == (1, 1)
    assert [found[c][0] for c in phase_slip.CAUSES] == [3, 0, 1]
    found = phase_slip.measures_of(stuck, "", stuck)
    assert found["escaped"] == (False, True)
    assert found["looping"] == (8, 20)
    assert found["as greedy"] == (True, 1)
    for text in (stuck, free):  # where greedy decoding is free there is nothing to escape
        assert phase_slip.measures_of(text, "", free)["escaped"] == (False, False)
    out_again = phase_slip.measures_of(text_of([7] * 20 + [8]), "", stuck)
    assert out_again["ends"] == (False, 1)
    assert out_again["looping"] == (8, 21)
    assert out_again["escaped"] == (True, True)
    assert phase_slip.measures_of(text_of([]), "", free)["ends"] == (False, 1)


# --- scorers


def slow_nats(model, context, ids):
    """One unpadded pass, a token at a time."""
    total, row = 0.0, [*context, *ids]
    with torch.no_grad():
        log_p = model(torch.tensor([row])).logits[0].log_softmax(-1)
    for t in range(len(context), len(row)):
        total -= log_p[t - 1, row[t]].item()
    return total


def test_continuation_nats_of_padded_rows(tiny_model):
    """Only the continuation counts; an equal pair is scored once; an empty one costs nothing."""
    model, rows = tiny_model(), []

    def logits(ids):
        rows.append(len(ids))
        return model(ids).logits

    pairs = [([5, 9], [10, 11, 12]), ([5], [6]), ([5, 9], [10, 11, 12]), ([7, 8, 9], [])]
    found = phase_slip.continuation_nats(logits, pairs, batch_size=2)
    assert found == pytest.approx([slow_nats(model, *pair) for pair in pairs], rel=1e-5)
    assert rows == [2, 1]


def test_outside_reads_a_directory_of_transformers(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["a", "b", "c", "d"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="a"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=4, n_positions=16, n_embd=8, n_layer=1, n_head=2,
                bos_token_id=0, eos_token_id=None,
            )
        ).eval()  # fmt: skip
    model.save_pretrained(tmp_path)
    encode, logits = phase_slip.outside(str(tmp_path))
    assert encode("b d a") == [1, 3, 0]
    (found,) = phase_slip.continuation_nats(logits, [([1, 2], [3, 0])], 4)
    assert found == pytest.approx(slow_nats(model, [1, 2], [3, 0]), rel=1e-5)


def test_scored_are_the_first_seeds_and_their_bytes():
    texts = {"arm": [[phase_slip.Text((5,), "é", {}), phase_slip.Text((6,), "ab", {})]] * 2}
    found = phase_slip.scored(
        texts, lambda p, t: ([p], t.ids), lambda ids: torch.zeros(*ids.shape, 8), 1, 4
    )
    assert found["arm"][0].tolist() == pytest.approx(np.array([[math.log(8), 0]] * 2))
    assert found["arm"][1].tolist() == [[2, 0], [2, 0]]


# --- intervals and the curve


def test_ratios_resample_prompts_and_seeds_within_them():
    """Prompts that differ, seeds that do not: draws are means of 2 of 2 prompts' values."""
    pairs = torch.tensor([[[2.0] * 3, [6.0] * 3], [[2.0] * 3, [2.0] * 3]])
    values = phase_slip.ratios(pairs, phase_slip.draw_picks(2, 3))
    assert values[0] == 2
    assert set(values[1:].tolist()) == {1.0, 2.0, 3.0}
    assert np.mean(values[1:] == 2) == pytest.approx(0.5, abs=0.05)
    seeds = torch.stack((torch.tensor([[0.0, 1.0]]), torch.ones(1, 2)))
    assert set(phase_slip.ratios(seeds, phase_slip.draw_picks(1, 2)).tolist()) == {0.0, 0.5, 1.0}
    assert phase_slip.summary(np.array([math.nan, 1.0])) is None
    assert phase_slip.summary(np.array([5.0, *range(101)])) == [5.0, 2.5, 97.5]


def test_on_curve_is_linear_between_points_in_any_order():
    x = np.array([1.5, 0.5, 3.1, 2.0])
    points = np.tile([2.0, 1.0, 3.0], (4, 1))
    found = phase_slip.on_curve(x, points, np.tile([10.0, 0.0, 40.0], (4, 1)))
    assert found[[0, 3]].tolist() == [5.0, 10.0]
    assert np.isnan(found[1:3]).all()


def test_matched_takes_the_curve_at_the_arms_own_nats():
    def arm(nats, repetition):
        return {"own": np.full(3, nats), "rep-4": np.full(3, repetition)}

    drawn = {"greedy": arm(0.5, 0.4), phase_slip.CURVE[0.2]: arm(0.7, 0.2), "x": arm(0.6, 0.1)}
    found = phase_slip.matched(drawn, "x", "own")
    assert found["rep-4 - curve"] == pytest.approx([-0.2] * 3)
    assert found["temperature"] == pytest.approx([0.1] * 3)
    assert found["inside"] == 1
    far = phase_slip.matched({**drawn, "x": arm(0.9, 0.1)}, "x", "own")
    assert far == {"rep-4 - curve": None, "temperature": None, "inside": 0}


# --- texts


def options_of(how, tokens=12):
    return GenerationOptions(max_length=tokens, metrics=False, **how)


def test_texts_of_an_arm_are_the_engines(engine):
    """With endings allowed as `generate` has them; without, all of full length."""
    prompt, greedy = phase_slip.PROMPTS[0], {"temperature": 0.0}
    for how in ({"temperature": 1.5}, phase_slip.slip(stale_steps=1, cooldown_steps=0)):
        texts = phase_slip.arm_texts(engine, prompt, [3, 4], options_of(how), True)
        for seed, text in zip((3, 4), texts, strict=True):
            result = engine.generate(prompt, 12, seed=seed, **how)
            assert text.text == result.text
            assert sum(text.slips.values()) == len(result.events)
    hot = options_of({"temperature": 1e4}, 80)  # 2 of 258 tokens end a text
    free, held = (phase_slip.arm_texts(engine, prompt, range(8), hot, e) for e in (True, False))
    assert min(len(t.ids) for t in free) < 80
    assert {len(t.ids) for t in held} == {80}
    assert min(i for t in (*free, *held) for i in t.ids) >= len(SPECIAL_TOKENS)
    calm = phase_slip.arm_texts(engine, prompt, range(3), options_of(greedy), False)
    assert calm == [calm[0]] * 3
    neither = phase_slip.slip(
        slip_temperature=None, noise=phase_slip.CacheNoise(scale=0.0), stale_steps=1
    )
    inert = phase_slip.arm_texts(engine, prompt, [5], options_of(neither), False)
    assert inert[0].ids == calm[0].ids
    assert sum(inert[0].slips.values()) > 0


def test_study_makes_a_row_of_every_arm(engine, monkeypatch, tmp_path):
    arms = ("greedy", phase_slip.CURVE[0.8], "slip, published")
    monkeypatch.setattr(phase_slip, "ARMS", {arm: phase_slip.ARMS[arm] for arm in arms})
    monkeypatch.setattr(phase_slip, "DRAWS", 20)
    rows = phase_slip.study(engine, argparse.Namespace(
        checkpoint="runs/x", scorer=None, seeds=2, scored_seeds=1, tokens=16, may_end=False,
    ))  # fmt: skip
    assert [row["arm"] for row in rows] == list(arms)
    assert rows[0]["as greedy"] == [1, 1, 1]
    assert rows[0]["matched"]["own"]["rep-4 - curve"][0] == pytest.approx(0)
    assert rows[2]["stale"][0] + rows[2]["spike"][0] >= 1
    table = phase_slip.table(rows)
    assert table.count("| slip, published |") == 2
    assert table.count("| greedy |") == 1  # a point of the curve is not compared with it


# --- agents


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
                expected = -consensus_logits(log_p[:, b, t], w)[targets[b, t]]
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
            alone = torch.stack([m[at].log().sum() for m in members]).exp()
            assert nats[3] == pytest.approx(-alone.mean().log().item(), rel=1e-5)
        assert abs(sums[(0, 1)][0, n] - sums[(0, 1)][1, n]) > 1e-4  # weights do matter


def test_one_agent_twice_is_one_agent(tiny_model):
    model = tiny_model(stages=("kuramoto",))
    windows = [consensus.EvalWindow(np.arange(5, 14), np.arange(6, 15), np.arange(9) >= 4)]
    nats = consensus.window_nats([model, model], windows)
    assert nats[(0, 1)].flatten().tolist() == pytest.approx([nats[(0,)].item()] * 3, rel=1e-5)


def test_compare_takes_the_best_agent_of_the_team():
    sums = {(0,): torch.tensor([[4.0, 4.0]]), (1,): torch.tensor([[1.0, 3.0]]),
            (0, 1): torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 5.0]])}  # fmt: skip
    scaled = {team: nats.double() * math.log(2) for team, nats in sums.items()}
    rows = consensus.compare(scaled, torch.tensor([2.0, 2.0]), ["a", "b"])
    assert [row["way"] for row in rows] == ["single", "single", *consensus.WAYS]
    assert rows[1]["bits_per_byte"][0] == pytest.approx(1.0)
    assert rows[2]["minus_best_single"] == pytest.approx((-0.5, -1.0, 0.0))
    assert rows[2]["minus_one_text"][0] == pytest.approx(-1.75)
    assert "| a, b | consensus | 0.5000" in consensus.table(rows)


def test_a_network_shares_the_field_by_its_fidelity(engine):
    """Nothing up to F = 1/2, a third of the teller's field at 3/4, a half at 1; never the echo."""
    model = engine.model
    consensus.told(model, "Mara keeps the blue map.", 1.0)
    told = model.recollected_state().field.field
    assert told.abs().sum() > 0
    for fidelity, share in ((0.25, 0), (0.5, 0), (0.75, 1 / 3), (1.0, 1 / 2)):
        state = consensus.heard_state(model, model, fidelity)
        torch.testing.assert_close(state.field.field, share * told)
        assert state.echo is None or not state.echo.weights.numel()
    rows = consensus.hearsay(model, model, ["Mara keeps the map."], ["Tor sold a bell."])
    by_state = {row["state"]: row for row in rows}
    assert by_state["F 0.5"]["fact"] == (0, 0, 0)
    told_alone = by_state["told, field alone"]
    for kind, text in (("fact", "Mara keeps the map."), ("control", "Tor sold a bell.")):
        consensus.told(model, "Mara keeps the map.", 1.0)
        state = model.recollected_state()._replace(echo=None)
        change = consensus.log_probability(model, text, model.init_state())
        change -= consensus.log_probability(model, text, state)
        assert change != 0
        assert told_alone[kind][0] == pytest.approx(change, abs=1e-6)


def test_agents_must_share_a_vocabulary(engine, tiny_model, byte_tokenizer):
    consensus.check([engine, engine])
    larger = tiny_model(vocab_size=300)
    other = ResoLLMInference(larger, byte_tokenizer, larger.config)
    for agents in ([engine], [engine, other]):
        with pytest.raises(ValueError, match="one tokenizer and vocabulary size"):
            consensus.check(agents)
