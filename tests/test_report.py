"""The report: verdicts follow from rows, and turn when the rows turn."""

import json
import re
import sys

import pytest
from claim_rows import evidence_of

pytest.importorskip("matplotlib")

import evaluate
from benchmarks import common, report, setpoint
from benchmarks.claims import (
    HOLDS,
    MIXED,
    NOT,
    UNTESTED,
    Claim,
    Evidence,
    Finding,
    Missing,
    above,
    below,
    cer,
    combined,
    each,
    newest,
    phase_slip,
    reso,
    srb,
    untested,
)
from benchmarks.heldout import mean_interval

VERDICTS = {HOLDS, NOT, MIXED, UNTESTED}


def test_rows_are_chosen_by_their_fields_and_the_newest_is_last():
    evidence = evidence_of(a=[{"x": 1, "y": 1}, {"x": 2, "y": 2}, {"x": 1, "y": 3}])
    assert [r["y"] for r in evidence.rows("a", x=1)] == [1, 3]
    assert evidence.row("a", x=1)["y"] == 3
    with pytest.raises(Missing, match=r"results/b\.jsonl"):
        evidence.rows("b")
    with pytest.raises(Missing):
        evidence.rows("a", x=3)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [((-2, -3, -1), HOLDS, NOT), ((2, 1, 3), NOT, HOLDS), ((0.1, -1, 1), NOT, NOT)],
)
def test_an_effect_holds_where_its_whole_interval_is_on_its_side(values, low, high):
    assert (below(values), above(values)) == (low, high)


def test_verdicts_that_differ_are_mixed():
    assert combined(HOLDS, HOLDS) == HOLDS
    assert combined(NOT) == NOT
    assert combined(HOLDS, NOT) == MIXED


def test_a_claim_without_rows_is_untested_and_says_which():
    claim = Claim("x", "y", lambda evidence: evidence.row("nothing"))
    found = claim.finding(evidence_of())
    assert found.verdict == UNTESTED
    assert "results/nothing.jsonl" in found.measured
    assert untested("because")(evidence_of()) == Finding("because", UNTESTED, "")


@pytest.mark.parametrize("module", [cer, phase_slip, reso, srb])
def test_without_rows_only_what_is_computed_now_has_a_verdict(module):
    found = [claim.finding(evidence_of()) for claim in module.CLAIMS]
    known = [f for f in found if f.verdict != UNTESTED]
    assert len(known) == {cer: 2, reso: 12}.get(module, 0)
    assert all(f.rerun for f in known)


def test_what_is_recorded_gives_every_claim_words_and_a_verdict():
    for some in report.findings(Evidence()).values():
        for claim, finding in some:
            assert finding.verdict in VERDICTS, claim.text
            assert finding.measured, claim.text
            assert not re.search(r"\bnan\b|None", finding.measured), claim.text
            assert bool(finding.rerun) == (finding.verdict != UNTESTED), claim.text


def test_a_claim_whose_rows_cannot_be_read_is_named():
    claim = Claim("the moon is near", "y", lambda evidence: evidence.row("a")["distance"])
    with pytest.raises(ValueError, match=r"the moon is near.*KeyError: 'distance'"):
        claim.finding(evidence_of(a=[{"x": 1}]))


def test_models_without_rows_are_left_out_and_named_where_all_are():
    def judge(row):
        if row is None:
            raise Missing("nothing there")
        return row

    assert each({"m": ("fine", HOLDS), "n": None}, judge, "r") == Finding("m: fine", HOLDS, "r")
    both = each({"m": ("fine", HOLDS), "n": ("bad", NOT)}, judge, "r")
    assert both == Finding("m: fine; n: bad", MIXED, "r")
    with pytest.raises(Missing, match="nothing there"):
        each({"n": None}, judge, "r")


def test_of_equal_rows_the_newest_is_kept_in_its_place():
    rows = [{"seed": 0, "x": 1}, {"seed": 1, "x": 2}, {"seed": 0, "x": 3}]
    assert newest(rows, "seed") == [{"seed": 0, "x": 3}, {"seed": 1, "x": 2}]
    assert mean_interval([(1, 0, 2), (3, 2, 4)]) == [2, 1, 3]


def test_commits_are_summed_up():
    assert report.commits(["a", "a"]) == "Commit a"
    assert report.commits(["a", "b", "a", "c"]) == "Commits a, b, c"
    assert report.commits(["a", "b", "c", "d"]) == "4 commits, a to d"


def test_links_are_from_where_the_document_stands(tmp_path):
    for out in (report.DOCUMENT, tmp_path / "deep" / "results.md"):
        (link,) = re.findall(r"\[benchmarks/README.md\]\((.*?)\)", report.introduction(out))
        assert (out.parent.resolve() / link).resolve() == report.STUDIES.resolve()


@pytest.fixture
def write_report(tmp_path, monkeypatch):
    """Of made-up rows by the name of their task: the document's path."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    out = tmp_path / "docs" / "results.md"

    def write(**tables):
        for name, rows in tables.items():
            about = {"command": f"evaluate.py {name} --record", "commit": "abc", "processor": "P",
                     "cpus": 2, "packages": {"torch": "2"}}  # fmt: skip
            lines = "".join(json.dumps(row | {"environment": about}) + "\n" for row in rows)
            (tmp_path / "results" / f"{name}.jsonl").write_text(lines)
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "report", "--out", str(out)])
        evaluate.main()
        return out

    return write


def test_the_report_writes_its_document_and_figures(write_report, capsys):
    out = write_report(setpoint=setpoint_rows(), srb=[{"run": "a protocol of before"}])
    document = out.read_text()
    num_claims = sum(len(m.CLAIMS) for m in (cer, phase_slip, reso, srb))
    assert sum(document.count(f"| **{verdict}** |") for verdict in VERDICTS) == num_claims
    assert f"| all | {num_claims} | " in document
    assert "## setpoint: How far" in document
    assert "python evaluate.py setpoint --record" in document
    assert (out.parent / "figures" / "setpoint.png").stat().st_size > 1000
    assert "## zombie" not in document, "no rows"
    assert "## srb" not in document, "no row that can be told"
    told = capsys.readouterr().out
    assert told.startswith(f"{num_claims} claims: ")
    assert "untested, Phase-Slip: " in told
    assert all(f"  {title}: " in told for title in report.DOCUMENTS)


@pytest.mark.parametrize("fails", ["text", "figure"])
def test_a_task_that_cannot_tell_its_rows_is_named(write_report, monkeypatch, fails):
    def fail(rows):
        raise KeyError("depth")

    monkeypatch.setattr(report, "findings", lambda evidence: {})
    monkeypatch.setattr(setpoint, fails, fail)
    with pytest.raises(ValueError, match=r"the task setpoint, .*setpoint\.jsonl: KeyError"):
        write_report(setpoint=setpoint_rows())


def setpoint_rows():
    options = type("Options", (), dict(seeds=[0], targets=[1.0, 3.0], mode=["published"],
                                       quick=True, record=False))  # fmt: skip
    return json.loads(json.dumps(setpoint.run(options)))


def test_the_committed_document_is_that_of_the_recorded_rows():
    """Whoever records a row makes the report anew."""
    document = report.DOCUMENT.read_text(encoding="utf-8")
    assert report.claims_text(report.findings(Evidence())) in document
