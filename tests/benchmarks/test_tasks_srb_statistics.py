"""SRB's long-form files: reading, the derived tables, the paired statistics, and the figures.

The published files in ../shared are the oracle where they exist; they are no part of the project.
"""

import csv
import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import evaluate
from benchmarks.kit import records
from benchmarks.kit.figures import new_figure
from benchmarks.tasks import srb
from benchmarks.tasks.srb import (
    comparison,
    comparison_text,
    figures,
    panels,
    schema,
    statistics,
    tables,
    traces,
)

pytest.importorskip("scipy")
SHARED = Path(__file__).resolve().parents[3] / "shared/reference"
NAMES = {
    "summary": "srb_summary_longform.csv",
    "paired": "srb_runs_longform_paired.csv",
    "buckets": "srb_bucket_summary.csv",
}
published = pytest.mark.skipif(not SHARED.exists(), reason="no ../shared with the published files")


def run(name, strategy, tokens, seconds=None, seed=0, bucket=None, **further):
    return {
        "backend": "test", "model_id": "tiny", "bucket": bucket or name.partition("_")[0],
        "name": name, "prompt_ix": 0, "prompt": f"Write {name}, please.", "strategy": strategy,
        "tokens_emitted": tokens, "wall_time_s": tokens / 10 if seconds is None else seconds,
        "avg_entropy": 0.5, "final_entropy": 0.25, "stop_reason": "end",
        "response_text": 'a "b",\nc\r\nd', "seed": seed,
    } | further  # fmt: skip


def study(differences, measure="quality", seeds=1, base=10.0):
    """Two arms that differ by the given numbers in a column, prompt after prompt."""
    return [
        run(f"p_{i:03d}", arm, 10, seed=seed, **{measure: base + d * (arm == "srb")})
        for i, d in enumerate(differences)
        for seed in range(seeds)
        for arm in ("static", "srb")
    ]


@pytest.fixture(scope="module")
def reference():
    return {kind: schema.read(SHARED / name) for kind, name in NAMES.items()}


@pytest.fixture(scope="module")
def public_runs(reference):
    return tables.runs_of(reference["summary"])


# --- the published numbers


@published
def test_the_published_bucket_summary_is_reproduced_to_the_last_decimal(reference):
    table = tables.bucket_table(reference["summary"].rows)
    assert [len(row) for row in table] == [10] * 5
    signed = {row["bucket"]: row.pop("signed_efficiency") for row in table}
    assert table == reference["buckets"].rows  # the order of the rows included
    assert signed["procedures"] == -0.058  # published: +0.004


@published
def test_published_efficiency_is_cut_off_at_zero(reference, public_runs):
    derived = tables.summary_rows(public_runs)
    assert [r["resonance_efficiency"] for r in derived] == [
        r["resonance_efficiency"] for r in reference["summary"].rows
    ]
    assert sum(r["signed_efficiency"] < 0 for r in derived) == 40  # all are 0 in the file
    assert all(r["resonance_efficiency"] == max(0, r["signed_efficiency"]) for r in derived)


@published
def test_the_published_pairs_are_reproduced(reference):
    runs = tables.runs_of(reference["paired"])
    assert tables.paired_rows(runs) == reference["paired"].rows


@published
@pytest.mark.parametrize(
    ("measure", "mean", "edges", "p", "noise"),
    [
        ("wall_time_s", -1.8, (-9.6, 9.5), None, 0.4),
        ("tokens_emitted", -5.9, (-23.6, 12.2), 0.52, 0.6),
        ("avg_entropy", -0.0085, (-0.021, 0.004), 0.19, 6e-4),
    ],
)
def test_published_differences(public_runs, measure, mean, edges, p, noise):
    found = statistics.paired(public_runs, measure)
    assert (found["prompts"], found["pairs"], found["dropped"]) == (85, 85, 0)
    assert found["mean"] == pytest.approx(mean, abs=0.06 if abs(mean) > 1 else 6e-5)
    assert found["mean_interval"] == pytest.approx(edges, abs=noise)
    assert p is None or found["p"] == pytest.approx(p, abs=0.005)


@published
def test_published_time_without_the_two_stalls(public_runs):
    stalls = statistics.stalls(public_runs)
    assert stalls == [("essays_002", 0), ("essays_005", 0)]
    whole = statistics.paired(public_runs, "wall_time_s")
    assert whole["median"] == pytest.approx(-8.0, abs=0.05)
    calm = [r for r in public_runs if (r["name"], 0) not in stalls]
    found = statistics.paired(calm, "wall_time_s")
    assert found["mean"] == pytest.approx(-8.1, abs=0.05)
    assert found["mean_interval"] == pytest.approx((-11.2, -5.0), abs=0.15)


@published
def test_published_tokens_by_bucket_and_factors_of_time(public_runs):
    found = statistics.by_bucket(public_runs, "tokens_emitted", draws=100)
    means = {bucket: one["mean"] for bucket, one in found.items()}
    expected = dict(code=-35.7, creative=-2.6, essays=-26.1, procedures=35.7, summaries=3.2)
    assert means == pytest.approx(expected, abs=0.051)
    assert found["essays"]["p"] == pytest.approx(0.049, abs=5e-4)
    assert found["procedures"]["p"] == pytest.approx(0.012, abs=5e-4)
    assert found["procedures"]["p_holm"] == pytest.approx(5 * found["procedures"]["p"])
    parts = statistics.decomposition(public_runs, draws=100)
    ratios = [parts[m][0] for m in ("wall_time_s", "seconds_per_token", "tokens_emitted")]
    assert ratios == pytest.approx([0.917, 0.924, 0.992], abs=5e-4)
    assert parts["tokens_share"] == pytest.approx(math.log(0.99185) / math.log(0.91685), abs=1e-3)


@published
def test_the_published_files_together_and_alone():
    files = {kind: SHARED / name for kind, name in NAMES.items()}
    rows = json.loads(json.dumps(comparison.from_csv([*files.values()], draws=100)))
    assert [("overall" in row, row.get("differs")) for row in rows] == [(True, None), (False, [])]
    calm = rows[0]["without_stalls"]["wall_time_s"]
    assert (calm["prompts"], calm["mean"]) == (83, pytest.approx(-8.1, abs=0.05))
    text = srb.text(rows)
    assert "| procedures | 665.733 | 701.400 | 95.106 | 92.458 | 0.004 | 15 | 5.358 |" in text
    assert "essays_002, essays_005" in text
    (alone,) = comparison.from_csv([files["buckets"]])
    assert "| creative | 531.933 | 529.333 |" in srb.text([alone])
    (pairs,) = comparison.from_csv([files["paired"]], draws=100)
    assert pairs["overall"]["avg_entropy"]["mean"] == pytest.approx(-0.0085, abs=6e-5)


# --- statistics


def test_a_known_difference_of_hand_made_numbers():
    found = statistics.paired(study([1, 2, 3, 10]), "quality", draws=2000)
    assert (found["mean"], found["median"], found["p"]) == (4.0, 2.5, 0.125)  # p = 2 / 2^4
    assert found["ratio"] == pytest.approx((1.1 * 1.2 * 1.3 * 2.0) ** 0.25)
    assert 1 <= found["mean_interval"][0] < 4 < found["mean_interval"][1] <= 10
    assert 1 <= found["median_interval"][0] <= 2.5 <= found["median_interval"][1] <= 10
    assert 1.1 <= found["ratio_interval"][0] < found["ratio"] < found["ratio_interval"][1] <= 2.0


def test_missing_values_are_dropped_and_counted():
    runs = study([1, 2, 3, 4, 5])
    runs[0]["quality"] = math.nan
    runs[3]["quality"] = None
    del runs[4]["quality"]
    found = statistics.paired(runs[:-1], "quality", draws=10)
    assert (found["pairs"], found["dropped"], found["mean"]) == (1, 4, 4.0)
    assert found["mean_interval"] is None
    half = [r | {"quality": r["quality"] if r["strategy"] == "srb" else None} for r in study([1])]
    none = statistics.paired(half, "quality")
    assert (none["pairs"], none["dropped"]) == (0, 1)
    assert none["mean"] is none["p"] is none["ratio"] is None


def test_ratios_need_positive_values():
    found = statistics.paired(study([1, 2], base=-5), "quality", draws=10)
    assert (found["mean"], found["ratio"], found["ratio_interval"]) == (1.5, None, None)


@pytest.mark.parametrize(
    ("runs", "measure", "what"),
    [
        (study([1])[:1], "quality", "no runs of strategy 'srb'; there are: static"),
        (study([1]) * 2, "quality", "two runs of 'static'"),
        (study([1]), "colour", "has a number in 'colour'"),
        (study([1]), "stop_reason", "p_000 has 'end'"),
    ],
)
def test_wrong_runs_are_named(runs, measure, what):
    with pytest.raises(ValueError, match=what):
        statistics.paired(runs, measure)


def test_seeds_of_a_prompt_are_one_observation():
    """Guards an interval that shrinks when the same prompts are only asked more often."""
    rng = np.random.default_rng(0)
    d = rng.normal(size=20)
    once = statistics.paired(study(d), "quality")
    often = statistics.paired(study(d, seeds=5), "quality")
    assert (often["prompts"], often["pairs"]) == (20, 100)
    assert often["mean_interval"] == pytest.approx(once["mean_interval"])
    assert often["p"] == once["p"]


def test_prompts_count_alike_however_many_seeds_they_have():
    runs = study([3.0, 0.0], seeds=1) + [r for r in study([0.0, 0.0], seeds=4) if r["seed"]]
    runs = [r for r in runs if r["name"] == "p_001" or r["seed"] == 0]
    found = statistics.paired(runs, "quality", draws=10)
    assert (found["pairs"], found["prompts"], found["mean"]) == (5, 2, 1.5)


def test_cluster_intervals_cover():
    """95 % intervals of correlated seeds hold the truth nearly that often; of single pairs, no."""
    rng = np.random.default_rng(1)
    hits = singles = 0
    for _ in range(150):
        effects = 1.0 + rng.normal(size=25)
        pairs = effects[:, None] + 0.2 * rng.normal(size=(25, 4))  # (P,S)
        keys = [(str(p), seed) for p in range(25) for seed in range(4)]
        clusters = statistics.Pairs(keys, ["a"] * 100, pairs).by_prompt(pairs.ravel())
        low, high = statistics.ends(clusters, draws=300)
        hits += low <= 1.0 <= high
        low, high = statistics.ends(pairs.ravel(), draws=300)
        singles += low <= 1.0 <= high
    assert 0.87 < hits / 150 < 0.99
    assert singles / 150 < 0.8


def test_buckets_are_apart_and_adjusted_together():
    runs = study([1, 2, 3, 4, 5, 6])
    for one in runs:
        one["bucket"] = "odd" if int(one["name"][-1]) % 2 else "even"
    for one in study([7]):
        runs.append(one | {"name": "empty_0", "bucket": "empty", "quality": None})
    found = statistics.by_bucket(runs, "quality", draws=10)
    assert {b: x["mean"] for b, x in found.items()} == {"even": 3.0, "odd": 4.0, "empty": None}
    assert [x["p_holm"] for x in found.values()] == [0.5, 0.5, None]  # twice 2 / 2^3


def test_stalls_are_found_by_arm_and_seed():
    """A slow arm is no stall, and a stall in one seed does not drop the prompt's others."""
    runs = [
        run(f"p_{i}", arm, 10, seconds, seed=seed)
        for i in range(5)
        for seed in range(2)
        for arm, seconds in (("static", 1.0), ("srb", 9.0))
    ]
    assert statistics.stalls(runs) == []
    runs[2]["wall_time_s"] = 3.1  # static, seed 1 of p_0
    assert statistics.stalls(runs) == [("p_0", 1)]
    assert statistics.stalls(runs, factor=3.2) == []
    runs[0]["tokens_emitted"] = 0
    assert statistics.stalls(runs) == [("p_0", 1)]


@given(st.lists(st.tuples(*[st.floats(0.1, 10)] * 4), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_factors_of_time_multiply_to_its_ratio(values):
    runs = []
    for i, (a, b, clock, other) in enumerate(values):
        runs += [run(f"p_{i}", "static", a, a * clock), run(f"p_{i}", "srb", b, b * other)]
    found = statistics.decomposition(runs, draws=10)
    tokens, clock = (found[m][0] for m in ("tokens_emitted", "seconds_per_token"))
    assert tokens * clock == pytest.approx(found["wall_time_s"][0])
    assert tokens == pytest.approx(math.prod(b / a for a, b, _, _ in values) ** (1 / len(values)))


def test_time_saved_by_the_clock_alone_is_not_the_tokens():
    slow = [run(f"p_{i}", "static", 10, 2.0) for i in range(3)]
    clock = slow + [run(f"p_{i}", "srb", 10, 1.0) for i in range(3)]
    found = statistics.decomposition(clock)
    assert found["tokens_share"] == 0.0
    assert found["seconds_per_token"] == pytest.approx((0.5, 0.5, 0.5))
    tokens = slow + [run(f"p_{i}", "srb", 5, 1.0) for i in range(3)]
    assert statistics.decomposition(tokens)["tokens_share"] == 1.0
    with pytest.raises(ValueError, match="no prompt has wall time and tokens"):
        statistics.decomposition([r | {"tokens_emitted": 0} for r in slow + tokens[3:]])


# --- tables and files


def both(name, static, srb, **further):
    return [run(name, "static", static, **further), run(name, "srb", srb, **further)]


def test_a_bucket_table_by_hand():
    runs = both("b_0", 100, 90) + both("b_1", 50, 75) + both("a_0", 10, 4)
    a, b = tables.bucket_table(tables.summary_rows(runs))  # the best first
    assert a == {
        "bucket": "a", "tokens_baseline": 10.0, "tokens_srb": 4.0, "wall_time_baseline_s": 1.0,
        "wall_time_srb_s": 0.4, "resonance_efficiency": 0.6, "num_prompts": 1,
        "tokens_pct_change": -60.0, "wall_time_pct_change": -60.0, "signed_efficiency": 0.6,
    }  # fmt: skip
    assert (b["tokens_pct_change"], b["num_prompts"]) == (10.0, 2)  # of the means: 82.5 / 75
    assert (b["resonance_efficiency"], b["signed_efficiency"]) == (0.05, -0.2)


def test_a_baseline_without_tokens_has_no_efficiency():
    runs = both("b_0", 0, 5) + both("b_1", 100, 50)
    rows = tables.summary_rows(runs)
    assert [r["signed_efficiency"] for r in rows] == [None, 0.5]
    assert tables.paired_rows(runs)[0]["tokens_emitted_pct"] is None
    (row,) = tables.bucket_table(rows)
    assert (row["resonance_efficiency"], row["num_prompts"]) == (0.5, 2)
    (none,) = tables.bucket_table(rows[:1])
    assert (none["resonance_efficiency"], none["tokens_pct_change"]) == (None, None)


def test_what_is_written_is_read_again(tmp_path):
    runs = [
        one | {"quality": None if i % 3 else i / 7, "finished": i % 2 == 0, "note": f"n{i}"}
        for i, one in enumerate(
            both("b_0", 9, 7, seed=4) + both("b_0", 9, 8, seed=5) + both("a_0", 5, 3, seed=4)
        )
    ]
    runs[0]["avg_entropy"] = None
    extra = [run("b_0", "third", 3, seed=4)]
    tables.write_all(tmp_path, runs + extra)
    found = {k: schema.read(tmp_path / name) for k, name in schema.FILES.items()}
    assert {kind: table.kind for kind, table in found.items()} == {k: k for k in found}
    assert found["runs"].rows[:-1] == runs
    assert found["summary"].rows == tables.summary_rows(runs)
    assert found["paired"].rows == tables.paired_rows(runs)
    assert found["buckets"].rows == tables.bucket_table(found["summary"].rows)
    assert [r["name"] for r in found["paired"].rows] == ["a_0", "b_0", "b_0"]
    assert {r["bucket"]: r["num_prompts"] for r in found["buckets"].rows} == {"a": 1, "b": 1}
    assert [*found["summary"].rows[0]][-2:] == ["signed_efficiency", "seed"]
    assert tables.runs_of(found["summary"])[1]["seed"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(schema.FILES.values())


def test_the_columns_are_the_published_ones_and_ours_last(tmp_path):
    tables.write_all(tmp_path, both("a_0", 5, 3))
    headers = {
        kind: (tmp_path / name).read_text().split("\n")[0].strip().split(",")
        for kind, name in schema.FILES.items()
    }
    ours = {"runs": ["seed"], "summary": ["signed_efficiency"], "buckets": ["signed_efficiency"]}
    for kind, header in headers.items():
        assert header == [*schema.KINDS[kind], *ours.get(kind, [])]


@published
def test_the_known_columns_are_those_of_the_published_files():
    for kind, name in NAMES.items():
        with (SHARED / name).open(newline="", encoding="utf-8") as file:
            assert next(csv.reader(file)) == [*schema.KINDS[kind]]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
@example([("\r", '"'), ("a\rb", ",\n")])
@settings(max_examples=10, deadline=None)
def test_any_text_survives(tmp_path_factory, texts):
    """Guards a bare carriage return, which Python's writer quotes only if lines end with one."""
    path = tmp_path_factory.mktemp("srb")
    runs = []
    for i, (prompt, reply) in enumerate(texts):
        runs += both(f"a_{i}", 5, 3, prompt=prompt, response_text=reply)
    tables.write_all(path, runs)
    assert schema.read(path / "runs_longform.csv").rows == runs


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"strategy": "other"}, "b_0, seed 0: no run of 'srb'"),
        ({"model_id": "large"}, "runs of 2 models"),
        ({"strategy": "static"}, "two runs of 'static'"),
        ({"stop_reason": ...}, "b_0: no 'stop_reason', a column of runs_longform.csv"),
    ],
)
def test_runs_that_make_no_study_are_not_written(tmp_path, change, what):
    runs = both("b_0", 9, 7) + both("b_1", 9, 7)
    runs[1] = {k: v for k, v in (runs[1] | change).items() if v is not ...}
    with pytest.raises(ValueError, match=what):
        tables.write_all(tmp_path / "new", runs)
    assert not (tmp_path / "new").exists()


HEADER = ",".join(schema.BUCKETS)
ROW = "code,1,2,3,4,0.5,6,7,8"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "t.csv: the file is empty"),
        (HEADER + "\n", "t.csv: only a header"),
        (f"x,y\n{ROW}", "line 1: the columns are those of none of runs_longform.csv"),
        (f"{HEADER.replace('num_prompts,', '')}\n{ROW}", "line 1: column 'num_prompts' of bucket"),
        (f"{HEADER},bucket\n{ROW},x", "line 1: column 'bucket' occurs twice"),
        (f"{HEADER}\n{ROW}\n{ROW},9", "line 3: 10 cells, but the header has 9"),
        (f"{HEADER}\n\"a\nb\",1,2,3,4,5,6,7,8\ncode,1,two,3,4,5,6,7,8",
         "line 4, column 'tokens_srb': 'two' is not a number"),
        (f"{HEADER}\ncode,1,,3,4,5,6,7,8", "column 'tokens_srb': '' is not a number"),
        (f"{HEADER}\ncode,1,inf,3,4,5,6,7,8", "'inf' is not a number"),
        (f"{HEADER}\ncode,1,2,3,4,5,6.5,7,8", "'6.5' is not an integer"),
        (f"{HEADER}\ncode,1,2,3,4,some,6,7,8", "'some' is not a number or nothing"),
        (f"{HEADER}\n\"code,1,2,3,4,5,6,7,8\n", "line 2: unexpected end of data"),
        (f"{HEADER},seed\n{ROW},-1", "column 'seed': '-1' is not an integer"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(tmp_path, content, what):
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=what) as error:
        schema.read(path)
    assert str(error.value).startswith(str(path))


def test_columns_of_our_own_are_numbers_or_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(
        f"\ufeff{HEADER},a,b\r\n{ROW},1.5,1\r\n\r\n{ROW},nan,x\r\n{ROW},,\r\n".encode()
    )
    rows = schema.read(path).rows
    assert [(r["a"], r["b"]) for r in rows] == [(1.5, "1"), (None, "x"), (None, "")]
    path.write_bytes(b"bucket\xff")
    with pytest.raises(ValueError, match=r"t\.csv, line 1"):
        schema.read(path)


# --- rows, text and figures


@pytest.fixture
def files(tmp_path):
    """The four files of five prompts at two seeds."""
    rng = np.random.default_rng(3)
    runs = []
    for i, bucket in enumerate(("code", "code", "essays", "essays", "lists")):
        for seed in range(2):
            static, srb = rng.integers(20, 60, 2)
            runs += both(f"{bucket}_{i:03d}", int(static), int(srb), seed=seed)
    for one in runs:
        one |= {"wall_time_s": one["tokens_emitted"] * rng.uniform(0.1, 0.2),
                "avg_entropy": rng.uniform(1, 2), "own_nats_per_byte": rng.uniform(1, 2),
                "writer": "w"}  # fmt: skip
    tables.write_all(tmp_path, runs)
    return {kind: tmp_path / name for kind, name in schema.FILES.items()}


def test_all_kinds_together_are_one_comparison(files):
    rows = json.loads(json.dumps(comparison.from_csv([*files.values()], draws=50)))
    assert [row["kind"] for row in rows] == ["csv", "csv"]
    found, table = rows
    assert (found["model_id"], found["seeds"], table["differs"]) == ("tiny", 2, [])
    assert found["files"] == ["runs_longform.csv"]
    digest = hashlib.sha256(files["buckets"].read_bytes()).hexdigest()
    assert table["sha256"] == [digest[:16]]
    assert [*found["overall"]] == [*comparison_text.MEASURES, "own_nats_per_byte"]
    assert found["overall"]["own_nats_per_byte"]["prompts"] == 5
    runs = schema.read(files["runs"]).rows
    one = statistics.paired(runs, "wall_time_s", 50)
    assert found["overall"]["wall_time_s"]["mean"] == one["mean"]
    text = srb.text(rows)
    assert f"| wall time, s | 5 | 0 | {one['mean']:.1f} [" in text
    assert "| own_nats_per_byte | 5 |" in text


def test_rows_hold_no_path_and_no_text(files, tmp_path):
    written = json.dumps(comparison.from_csv([*files.values()], draws=20))
    assert str(tmp_path) not in written
    assert not {name for name in ("Write", "srb_settled") if name in written}


def test_a_prompt_of_another_study_is_refused(files):
    text = files["summary"].read_text().replace("code_000", "code_009")
    files["summary"].write_text(text)
    with pytest.raises(ValueError, match=r"code_009, seed 0, 'static': .* none in runs_"):
        comparison.from_csv([*files.values()], draws=1)
    with pytest.raises(ValueError, match="two runs of"):
        comparison.from_csv([files["runs"]] * 2, draws=1)


def test_a_bucket_summary_that_disagrees_is_told(files):
    rows = schema.read(files["buckets"]).rows
    wrong = files["buckets"].read_text().replace(f",{rows[0]['tokens_srb']},", ",1.0,")
    files["buckets"].write_text(wrong)
    *_, found = comparison.from_csv([*files.values()], draws=1)
    (sentence,) = found["differs"]
    expected = f"{rows[0]['bucket']}: tokens_srb is 1.0, computed {rows[0]['tokens_srb']}"
    assert sentence == expected
    assert expected in srb.text([found])


def test_files_of_one_kind_are_joined_and_models_kept_apart(files, tmp_path):
    other = tmp_path / "other"
    runs = [r | {"model_id": "large"} for r in schema.read(files["runs"]).rows]
    tables.write_all(other, runs)
    rows = comparison.from_csv([files["runs"], other / "runs_longform.csv"], draws=20)
    assert [row["model_id"] for row in rows] == ["tiny", "large"]
    assert rows[0]["overall"] == rows[1]["overall"]
    assert rows[0]["files"] == ["runs_longform.csv"] * 2
    pytest.importorskip("matplotlib")
    assert len(panels.figure(rows).subfigs) == 2


def test_the_figure_of_a_comparison_and_of_a_bucket_summary_alone(files):
    pytest.importorskip("matplotlib")
    rows = json.loads(json.dumps(comparison.from_csv([*files.values()], draws=20)))
    prompts, _ = panels.figure(rows).subfigs[0].subfigs
    (overlay,), (heat, _) = (part.axes for part in prompts.subfigs[0].subfigs)
    assert [t.get_text() for t in overlay.get_xticklabels()] == ["code", "essays", "lists"]
    assert heat.get_images()
    assert len(prompts.subfigs[1].axes) == 2
    del rows[0]["runs"]  # as it is recorded
    (part,) = panels.figure([{"of": "an earlier study"}, *rows]).subfigs
    tokens, wall, entropy, ratio = part.axes
    one = rows[0]["by_bucket"]["tokens_emitted"]["essays"]
    assert [t.get_text() for t in tokens.get_yticklabels()] == [
        "all (5)", "code (2)", "essays (2)", "lists (1)"
    ]  # fmt: skip
    every = rows[0]["overall"]["tokens_emitted"]
    for at, shown in ((0, every), (2, one)):
        point, _, (bar,) = tokens.containers[at].lines
        assert point.get_xdata().tolist() == [shown["mean"]]
        edges = bar.get_segments()[0][:, 0].tolist()
        assert edges == pytest.approx(shown["mean_interval"])
    assert len(tokens.containers) == len(wall.containers) == len(entropy.containers) == 4
    assert tokens.get_xlabel() == "tokens: srb − static"
    assert ratio.containers[0].lines[0].get_xdata()[0] == rows[0]["decomposition"]["wall_time_s"][0]
    alone = comparison.from_csv([files["buckets"]])
    (axes,) = panels.figure(alone).subfigs[0].axes
    widths = [bar.get_width() for bar in axes.patches]
    table = alone[0]["bucket_table"]
    assert widths[: len(table)] == [row["tokens_pct_change"] for row in table]
    assert not panels.figure([]).subfigs


def test_measures_that_the_files_lack_have_no_panel(files):
    pytest.importorskip("matplotlib")
    runs = [r | {"avg_entropy": None} for r in schema.read(files["runs"]).rows]
    row = {"kind": "csv", "files": ["x.csv"], **comparison.comparison(runs, draws=20)}
    (part,) = panels.figure([row]).subfigs
    assert [axes.axison for axes in part.axes] == [True, True, False, True]


def test_the_task_reads_files_and_records_them_once(files, results, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(srb, "DRAWS", 20)

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "srb", *map(str, options)])
        evaluate.main()
        return capsys.readouterr().out

    plot = tmp_path / "x.png"
    quick = ["--from-csv", files["runs"], files["buckets"], "--quick"]
    said = call(*quick, "--plot", plot, "--json", "-")
    assert [row["kind"] for row in json.loads(said)] == ["csv", "csv"]
    assert {run["strategy"] for run in json.loads(said)[0]["runs"]} == {"static", "srb"}
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert records.read_rows("srb") == []
    for _ in range(2):
        said = call("--from-csv", files["runs"], "--record")
        (row,) = records.read_rows("srb")
        assert srb.text([row]) + "\n" == said
        assert "code_000" not in json.dumps(row)  # statistics, and no value of a prompt
    call("--from-csv", files["summary"], "--record")
    assert [r["files"] for r in records.read_rows("srb")] == [
        ["runs_longform.csv"], ["summary_longform.csv"]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="--from-csv runs no model"):
        call("--from-csv", files["runs"], "--model", "x")


def test_figures_draw_the_means_over_seeds():
    pytest.importorskip("matplotlib")
    runs = both("a_0", 10, 5, seed=0) + both("a_0", 10, 15, seed=1) + both("a_1", 10, 2)
    for one, nats in zip(runs, (1.0, 2.0, 3.0, 6.0, 1.5, 1.0), strict=True):
        one["avg_entropy"] = nats
    assert figures.saved_percent(runs)["a"] == pytest.approx([0.0, 80.0])
    overlay, heat, quality = (new_figure(8, 5) for _ in range(3))
    figures.entropy_overlay(runs, overlay)
    lines = {x.get_label(): x for x in overlay.axes[0].get_lines()}
    assert [*lines["static"].get_ydata()] == [2.0, 1.5]
    assert [*lines["srb"].get_ydata()] == [4.0, 1.0]
    figures.efficiency_heatmap(runs, heat)
    (axes, _) = heat.axes
    image = axes.get_images()[0]
    assert image.get_array().tolist() == [pytest.approx([80.0, 0.0])]
    assert image.norm.vmin == -image.norm.vmax
    assert axes.get_yticklabels()[0].get_text() == "a\nmean +40.0 %"
    figures.time_quality(runs, quality)
    left, right = quality.axes
    points = {c.get_label(): c.get_offsets().tolist() for c in left.collections}
    assert points["srb"] == [[1.0, 4.0], [pytest.approx(0.2), 1.0]]
    assert [t.get_text() for t in right.get_legend().get_texts()] == ["a"]


def test_traces_are_averaged_in_windows_and_stops_marked():
    pytest.importorskip("matplotlib")
    windows = traces.windows([np.arange(5.0), np.ones(2)], 2)
    np.testing.assert_array_equal(windows, [[0.5, 2.5, 4.0], [1.0, math.nan, math.nan]])
    long = np.linspace(3, 1, 20)
    nats = {("a_0", 0, "static"): long, ("a_0", 0, "srb"): long[:7],
            ("a_1", 0, "static"): long, ("a_1", 0, "srb"): long}  # fmt: skip
    assert traces.stopped(nats) == [("a_0", 7)]
    on = new_figure(8, 4)
    traces.token_entropy_overlay(nats, {"a_0": "a", "a_1": "a"}, on)
    axes = on.axes[0]
    assert axes.get_title() == "a: 1 of 2 stopped earlier"
    static, srb, ticks = axes.get_lines()
    np.testing.assert_allclose(static.get_ydata(), long)
    np.testing.assert_allclose(srb.get_ydata(), long)
    assert [*ticks.get_xdata()] == [7]
