"""The report: verdicts follow from rows, and turn when the rows turn."""

import json
import re
import sys

import pytest

pytest.importorskip("matplotlib")

import evaluate
from benchmarks import common, report
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
    phase_slip,
    reso,
    srb,
    untested,
)

VERDICTS = {HOLDS, NOT, MIXED, UNTESTED}


def evidence_of(**tables):
    return Evidence(lambda name: tables.get(name, []))


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
    assert len(known) == {cer: 1, reso: 3}.get(module, 0)
    assert all(f.verdict == HOLDS and f.rerun for f in known)


def test_what_is_recorded_gives_every_claim_words_and_a_verdict():
    for some in report.findings(Evidence()).values():
        for claim, finding in some:
            assert finding.verdict in VERDICTS, claim.text
            assert finding.measured, claim.text
            assert not re.search(r"\bnan\b|None", finding.measured), claim.text
            assert bool(finding.rerun) == (finding.verdict != UNTESTED), claim.text


def srb_row(**changes):
    """A study in which SRB is as good as its document says."""
    good = {
        "seconds": (-2.0, -3.0, -1.0), "saved": (0.3, 0.2, 0.4), "finished": (0.1, 0.05, 0.2),
        "own_end_nats": (-1.0, -2.0, -0.5), "code_parses": None, "steps_met": (0.0, -0.1, 0.1),
    }  # fmt: skip
    row = {
        "kind": "study", "model": "m", "default_exits": 0.5,
        "arms": {"static": {"seconds": (9.0, 8.0, 10.0)}, "srb": {"exits": (0.5, 0.4, 0.6)}},
        "srb_minus": {"static": good},
        "matched": {"elsewhere": good, "end_rule": good},
        "by_bucket": {
            "summaries": {"saved": (0.5, 0.4, 0.6)},
            "creative": {"saved": (0.1, 0.0, 0.2)},
        },
        "questions": {
            "replies": {"E, first 32: rep4": (0.5, 0.3, 0.7)},
            "places": {"E": (0.5, 0.4, 0.6)},
            "curves": {"between": 0.1, "between_by_chance": 0.1, "p": 0.5},
        },
    }  # fmt: skip
    for path, value in changes.items():
        *inner, last = path.split("__")
        place = row
        for key in inner:
            place[key] = dict(place[key])
            place = place[key]
        place[last] = value
    return row


SRB_TURNS = [
    ("SRB reduces wall-clock time", {"srb_minus__static__seconds": (-1.0, -3.0, 1.0)}, NOT),
    ("Quality is maintained", {"srb_minus__static__finished": (-0.3, -0.4, -0.2)}, NOT),
    ("Quality is maintained", {"srb_minus__static__own_end_nats": (1.0, 0.5, 2.0)}, NOT),
    ("SRB stops where", {"matched__elsewhere__own_end_nats": (0.0, -1.0, 1.0)}, MIXED),
    ("It need not rely", {"matched__end_rule__finished": (-0.1, -0.2, 0.0)}, MIXED),
    ("Facts stabilise", {"by_bucket__summaries__saved": (0.15, 0.1, 0.2)}, NOT),
    ("Entropy that settles", {"default_exits": 0.0}, MIXED),
    ("1. (H", {"questions__replies": {"E, first 32: rep4": (0.1, -0.1, 0.3)}}, NOT),
    ("1. ...", {"questions__places": {"E": (0.1, 0.05, 0.2)}}, NOT),
    ("2. Compute", {"srb_minus__static__finished": (-0.3, -0.4, -0.2)}, MIXED),
    ("3. Collapse", {"questions__curves__p": 0.001}, NOT),
]


@pytest.mark.parametrize(("start", "changes", "verdict"), SRB_TURNS)
def test_a_claim_about_srb_turns_with_its_row(start, changes, verdict):
    (claim,) = [c for c in srb.CLAIMS if c.text.startswith(start)]
    good = claim.finding(evidence_of(srb=[srb_row()]))
    assert good.verdict == HOLDS
    assert claim.finding(evidence_of(srb=[srb_row(**changes)])).verdict == verdict
    two = [srb_row(), srb_row(model="n", **changes)]
    assert claim.finding(evidence_of(srb=two)).verdict == MIXED


def test_the_report_writes_its_document_and_figures(tmp_path, monkeypatch, capsys):
    rows = [
        {**row, "environment": {"command": "evaluate.py setpoint --record", "commit": "abc",
                                "processor": "P", "cpus": 2, "packages": {"torch": "2"}}}
        for row in setpoint_rows()
    ]  # fmt: skip
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "results" / "setpoint.jsonl").write_text(lines)
    out = tmp_path / "docs" / "results.md"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "report", "--out", str(out)])
    evaluate.main()
    document = out.read_text()
    num_claims = sum(len(m.CLAIMS) for m in (cer, phase_slip, reso, srb))
    assert document.count("| **") == num_claims
    assert "## setpoint: How far" in document
    assert "python evaluate.py setpoint --record" in document
    assert (out.parent / "figures" / "setpoint.png").stat().st_size > 1000
    assert "## zombie" not in document
    assert f"{num_claims} claims: " in capsys.readouterr().out


def setpoint_rows():
    from benchmarks import setpoint

    options = type("Options", (), dict(seeds=[0], targets=[1.0, 3.0], mode=["published"],
                                       quick=True, record=False))  # fmt: skip
    return json.loads(json.dumps(setpoint.run(options)))
