"""Trials: budgets, paces, what is found again, and processes side by side."""

import dataclasses
import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_tiny_config

from benchmarks.kit import choice, pace, records, trials
from benchmarks.kit.learners import with_choice
from benchmarks.kit.variants import learner_of
from benchmarks.studies import equal_time, quality
from benchmarks.tasks import ablation
from reso_llm.config import ResoLLMConfig
from reso_llm.data.token_cache import Split


def options(**changes):
    given = dict(seeds=[0], pace=None, measure_pace=None, device="cpu", jobs=0, only=None)
    return SimpleNamespace(**(given | changes))


@pytest.fixture
def pace_file(tmp_path):
    path = tmp_path / "pace.json"
    path.write_text(json.dumps({"t": {"full": [10.0, 2.0], "control": [0.0, 0.5]}}))
    return str(path)


@pytest.fixture
def task(monkeypatch):
    for module in (trials, pace):
        monkeypatch.setattr(module, "keep_freed_memory", lambda: None)
    made = ablation.quick_task("shakespeare", None)
    return dataclasses.replace(made, config=make_tiny_config(("echo",)), stride=6)


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "{}x", '{"t": [1, 2]}', '{"t": {"full": [1]}}', '{"t": {"full": [0, 0]}}'],
)
def test_a_broken_pace_file_is_named(tmp_path, content):
    file = tmp_path / "pace.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"pace\.json"):
        pace.read_pace(str(file))


@pytest.mark.parametrize("study", ["quality", "equal_time"])
def test_a_study_refuses_a_broken_pace_file_in_a_line(task, tmp_path, monkeypatch, capsys, study):
    module = importlib.import_module(f"benchmarks.studies.{study}")
    file = tmp_path / "pace.json"
    file.write_text("{")
    monkeypatch.setitem(module.TASKS, "guanaco", lambda path: task)
    given = ["guanaco", "--data", "x"] if study == "quality" else ["--guanaco", "x"]
    monkeypatch.setattr("sys.argv", [study, *given, "--measure_pace", str(file)])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 2
    assert "pace.json" in capsys.readouterr().err


def test_a_pace_gives_each_variant_its_steps(pace_file):
    found = trials.trials_of("s", "t", ["full", "control"], options(pace=pace_file), seconds=30.0)
    assert [(t.variant, t.steps) for t in found] == [("full", 10), ("control", 60)]
    assert found[0].key == {"task": "t", "variant": "full", "seed": 0, "budget": "time",
                            "paced": True, "seconds": 30.0, "device": "cpu",
                            "dropout": None, "choose_on": None}  # fmt: skip
    (dropped,) = trials.trials_of("s", "t", ["full"], options(), steps=5, dropout=0.1)
    assert dropped.key["dropout"] == 0.1
    (tokens,) = trials.trials_of("s", "t", ["full"], options(), steps=5, seconds=30.0)
    assert (tokens.key["budget"], tokens.key["steps"], tokens.key["seconds"]) == ("tokens", 5, 0)


@pytest.mark.parametrize(
    ("changes", "budget", "named"),
    [
        ({"jobs": 2}, {"seconds": 1.0}, "--jobs"),
        ({"pace": "FILE"}, {"seconds": 30.0, "steps": 3}, "--steps and --pace"),
        ({"pace": "FILE"}, {"seconds": 9.0}, "10.0 s"),
        ({"pace": "nowhere"}, {"seconds": 9.0}, "nowhere"),
        ({"device": "cuda:99"}, {"steps": 1, "seconds": 0.0}, "cuda"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_named(pace_file, changes, budget, named):
    if changes.get("pace") == "FILE":
        changes = {"pace": pace_file}
    with pytest.raises(ValueError, match=named):
        trials.trials_of("s", "t", ["full"], options(**changes), **budget)
    with pytest.raises(ValueError, match="of gpt2 on t is not known"):
        pace.pace_of({"t": {}}, "t", "gpt2")


def test_the_pace_of_a_machine_is_measured_and_added_to_its_file(task, pace_file):
    pace.measure_pace(pace_file, {"tiny": task}, ["control", "control + echo"])
    found = pace.read_pace(pace_file)
    assert found["t"]["full"] == [10.0, 2.0]
    (plain, step), (echo, _) = found["tiny"].values()
    assert 0 <= plain < echo
    assert step > 0


def test_what_is_recorded_is_not_trained_again_and_says_its_stack(task, results):
    wanted = trials.trials_of("ablation", "t", ["control"], options(), steps=2)
    (row,) = trials.run(wanted, {"t": task})
    assert (row["steps"], row["tokens"]) == (2, 2 * 24 * 12)
    assert trials.run(wanted, {})[0]["bits_per_byte"] == row["bits_per_byte"]
    path = results / "ablation.jsonl"
    written = json.loads(path.read_text())
    assert written["stack"] == records.STACK
    path.write_text(json.dumps(written | {"stack": 1}) + "\n")
    assert records.current_rows("ablation") == []
    with pytest.raises(KeyError):  # it would be trained anew
        trials.run(wanted, {})


def test_rows_of_other_models_have_no_stack(results):
    for model in ("shipped", "SmolLM2"):
        records.write_row("phase_slip", {"model": model})
    assert [row.get("stack") for row in records.read_rows("phase_slip")] == [records.STACK, None]
    lines = [json.dumps({"model": model}) + "\n" for model in ("shipped", "SmolLM2")]
    (results / "phase_slip.jsonl").write_text("".join(lines))
    assert [row["model"] for row in records.current_rows("phase_slip")] == ["SmolLM2"]


def test_side_by_side_is_as_in_turn_and_a_failure_spares_the_others(task, results, capfd):
    """The pool trains what one process would have; a variant without a config fails alone."""
    names = ["control", "control + echo"]
    wanted = trials.trials_of("ablation", "t", names, options(jobs=2), steps=2)
    alone = [row["nats_per_token"] for row in trials.run(wanted, {"t": task}, record=False)]
    (broken,) = trials.trials_of("ablation", "t", ["nothing"], options(), steps=1)
    with pytest.raises(RuntimeError, match="1 of 3 trials failed"):
        trials.run([*wanted, broken], {"t": task}, jobs=2)
    assert "nothing, seed 0, t: 'nothing'" in capfd.readouterr().err
    rows = {row["variant"]: row["nats_per_token"] for row in records.read_rows("ablation")}
    assert [rows[name] for name in names] == pytest.approx(alone, rel=1e-4)


def test_a_model_of_both_studies_is_trained_once_and_recorded_in_both(results, tmp_path):
    path = tmp_path / "pace.json"
    names = [*equal_time.variants(ResoLLMConfig()), *equal_time.GPT2]
    path.write_text(json.dumps({"shakespeare": {name: [0, 1] for name in names}}))
    wanted = equal_time.all_trials(["shakespeare"], options(pace=str(path)))
    assert sorted(t.variant for t in wanted) == sorted(names), "each once"
    rows = [trial.key | {"bits_per_byte": 1.0} for trial in wanted]
    for _ in range(2):
        equal_time.record_quality(wanted, rows)
    copied = [row["variant"] for row in records.read_rows("quality")]
    assert sorted(copied) == sorted(set(quality.MODELS) - set(equal_time.GPT2))


def test_what_a_model_buys_is_paired_by_seed_and_adjusted():
    bits = {("full", s): 2.0 for s in (0, 1, 2)}
    bits |= {("control", s): 2.5 + 0.1 * s for s in (0, 1)} | {("gpt2", 2): 3.0}
    found = {(line[0], line[1]): line[2:] for line in quality.differences(bits)}
    assert found["full", "control"][:2] == ["+0.5500 ± 0.6353", "2"]
    assert found["full", "gpt2"] == ["+1.0000", "1", "-"]
    assert ("control", "gpt2") not in found, "no seed has both"


def test_a_run_that_overfits_gives_the_checkpoint_that_validation_rows_chose(task, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.6, 2.7, 2.8])
    monkeypatch.setattr(choice, "EVERY", 2)
    monkeypatch.setattr(choice, "total_nats", lambda *_: (next(losses), 1))
    learner = learner_of(task, "control", 0)
    seen = {}

    def remember(_):
        seen[learner.steps] = {n: v.clone() for n, v in learner.model.state_dict().items()}

    curve = choice.train_chosen(learner, task, 16, remember)
    assert [step for step, _ in curve] == [2, 4, 6, 8]  # nothing better for a quarter of 16 steps
    assert choice.chosen_step(curve) == 4
    kept = learner.model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in seen[4].items())
    assert any(not torch.equal(kept[name], value) for name, value in seen[8].items())


def test_validation_rows_are_the_last_training_rows_and_no_longer_trained_on(task):
    documents = Split(task.train.tokens[:100], task.train.reply_mask[:100],
                      np.array([0, 30, 60, 80]), 100, 100, 4)  # fmt: skip
    parted = with_choice(dataclasses.replace(task, train=documents), 2)
    assert parted.train.tokens.tolist() == documents.tokens[:60].tolist()
    assert parted.choice.tokens.tolist() == documents.tokens[60:].tolist()
    assert parted.choice.doc_starts.tolist() == [0, 20]
    with pytest.raises(ValueError, match="4 validation rows: expected fewer"):
        with_choice(dataclasses.replace(task, train=documents), 4)


def test_a_row_says_that_its_checkpoint_was_chosen_and_where(task, monkeypatch, pace_file):
    documents = Split(task.train.tokens, task.train.reply_mask, np.array([0, 200]),
                      task.train.num_tokens, task.train.num_bytes, 2)  # fmt: skip
    budget = dict(seconds=1.5, choose_on=1)
    given = options(jobs=1, pace=pace_file)
    (trial,) = trials.trials_of("quality", "t", ["control"], given, **budget)
    monkeypatch.setitem(
        trials._TASKS, "t", with_choice(dataclasses.replace(task, train=documents), 1)
    )
    row = trial.key | trials._alone(trial)
    assert (row["chosen_step"], row["choose_on"], len(row["curve"])) == (3, 1, 1)
    with pytest.raises(ValueError, match="--choose_on: expected --pace"):
        trials.trials_of("quality", "t", ["control"], options(), **budget)
