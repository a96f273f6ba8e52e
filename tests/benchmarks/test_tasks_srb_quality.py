"""Prompts, rules, quality and questions of the SRB study against slow or hand-made answers."""

import itertools
import math
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("scipy")

from scipy import stats

from benchmarks.tasks.srb import analysis, quality, questions, rules
from benchmarks.tasks.srb.prompts import BUCKETS, Prompt, prompts
from entropy_core.budget import SRBAction, SRBState, srb_step
from reso_llm.decoding.controllers import SRB

# --- prompts and rules


def test_prompts_are_sixty_and_halved_in_every_bucket():
    halves = [prompts(0), prompts(1)]
    every = halves[0] + halves[1]
    assert len({p.name for p in every}) == len({p.text for p in every}) == 60
    assert {p.number for p in every} == set(range(60))
    for half, some in enumerate(halves):
        assert Counter(p.bucket for p in some) == dict.fromkeys(BUCKETS, 6)
        assert {p.index % 2 for p in some} == {half}
    assert [p.bucket for p in prompts(1, 1)] == [*BUCKETS]
    for prompt in every:
        asked = re.search(r"exactly (\d+) steps", prompt.text)
        assert prompt.steps == (int(asked[1]) if asked else None)
    assert sum(p.steps is not None for p in every) == 12


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
    options = SRB.published(
        settled_nats=nats, settled_delta_nats=0.15, settled_coherence=0.2, patience=patience,
        max_tokens=math.inf,
    )  # fmt: skip
    traces = draw_traces(60)
    exits = [rules.exit_after(trace, options) for trace in traces]
    assert exits == [slow_exit(trace, options) for trace in traces]
    assert 0 < rules.exit_share(traces, options) < 1


def test_calibration_reaches_the_target_with_the_least_entropy():
    traces = draw_traces(40)
    ends = [np.random.default_rng(1).random(len(t) + 1) for t in traces]
    for target in (0.25, 0.5):
        rule = rules.calibrated(traces, ends, target)
        exits = [slow_exit(t, rule) < len(t) for t in traces]
        assert np.mean(exits) >= target
        options = {name: getattr(rule, name) for name in analysis.SETTLED}
        options["settled_nats"] -= 0.002
        less = SRB.published(**options)
        assert np.mean([slow_exit(t, less) < len(t) for t in traces]) < target
    with pytest.raises(ValueError, match="ask for less"):
        rules.calibrated(traces, ends, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_calibration_takes_the_triple_that_ends_cheapest(monkeypatch, seed):
    """Against each triple alone, its advantage summed by hand."""
    traces = draw_traces(40, seed, shortest=30)
    rng = np.random.default_rng(seed)
    ends = [rng.random(len(t) + 1) for t in traces]
    monkeypatch.setattr(rules, "QUANTILES", (0.5,))
    advantages = {}
    for patience in (1, 2, 3):
        monkeypatch.setattr(rules, "PATIENCE", (patience,))
        rule = rules.calibrated(traces, ends, 0.1)
        gains = []
        for end, trace in zip(ends, traces, strict=True):
            stop = slow_exit(trace, rule)
            if stop < len(trace):
                gains.append(sum(end[1:]) / len(trace) - end[stop])
        advantages[patience] = sum(gains) / len(gains)
    monkeypatch.setattr(rules, "PATIENCE", tuple(advantages))
    best = max(advantages, key=advantages.get)
    assert rules.calibrated(traces, ends, 0.1).patience == best


def test_deals_keep_every_length_and_are_equally_likely():
    stops, lengths = np.array([2, 5, 9]), np.array([6, 9, 9])
    stops.setflags(write=False)  # they are the caller's
    deals = rules.dealt(stops, lengths, np.random.default_rng(0), 1500)
    allowed = [p for p in itertools.permutations([2, 5, 9]) if (np.array(p) <= lengths).all()]
    counts = Counter(map(tuple, deals.tolist()))
    assert set(counts) == set(allowed)
    assert len(allowed) == 4
    assert all(abs(c / 1500 - 1 / 4) < 0.05 for c in counts.values())


def test_matched_stops():
    lengths = np.array([3, 10, 8, 10])
    assert rules.fixed_stop(lengths, 6.0).tolist() == [3, 7, 7, 7]
    ends = [np.array([0.0, 5, 2, 1, 9]), np.array([0.0, 5, 5, 5, 0])]
    assert rules.end_stops(ends, 2.0).tolist() == [2, 4]
    rng = np.random.default_rng(0)
    ends = [rng.random(50) for _ in range(30)]
    stops = rules.end_stops(ends, rules.end_threshold(ends, 20.0))
    assert stops.mean() == pytest.approx(20, abs=1)


# --- quality


def made_row(text, tokenizer, ended=True):
    """A static row of a text, one token a byte, with made-up numbers."""
    ids = [*tokenizer.encode(text), *([tokenizer.end_id] if ended else [])]
    rng = np.random.default_rng(len(ids))
    columns = {name: rng.random(len(ids)).tolist() for name in ("entropy_nats", "surprise_nats")}
    return {"ids": ids, "text": text, "stop_reason": "end" if ended else "length", **columns,
            "end_nats": rng.random(len(ids) + 1).tolist()}  # fmt: skip


class Judge:
    """Reads pairs of characters at 1, 2, 3 ... nats; the end costs 10 less the tokens read."""

    def spans(self, text):
        starts = range(0, len(text), 2)
        return [0] * len(starts), [(i, min(i + 2, len(text))) for i in starts]

    def scored(self, question, ids):
        assert question.startswith("Write")
        return np.arange(1.0, len(ids) + 1), 10 - np.arange(len(ids) + 1.0)


TEXTS = ["aaaaaa. Bb aaaaa", "é, né! Sö. x", "```py\nx = 1\n``` ok", "1. a\n2. b\n", "q"]


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("bucket", ["code", "procedures", "essays"])
def test_measures_of_a_cut_are_those_of_the_cut_text(byte_tokenizer, text, ended, bucket):
    row = made_row(text, byte_tokenizer, ended)
    steps = {"procedures": "Write in exactly 2 steps."}.get(bucket, "Write.")
    writer = SimpleNamespace(spell=byte_tokenizer.decode)
    table = quality.measures(row, Prompt(bucket, 1, steps), writer, Judge())
    spoken = len(row["ids"]) - ended
    for k in range(len(row["ids"]) + 1):
        words = row["ids"][: min(k, spoken)]
        head = byte_tokenizer.decode_bytes(words).decode(errors="ignore")
        fours, twos = ([tuple(words[i : i + m]) for i in range(len(words) - m + 1)] for m in (4, 2))
        own, size = sum(row["surprise_nats"][: len(words)]), len(head.encode())
        odd = sum(len(c.encode()) for c in text[len(head) // 2 * 2 :][: len(head) % 2])
        pair = len(text[len(head) // 2 * 2 :][:2].encode()) or 1
        outside = sum(range(len(head) // 2 + 1)) + (len(head) // 2 + 1) * odd / pair
        read = len(head) // 2 if len(head) < len(text) else -(-len(text) // 2)
        expected = {
            "tokens": (k, 1),
            "finished": (head.rstrip()[-1:] in (".", "!") or (ended and k >= spoken), 1),
            "mid_word": (head[-1:].isalnum() and text[len(head) :][:1].isalnum(), 1),
            "rep4": (len(fours) - len(set(fours)), len(fours)),
            "distinct2": (len(set(twos)), len(twos)),
            "own_nats_per_token": (own, len(words)),
            "own_nats_per_byte": (own, size),
            "own_end_nats": (row["end_nats"][len(words)], 1),
            "own_entropy_nats": (sum(row["entropy_nats"][:k]), k),
            "code_parses": (bucket == "code" and quality.parses(head), bucket == "code"),
            "steps_met": (quality.num_steps(head) == 2 and bucket == "procedures",
                          bucket == "procedures"),
            "outside_nats_per_byte": (outside, size),
            "outside_end_nats": (10 - read, 1),
        }  # fmt: skip
        assert table.keys() == expected.keys()
        for name, (above, below) in expected.items():
            assert table[name][k, 1] == below, name
            if below:
                assert table[name][k, 0] == pytest.approx(float(above)), (name, head)


def test_a_token_that_straddles_a_cut_counts_by_its_bytes():
    scores = quality.aligned(
        "aéb c", np.array([0, 1, 1, 2, 3, 4, 5, 5]), [(0, 2), (2, 3), (3, 5)],
        np.array([3.0, 1.0, 4.0]), np.array([9.0, 8.0, 7.0, 6.0]),
    )  # fmt: skip
    assert scores.text.tolist() == pytest.approx([0, 1, 1, 3, 4, 6, 8, 8])
    assert scores.end.tolist() == [9, 9, 9, 8, 7, 7, 6, 6]


@pytest.mark.parametrize(
    ("text", "finished"),
    [("So.", True), ("So", False), ('"So!"', True), ("**Yes?**", True), ("wait…", True),
     ("x = `a.`", True), ("e.g", False), ("(so.)", True), ("1.\n2", False), ("。", True)],
)  # fmt: skip
def test_a_sentence_ends_with_its_mark_and_what_closes_it(text, finished):
    assert bool(quality.FINISHED.search(text)) == finished


@pytest.mark.parametrize(
    ("text", "parse"),
    [
        ("no code: x = 1", False),
        ("```python\nx = 1\n```", True),
        ("```\nx = 1\n```", True),
        ("Here:\n```py\ndef f():\n    return 1", True),  # open
        ("```python\ndef f(:\n```", False),
        ("```python\ndef f():\n    return (", False),
        ("```python\nx = 1\n```\nand\n```python\nx =\n```", False),
        ("```python\nx = 1\n```\nand\n```python\ny = 2", True),
        ("```python\n\n```", False),
        ("```python", False),
        ("```python\nx = 1\n```\nand\n```python\n", True),
        ("```python\nx = '\0'\n```", False),
        ("```python\n'\\d'\n```", True),  # a warning of Python
        ("```bash\nls\n```", False),
    ],
)
def test_code_parses_where_all_its_blocks_do(text, parse):
    assert quality.parses(text) == parse


@pytest.mark.parametrize(
    ("text", "steps"),
    [("", 0), ("1. a\n2. b\n3) c", 3), ("**Step 1:** a\n* Step 2: b", 2), ("1. a\n3. b", 1),
     ("2. a", 0), ("1. a\n1. b\n2. c", 2), ("In 1. place\n", 0), ("  1 . a\n### 2. b", 2),
     ("1. a\n2. b\n1. a\n3. c", 3), ("10. a", 0)],
)  # fmt: skip
def test_steps_are_counted_in_order(text, steps):
    assert quality.num_steps(text) == steps


def test_cuts_pick_their_place_in_every_reply_and_deals_are_averaged():
    tables = [{"m": np.array([[10 * i + k, k] for k in range(4)], float)} for i in range(2)]
    assert quality.cut(tables, np.array([1, 3]))["m"].tolist() == [[1, 1], [13, 3]]
    deals = quality.cut(tables, np.array([[1, 3], [3, 1]]))["m"]
    assert deals.tolist() == [[2, 2], [12, 2]]


# --- questions


def static_row(name, ema, coherence, ends, stop="length", seed=0):
    return {"name": name, "bucket": name.split("_")[0], "seed": seed, "tokens": len(ema),
            "stop_reason": stop, "ema_nats": list(ema), "coherence": [None, *coherence],
            "end_nats": list(ends), "entropy_nats": list(ema)}  # fmt: skip


def test_signals_predict_what_they_are_made_to_predict(monkeypatch):
    monkeypatch.setattr(questions, "DRAWS", 50)
    rng = np.random.default_rng(1)
    rows, tables = [], []
    for i in range(14):
        ema = np.concatenate([rng.normal(i, 3, 32), rng.normal(-5 * i, 3, 8)])
        rows.append(static_row(f"b_{i:03d}", ema, rng.random(39), rng.random(41),
                               "length" if i > 6 else "end"))  # fmt: skip
        tables.append({"rep4": np.array([[9, 9], [rng.integers(9), 0 if i == 3 else 9]], float),
                       "steps_met": np.ones((2, 2))})  # fmt: skip
    names = np.array([row["name"] for row in rows])
    found = questions.predicted(rows, tables, names)
    assert found["E, whole: steps_met"] is None  # does not vary
    assert "E, whole: code_parses" not in found
    late = [row["stop_reason"] == "length" for row in rows]
    for reach, size in (("whole", 40), ("first 32", 32)):
        means = [np.mean(row["ema_nats"][:size]) for row in rows]
        value, low, high = found[f"E, {reach}: truncated"]
        assert value == pytest.approx(stats.spearmanr(means, late).statistic)
        assert low <= value <= high
        kept = [i for i in range(14) if i != 3]
        share = [tables[i]["rep4"][-1, 0] for i in kept]
        expected = stats.spearmanr([means[i] for i in kept], share).statistic
        assert found[f"E, {reach}: rep4"][0] == pytest.approx(expected)
        moves = [np.mean(np.abs(np.diff(row["ema_nats"][:size]))) for row in rows]
        expected = stats.spearmanr(moves, late).statistic
        assert found[f"abs ΔE, {reach}: truncated"][0] == pytest.approx(expected)


def test_places_are_compared_within_a_reply_and_before_its_end():
    """The nats of ending after a token; a reply that has ended cannot end again."""
    rng = np.random.default_rng(2)
    rows = []
    for i in range(6):
        ema = 10 * i + rng.random(12)
        ends = [5.0, *(100 * (i % 2) - ema)]
        if i % 2:
            ends[-1] = 1e6
        rows.append(static_row(f"b_{i}", ema, rng.random(11), ends, "end" if i % 2 else "length"))
    names = np.array([row["name"] for row in rows])
    found = questions.placed(rows, names)
    assert found["E"] == pytest.approx((-1, -1, -1))
    spread = [
        stats.spearmanr(row["coherence"][1 : 12 - i % 2], row["end_nats"][2 : 13 - i % 2]).statistic
        for i, row in enumerate(rows)
    ]
    assert found["C+"][0] == pytest.approx(np.mean(spread))


def test_curves_are_means_of_ten_parts_in_units_of_the_mean():
    assert questions.curve(np.repeat(np.arange(10.0), 3)).tolist() == pytest.approx(
        [x / 4.5 for x in range(10)]
    )
    assert questions.curve(np.ones(25)).tolist() == [1.0] * 10


def test_the_share_between_buckets_is_that_of_the_sums_of_squares():
    rng = np.random.default_rng(3)
    curves, buckets = rng.normal(size=(30, 10)), rng.integers(0, 3, 30)
    mean, total, among = curves.mean(0), 0.0, 0.0
    for i in range(30):
        total += sum((curves[i] - mean) ** 2)
        among += sum((curves[buckets == buckets[i]].mean(0) - mean) ** 2)
    assert questions.between(curves, buckets) == pytest.approx(among / total)


def test_collapse_sees_buckets_that_differ_and_none_that_do_not(monkeypatch):
    monkeypatch.setattr(questions, "PERMUTATIONS", 99)
    rng = np.random.default_rng(4)

    def rows(slope):
        return [
            static_row(f"{b}_{i}", ema := np.linspace(2, 2 - slope * (b == "a"), 40)
                       + rng.normal(0, 0.1, 40), rng.random(39), ema, seed=seed)
            for b in "ab" for i in range(6) for seed in range(2)
        ]  # fmt: skip

    there = questions.collapse(rows(1.0), np.random.default_rng(0))
    assert there["p"] == 0.01
    assert there["between"] > 0.5 > 3 * there["between_by_chance"]
    assert there["mean"]["a"][0] > 1.2 > 0.8 > there["mean"]["a"][-1]
    assert there["replies"] == 24
    assert 0.1 < there["fall"][1] < there["fall"][0] < there["fall"][2] < 0.5
    none = questions.collapse(rows(0.0), np.random.default_rng(0))
    assert none["p"] > 0.05
    short = [row | {"tokens": 19} for row in rows(1.0)]
    assert questions.collapse(short, rng) == {}


def test_chance_keeps_the_replies_of_a_prompt_together(monkeypatch):
    """Seeds of a prompt are alike: dealt apart, chance would be 1/95, and any prompt a finding."""
    monkeypatch.setattr(questions, "PERMUTATIONS", 99)
    rng, rows = np.random.default_rng(5), []
    for i in range(12):
        ema = 2 + rng.normal(0, 0.3) * np.linspace(-1, 1, 40)
        rows += [static_row(f"{'ab'[i % 2]}_{i}", ema, ema[1:], ema, seed=s) for s in range(8)]
    found = questions.collapse(rows, rng)
    assert found["between_by_chance"] == pytest.approx(1 / 11, abs=0.03)
    assert found["p"] > 0.05


def test_intervals_are_paired_and_pooled():
    ours = np.array([[2.0, 1], [9, 3], [4, 4]])
    theirs = ours + np.array([1.0, 0]) * ours[:, 1:]
    value, low, high = analysis.contrast([(1, theirs), (-1, ours)])
    assert (value, low, high) == pytest.approx((1, 1, 1))  # a constant shift has no error
    value, low, high = analysis.contrast([(1, ours)])
    assert value == pytest.approx(15 / 8)
    assert 1 <= low < value < high <= 3
    value, low, high = analysis.contrast([(1, np.array([[3.0, 1], [5, 0]]))])
    assert (value, low, high) == (8, 3, 8)  # no draw of the second alone
