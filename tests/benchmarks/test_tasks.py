"""The studies of memory, goals, gate, stability and dynamics as tasks of evaluate.py."""

import functools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import evaluate_status, train_tiny

import evaluate
from benchmarks.kit import facts, heldout, records
from benchmarks.kit.records import Records, read_rows
from benchmarks.tasks import dynamics, gating, goals, memory
from benchmarks.tasks.dynamics import sedenions
from benchmarks.tasks.goals import tables as goal_tables
from benchmarks.tasks.stability import tables as stability_tables
from entropy_core import kuramoto, lyapunov, sedenion
from reso_llm.config import KuramotoConfig, PRSCConfig, ResoLLMConfig, TemporalSMFConfig, control_of
from reso_llm.inference import ResoLLMInference

TINY = dict(
    vocab_size=261, dim=32, num_layers=2, num_heads=2, max_seq_len=48,
    kuramoto=KuramotoConfig(num_oscillators=4), prsc=PRSCConfig(max_order=3, max_slots=16),
    temporal_smf=TemporalSMFConfig(num_heads=2, num_channels=2, max_moments=20),
)  # fmt: skip
ROW = "### Human: ask {0}?### Assistant: the answer to this is number {0}, as was said before."
ON_DATA = ["--checkpoint", "RUN", "--data", "DATA"]
QUICK = {  # the options of each task, and the fields of its rows
    "memory": (["--checkpoint", "RUN"], {"checkpoint", "seed", "recall_hit_at_1"}),
    "goals": (ON_DATA, {"checkpoint", "data", "seed", "measure"}),
    "talk": ([*ON_DATA, "--train", "DATA"], {"checkpoint", "data", "seed", "long", "replies"}),
    "gating": (ON_DATA, {"checkpoint", "data", "share", "layers"}),
    "stability": (ON_DATA, {"checkpoint", "data", "seed", "kind"}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What RUN and DATA stand for: a tiny finished training and its rows."""
    rows = [ROW.format(i) for i in range(12)]
    return train_tiny(tmp_path_factory.mktemp("studies"), rows, ResoLLMConfig(**TINY))


@pytest.fixture
def call(monkeypatch, files, results):
    """call(*args) -> exit status of evaluate.py; records go to a directory of the test.

    The tiny model reads 48 bytes, so its facts and ordinary sentences are short.
    """
    monkeypatch.setattr(facts, "TEMPLATES", ("{last} {thing} {place}.",))
    monkeypatch.setattr(memory, "ORDINARY", ("It rained.", "She came."))

    return functools.partial(evaluate_status, monkeypatch, files)


# --- every task ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_quick_form_has_rows_table_and_figure_and_no_path(name, call, capsys, tmp_path, files):
    pytest.importorskip("matplotlib")
    options, fields = QUICK[name]
    plot = tmp_path / "figure.png"
    assert call(name, *options, "--quick", "--json", "-", "--plot", plot) == 0
    written = capsys.readouterr().out
    rows = json.loads(written, parse_constant=pytest.fail)
    assert all(fields <= row.keys() for row in rows)
    assert {row["checkpoint"] for row in rows} == {"run"}
    assert {row.get("data", "rows.jsonl") for row in rows} == {"rows.jsonl"}
    assert not any(
        "/" in str(value) for row in rows for key, value in row.items() if key != "replies"
    )
    assert plot.read_bytes().startswith(b"\x89PNG")
    said = evaluate.import_module(evaluate.TASKS[name]).text(rows)
    assert "| " in said
    assert "run" in said


def test_rows_are_recorded_once_and_more_seeds_are_added(call, capsys, monkeypatch):
    """What is recorded is not measured again, and says the same."""
    measured, calls = memory.measured, []
    monkeypatch.setattr(memory, "measured", lambda *a, **k: calls.append(k) or measured(*a, **k))
    options = ["memory", "--checkpoint", "RUN", "--facts", 1, "--queries", 2, "--record"]
    assert call(*options, "--seeds", 4) == 0
    first = capsys.readouterr().out
    assert call(*options, "--seeds", 4) == 0
    assert capsys.readouterr().out == first
    assert [c["seed"] for c in calls] == [4]
    assert call(*options, "--seeds", 4, 5) == 0
    assert [c["seed"] for c in calls] == [4, 5]
    assert [row["seed"] for row in read_rows("memory")] == [4, 5]
    assert "seeds 4, 5" in capsys.readouterr().out


def test_gating_measures_its_shares_together(call, monkeypatch):
    """Above the best is a comparison: with one share missing all are measured again."""
    sweep, calls = gating.sweep, []
    monkeypatch.setattr(gating, "sweep", lambda *a: calls.append(a[3]) or sweep(*a))
    options = ["gating", *ON_DATA, "--shares", 0.2, 0.9, "--rounds", 0, "--record"]
    for _ in range(2):
        assert call(*options) == 0
    assert calls == [[0.2, 0.9]]
    assert [row["share"] for row in read_rows("gating")] == [0.2, 0.9, None]
    assert min(row["above_best"][0] for row in read_rows("gating")) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["goals", "--checkpoint", "RUN"], "--data FILE"),
        (["stability", "--checkpoint", "RUN"], "--data FILE"),
        (["gating", "--checkpoint", "RUN", "nowhere", "--data", "DATA"], "nowhere"),
        (["goals", *ON_DATA], "2 prompts"),
    ],
)
def test_mistakes_are_one_line(call, capsys, arguments, named, monkeypatch):
    monkeypatch.setattr(goals, "NEW_TOKENS", 1000)
    assert call(*arguments) in (1, 2)
    assert named.replace("2 prompts", "0 prompts") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "stage"),
    [("memory", "temporal_smf"), ("goals", "agency"), ("gating", "coherence_gate")],
)
def test_a_checkpoint_without_the_stage_is_refused(name, stage, call, capsys, monkeypatch):
    plain = SimpleNamespace(config=control_of(ResoLLMConfig(**TINY)))
    monkeypatch.setattr(ResoLLMInference, "from_pretrained", lambda *_: plain)
    assert call(name, *QUICK[name][0], "--quick") == 2
    assert f"run: its stage {stage} is switched off" in capsys.readouterr().err


# --- held-out documents -------------------------------------------------------------------------


def test_names_hold_no_directory(tmp_path):
    assert heldout.checkpoint_name(None) == "shipped"
    assert heldout.checkpoint_name(f"{tmp_path}/runs/first/") == "first"
    assert heldout.data_name("/a/b/rows.jsonl+sample+owner/name") == "rows.jsonl+sample+name"


def test_the_first_documents_are_those_of_the_whole(tmp_path, byte_tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("ab", "cde", "f")))
    whole, sizes = heldout.held_out(str(path), byte_tokenizer)
    some, first = heldout.held_out(str(path), byte_tokenizer, 2)
    assert first.tolist() == sizes.tolist()[:2] == [2, 3]
    assert (some.num_documents, some.num_bytes, some.num_tokens) == (2, 5, 7)
    ids, wanted = heldout.document_ids(some), heldout.document_ids(whole)[:2]
    assert all(np.array_equal(a, b) for a, b in zip(ids, wanted, strict=True))
    assert len(some.reply_mask) == 7
    assert heldout.held_out(str(path), byte_tokenizer, 9)[0].num_documents == 3


# --- tables -------------------------------------------------------------------------------------


def row_of(seed, value, **more):
    about = {"checkpoint": "run", "data": "d", "seed": seed, "rows": 9}
    columns = {name: [value, value, value] for name in goal_tables.COLUMNS["loss"]}
    return about | {"measure": "loss", "case": "prompt"} | columns | more


def test_goals_average_seeds_but_not_cases():
    rows = [row_of(0, 1.0), row_of(1, 2.0), row_of(0, 7.0, case="whole reply")]
    found = goal_tables.over_seeds(rows)
    assert [(r["case"], r["none"][0], r["num_seeds"]) for r in found] == [
        ("prompt", 1.5, 2), ("whole reply", 7.0, 1),
    ]  # fmt: skip


def test_stability_averages_the_seeds_that_could_be_compared():
    """A seed whose texts never looped has no AUROC there, and is no 0."""
    at = lambda v: {"read": 4, "num_damaged": 3, "warning": {"auroc": [v, 0, 1]}}  # noqa: E731
    rows = [{"loop": [at(0.5)]}, {"loop": [at(1.0)]}, {"loop": [{"read": 4, "num_damaged": 0}]}]
    assert stability_tables.over_seeds(rows, "loop") == {4: {"warning": [0.75, 0, 1]}}
    assert stability_tables.over_seeds([{"loop": []}], "loop") == {}


def test_the_gates_groups_are_checkpoints_by_layers():
    rows = [{"checkpoint": c, "data": "d", "shares": [0.1, 0.5], "share": s, "layers": [n, n, n]}
            for c, s, n in (("a", 0.5, 3), ("b", 0.1, 1), ("a", None, 2))]  # fmt: skip
    found = [[(r["checkpoint"], r["share"]) for r in some] for some in gating.groups(rows)]
    assert sorted(found) == [[("a", None), ("a", 0.5)], [("b", 0.1)]]


# --- dynamics -----------------------------------------------------------------------------------


def held(make, *beginnings):
    """Whether each oracle of a group holds in the quick size, of those whose names begin so."""
    oracles = make([0], dynamics.QUICK)
    chosen = [o for o in oracles if o.name.startswith(beginnings)]
    assert chosen
    return [dynamics.judged(oracle, [0])["holds"] for oracle in chosen]


def test_dynamics_hold_and_are_drawn(call, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "figure.png"
    assert call("dynamics", "--quick", "--json", "-", "--plot", plot) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {row["group"] for row in rows} == {"kuramoto", "lyapunov", "sedenion"}
    assert [row["name"] for row in rows if row["holds"] is False] == []
    assert sum(row["holds"] is None for row in rows) == 2
    assert plot.read_bytes().startswith(b"\x89PNG")
    count = sum(row["holds"] is not None for row in rows)
    assert dynamics.text(rows).endswith(f"{count} of {count} hold.")


def test_repulsive_coupling_is_found(monkeypatch):
    right = kuramoto.phase_velocity
    monkeypatch.setattr(kuramoto, "phase_velocity", lambda t, w, K: right(t, w, -K))
    assert not any(held(dynamics.kuramoto_oracles, "two equal", "two oscillators locked"))
    assert not any(held(dynamics.kuramoto_oracles, "r of 300 oscillators, Lorentzian, K = 2"))


def test_a_commuting_product_is_found(monkeypatch):
    right = sedenion.multiply
    monkeypatch.setattr(sedenion, "multiply", lambda a, b: (right(a, b) + right(b, a)) / 2)
    assert held(dynamics.sedenion_oracles, "product of 2 ") == [True]  # complex numbers commute
    assert not any(held(dynamics.sedenion_oracles, "product of 4 ", "product of 16 "))
    assert not any(held(dynamics.sedenion_oracles, "share of products of 8 "))


def test_a_wrong_exponent_is_found(monkeypatch):
    right = lyapunov.rosenstein_exponent_per_step
    monkeypatch.setattr(
        lyapunov, "rosenstein_exponent_per_step", lambda s, **o: right(s, **o) / math.log(2)
    )
    assert held(dynamics.lyapunov_oracles, "logistic map r = 4, from 300", "fixed") == [False] * 2


def test_an_undefined_number_does_not_hold():
    oracle = dynamics.Oracle("g", "n", 1.0, 9.0, "s", lambda seed: math.nan if seed else 1.0)
    row = dynamics.judged(oracle, [0, 1])
    assert (row["got"], row["error"], row["holds"]) == (None, None, False)
    row = dynamics.judged(oracle._replace(got=lambda seed: 2.0 + 2 * seed), [0, 1])
    assert (row["got"], row["sd"], row["error"], row["holds"]) == (3, math.sqrt(2), 2, True)
    assert dynamics.judged(oracle._replace(got=lambda seed: -8.5), [0])["holds"] is False
    assert dynamics.judged(oracle._replace(expected=None), [0])["holds"] is None


def test_the_oracles_own_numbers():
    """Closed forms of what the oracles are: quaternions, two-cycles, the published r."""
    one, i, j, k = np.eye(4)
    assert np.array_equal(sedenions.doubled(i, j), k)
    assert np.array_equal(sedenions.doubled(j, i), -k)
    assert np.array_equal(sedenions.doubled(k, k), -one)
    assert sedenions.basis_associator(4) == 0
    assert sedenions.basis_associator(8) == 4 * 168  # 7 * 6 * 4 ordered triples off the 7 lines
    cycle = math.log(abs(4 + 2 * 3.2 - 3.2**2)) / 2
    assert dynamics.orbit_mean(3.2, 0.3, 500, 100) == pytest.approx(cycle, abs=1e-9)
    published = {1.2: 0.408, 1.5: 0.577, 2: 0.707, 3: 0.816, 5: 0.894}
    for K, r in published.items():
        assert dynamics.theory_r(K) == pytest.approx(r, abs=6e-4)
    assert dynamics.theory_r(0.5) == 0


def test_recorded_measures_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    kept, key = Records("x", True), {"a": 1, "b": [2.5]}
    assert kept.row(key, lambda: {"c": 3}) == key | {"c": 3}
    again = kept.row(key, pytest.fail)
    assert again["c"] == 3
    assert Records("x", False).row(key, lambda: {"c": 4})["c"] == 4
    assert len(read_rows("x")) == 1
