"""The rules of the claims, the sentences with numbers of rows, and how verdicts are made."""

import pytest
from claim_rows import evidence_of

from benchmarks.claims import HOLDS, MIXED, NOT, UNTESTED, Claim, Finding, Missing
from benchmarks.claims.rules import above, all_of, apart, below, equal, less, more, rows_of, truths
from benchmarks.claims.sentences import say


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
    [
        ((-2, -3, -1), True, False),
        ((2, 1, 3), False, True),
        ((0.1, -1, 1), False, False),
        ((-0.1, -1, 1), False, False),
    ],
)
def test_an_effect_holds_where_its_whole_interval_is_on_its_side(values, low, high):
    row = {"a": {"b": values}, "c": (9, 8, 10)}
    assert (below("a.b")(row), above("a.b")(row)) == (low, high)
    assert above("a.b", 0.5)(row) == (values[1] > 0.5)
    assert (apart("a.b", "c")(row), apart("c", "a.b")(row)) == (True, False)


def test_numbers_are_compared_with_bounds_and_with_each_other():
    row = {"a": 1.0, "b": 2.0, "c": [True, False]}
    assert (less("a", "b")(row), less("a", 1.0)(row), more("b", 1.5)(row)) == (True, False, True)
    assert (equal("a", 1)(row), equal("a", 2)(row)) == (True, False)
    assert all_of(less("a", "b"), more("b", 1))(row)
    assert not all_of(less("a", "b"), more("b", 3))(row)
    assert truths("c")(row) == [True, False]


def test_a_sentence_has_means_of_seeds_and_intervals():
    rows = [{"n": 3, "m": {"x y": [1.0, 0.0, 2.0]}}, {"n": 3, "m": {"x y": [2.0, 1.0, 4.0]}}]
    assert say("{n:,} of {case}: {m.x y:.1f}, {m.x y.0:.2f}", rows, case="z") == (
        "3 of z: 1.5 [0.5, 3.0], 1.50"
    )


def test_a_path_may_name_a_value_with_its_interval():
    row = {"a": {"mean": -2.0, "mean_interval": [-3.0, -1.0]}}
    assert say("{a.mean±:.1f}", [row]) == "-2.0 [-3.0, -1.0]"
    assert below("a.mean±")(row)
    assert not below("a.mean±", -1.5)(row)


def claim_on(rows_by_case, *rules, **options):
    """A claim on given rows."""
    return Claim("x", "y", "r", lambda evidence: rows_by_case, "{case} {v}", rules, **options)


def test_a_rule_holds_in_every_seed_and_cases_that_differ_are_mixed():
    good, bad = {"v": 1}, {"v": -1}
    for cases, verdict in (
        ({"m": [good, good]}, HOLDS), ({"m": [good, bad]}, NOT),
        ({"m": [good], "n": [bad]}, MIXED), ({"m": [bad], "n": [bad, good]}, NOT),
    ):  # fmt: skip
        assert claim_on(cases, more("v", 0)).finding(evidence_of()).verdict == verdict
    two = claim_on({"m": [good]}, more("v", 0), more("v", 5)).finding(evidence_of())
    assert two.verdict == MIXED
    with pytest.raises(ValueError, match="nothing was asked"):
        claim_on({"m": [good]}).finding(evidence_of())


def test_a_claim_without_rows_is_untested_and_says_which():
    claim = Claim("x", "y", "r", rows_of("nothing"))
    finding = claim.finding(evidence_of())
    assert finding.verdict == UNTESTED
    assert "results/nothing.jsonl" in finding.measured
    untestable = Claim("x", "y", because="because")
    assert untestable.finding(evidence_of()) == Finding("because", UNTESTED, "")


def test_a_claim_whose_rows_cannot_be_read_is_named():
    claim = Claim("the moon is near", "y", "r", rows_of("a"), "{distance}", (less("distance", 1),))
    with pytest.raises(ValueError, match=r"the moon is near.*KeyError: 'distance'"):
        claim.finding(evidence_of(a=[{"x": 1}]))


def test_models_without_rows_are_left_out_and_named_where_all_are():
    def view(rows):
        if rows[0] is None:
            raise Missing("nothing there")
        return rows

    fine, bad = {"v": 1}, {"v": -1}
    some = claim_on({"m": [fine], "n": [None]}, more("v", 0), view=view)
    assert some.finding(evidence_of()) == Finding("m 1", HOLDS, "r")
    both = claim_on({"m": [fine], "n": [bad]}, more("v", 0), view=view)
    assert both.finding(evidence_of()) == Finding("m 1; n -1", MIXED, "r")
    none = claim_on({"n": [None]}, more("v", 0), view=view)
    assert none.finding(evidence_of()) == Finding("nothing there", UNTESTED, "")


def test_rows_are_selected_by_case_of_the_newest():
    rows = [{"k": "a", "s": 0, "v": 1, "c": "old"}, {"k": "b", "s": 0, "v": 2, "c": "new"},
            {"k": "b", "s": 0, "v": 3, "c": "new"}]  # fmt: skip
    evidence = evidence_of(x=rows)
    assert rows_of("x")(evidence) == {"": rows}
    assert rows_of("x", "k", "s", case="k")(evidence) == {"a": rows[:1], "b": rows[2:]}
    assert rows_of("x", "s", like_last=("c",))(evidence) == {"": rows[2:]}
