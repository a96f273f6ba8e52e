"""Phase-Slip against other samplers at equal nats per byte: the statistics, tables and claims."""

import pytest

pytest.importorskip("transformers")

from claim_rows import evidence_of, the_claim

from benchmarks.claims import HOLDS, MIXED, NOT, UNTESTED, phase_slip
from benchmarks.kit.writers import Text
from benchmarks.tasks.phase_slip import rivals
from benchmarks.tasks.phase_slip.arms import CURVE, GREEDY, is_drawn
from benchmarks.tasks.phase_slip.questions import QUESTIONS, says
from benchmarks.tasks.phase_slip.statistics import drawn_measures

MEASURED = {  # rep-4, distinct-2, nats per byte
    GREEDY: (0.4, 0.6, 0.2),
    rivals.REWIND: (0.0, 0.95, 0.3),
    CURVE[0.2]: (0.2, 0.7, 0.25),
    CURVE[0.8]: (0.1, 0.9, 0.45),
    "DRY 0.8": (0.01, 0.94, 0.28),
    "DRY 1.6": (0.0, 0.945, 0.32),
    "penalty 1.05": (0.05, 0.9, 0.28),
    "penalty 1.1": (0.03, 0.94, 0.35),
}


def row(arm, **changes):
    repeats, distinct, nats = MEASURED[arm]
    ones = [[100.0]] * 4
    named = {"rep-4": repeats, "distinct-2": distinct, "own": nats}
    pairs = {name: [[[100 * x]] * 4, ones] for name, x in named.items()}
    values = {"rep-4": repeats, "escaped": float(arm != GREEDY), "ends": 0.25, "rewinds": 0.05}
    return {"model": "m", "weights": "w", "protocol": "rivals", "arm": arm, "tokens": 100,
            "seeds": [0], "scorer": None, "scored_seeds": None, "pairs": pairs,
            "values": values} | changes  # fmt: skip


def fact(**changes):
    about = {"model": "m", "weights": "w", "protocol": "facts", "arm": rivals.REWIND, "asked": 150}
    return about | {"right": 100, "same": 99, "still": 100} | changes


def rows(*changed):
    return [*map(row, MEASURED), fact(), *changed]


def test_an_arm_against_a_curve_by_hand():
    """At .3 nats sampling is a quarter of the way from .2/.7 to .1/.9."""
    drawn = drawn_measures([row(arm) for arm in MEASURED])
    repeats = rivals.against(drawn, rivals.REWIND, "sampling", "own", "rep-4")
    distinct = rivals.against(drawn, rivals.REWIND, "sampling", "own", "distinct-2")
    assert repeats == pytest.approx([-0.175] * 3)
    assert distinct == pytest.approx([0.2] * 3)
    repeats = rivals.against(drawn, rivals.REWIND, "DRY", "own", "rep-4")
    assert repeats == pytest.approx([-0.005] * 3)


def test_an_arm_beyond_a_curve_is_not_compared_with_it():
    """To its left greedy is the family's; to its right nothing is."""
    drawn = drawn_measures([row(arm) for arm in MEASURED])
    drawn[rivals.REWIND]["own"][:] = 0.1
    assert rivals.against(drawn, rivals.REWIND, "sampling", "own", "rep-4")[0] == -0.4
    drawn[rivals.REWIND]["own"][:] = 0.5
    assert rivals.against(drawn, rivals.REWIND, "sampling", "own", "rep-4") is None
    assert rivals.against(drawn, rivals.REWIND, "XTC", "own", "rep-4") is None


def test_the_tables():
    shown = rivals.equal_nats([row(arm) for arm in MEASURED])
    assert "| sampling | -0.175 [-0.175, -0.175] | 0.200 [0.200, 0.200] |" in shown
    assert "| XTC | - | - |" in shown
    assert "| rewind | 0.300 [0.300, 0.300] | 0.000 [0.000, 0.000] |" in shown
    assert "| rewind | 150 | 100 | 99 | 100 |" in rivals.known_facts([fact()])


@pytest.mark.parametrize(
    ("start", "changes", "verdict"),
    [
        ("(ours) Taking repeats back", [], HOLDS),
        ("(ours) ... and repeats less", [], HOLDS),
        ("(ours) ... and less than a", [], HOLDS),
        ("(ours) ... and no more than", [], HOLDS),
        ("(ours) ... and leaves no text", [], HOLDS),
        ("(ours) ... and leaves known", [], HOLDS),
        ("(ours) ... and leaves known", [fact(still=97)], NOT),
        ("(ours) ... and leaves known", [fact(right=0, same=0)], UNTESTED),
        ("(ours) ... and their answers", [], HOLDS),
        ("(ours) ... and their answers", [fact(same=97)], NOT),
    ],
)
def test_claims(start, changes, verdict):
    claim = the_claim(phase_slip.CLAIMS, start)
    assert claim.finding(evidence_of(phase_slip=rows(*changes))).verdict == verdict


@pytest.mark.parametrize(
    ("start", "arm", "measured", "verdict"),
    [
        ("(ours) ... and repeats less", rivals.REWIND, (0.3, 0.5, 0.3), NOT),
        ("(ours) ... and repeats less", rivals.REWIND, (0.1, 0.7, 0.3), MIXED),
        ("(ours) ... and leaves no text", rivals.REWIND, (0.3, 0.5, 0.3), NOT),
        ("(ours) ... and no more than", rivals.REWIND, (0.02, 0.9, 0.3), NOT),
        ("(ours) ... and no more than", rivals.REWIND, (0.01, 0.9, 0.3), MIXED),
    ],
)
def test_claims_turn(monkeypatch, start, arm, measured, verdict):
    monkeypatch.setitem(MEASURED, arm, measured)
    claim = the_claim(phase_slip.CLAIMS, start)
    assert claim.finding(evidence_of(phase_slip=rows())).verdict == verdict


def test_what_a_seed_changes():
    drawn = {arm for arm, how in rivals.RIVALS.items() if is_drawn(how)}
    assert not drawn & {GREEDY, rivals.REWIND, "rewind, 4 tokens", "DRY 0.8", "penalty 1.1"}
    assert {"rewind, heat", "rewind, noise", "min-p, T 0.5", "resonance 0.3"} < drawn


def test_facts_are_counted():
    """A writer that knows the capitals, and of which one answer changes under the rewinds."""

    class Writer:
        def answers(self, prompts, arm, length):
            texts = []
            for prompt in prompts:
                question = prompt[0][1]
                right = "capital" in question
                answer = dict(QUESTIONS)[question] if right else "?"
                changed = "France" in question and "controllers" in arm
                texts.append(Text((len(question), changed), f"It is {answer}."))
            return texts

    found = rivals.facts(Writer(), rivals.REWIND)
    capitals = sum("capital" in question for question, _ in QUESTIONS)
    assert found == {"asked": len(QUESTIONS), "right": capitals, "same": capitals - 1,
                     "still": capitals}  # fmt: skip


def test_an_answer_is_a_word():
    assert says("It is Paris.", "Paris")
    assert says("PARIS!", "paris")
    assert not says("Parisian", "Paris")
    assert not says("Pa", "P")
    assert len({question for question, _ in QUESTIONS}) == len(QUESTIONS) > 150
