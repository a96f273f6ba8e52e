"""The stopping study: its rule, scores, deals and measures against slow or hand-made answers."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")  # the outside scorer, and the peer model of benchmarks.common

from conftest import FULL
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks import srb_old as srb
from entropy_core.control import SRBAction, SRBState, srb_step
from reso_llm.decoding.controllers import SRB
from reso_llm.inference import ResoLLMInference
from reso_llm.results import GenerationResult

QUESTIONS = ["ab cd", "Why?", "é", "tell me", "so", "x y z"]


@pytest.fixture
def engine(tiny_model, byte_tokenizer):
    model = tiny_model(stages=FULL, vocab_size=261, max_seq_len=64)
    return ResoLLMInference(model, byte_tokenizer, model.config)


@pytest.fixture
def reply(byte_tokenizer):
    """A reply of the given text, one token a byte, with the model's end where it ended."""

    def make(text, ended=True):
        ids = [*byte_tokenizer.encode(text), *([byte_tokenizer.end_id] if ended else [])]
        result = GenerationResult(
            text=text, token_ids=tuple(ids), tokens_generated=len(ids), prompt_tokens=3,
            stop_reason="end" if ended else "length", seed=0, generation_time_ms=1.0,
        )  # fmt: skip
        heads = [byte_tokenizer.decode_bytes(ids[:k]) for k in range(len(ids) + 1)]
        breaks = np.array([len(head.decode(errors="ignore")) for head in heads])
        return srb.Reply(0, "q", result, breaks)

    return make


def draw_traces(count, seed=0, shortest=3):
    """E, |dE| and C+ whose first step has no change and no coherence."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        trace = rng.random((int(rng.integers(shortest, 40)), 3)) * [4, 0.2, 1]
        trace[0, 1:] = math.nan
        found.append(trace)
    return found


def slow_exit(trace, options):
    state = SRBState()
    for step, values in enumerate(trace.tolist()):
        action, state = srb_step(state, *values, options)
        if action is SRBAction.STOP_SETTLED:
            return step + 1
    return len(trace)


@pytest.mark.parametrize(("patience", "nats"), [(1, 0.5), (2, 2), (5, 3.5)])
def test_exits_are_those_of_the_rule(patience, nats):
    options = SRB(
        settled_nats=nats, settled_delta_nats=0.15, settled_coherence=0.2, patience=patience,
        max_tokens=math.inf,
    )  # fmt: skip
    traces = draw_traces(60)
    exits = [srb.exit_after(trace, options) for trace in traces]
    assert exits == [slow_exit(trace, options) for trace in traces]
    assert 0 < srb.exit_share(traces, options) < 1


def test_calibration_reaches_the_target_with_the_least_entropy():
    traces = draw_traces(40)
    ends = [np.random.default_rng(1).random(len(t) + 1) for t in traces]
    for target in (0.25, 0.5):
        rule = srb.calibrated(traces, ends, target)
        exits = [slow_exit(t, rule) < len(t) for t in traces]
        assert np.mean(exits) >= target
        options = {name: getattr(rule, name) for name in srb.SETTLED}
        options["settled_nats"] -= 0.002
        less = SRB(**options)
        assert np.mean([slow_exit(t, less) < len(t) for t in traces]) < target
    with pytest.raises(ValueError, match="ask for less"):
        srb.calibrated(traces, ends, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_calibration_takes_the_triple_that_ends_cheapest(monkeypatch, seed):
    """Against each triple alone, its advantage summed by hand."""
    traces = draw_traces(40, seed, shortest=30)
    rng = np.random.default_rng(seed)
    ends = [rng.random(len(t) + 1) for t in traces]
    monkeypatch.setattr(srb, "QUANTILES", (0.5,))
    advantages = {}
    for patience in (1, 2, 3):
        monkeypatch.setattr(srb, "PATIENCE", (patience,))
        rule = srb.calibrated(traces, ends, 0.1)
        gains = []
        for end, trace in zip(ends, traces, strict=True):
            stop = slow_exit(trace, rule)
            if stop < len(trace):
                gains.append(sum(end[1:]) / len(trace) - end[stop])
        advantages[patience] = sum(gains) / len(gains)
    monkeypatch.setattr(srb, "PATIENCE", tuple(advantages))
    best = max(advantages, key=advantages.get)
    assert srb.calibrated(traces, ends, 0.1).patience == best


@pytest.mark.parametrize("ended", [True, False])
def test_own_scores_are_those_of_each_prefix(engine, reply, ended):
    made = reply("a bé", ended)
    scores = srb.own_scores(engine, made)
    prompt, ids = engine.prompt_ids([("user", "q")]), list(made.result.token_ids)
    total = 0.0
    for k in range(len(ids) + 1):
        with torch.inference_mode():
            log_p = engine.model(torch.tensor([prompt + ids[:k]])).logits[0, -1].log_softmax(-1)
        assert scores.text[k] == pytest.approx(total, abs=1e-4)
        assert scores.end[k] == pytest.approx(-log_p[engine.tokenizer.end_id].item(), abs=1e-4)
        if k < len(ids) and ids[k] != engine.tokenizer.end_id:
            total -= log_p[ids[k]].item()


def test_a_token_that_straddles_a_cut_counts_by_its_bytes(reply):
    made = reply("aéb c")  # tokens: a, two halves of é, b, space, c, end
    scores = srb.aligned(
        made, [(0, 2), (2, 3), (3, 5)], np.array([3.0, 1.0, 4.0]), np.array([9.0, 8.0, 7.0, 6.0])
    )
    assert made.breaks.tolist() == [0, 1, 1, 2, 3, 4, 5, 5]
    assert scores.text.tolist() == pytest.approx([0, 1, 1, 3, 4, 6, 8, 8])
    assert scores.end.tolist() == [9, 9, 9, 8, 7, 7, 6, 6]


def scorer():
    """A random GPT-2 that reads pairs of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(["<eos>", *alphabet, "ab", "re"])}
    backend = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("r", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    config = GPT2Config(vocab_size=len(vocabulary), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval(), tokenizer


def test_outside_scores_are_those_of_one_text_at_a_time(reply):
    model, tokenizer = scorer()
    made = [reply(text) for text in ("ab re", "é, and more", "x", "abab", "", "reab")]
    for one, scores in zip(made, srb.outside_scores(model, tokenizer, made), strict=True):
        text = one.result.text
        coded = tokenizer(text, return_offsets_mapping=True)
        assert len(coded.input_ids) < len(text.encode()) or text in ("x", "", "é, and more")
        ids, total, checked = tokenizer("q\n\n").input_ids, 0.0, 0
        for token, (_, stop) in zip(
            [*coded.input_ids, None], [*coded.offset_mapping, (0, 0)], strict=True
        ):
            with torch.inference_mode():
                log_p = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            if text.isascii():
                at = one.breaks.tolist().index(checked)
                assert scores.text[at] == pytest.approx(total, abs=1e-4)
                end = -log_p[tokenizer.eos_token_id].item()
                assert scores.end[at] == pytest.approx(end, abs=1e-4)
            if token is not None:
                total -= log_p[token].item()
                ids, checked = [*ids, token], stop
        assert scores.text[-1] == pytest.approx(total, abs=1e-4)


def test_a_scorer_from_a_directory_reads_a_reply_once(reply, tmp_path, monkeypatch):
    model, tokenizer = scorer()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    made, read, direct = [reply("ab re"), reply("x"), reply("ab re")], [], srb.outside_scores

    def counting(model, tokenizer, found):
        read.append(len(found))
        return direct(model, tokenizer, found)

    monkeypatch.setattr(srb, "outside_scores", counting)
    outside = srb.load_scorer(str(tmp_path))
    for _ in range(2):
        for scores, expected in zip(outside(made), direct(model, tokenizer, made), strict=True):
            assert scores.text == pytest.approx(expected.text, abs=1e-5)
            assert scores.end == pytest.approx(expected.end, abs=1e-5)
    assert read == [2, 0]


def test_measures_of_a_cut_are_those_of_the_cut_text(reply):
    made = reply("aaaaaa. Bb aaaaa")
    n = len(made.result.token_ids)
    own = srb.Scores(np.arange(n + 1.0), np.arange(n + 1.0)[::-1])
    table = srb.measured(made, own, None)
    ids = made.result.token_ids
    for k in range(n + 1):
        text, words = made.result.text[:k], ids[: min(k, n - 1)]
        fours, twos = ([words[i : i + m] for i in range(len(words) - m + 1)] for m in (4, 2))
        assert table["rep4"][k].tolist() == [len(fours) - len(set(fours)), len(fours)]
        assert table["distinct2"][k].tolist() == [len(set(twos)), len(twos)]
        assert table["finished"][k, 0] == (text.rstrip().endswith(".") or k >= n - 1)
        cut = made.result.text[k : k + 1]
        assert table["mid_word"][k, 0] == (text[-1:].isalnum() and cut.isalnum())
        assert table["saved"][k].tolist() == [n - k, n]
        assert table["own_kept"][k].tolist() == [k, min(k, n - 1)]
        assert table["own_rest"][k].tolist() == [n - k, n - 1 - min(k, n - 1)]
        assert table["own_end"][k, 0] == n - min(k, n - 1)  # the end itself ends nothing twice
    none = srb.Scores(np.zeros(4), np.zeros(4))
    assert srb.measured(reply("a b", ended=False), none, None)["finished"][-1, 0] == 0


def test_deals_keep_every_length_and_are_equally_likely():
    stops, lengths = np.array([2, 5, 9]), np.array([6, 9, 9])
    stops.setflags(write=False)  # they are the caller's
    deals = srb.dealt(stops, lengths, np.random.default_rng(0), 1500)
    allowed = [p for p in itertools.permutations([2, 5, 9]) if (np.array(p) <= lengths).all()]
    counts = Counter(map(tuple, deals.tolist()))
    assert set(counts) == set(allowed)
    assert len(allowed) == 4
    assert all(abs(c / 1500 - 1 / 4) < 0.05 for c in counts.values())


def test_matched_stops():
    lengths = np.array([3, 10, 8, 10])
    assert srb.fixed_stop(lengths, 6.0).tolist() == [3, 7, 7, 7]
    ends = [np.array([0.0, 5, 2, 1, 9]), np.array([0.0, 5, 5, 5, 0])]
    assert srb.end_stops(ends, 2.0).tolist() == [2, 4]
    rng = np.random.default_rng(0)
    ends = [rng.random(50) for _ in range(30)]
    stops = srb.end_stops(ends, srb.end_threshold(ends, 20.0))
    assert stops.mean() == pytest.approx(20, abs=1)


def test_intervals_are_paired_and_pooled():
    ours = torch.tensor([[2.0, 1], [9, 3], [4, 4]], dtype=torch.float64)
    theirs = ours + torch.tensor([1.0, 0], dtype=torch.float64) * ours[:, 1:]
    value, low, high = srb.interval(theirs, ours)
    assert (value, low, high) == pytest.approx((1, 1, 1))  # a constant shift has no error
    value, low, high = srb.interval(ours)
    assert value == pytest.approx(15 / 8)
    assert 1 <= low < value < high <= 3
    value, low, high = srb.interval(torch.tensor([[3.0, 1], [5, 0]]))
    assert value == 8
    assert 3 <= low < high <= 13  # no draw of the second alone


def test_breaks_leave_out_half_a_character(engine, reply):
    made = reply("aéb", ended=True)
    again = srb.made_reply(engine, 0, "q", made.result)
    assert again.breaks.tolist() == made.breaks.tolist() == [0, 1, 1, 2, 3, 3]


def test_study_end_to_end(engine):
    protocol = srb.Protocol(max_length=12, seeds=2, target=0.4)
    row = srb.study(engine, QUESTIONS, protocol, None)
    arms = row["arms"]
    for name in ("random", "elsewhere"):
        assert arms[name]["tokens"][0] == pytest.approx(arms["srb"]["tokens"][0])
    assert arms["elsewhere"]["cut"] == arms["srb"]["cut"]
    assert arms["elsewhere"]["own_end"] != arms["srb"]["own_end"]
    assert arms["static"]["own_rest"] is None
    assert arms["static"]["saved"][0] == 0
    assert arms["srb"]["cut"][0] == arms["srb"]["exits"][0] > 0
    assert len(row["replies"]) == 6
    assert json.loads(json.dumps(row, allow_nan=False))["rule"]["max_tokens"] is None
    assert "| tokens |" in srb.table(row)
    spent = [r[5] + 16 * r[7] for r in row["replies"]]
    assert arms["deepened"]["spent"][0] == pytest.approx(np.mean(spent))
    cuts = [r[6].startswith("srb_") for r in row["replies"]]
    assert arms["deepened"]["cut"][0] == pytest.approx(np.mean(cuts))
    assert [r[0] for r in row["replies"]] == [3000, 3001, 4000, 4001, 5000, 5001]


def test_a_run_that_is_no_prefix_is_refused(engine):
    """The cut arms stand on it."""
    protocol = srb.Protocol(max_length=8, seeds=1)
    found = srb.replies(engine, [(0, "ab"), (1, "cd")], {"static": (), "srb": ()}, protocol)
    other = srb.replies(engine, [(7, "ab"), (8, "cd")], {"srb": ()}, protocol)["srb"]
    with pytest.raises(RuntimeError, match="did not"):
        srb.compared(engine, found | {"srb": other, "deepened": other}, 1.0, None)


def test_questions_leave_room_and_come_once(engine, tmp_path):
    rows = ["### Human: hi### Assistant: a", "### Human: hi### Assistant: b",
            f"### Human: {'x' * 60}### Assistant: c",
            "### Human: so?### Assistant: d### Human: e"]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    asked = srb.questions(str(path), engine, srb.Protocol(max_length=16))
    assert asked == ["hi", "so?"]
    assert srb.questions(str(path), engine, srb.Protocol(max_length=16, prompts=1)) == ["hi"]
