"""The report: verdicts follow from rows, and turn when the rows turn."""

import json
import re
import sys

import pytest
from claim_rows import evidence_of

pytest.importorskip("matplotlib")

import evaluate
from benchmarks import report
from benchmarks.claims import HOLDS, MIXED, NOT, UNTESTED, Evidence, cer, phase_slip, reso, srb
from benchmarks.tasks import setpoint

VERDICTS = {HOLDS, NOT, MIXED, UNTESTED}


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


def test_there_are_ten_findings_and_without_rows_none_is_told():
    text = report.headlines_text(evidence_of(), None)
    assert re.findall(r"^### (\d+)\. .* \(untested\)$", text, re.MULTILINE) == [
        str(n) for n in range(1, 11)
    ]
    assert "![" not in text


def test_a_finding_that_its_rows_no_longer_bear_says_so(tmp_path):
    rows = [{"task": "guanaco", "seconds": 180.0, "variant": variant, "seed": 0,
             "bits_per_byte": bits} for variant, bits in
            (("full", 1.9), ("control + echo", 1.8), ("control", 2.2))]  # fmt: skip
    text = report.headlines_text(evidence_of(quality=rows), tmp_path)
    assert "### 1. At equal training time the full model beats a plain decoder (does not" in text
    assert "1.900 bits per byte" in text
    assert (tmp_path / "finding_equal_time.png").stat().st_size > 1000


def test_commits_are_summed_up():
    assert report.commits(["a", "a"]) == "Commit a"
    assert report.commits(["a", "b", "a", "c"]) == "Commits a, b, c"
    assert report.commits(["a", "b", "c", "d"]) == "4 commits, a to d"


def test_links_are_from_where_the_document_stands(tmp_path):
    for out in (report.DOCUMENT, tmp_path / "deep" / "results.md"):
        (link,) = re.findall(r"\[benchmarks/README.md\]\((.*?)\)", report.introduction(out, []))
        assert (out.parent.resolve() / link).resolve() == report.STUDIES.resolve()


@pytest.fixture
def write_report(tmp_path, monkeypatch, results):
    """Of made-up rows by the name of their task: the document's path."""
    results.mkdir()
    out = tmp_path / "docs" / "results.md"

    def write(**tables):
        for name, rows in tables.items():
            about = {"command": f"evaluate.py {name} --record", "commit": "abc", "processor": "P",
                     "cpus": 2, "packages": {"torch": "2"}}  # fmt: skip
            lines = "".join(json.dumps(row | {"environment": about}) + "\n" for row in rows)
            (results / f"{name}.jsonl").write_text(lines)
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
    assert "All tables, by task: [setpoint](results/setpoint.md). " in document
    tables = (out.parent / "results" / "setpoint.md").read_text()
    assert "# setpoint: How far" in tables
    assert "python evaluate.py setpoint --record" in tables
    for text, folder in ((document, out.parent), (tables, out.parent / "results")):
        for link in re.findall(r"!\[[^]]*\]\((.*?)\)", text):
            assert (folder / link).stat().st_size > 1000
    assert not (out.parent / "results" / "zombie.md").exists(), "no rows"
    assert not (out.parent / "results" / "srb.md").exists(), "no row that can be told"
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
    """Guards a recorded row without a new report."""
    document = report.DOCUMENT.read_text(encoding="utf-8")
    evidence = Evidence()
    assert report.claims_text(report.findings(evidence)) in document
    assert report.headlines_text(evidence, None) in document


def test_check_names_the_first_line_that_differs(tmp_path):
    path = tmp_path / "results.md"
    path.write_text("a\nb\nc\n")
    report.check(path, "a\nb\nc\n")
    for line, document in ((2, "a\nx\nc\n"), (3, "a\nb\n")):
        with pytest.raises(ValueError, match=f"results.md:{line}: not up"):
            report.check(path, document)
    with pytest.raises(ValueError, match=r"gone\.md:1: not up to date"):
        report.check(tmp_path / "gone.md", "a\n")
