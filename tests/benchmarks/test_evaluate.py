"""evaluate.py as a user calls it: every task in seconds, its JSON, figure and records."""

import functools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import evaluate_status, train_tiny
from test_imports import imports

import evaluate
from benchmarks.kit import records
from benchmarks.kit.records import Records
from benchmarks.tasks import ablation, lm
from reso_llm.config import KuramotoConfig, ResoLLMConfig

TINY = {"vocab_size": 261, "dim": 32, "num_layers": 1, "num_heads": 2, "max_seq_len": 32,
        "kuramoto": KuramotoConfig(num_oscillators=4)}  # fmt: skip
TEXT = "reso prime phase field gate\n" * 40
RUN_ON_DATA = ["--checkpoint", "RUN", "--data", "DATA"]
QUICK = {  # options that keep each task within about a second, and the fields of its rows
    "lm": (RUN_ON_DATA, {"bits_per_byte", "positions"}),
    "mirror": (["--seeds", "3"], {"metadata", "seed_results", "summary"}),
    "setpoint": ([], {"rows", "targets"}),
    "zombie": (["--seeds", "5"], {"models", "units", "common_nats"}),
    "ablation": (["shakespeare", "--only", "full", "control"], {"bits_per_byte", "decode_ms"}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What RUN, DATA and TEXT stand for: a tiny finished training, its rows, a plain text."""
    directory = tmp_path_factory.mktemp("evaluate")
    (directory / "text.txt").write_text(TEXT)
    rows = [f"### Human: question {i}?### Assistant: answer {i}." for i in range(20)]
    files = train_tiny(directory, rows, ResoLLMConfig(**TINY))
    return files | {"TEXT": str(directory / "text.txt")}


@pytest.fixture
def call(monkeypatch, files, results):
    """call(*args) -> exit status of evaluate.py; RUN, DATA and TEXT are the files."""

    return functools.partial(evaluate_status, monkeypatch, files)


# --- the frame ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_every_task_is_quick_and_writes_json_and_figure(name, call, capsys, tmp_path, results):
    """stdout is JSON and nothing else; nothing is recorded that was not asked for."""
    pytest.importorskip("matplotlib")
    options, fields = QUICK[name]
    plot = tmp_path / "figure.png"
    assert call(name, *options, "--quick", "--json", "-", "--plot", plot) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert rows
    assert all(fields <= row.keys() and row["quick"] for row in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert not results.exists()


def test_every_table_of_a_quick_run_says_so():
    text = "# one\n\n| a |\n| --- |\n| 1 |\n\n| b |\n| --- |\n"
    marked = evaluate.marked_quick(text).splitlines()
    heads = [i for i, line in enumerate(marked) if line in ("| a |", "| b |")]
    assert [marked[i - 2] for i in heads] == [evaluate.QUICK] * 2
    assert marked.count(evaluate.QUICK) == 2
    assert evaluate.marked_quick("no table").startswith(evaluate.QUICK)


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["nonsense"], 2, "nonsense"),
        ([], 2, "task"),
        (["lm", "--checkpont", "x"], 2, "did you mean checkpoint?"),
        (["mirror", "--quick", "--record"], 2, "leave out --record"),
        (["mirror", "--json", "no/such/place.json"], 2, "no directory no/such"),
        (["mirror", "--plot", "no/such/place.png"], 2, "no directory no/such"),
        (["mirror", "--json", "tests"], 2, "--json = tests: this is a directory"),
        (["mirror", "--plot", "tests"], 2, "--plot = tests: this is a directory"),
        (["mirror", "--plot", "x.foo"], 2, "--plot x.foo: expected a name that ends in .png, .svg"),
        (["mirror", "--plot", "x"], 2, "--plot x: expected a name that ends in .png, .svg"),
        (["mirror", "--seeds", "0", "0"], 2, "--seeds 0 0: expected different seeds from 0 on"),
        (["mirror", "--seeds", "x"], 2, "error: seeds = x: expected int"),
        (["mirror", "--seeds", "1", "2.5"], 2, "error: seeds = 2.5: expected int"),
        (["setpoint", "--seeds", "1", "-1"], 2, "--seeds 1 -1: expected different seeds"),
        (["memory", "--quick", "--seeds", "2", "2"], 2, "--seeds 2 2: expected different seeds"),
        (["lm", "--checkpoint", "RUN"], 2, "--data FILE"),
        (["lm", *RUN_ON_DATA, "--stride", "0"], 2, "--stride 0: expected 1 to 32, the context"),
        (["lm", *RUN_ON_DATA, "--stride", "33"], 2, "--stride 33: expected 1 to 32, the context"),
        (["memory", "--facts", "0"], 2, "--facts 0: expected at least 1"),
        (["memory", "--queries", "0"], 2, "--queries 0: expected at least 1"),
        (["ablation", "shakespeare"], 2, "--data FILE"),
        (["ablation", "shakespeare", "--quick", "--only", "nothing"], 2, "full - prsc"),
    ],
)
def test_a_mistake_is_one_line_at_once(call, capsys, monkeypatch, arguments, status, named):
    monkeypatch.chdir(Path(evaluate.__file__).parent)
    assert call(*arguments) == status
    captured = capsys.readouterr()
    first, *others = captured.err.splitlines()
    assert named in first
    assert all(line.startswith("run `python evaluate.py") for line in others)
    assert captured.out == ""


def test_matplotlib_is_missed_before_the_measurement(call, capsys, monkeypatch, tmp_path):
    real = evaluate.find_spec
    absent = lambda name: None if name == "matplotlib" else real(name)  # noqa: E731
    monkeypatch.setattr(evaluate, "find_spec", absent)
    assert call("mirror", "--plot", tmp_path / "x.png") == 2
    assert "[plots]" in capsys.readouterr().err


@pytest.mark.parametrize(("missing", "asked_for"), [("scipy", True), ("benchmarks.x", False)])
def test_a_package_of_an_extra_is_asked_for(call, capsys, monkeypatch, missing, asked_for):
    def absent(module):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(evaluate, "import_module", absent)
    if asked_for:
        assert call("srb", "--quick") == 2
        assert capsys.readouterr().err.strip() == (
            'error: srb needs scipy: pip install "reso-llm[bench,plots]"'
        )
    else:  # a mistake of ours is no wish for an extra
        with pytest.raises(ModuleNotFoundError):
            call("srb", "--quick")


def test_the_whole_script_lists_every_task_and_imports_none():
    """A process of its own: --help names each task by its docstring and stays light."""
    code = (
        "import sys, runpy; sys.argv = ['evaluate.py', '--help']\n"
        "try: runpy.run_path('evaluate.py', run_name='__main__')\n"
        "finally: assert not {'torch', 'transformers', 'benchmarks.tasks.lm'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=Path(evaluate.__file__).parent,
        capture_output=True, text=True, timeout=60, env={"COLUMNS": "200", "PATH": ""},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    for module in evaluate.TASKS.values():
        assert evaluate.description(module) in done.stdout
    assert "Bits per byte of a text under a model" in done.stdout


@pytest.mark.parametrize("name", QUICK)
def test_a_task_imports_neither_transformers_nor_matplotlib_at_the_top(name):
    """What `make quickstart` installs is enough for these tasks; read from the source."""
    left, seen = [evaluate.TASKS[name]], set()
    while left:
        seen.add(module := left.pop())
        path = Path(evaluate.__file__).parent / f"{module.replace('.', '/')}.py"
        if path.exists():  # else it is a package, or a name out of a module
            found = {name for name, at_top in imports(module, path.read_text()) if at_top}
            assert not {"transformers", "matplotlib"} & {name.split(".")[0] for name in found}
            left += {name for name in found if name.startswith("benchmarks.")} - seen
    assert "benchmarks.kit.records" in seen


def test_a_task_without_figure_takes_no_options_of_measuring(monkeypatch):
    class Telling:
        add_options = staticmethod(lambda parser: parser.add_argument("--out", type=str))

    parser = evaluate.task_parser("report", Telling)
    assert vars(parser.read(["--json", "-"])) == {"out": None, "json": "-"}


# --- records ------------------------------------------------------------------------------------


def test_records_are_found_by_all_their_fields(results):
    records = Records("things", on=True)
    assert records.find(seed=0) is None
    records.add({"seed": 0, "arm": "a", "levels": [1, 2]})
    records.add({"seed": 1, "arm": "a"})
    assert records.find(seed=1, arm="a")["seed"] == 1
    assert records.find(seed=0, levels=(1, 2))["seed"] == 0, "tuples are read back as lists"
    assert records.find(seed=1, arm="b") is None
    assert records.find(seed=1, levels=None)["seed"] == 1
    row = json.loads((results / "things.jsonl").read_text().splitlines()[0])
    assert {"command", "commit", "cpus"} <= row["environment"].keys()


def test_records_that_are_off_find_and_write_nothing(results):
    Records("things", on=True).add({"seed": 0})
    off = Records("things", on=False)
    assert off.find(seed=0) is None
    off.add({"seed": 1})
    assert len(records.read_rows("things")) == 1


@pytest.mark.parametrize("damage", [b'{"seed": 1, "ar', b"", b"\xff", b"[1]"])
def test_a_damaged_record_is_named_before_the_measurement(call, capsys, results, damage):
    """As of a run killed while it wrote: neither find nor the report passes over it."""
    Records("lm", on=True).add({"seed": 0})
    with (results / "lm.jsonl").open("ab") as file:
        file.write(damage + b"\n")
    assert call("lm", *RUN_ON_DATA, "--record") == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert "lm.jsonl:2: expected a row" in line
    assert line.endswith("delete the line to measure anew")
    assert captured.out == ""


RECORDED = {
    "lm": RUN_ON_DATA,
    "mirror": ["--seeds", "3"],
    "setpoint": ["--seeds", "3", "--targets", "2"],
    "ablation": ["shakespeare", "--data", "TEXT", "--steps", "1", "--only", "full", "control",
                 "--seeds", "0"],
}  # fmt: skip


@pytest.fixture
def tiny_tasks(monkeypatch, files):
    """The ablation at full length trains tiny models, the zombie test for a moment."""
    from cer import zombie_pair

    task = ablation.quick_task("shakespeare", files["TEXT"])
    monkeypatch.setitem(ablation.TASKS, "shakespeare", lambda path: task)
    monkeypatch.setattr("benchmarks.kit.trials.keep_freed_memory", lambda: None)
    monkeypatch.setattr(
        "benchmarks.tasks.zombie.ZombieConfig",
        lambda seeds, width: replace(
            zombie_pair.quick(zombie_pair.ZombieConfig(seeds=seeds)), width=width // 6
        ),
    )


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_recorded_is_not_measured_again(name, call, capsys, results, tiny_tasks):
    assert call(name, *RECORDED[name], "--record") == 0
    first, written = capsys.readouterr().out, (results / f"{name}.jsonl").read_text()
    assert call(name, *RECORDED[name], "--record") == 0
    assert capsys.readouterr().out == first
    assert (results / f"{name}.jsonl").read_text() == written
    assert "/" not in json.dumps([row.get("data") for row in records.read_rows(name)])


def test_a_stopped_zombie_test_goes_on_with_the_seeds_left(call, capsys, results, tiny_tasks):
    """And rows of earlier versions, which had no field `pretrained`, count."""
    assert call("zombie", "--seeds", 5, "--record") == 0
    (row,) = records.read_rows("zombie")
    del row["pretrained"]
    (results / "zombie.jsonl").write_text(json.dumps(row | {"common_nats": 99.0}) + "\n")
    capsys.readouterr()
    assert call("zombie", "--seeds", 5, 6, "--record", "--json", "-") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["seed"], r["common_nats"] == 99.0) for r in rows] == [(5, True), (6, False)]
    assert len(records.read_rows("zombie")) == 2


def test_a_stopped_ablation_goes_on_with_the_variants_left(call, capsys, results, tiny_tasks):
    options = ["ablation", "shakespeare", "--data", "TEXT", "--steps", 1, "--seeds", 0, "--record"]
    assert call(*options, "--only", "full") == 0
    assert call(*options, "--only", "control", "full") == 0
    assert [row["variant"] for row in records.read_rows("ablation")] == ["full", "control"]
    assert call(*options[:5], 2, *options[6:], "--only", "full") == 0
    assert [row["steps"] for row in records.read_rows("ablation")] == [1, 1, 2]


# --- lm -----------------------------------------------------------------------------------------


def test_the_bins_of_places_cover_each_token_once():
    tokens = np.arange(1, 13)  # a context of 12
    bins = lm.binned(2.0 * tokens, tokens)
    assert [(b["first"], b["last"]) for b in bins] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 12)]
    assert [b["tokens"] for b in bins] == [1, 2, 7, 26, 42]
    assert {b["nats_per_token"] for b in bins} == {2.0}
    assert lm.binned(np.zeros(3), np.array([1, 0, 1]))[-1]["first"] == 3, "no token, no bin"


def test_quick_scores_the_first_documents_of_each_checkpoint(call, capsys, files):
    assert call("lm", "--checkpoint", "RUN", "RUN", "--data", "DATA", "--quick", "--json", "-") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == second
    assert first["documents"] == 8
    lines = Path(files["DATA"]).read_text().splitlines()[:8]
    texts = [json.loads(line)["text"] for line in lines]
    assert first["bytes"] == pytest.approx(sum(len(text) for text in texts), rel=0.05)
    assert sum(p["tokens"] for p in first["positions"]) == first["tokens"]
    total = sum(p["tokens"] * p["nats_per_token"] for p in first["positions"])
    assert total == pytest.approx(first["nats"])


# --- ablation -----------------------------------------------------------------------------------


def row_of(variant, seed, bits, steps=1):
    return {"task": "t", "variant": variant, "seed": seed, "steps": steps, "seconds": 0.0,
            "budget": "tokens", "paced": False, "device": "cpu", "bits_per_byte": bits,
            "windowed_bits_per_byte": bits, "tokens_per_second": 1, "decode_ms": 1.0,
            "parameters": 1, "table_parameters": 0, "bound_pairs": 0}  # fmt: skip


def test_a_gain_is_paired_by_seed_and_has_a_students_interval():
    """Gains 1, 2, 3 against control: 2 ± 4.303 / sqrt(3); seed 9 has no partner."""
    rows = [row_of("control", s, 5.0 + s) for s in range(3)]
    rows += [row_of("control + x", s, 4.0) for s in range(3)] + [row_of("control + x", 9, 0.0)]
    rows += [row_of("full - x", 0, 1.0), row_of("full", 0, 4.0)]
    (group,) = ablation.groups(rows).values()
    found = ablation.gain(group, "control + x")
    assert found.mean == pytest.approx(2.0)
    assert found.half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert ablation.gain(group, "full - x") == (3.0, None), "against full, one pair"
    assert (
        ablation.gain(
            group | {"control + coherence_gate": {0: rows[0]}, "control + prsc": {0: rows[1]}},
            "control + coherence_gate",
        ).mean
        == 1.0
    )
    del group["full"]
    assert ablation.gain(group, "full - x") is None
    assert "| full - x | 1 | 1.0000 | - |" in ablation.text(rows[:7] + rows[7:8])
    assert "| +2.0000 ± 2.4841 |" in ablation.text(rows)


def test_the_forest_has_a_panel_a_budget_and_the_means():
    pytest.importorskip("matplotlib")
    rows = [row_of("control", s, 5.0 + s) for s in range(2)]
    rows += [row_of("full", s, 4.0) for s in range(2)] + [row_of("full", 0, 1.0, steps=7)]
    axes, alone = ablation.figure(rows).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["full"]
    assert list(axes.containers[0].lines[0].get_xdata()) == [1.5]
    assert axes.get_title() == "t, 1 steps each"
    assert alone.get_title() == "t, 7 steps each"
    assert not alone.containers, "without its control nothing is compared"
