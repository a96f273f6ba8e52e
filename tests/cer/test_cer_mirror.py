"""The mirror test, its ablations, the set point curve, their figures and their command."""

import copy
import io
import json
import math
import statistics

import numpy as np
import pytest
import torch

import evaluate
from benchmarks.tasks import mirror as mirror_task
from cer import ablation, figures
from cer.ablation import BASELINE, ENCODER, ablate, ablation_table, bootstrap_interval
from cer.mirror import (
    CONDITIONS,
    PUBLISHED,
    PUBLISHED_SEEDS,
    build_reactor,
    condition_input,
    mirror_table,
    mirror_test,
    output_table,
)
from cer.pretrained import SHIPPED, load_reactor
from cer.setpoint import final_error, setpoint_curve, setpoint_table, worst_error
from run_core.checkpoint import CheckpointError

# Final state entropy (mean, deviation) PEAKED, UNIFORM, RANDOM over ten seeds, and brake/escape,
# of an independent implementation.
TABLE = {
    BASELINE: (3.84, 0.49, 4.11, 0.23, 4.10, 0.24, 178, 1),
    "no control, no phase modulation": (3.14, 0.85, 3.63, 0.37, 3.61, 0.39, 0, 0),
    ENCODER: (5.10, None, 5.15, None, 5.15, None, 0, 0),
}
SMALL = dict(input_dim=8, hidden_dim=16, output_dim=8, num_heads=2, target_entropy=1.5)


@pytest.fixture(scope="module")
def two_seeds():
    return mirror_test([0, 1])


@pytest.fixture(scope="module")
def corrected():
    return mirror_test([0, 1], "corrected", **SMALL)


def small(seed):
    return build_reactor(seed, **SMALL)


# --- the mirror test --------------------------------------------------------------------------


def test_the_summary_is_of_the_seeds(two_seeds):
    for i, name in enumerate(CONDITIONS):
        runs = [r["conditions"][i] for r in two_seeds["seed_results"]]
        summary = two_seeds["summary"]["conditions"][name]
        for step in (0, 5):
            values = [run["steps"][step]["entropy"] for run in runs]
            told = summary["entropy_trajectory"][f"step_{step}"]
            assert told["mean"] == pytest.approx(statistics.fmean(values), abs=1e-6)
            assert told["std"] == pytest.approx(np.std(values), abs=1e-6)
            assert (told["min"], told["max"]) == (min(values), max(values))
        labels = [s["control"] for run in runs for s in run["steps"]]
        counts = summary["control_actions"]
        assert counts == {
            "brake": sum(label == "BRAKE" for label in labels),
            "escape": sum(label == "ESCAPE" for label in labels),
            "total_steps": 12,
        }
    table = mirror_table(two_seeds).splitlines()
    assert len(table) == 5
    assert table[2].startswith("| PEAKED | 0.063 nats | 3.")
    assert table[2].endswith("| 11 BRAKE, 1 ESCAPE, 0 none |")
    assert "| 4.852 nats |" in table[3]


def test_a_seed_does_not_depend_on_the_others_or_on_torchs_generator(two_seeds):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    alone = mirror_test([1])
    assert alone["seed_results"] == two_seeds["seed_results"][1:]
    assert torch.equal(torch.get_rng_state(), before)


def test_corrected_runs_end_on_the_set_point(corrected):
    for run in corrected["seed_results"]:
        for condition in run["conditions"]:
            steps = condition["steps"]
            assert steps[-1]["entropy"] == pytest.approx(1.5, abs=1e-3)
            for step in steps:
                signs = {"ESCAPE": 1, "BRAKE": -1, "NONE": 0}
                deficit = step["deficit"] if abs(step["deficit"]) > 1e-3 else 0
                assert np.sign(deficit) == signs[step["control"]]
                assert step["drift_applied"] == (step["control"] != "NONE")
    assert corrected["metadata"]["mode"] == "corrected"


def test_conditions():
    generator = torch.Generator().manual_seed(0)
    peaked, uniform, random = (condition_input(n, 128, generator) for n in CONDITIONS)
    assert peaked.shape == uniform.shape == random.shape == (4, 16, 128)
    assert (peaked.argmax(-1) == 0).all()
    assert (peaked[..., 0] / peaked[..., 1]).log() == pytest.approx(torch.full((4, 16), 10.0))
    assert (uniform == 1 / 128).all()
    drawn = torch.randn(4, 16, 128, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert torch.equal(random, drawn)
    with pytest.raises(ValueError, match="PEAKED, UNIFORM, RANDOM"):
        condition_input("FLAT", 128, generator)


@pytest.mark.parametrize("seeds", [[], [0, 0]])
def test_seeds_are_some_and_different(seeds):
    with pytest.raises(ValueError, match="seeds must be"):
        mirror_test(seeds)


# --- ablations --------------------------------------------------------------------------------


def test_the_ablation_table_of_ten_seeds():
    """Not the row without mixing: it is the baseline's but for 0.01 and would test no more."""
    for row in ablate(range(10), variants=list(TABLE)):
        *expected, brake, escape = TABLE[row["variant"]]
        told = [c[k] for c in row["conditions"].values() for k in ("mean", "std")]
        for value, published in zip(told, expected, strict=True):
            assert published is None or value == pytest.approx(published, abs=0.0051)
        assert (row["brake"], row["escape"]) == (brake, escape)
        for c in row["conditions"].values():
            assert c["interval"][0] < c["mean"] < c["interval"][1]


def test_each_variant_takes_out_its_part():
    """Each twin is the same reactor with parameters at zero."""

    def zeroed(seed, *names):
        reactor, generator = small(seed)
        with torch.no_grad():
            for name, p in reactor.named_parameters():
                if any(part in name for part in names):
                    p.zero_()
        return reactor.eval(), generator

    def last(variant, built):
        return ablation.final_entropies(variant, built)[0]

    for variant, names in [
        ("attention output := 0", ["attention.out"]),
        ("FFN := 0", ["ffn.down"]),
    ]:
        reactor, generator = small(0)
        got = last(variant, (reactor.eval(), generator))
        assert got == pytest.approx(last(BASELINE, zeroed(0, *names)), abs=1e-5)
        assert got != pytest.approx(last(BASELINE, zeroed(0)), abs=1e-3)


def test_without_mixing_positions_do_not_meet():
    reactor, _ = small(0)
    ablation.without_mixing(reactor)
    ablation.without_control(reactor)
    reactor.eval()
    x = torch.rand(1, 3, 8).softmax(-1)
    other = x.clone()
    other[0, 2] = x[0, 2].flip(0)
    assert torch.equal(reactor(x).reactions[0, :2], reactor(other).reactions[0, :2])
    single = small(0)[0].eval()  # one position reads itself: nothing is to be mixed
    ablation.without_control(single)
    torch.testing.assert_close(reactor(x[:, :1]).reactions, single(x[:, :1]).reactions)


@pytest.mark.parametrize("mode", ["published", "corrected"])
def test_without_control_nothing_but_the_blocks_acts(mode):
    reactor, _ = build_reactor(0, mode, **SMALL)
    ablation.without_control(reactor)
    reactor.eval()
    x = torch.rand(2, 3, 8).softmax(-1)
    z = reactor.encode(x)
    for block in reactor.blocks:
        for _ in range(3):
            z = block(z, 0.0, None)
    result = reactor(x)
    torch.testing.assert_close(result.reactions, reactor.output(z))
    assert not any(torch.as_tensor(s.drift_applied).any() for s in result.trajectory)


def test_the_baseline_differs_from_itself_by_nothing_and_pairs_seeds():
    rows = ablate([0, 1, 2], small, [BASELINE, "FFN := 0"])
    for name in CONDITIONS:
        base, other = (row["conditions"][name] for row in rows)
        assert base["difference_interval"] == (0.0, 0.0)
        expected = np.mean(np.subtract(other["values"], base["values"]))
        assert other["difference"] == pytest.approx(expected)
    lines = ablation_table(rows).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_bootstrap_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(values, np.random.default_rng(0))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_wrong_variants_are_refused():
    with pytest.raises(ValueError, match="unknown variants"):
        ablate([0], small, [BASELINE, "nothing"])
    with pytest.raises(ValueError, match="the first variant"):
        ablate([0], small, ["FFN := 0"])


# --- set point, figures, command ----------------------------------------------------------------


def test_setpoint_curve_is_flat_in_corrected_and_not_in_published():
    fixed = setpoint_curve([0], [2.0, 4.0])
    assert max(row["error"] for row in fixed["rows"]) < 1e-3
    assert len(setpoint_table(fixed).splitlines()) == 4
    missed = setpoint_curve([0], [2.0], "published")
    assert min(row["error"] for row in missed["rows"]) > 0.5
    step = small(0)[0](condition_input("UNIFORM", 8, None)).trajectory[0]
    step = step._replace(entropy=torch.tensor([1.9, 2.5, 1.25]))
    assert final_error(step, 2.0) == 0.75
    row = dict(target=2.0, condition="RANDOM")
    others = [dict(row, target=3.0, error=9.0), dict(row, condition="PEAKED", error=8.0)]
    rows = [dict(row, error=0.1), dict(row, error=0.7), dict(row, error=0.2), *others]
    assert worst_error({"rows": rows}, 2.0, "RANDOM") == 0.7
    with pytest.raises(ValueError, match="ln hidden_dim"):
        setpoint_curve([0], [6.0])
    with pytest.raises(ValueError, match="at least one"):
        setpoint_curve([])


def test_figures_show_the_numbers(corrected):
    pytest.importorskip("matplotlib")
    figure = figures.mirror_figure(corrected)
    trajectories, outputs, actions = figure.axes
    for name, line in zip(CONDITIONS, trajectories.get_legend().get_lines(), strict=True):
        assert line.get_label() == name
        drawn = next(
            candidate
            for candidate in trajectories.get_lines()
            if candidate.get_label() == name
        )  # fmt: skip
        told = corrected["summary"]["conditions"][name]["entropy_trajectory"].values()
        assert list(drawn.get_ydata()) == [s["mean"] for s in told]
    heights = [sum(bar[i].get_height() for bar in actions.containers) for i in range(3)]
    assert heights == [12, 12, 12]
    labels = [text.get_text() for text in actions.get_legend().get_texts()]
    counts = {text.split(" ")[0]: int(text.split("(")[1][:-1]) for text in labels}
    all_steps = [
        s["control"] for r in corrected["seed_results"] for c in r["conditions"] for s in c["steps"]
    ]
    assert counts == {name: all_steps.count(name) for name in ("BRAKE", "ESCAPE", "NONE")}
    assert "2 seeds" in figure.get_suptitle()
    assert outputs.get_ylim()[0] == 0
    figures.setpoint_figure(setpoint_curve([0], [3.0])).savefig(io.BytesIO())


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()


def test_the_command_writes_json_and_figure(monkeypatch, capsys, tmp_path, two_seeds):
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "mirror.json", tmp_path / "mirror.png"
    run(monkeypatch, "mirror", "--seeds", 0, 1, "--json", out, "--plot", plot)
    (row,) = json.loads(out.read_text())
    assert {name: row[name] for name in two_seeds} == json.loads(json.dumps(two_seeds))
    assert (row["mode"], row["seeds"]) == ("published", [0, 1])
    assert plot.read_bytes().startswith(b"\x89PNG")
    title = "**mirror test, published mode, 2 seeds**\n\n"
    assert capsys.readouterr().out == title + mirror_table(two_seeds) + "\n"


def test_the_command_of_the_ablation_and_the_set_point(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(ablation, "ablate", lambda seeds, build, progress: [seeds])
        run(patch, "mirror", "--ablation", "--seeds", 3, 4, "--json", "-")
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["mode"], row["seeds"], row["variants"]) == ("published", [3, 4], [[3, 4]])
    run(monkeypatch, "setpoint", "--seeds", 0, "--targets", 3)
    assert capsys.readouterr().out.splitlines()[4].startswith("| 3 |")


def test_the_ablation_is_drawn_with_its_intervals():
    """A line from the low to the high end of every variant's interval, baseline left out."""
    pytest.importorskip("matplotlib")
    names = [BASELINE, "FFN := 0", "attention output := 0"]
    row = {"kind": "ablate", "mode": "published", "seeds": [0, 1],
           "variants": ablate([0, 1], variants=names)}  # fmt: skip
    drawn = mirror_task.figure([row]).subfigs[0].axes
    for axes, condition in zip(drawn, ("PEAKED", "UNIFORM", "RANDOM"), strict=True):
        intervals = [list(line.get_xdata()) for line in axes.lines[:4:2]]
        assert intervals == [
            list(v["conditions"][condition]["difference_interval"]) for v in row["variants"][1:]
        ]
    assert [t.get_text() for t in drawn[0].get_yticklabels()] == names[1:]


@pytest.mark.parametrize("mode", ["published", "corrected"])
def test_arrows_of_the_set_point_start_where_the_control_found_the_state(mode):
    """Guards arrows that came from above the largest entropy there is."""
    pytest.importorskip("matplotlib")
    drawn = figures.setpoint_figure(setpoint_curve([0], [3.0], mode)).axes[1]
    arrows = [line.get_ydata() for line in drawn.lines if len(set(line.get_xdata())) == 1]
    arrows = [ends for ends in arrows if len(ends) == 2]
    assert len(arrows) == 6
    assert all(0 <= y <= math.log(256) for ends in arrows for y in ends)


def test_the_table_of_the_published_seeds_compares_with_the_published_values(two_seeds):
    """A tick only where mean, deviation and both counts are the published ones."""
    result = copy.deepcopy(two_seeds)
    result["metadata"]["n_seeds"] = PUBLISHED_SEEDS
    for name, (_, mean, std, brake, escape) in PUBLISHED.items():
        summary = result["summary"]["conditions"][name]
        final = [*summary["entropy_trajectory"]][-1]
        summary["entropy_trajectory"][final] |= {"mean": mean, "std": std}
        summary["control_actions"] |= {"brake": brake, "escape": escape}
    assert [line[-5:] for line in mirror_table(result).splitlines()[2:]] == ["| ✓ |"] * 3
    result["summary"]["conditions"]["RANDOM"]["control_actions"]["brake"] -= 1
    assert [line[-3] for line in mirror_table(result).splitlines()[2:]] == ["✓", "✓", "✗"]
    assert "Published" not in mirror_table(two_seeds)


# --- the trained reactor ----------------------------------------------------------------------


def test_the_trained_reactor_sharpens_against_its_control_and_a_seed_draws_its_input_alone():
    result = mirror_test([0, 1], "corrected", trained=load_reactor())
    assert result["metadata"]["num_parameters"] > 1.6e6
    for name in CONDITIONS:
        summary = result["summary"]["conditions"][name]
        assert summary["entropy_trajectory"]["step_2"]["mean"] == pytest.approx(3, abs=1e-3)
        assert summary["entropy_trajectory"]["step_5"]["mean"] < 2.1  # one limit above 0
        assert (summary["output_entropy"]["std"] == 0) == (name != "RANDOM")
    assert output_table(result).splitlines()[2].startswith("| PEAKED | 0.063 | 2.05 ± 0.00 |")


def test_the_trained_reactor_fits_four_megabytes():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 4e6


def test_a_missing_trained_reactor_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="none"):
        load_reactor(tmp_path / "none")


@pytest.mark.parametrize("options", [["--ablation"], ["--mode", "published"]])
def test_the_trained_reactor_has_one_mode_and_no_ablation(monkeypatch, options):
    with pytest.raises(ValueError, match="--trained goes with --mode corrected alone"):
        run(monkeypatch, "mirror", "--trained", *options)
