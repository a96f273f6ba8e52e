"""The SRB study: writers, replies, arms, their analysis, and the task of evaluate.py."""

import functools
import gzip
import itertools
import json
import math
import sys
import tempfile
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")  # one of the two kinds of writers
pytest.importorskip("scipy")

from conftest import FULL, make_tiny_model, save_tiny_checkpoint, save_tiny_llama
from test_tasks_srb_quality import slow_exit

import evaluate
from benchmarks.kit import records
from benchmarks.kit.pretrained import PretrainedWriter
from benchmarks.kit.writers import ResoWriter, breaks
from benchmarks.making import ship
from benchmarks.tasks import srb
from benchmarks.tasks.srb import analysis, panels, questions, rules, study
from benchmarks.tasks.srb.prompts import BUCKETS, prompts
from reso_llm.config import EchoConfig
from reso_llm.decoding.controllers import SRB
from reso_llm.inference import ResoLLMInference

PROTOCOL = study.Protocol(target=0.4, cap=12, seeds=(0, 1), per_bucket=1)
SETTLES = SRB.published(
    settled_nats=9, settled_delta_nats=9, settled_coherence=0, patience=3, max_tokens=math.inf,
    candidates=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, byte_tokenizer):
    """A directory that ResoWriter can load: tiny, one token a byte."""
    echo = EchoConfig(max_order=3, own_weight=1.0)  # a reply reads as what is read
    # A seed with which every arm cuts some reply.
    model = make_tiny_model(seed=2, stages=FULL, vocab_size=261, max_seq_len=128, echo=echo)
    return save_tiny_checkpoint(tmp_path_factory.mktemp("ours") / "tiny", model, byte_tokenizer)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A directory that PretrainedWriter can load: tiny, random, of bytes and two pairs of them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("theirs") / "tiny-llama"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(["<eos>", *alphabet, "ab", "re"])}
    raw = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("r", "e")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>").save_pretrained(path)
    save_tiny_llama(path, len(vocabulary), 1, 96)
    return str(path)


@pytest.fixture(scope="module", params=["ours", "theirs"])
def writer(request, checkpoint, llama):
    return ResoWriter(checkpoint) if request.param == "ours" else PretrainedWriter(llama)


def through(writer, replies):
    """The whole study; what calibration found."""
    found = study.calibrate(writer, PROTOCOL, replies)
    study.run(writer, PROTOCOL, replies, found)
    return found


@pytest.fixture(scope="module")
def done(checkpoint, tmp_path_factory):
    """A finished study: its writer, replies and calibration."""
    ours = ResoWriter(checkpoint)
    replies = study.Replies(tmp_path_factory.mktemp("study") / "replies.jsonl.gz")
    return SimpleNamespace(writer=ours, replies=replies, found=through(ours, replies))


# --- writers


def slow_own(model, tokens, first, end, context):
    """Nats of tokens[first:] and of the end before each, a forward pass for each place.

    Beyond the context a place is read in the window that ends at the next half context.
    """
    drawn, ends, stride = [], [], context // 2
    for place in range(first, len(tokens) + 1):
        beyond = max(0, math.ceil((place - context) / stride))
        begin = max(0, min(len(tokens), context + stride * beyond) - context)
        with torch.inference_mode():
            log_p = model(torch.tensor([tokens[begin:place]])).logits[0, -1].log_softmax(-1)
        ends.append(-log_p[end].item())
        if place < len(tokens):
            drawn.append(-log_p[tokens[place]].item())
    return drawn, ends


def test_own_nats_are_those_of_each_prefix(writer):
    ids = writer.spans("ab, réab!")[0]
    if isinstance(writer, ResoWriter):
        prompt, end = writer.engine.prompt_ids([("user", "q")]), writer.engine.tokenizer.end_id
        model = writer.engine.model
    else:
        prompt, end, model = writer.tokenizer("q\n\n").input_ids, 0, writer.model
    ids = [*ids, end]
    said, after = writer.scored("q", ids)
    drawn, ends = slow_own(model, [*prompt, *ids], len(prompt), end, 96)
    np.testing.assert_allclose(said, drawn, atol=1e-4)
    np.testing.assert_allclose(after, ends, atol=1e-4)
    assert (len(said), len(after)) == (len(ids), len(ids) + 1)
    nothing, alone = writer.scored("q", [])
    assert len(nothing) == 0
    np.testing.assert_allclose(alone, ends[:1], atol=1e-4)


@pytest.mark.parametrize("length", [10, 25, 26, 60])
def test_own_nats_beyond_the_context_are_read_in_windows(checkpoint, byte_tokenizer, length):
    ours = ResoWriter(checkpoint)
    model = make_tiny_model(stages=FULL, vocab_size=261, max_seq_len=32)
    ours.engine = ResoLLMInference(model, byte_tokenizer, model.config)
    prompt = ours.engine.prompt_ids([("user", "q")])
    ids = np.random.default_rng(0).integers(5, 261, length).tolist()
    drawn, ends = slow_own(model, [*prompt, *ids], len(prompt), byte_tokenizer.end_id, 32)
    said, after = ours.scored("q", ids)
    np.testing.assert_allclose(said, drawn, atol=1e-4)
    np.testing.assert_allclose(after, ends, atol=1e-4)


def test_a_reply_is_its_seeds_and_srb_only_cuts_it(writer):
    whole, again, other = (writer.reply("ask", seed, 16) for seed in (1, 1, 2))
    assert whole.ids == again.ids != other.ids
    assert whole.text == writer.spell(whole.ids)
    assert whole.seconds > 0
    n = len(whole.ids)
    assert [len(c) for c in whole[4:]] == [n] * 3
    assert (whole.stop_reason, n) == ("length", 16) or whole.stop_reason == "end"
    assert math.isnan(whole.coherence[0])
    assert np.isfinite(whole.coherence[1:]).all()
    trace = rules.trace_of(whole.ema_nats, whole.coherence)
    stop = rules.exit_after(trace, SETTLES)
    assert stop < n
    cut = writer.reply("ask", 1, 16, (SETTLES,))
    assert cut.ids == whole.ids[:stop]
    assert cut.stop_reason == "srb_settled"
    np.testing.assert_allclose(cut.entropy_nats, whole.entropy_nats[:stop], atol=1e-5)


def test_both_sample_at_temperature_08_within_top_p_095(checkpoint, llama):
    ours, theirs = ResoWriter(checkpoint), PretrainedWriter(llama)
    reply = ours.engine.generate([("user", "ask")], 8, seed=3, temperature=0.8, top_p=0.95)
    assert ours.reply("ask", 3, 8).ids == list(reply.token_ids)
    ids, drawn = theirs.tokenizer("ask\n\n").input_ids, theirs.reply("ask", 3, 64).ids
    assert len(drawn) > 40  # some would be of the last 0.05
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(3)
        for token in drawn:
            logits, order = (theirs.model(torch.tensor([ids])).logits[0, -1] / 0.8).sort()
            logits[logits.softmax(-1).cumsum(-1) <= 0.05] = -torch.inf
            p = torch.zeros_like(logits).scatter(0, order, logits.softmax(-1))
            assert torch.multinomial(p, 1).item() == token
            ids.append(token)


def test_the_entropies_are_those_of_the_model_before_each_token(writer):
    whole = writer.reply("ask", 1, 6)
    if isinstance(writer, ResoWriter):
        model, prompt = writer.engine.model, writer.engine.prompt_ids([("user", "ask")])
        tokenizer = writer.engine.tokenizer
        never = [tokenizer.system_id, tokenizer.user_id, tokenizer.assistant_id]
    else:
        model, prompt, never = writer.model, writer.tokenizer("ask\n\n").input_ids, []
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *whole.ids]])).logits[0, len(prompt) - 1 : -1]
        logits[:, never] = -1e9
        log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    np.testing.assert_allclose(whole.entropy_nats, entropy, atol=1e-3)


def test_coded_texts_come_back_and_spans_cover_them(writer):
    text = "ab re, né"
    ids, spans = writer.spans(text)
    assert writer.spell(ids) == text
    assert len(ids) == len(spans)
    covered = [i for start, stop in spans for i in range(start, stop)]
    assert sorted({*covered}) == list(range(len(text)))
    assert writer.spans("") == ([], [])


def test_room_is_what_the_question_leaves(checkpoint, llama):
    ours = ResoWriter(checkpoint)
    assert study.room(ours, "q") == 128 - len(ours.engine.prompt_ids([("user", "q")]))
    assert len(ours.reply("q", 0, study.room(ours, "q")).ids) <= study.room(ours, "q")
    assert study.room(PretrainedWriter(llama), "q") == 96 - len("q\n\n")
    assert (ours.name, PretrainedWriter(llama).name) == ("tiny", "tiny-llama")


def test_a_chat_template_is_used_where_there_is_one(llama):
    theirs = PretrainedWriter(llama)
    plain, _ = theirs.scored("ab\n\nx", [9])
    theirs.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n\\nx\\n\\n' }}{% endif %}"
    )
    templated, _ = theirs.scored("ab", [9])
    assert templated == pytest.approx(plain)
    assert study.room(theirs, "ab") == 96 - len(theirs.spans("ab\n\nx\n\n")[0])


def test_a_model_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="nobody/nothing-here: no directory"):
        PretrainedWriter("nobody/nothing-here")


def test_breaks_leave_out_half_a_character():
    heads = ["", "a", "a\ufffd", "aé", "aéb"]
    assert breaks(heads, "aéb").tolist() == [0, 1, 1, 2, 3]


# --- replies


def test_a_torn_row_is_cut_off_and_the_others_are_read(tmp_path):
    path = tmp_path / "new" / "replies.jsonl.gz"
    kept = study.Replies(path)
    rows = [{"half": 1, "name": p.name, "seed": 0, "strategy": "srb", "text": "x" * 50}
            for p in prompts(1, 1)]  # fmt: skip
    sizes = [len(path.read_bytes()) for row in rows if kept.add(row)]
    whole = path.read_bytes()
    assert [json.loads(line) for line in gzip.decompress(whole).splitlines()] == rows
    for size in (sizes[-1], sizes[-1] - 1, sizes[-2] + 1, sizes[-2]):
        path.write_bytes(whole[:size])
        again = study.Replies(path)
        expected = rows if size == sizes[-1] else rows[:-1]
        assert again.of(1, "srb") == expected
        assert len(path.read_bytes()) == (sizes[-1] if expected == rows else sizes[-2])
        again.add(rows[-1])
        assert path.read_bytes()[: sizes[-1]] == whole
    assert kept.find(1, prompts(1)[0], 0, "srb") == rows[0]
    assert kept.find(1, prompts(1)[0], 1, "srb") is None
    assert kept.of(0, "srb") == kept.of(1, "static") == []


def test_replies_without_a_file_stay_in_memory():
    kept = study.Replies(None)
    row = {"half": 0, "name": "a", "seed": 0, "strategy": "static"}
    assert kept.add(row) is row
    assert kept.of(0, "static") == [row]


# --- the study


def runs_of(done):
    """(arm, row, static row) of every run of the reported half."""
    for prompt, seed in itertools.product(prompts(1, 1), PROTOCOL.seeds):
        whole = done.replies.find(1, prompt, seed, "static")
        for arm in study.ARMS:
            yield arm, done.replies.find(1, prompt, seed, arm), whole


def test_every_arm_ends_where_its_rule_says(done):
    found, cuts = done.found, Counter()
    for arm, row, whole in runs_of(done):
        length, ends = len(whole["ids"]), np.array(whole["end_nats"])
        cap = min(PROTOCOL.cap, length)
        stops = {
            "static": {length},
            "srb": {rules.exit_after(study.signals(whole), found.rule)},
            "fixed": {min(length, found.fixed_tokens)},
            "random": {int(min(length, cap)) for cap in found.random_caps},
            "end_rule": {next((k for k in range(1, length) if ends[k] <= found.end_nats), length)},
        }[arm]
        assert row["tokens"] in stops
        assert row["tokens"] <= cap
        assert row["text"] == done.writer.spell(whole["ids"][: row["tokens"]])
        if row["tokens"] < length:
            assert row["stop_reason"] == ("srb_settled" if arm == "srb" else arm)
            cuts[arm] += 1
        else:
            assert row["stop_reason"] in (whole["stop_reason"], "srb_settled")
    assert all(cuts[arm] for arm in study.OTHERS)
    assert len(done.replies.rows) == 5 + 5 * 2 * 5


def test_all_parameters_come_from_the_calibration_half(done):
    rows = done.replies.of(0, "static")
    assert [row["name"] for row in rows] == [p.name for p in prompts(0, 1)]
    traces = [study.signals(row) for row in rows]
    stops = [slow_exit(trace, done.found.rule) for trace in traces]
    cut = [k < len(t) for k, t in zip(stops, traces, strict=True)]
    assert done.found.exits == np.mean(cut) >= PROTOCOL.target
    assert done.found.random_caps == tuple(
        k if c else math.inf for k, c in zip(stops, cut, strict=True)
    )
    lengths = [len(t) for t in traces]
    distances = {
        cap: abs(np.mean(np.minimum(lengths, cap)) - np.mean(stops))
        for cap in range(1, max(lengths) + 1)
    }
    assert distances[done.found.fixed_tokens] == min(distances.values())
    assert done.found.default_exits == np.mean(
        [slow_exit(t, SRB.published(max_tokens=math.inf)) < len(t) for t in traces]
    )
    assert study.calibration(done.replies, PROTOCOL.target) == done.found


def test_a_static_row_keeps_what_the_model_says_of_it(done):
    for row in done.replies.of(1, "static")[:2]:
        (prompt,) = [p for p in prompts(1) if p.name == row["name"]]
        said, after = done.writer.scored(prompt.text, row["ids"])
        np.testing.assert_allclose(row["surprise_nats"], said, atol=1e-5)
        np.testing.assert_allclose(row["end_nats"], after, atol=1e-5)
        assert row["coherence"][0] is None
        ema = row["ema_nats"]
        trace = study.signals(row)
        np.testing.assert_allclose(trace[1:, 1], np.abs(np.diff(ema)))
        assert np.isnan(trace[0, 1:]).all()


@pytest.mark.parametrize("kept", [3, 40])
def test_a_study_that_was_stopped_goes_on(done, kept):
    """Only what is missing is written, and it is what was written before."""
    left, rows, written = study.Replies(None), [*done.replies.rows.values()], []
    for row in rows[:kept]:
        left.add(row)

    class Counting:
        context, scored = done.writer.context, done.writer.scored
        prompt_ids = done.writer.prompt_ids

        def reply(self, question, seed, cap, controllers=()):
            written.append(seed)
            return done.writer.reply(question, seed, cap, controllers)

    assert through(Counting(), left) == done.found
    numbers = {p.name: p for half in (0, 1) for p in prompts(half)}
    assert written == [study.draws(numbers[r["name"]], r["seed"]) for r in rows[kept:]]
    for row, again in zip(rows, left.rows.values(), strict=True):
        assert row | {"seconds": 0} == again | {"seconds": 0}
    through(SimpleNamespace(), left)  # has no method left to call


@pytest.mark.parametrize("arm", study.OTHERS)
def test_an_arm_that_is_no_prefix_is_refused(done, arm):
    """Every cut of a static reply is measured in the place of a run."""
    prompt = prompts(1)[0]
    whole = done.replies.find(1, prompt, 0, "static")

    class Broken:
        def reply(self, *args):
            reply = done.writer.reply(*args)
            return reply._replace(ids=[reply.ids[0] ^ 1, *reply.ids[1:]])

    with pytest.raises(ValueError, match=f"code_001, seed 0: {arm} drew what"):
        study.cut_short(Broken(), done.found, prompt, 0, arm, whole)


def test_draws_differ_between_prompts_and_seeds():
    assert len({study.draws(p, s) for p in prompts(0) + prompts(1) for s in range(5)}) == 300


# --- analysis


@pytest.fixture(scope="module")
def tables(done):
    return analysis.tables_of(done.replies, done.writer, None, list)


def test_arms_are_means_of_their_runs_and_matched_cuts_spend_as_much(done, tables):
    row = analysis.compared(analysis.runs_of(done.replies, tables, PROTOCOL.seeds))
    assert row["replies"] == 10
    runs = {arm: [(r, whole) for a, r, whole in runs_of(done) if a == arm] for arm in study.ARMS}
    for arm, some in runs.items():
        tokens = [r["tokens"] for r, _ in some]
        lengths = [whole["tokens"] for _, whole in some]
        found = row["arms"][arm]
        assert found["tokens"][0] == pytest.approx(np.mean(tokens))
        assert found["saved"][0] == pytest.approx(1 - sum(tokens) / sum(lengths))
        assert found["cut"][0] == np.mean(np.less(tokens, lengths))
        assert found["seconds"][0] == pytest.approx(np.mean([r["seconds"] for r, _ in some]))
        exits = [r["stop_reason"] == "srb_settled" for r, _ in some]
        assert found["exits"][0] == np.mean(exits)
        said = sum(sum(w["surprise_nats"][: min(r["tokens"], len(w["ids"]) - ended(w))])
                   for r, w in some)  # fmt: skip
        spoken = sum(min(r["tokens"], len(w["ids"]) - ended(w)) for r, w in some)
        assert found["own_nats_per_token"][0] == pytest.approx(said / spoken)
    ours, static = (row["arms"][arm]["tokens"][0] for arm in ("srb", "static"))
    assert row["srb_minus"]["static"]["tokens"][0] == pytest.approx(ours - static)
    assert row["srb_minus"].keys() == {"static", "fixed", "random", "end_rule"}
    matched = row["matched"]
    assert matched.keys() == {"random", "elsewhere", "fixed", "end_rule"}
    for arm in ("random", "elsewhere"):
        assert matched[arm]["tokens"][0] == pytest.approx(0, abs=1e-9)
    assert abs(matched["fixed"]["tokens"][0]) <= 0.5
    by_bucket = row["by_bucket"]
    assert [*by_bucket] == [*BUCKETS]
    means = [by_bucket[bucket]["tokens"][0] for bucket in BUCKETS]
    assert np.mean(means) == pytest.approx(ours - static)
    assert by_bucket["essays"]["code_parses"] is None
    assert by_bucket["code"]["code_parses"] is not None


def ended(row):
    return row["stop_reason"] == "end"


def test_elsewhere_cuts_the_replies_that_srb_cut_and_no_others():
    static = [
        {"tokens": np.stack([np.arange(9.0), np.ones(9)], -1),
         "own_end_nats": np.stack([np.arange(9.0), np.full(9, i)], -1)}
        for i in range(4)
    ]  # fmt: skip
    lengths, stops = np.full(4, 8), np.array([2, 8, 6, 8])
    cuts = analysis.matched_cuts(static, lengths, stops)
    assert cuts["elsewhere"]["tokens"][[1, 3], 0].tolist() == [8, 8]
    assert cuts["elsewhere"]["tokens"][[0, 2], 0].tolist() == pytest.approx([4, 4], abs=0.5)
    assert cuts["random"]["tokens"][:, 0].tolist() == pytest.approx([6] * 4, abs=0.7)
    assert cuts["fixed"]["tokens"][:, 0].tolist() == [6] * 4
    none = analysis.matched_cuts(static, lengths, lengths)
    assert none["elsewhere"]["tokens"][:, 0].tolist() == [8] * 4


def test_replies_that_lack_an_arm_are_left_out(done):
    left = study.Replies(None)
    for row in done.replies.rows.values():
        if (row["name"], row["strategy"]) != ("essays_001", "fixed"):
            left.add(row)
    found = analysis.complete(left, [1])
    assert [*found] == [*study.ARMS]
    names = [f"{bucket}_001" for bucket in BUCKETS if bucket != "essays"]
    for arm, rows in found.items():
        assert [(r["name"], r["seed"], r["strategy"]) for r in rows] == [(n, 1, arm) for n in names]
    with pytest.raises(ValueError, match="let the study run first"):
        analysis.complete(left, [7])


def test_public_runs_tell_of_what_each_arm_kept(done, tables):
    runs = analysis.public_runs(done.replies, tables, done.writer, PROTOCOL.seeds)
    known = {(arm, w["name"], w["seed"]): (r, w) for arm, r, w in runs_of(done)}
    assert len(runs) == len(known) == 50
    for run in runs:
        row, whole = known[run["strategy"], run["name"], run["seed"]]
        k, prompt = row["tokens"], next(p for p in prompts(1) if p.name == run["name"])
        assert (run["model_id"], run["backend"], run["tokens_emitted"]) == ("tiny", "reso_llm", k)
        assert (run["prompt"], run["prompt_ix"]) == (prompt.text, prompt.index)
        assert run["avg_entropy"] == pytest.approx(np.mean(whole["entropy_nats"][:k]))
        assert run["final_entropy"] == whole["entropy_nats"][k - 1]
        assert run["response_text"] == row["text"]
        words = k - (ended(whole) and k == whole["tokens"])
        if words:
            expected = np.mean(whole["surprise_nats"][:words])
            assert run["own_nats_per_token"] == pytest.approx(expected, abs=1e-5)
            assert run["own_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
        assert (run["code_parses"] is None) == (prompt.bucket != "code")
    assert {run["stop_reason"] for run in runs} <= {
        "eos_token", "max_tokens", "fixed_length", "random_stop", "srb_settled", "end_rule"
    }  # fmt: skip


# --- the task


@pytest.fixture
def call(monkeypatch, capsys, tmp_path, results):
    """call(*options) -> what evaluate.py srb prints; few draws, and records of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(srb, "QUICK", study.Protocol(target=0.4, cap=8, seeds=(0,), per_bucket=1))
    monkeypatch.setattr(questions, "DRAWS", 20)
    monkeypatch.setattr(questions, "PERMUTATIONS", 9)

    def called(*options):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "srb", *map(str, options)])
        evaluate.main()
        return capsys.readouterr().out

    return called


def test_the_quick_form_has_rows_text_and_a_figure(call, checkpoint, llama, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "x.png"
    options = ["--checkpoint", checkpoint, "--judge", llama, "--quick"]
    (row,) = rows = json.loads(
        call(*options, "--json", "-", "--plot", plot), parse_constant=pytest.fail
    )
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert (row["kind"], row["model"], row["judge"]) == ("study", "tiny", "tiny-llama")
    assert row["weights_sha256"] == records.weights_hash(checkpoint)
    assert row["arms"]["srb"]["outside_nats_per_byte"] is not None
    said = srb.text([{"run": "of an earlier study"}, *rows])
    assert said.startswith("**tiny** (weights ")
    assert "| srb minus (cuts of equal tokens) | random | elsewhere | fixed | end_rule |" in said
    assert records.read_rows("srb") == []


def test_the_quick_form_of_a_replay_has_rows_and_text(call, llama, tmp_path):
    """Of a model of transformers, so its replies are written in batches."""
    options = ["--model", llama, "--judge", llama, "--replay", "--quick"]
    (row,) = rows = json.loads(call(*options, "--json", "-"), parse_constant=pytest.fail)
    assert (row["kind"], row["per_bucket"], row["replies"]) == ("replay", 2, 10)
    said = srb.text(rows)
    assert "rules replayed on 10 replies, 10 prompts" in said
    assert "| designs minus static | p(end) at finished places |" in said
    assert "The bar: 20 % saved" in said


def test_a_rerun_is_the_last_seed_against_the_first(done, tables):
    runs = [analysis.runs_of(done.replies, tables, [seed]) for seed in (0, 1)]
    found, by_seed = analysis.rerun(*runs), [some.minus("static") for some in runs]
    for name, (change, low, high) in found.items():
        assert change == pytest.approx(by_seed[1][name][0] - by_seed[0][name][0])
        assert low <= change <= high or low == high
    assert found["tokens"] != (0, 0, 0)
    same = {(name, seed): tables[name, 0] for name, seed in tables}
    replies = study.Replies(None)
    for row in done.replies.rows.values():
        if row["seed"] == 0:
            replies.add(row)
            replies.add(row | {"seed": 1})
    runs = [analysis.runs_of(replies, same, [seed]) for seed in (0, 1)]
    for change in analysis.rerun(*runs).values():
        assert change == pytest.approx((0, 0, 0), abs=1e-12)  # up to the rounding of sums


@pytest.fixture
def recorded(call, done, checkpoint, tmp_path, monkeypatch):
    """call(...) of the finished study of `done`, whose writer may write nothing anew."""
    place = tmp_path / "results" / "srb" / "tiny"
    place.mkdir(parents=True)
    (place / "replies.jsonl.gz").write_bytes(done.replies.path.read_bytes())
    monkeypatch.setattr(study, "Protocol", functools.partial(study.Protocol, per_bucket=1))
    monkeypatch.setattr(ResoWriter, "reply", None)
    options = ["--checkpoint", checkpoint, "--target", PROTOCOL.target, "--record"]
    return lambda *more: call(*options, "--cap", PROTOCOL.cap, *more)


def test_a_recorded_study_is_not_measured_again(recorded, monkeypatch, checkpoint):
    said = recorded()
    (row,) = records.read_rows("srb")
    assert srb.text([row]) + "\n" == said
    assert "| srb minus static | seed 0 | seed 1 | last minus first seed |" in said
    assert [*row["by_seed"]] == ["0", "1"]
    monkeypatch.setattr(srb, "results", None)
    assert recorded() == said
    assert records.read_rows("srb") == [row]


def test_a_studys_figure_is_of_its_files(recorded):
    pytest.importorskip("matplotlib")
    recorded()
    rows = records.read_rows("srb")
    assert [*panels.pictures([*rows, {"run": "of an earlier study"}])] == ["srb_tiny"]
    (part,) = panels.figure([*rows, {"run": "of an earlier study"}]).subfigs
    top, bottom = part.subfigs
    middle = top.subfigs[1]
    titles = [axes.get_title() for axes in bottom.axes]
    replies = study.Replies(panels.where(rows[0]["files"]) / "replies.jsonl.gz")
    nats, buckets = panels.traces(replies, [0, 1])
    assert len(nats) == 20
    for (name, seed, arm), trace in nats.items():
        prompt = next(p for p in prompts(1) if p.name == name)
        whole = replies.find(1, prompt, seed, "static")
        tokens = replies.find(1, prompt, seed, arm)["tokens"]
        assert trace.tolist() == whole["entropy_nats"][:tokens]
        assert buckets[name] == prompt.bucket
    cut = sum(len(nats["code_001", s, "srb"]) < len(nats["code_001", s, "static"]) for s in (0, 1))
    assert titles[0] == f"code: {cut} of 2 stopped earlier"
    assert len(middle.axes) == 2
    with pytest.raises(OSError, match="runs_longform"):
        panels.figure([rows[0] | {"files": "no/such/place"}])


def test_replies_of_another_study_are_refused(recorded, call, checkpoint, tmp_path):
    out = tmp_path / "new" / "place"
    for _ in range(2):
        srb.same_study(out, {"cap": 12, "model": "other"})
    with pytest.raises(ValueError, match=r"its replies have cap = 12, not 13.*another --out"):
        srb.same_study(out, {"cap": 13})
    with pytest.raises(ValueError, match=r"its replies have model = other, not tiny"):
        call("--checkpoint", checkpoint, "--cap", 12, "--out", out)
    srb.same_study(out, {"calibration": {"fixed_tokens": 3}})
    with pytest.raises(ValueError, match="replies have calibration"):
        srb.same_study(out, {"cap": 12, "calibration": {"fixed_tokens": 4}})
    for damaged in ("[]", "{"):
        (out / "study.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"study\.json: .*what a study wrote"):
            srb.same_study(out, {"cap": 12})
    with pytest.raises(ValueError, match="expected a directory of the repository"):
        recorded("--out", out)
    with pytest.raises(ValueError, match="expected one of them"):
        call("--checkpoint", checkpoint, "--model", "x", "--quick")


@pytest.mark.parametrize(
    ("field", "value"),
    [("target", 0.0), ("target", 1.5), ("target", -0.5), ("cap", 7), ("seeds", (0, 0)),
     ("seeds", ()), ("seeds", (-1,))],
)  # fmt: skip
def test_a_protocol_out_of_range_is_refused_before_anything_is_written(field, value):
    with pytest.raises(ValueError, match=f"^{field} = "):
        study.Protocol(**{field: value})


def test_replies_that_are_no_gzip_are_named(tmp_path):
    path = tmp_path / "replies.jsonl.gz"
    path.write_bytes(b"not packed at all")
    with pytest.raises(ValueError, match=r"replies\.jsonl\.gz: damaged at byte 0"):
        study.Replies(path)


def test_the_shipped_rule_is_that_of_the_newest_replay_of_the_model(tmp_path):
    path = tmp_path / "srb.jsonl"
    rule = {"end_nats": 4.0, "budgets": {"essay": 9}, "settled_delta_nats": None}
    rows = [{"rule": rule}, {"kind": "csv"}, {"kind": "study", "model": "shipped", "rule": {}}]
    rows += [{"kind": "replay", "model": m, "rule": rule | {"patience": n}}
             for n, m in enumerate(("shipped", "shipped", "other"))]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = {"end_nats": 4.0, "budgets": {"essay": 9}, "patience": 1}
    assert ship.rule_of(path, "shipped") == kept
    with pytest.raises(ValueError, match="a replay of tiny: run"):
        ship.rule_of(path, "tiny")
