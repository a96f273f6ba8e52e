"""The claims of the Phase-Slip README turn when the rows of a model turn."""

import pytest
from claim_rows import changed, evidence_of, the_claim

from benchmarks.claims import HOLDS, MIXED, NOT, UNTESTED, phase_slip
from benchmarks.tasks.phase_slip.arms import AT_LOOPS, CURVE, GREEDY, HEAT, NOISE, PUBLISHED, TOP_K

ABOUT = {"model": "m", "weights": "new"}
MEASURES = {  # rep-4, nats per byte, share of loops escaped, share of slips at spikes
    GREEDY: (0.8, 0.2, 0.0, 0.0),
    PUBLISHED: (0.02, 0.6, 1.0, 0.05),
    HEAT: (0.1, 0.6, 1.0, 0.05),
    NOISE: (0.2, 0.3, 0.8, 0.05),
    TOP_K: (0.01, 0.7, 1.0, 0.0),
    AT_LOOPS: (0.01, 0.6, 1.0, 0.05),
    phase_slip.HOT: (0.1, 2.0, 1.0, 0.05),
    CURVE[0.2]: (0.7, 0.25, 0.1, 0.0),
    CURVE[0.8]: (0.1, 0.8, 1.0, 0.0),
}


def strict(arm, **changes):
    repeats, nats, escaped, spikes = MEASURES[arm]
    values = {"rep-4": repeats, "own": nats, "escaped": escaped, "spike": spikes, "stale": 0.0,
              "loop": 0.0, "ends": 0.5, "as greedy": 0.4 * (arm == PUBLISHED)}  # fmt: skip
    sums = lambda mean: [[[100 * mean + p + s for s in range(2)] for p in range(3)],  # noqa: E731
                         [[100.0] * 2] * 3]  # fmt: skip
    row = ABOUT | {"protocol": "strict", "arm": arm, "tokens": 100, "seeds": [0, 1],
                   "scorer": None, "scored_seeds": None, "values": values,
                   "pairs": {"rep-4": sums(repeats), "own": sums(nats)}}  # fmt: skip
    return row | changes


def rows():
    """Phase-Slip as its README has it."""
    published = {GREEDY: 0.26, TOP_K: 0.59, PUBLISHED: 0.60}
    diversity = [ABOUT | {"protocol": "published", "arm": arm, "diversity": [value] * 5}
                 for arm, value in published.items()]  # fmt: skip
    breaker = [ABOUT | {"protocol": "breaker", "arm": arm, "ends": arm == GREEDY, "tokens": 2,
                        "entropies_nats": [1.0, 2.0]} for arm in (GREEDY, PUBLISHED)]  # fmt: skip
    where = {"tokens": 50, "spike": 0.5, "mean_nats": 3.0}
    loops = ABOUT | {"protocol": "loops", "arm": GREEDY, "ends": [True, False],
                     "inside": where, "outside": where | {"spike": 0.1}}  # fmt: skip
    return [*diversity, *breaker, loops, *map(strict, MEASURES)]


PLACE = {("published", GREEDY): 0, ("published", TOP_K): 1, ("published", PUBLISHED): 2,
         ("breaker", GREEDY): 3, ("breaker", PUBLISHED): 4, ("loops", GREEDY): 5,
         **{("strict", arm): 6 + i for i, arm in enumerate(MEASURES)}}  # fmt: skip


def value(arm, name):
    return (PLACE["strict", arm], "values", name)


def sums(arm, name, mean):
    """Both sums of a measure at every prompt and seed, of this mean without spread."""
    ones = [[100.0] * 2] * 3
    return {(PLACE["strict", arm], "pairs", name): [[[100 * mean] * 2] * 3, ones]}


TURNS = [
    ("A forced choice", {value(CURVE[0.8], "own"): 0.5}, NOT),
    ("It calculates", {(4, "entropies_nats"): [1.0]}, NOT),
    ("It injects", {value(phase_slip.HOT, "as greedy"): 1.0}, NOT),
    ("The noise", sums(NOISE, "rep-4", 0.9), NOT),
    ("The noise", {value(NOISE, "escaped"): None}, UNTESTED),
    ("... only when", {value(PUBLISHED, "stale"): 0.05}, MIXED),
    ("... only when", {value(PUBLISHED, "as greedy"): 0.1}, MIXED),
    ("... preserving", sums(PUBLISHED, "own", 0.9), NOT),
    ("Phase-Slip effectively", {value(PUBLISHED, "escaped"): 0.8}, NOT),
    ("... without requiring", {value(PUBLISHED, "spike"): 0.6}, MIXED),
    ("... without requiring", sums(PUBLISHED, "rep-4", 0.6), MIXED),
    ("... without requiring", {(PLACE["strict", CURVE[0.2]], "arm"): "x",
                               (PLACE["strict", CURVE[0.8]], "arm"): "y"}, UNTESTED),
    ("Greedy Decoding", {(0, "diversity"): [0.56]}, NOT),
    ("Phase-Slip matches", {(2, "diversity"): [0.5]}, NOT),
    ('The "Loop Breaker"', {(3, "ends"): False}, NOT),
    ('The "Loop Breaker"', {(4, "ends"): True}, NOT),
    ("Detected entropy", {(5, "inside", "spike"): 0.05}, NOT),
    ("Detected entropy", {(5, "inside", "tokens"): 0}, UNTESTED),
    ("(ours) A trigger", sums(AT_LOOPS, "rep-4", 0.1), NOT),
]  # fmt: skip


@pytest.mark.parametrize(("start", "changes", "verdict"), TURNS)
def test_a_claim_turns_with_its_rows(start, changes, verdict):
    claim = the_claim(phase_slip.CLAIMS, start)
    found = claim.finding(evidence_of(phase_slip=rows()))
    assert found.verdict == HOLDS, found
    turned = changed(rows(), changes)
    assert claim.finding(evidence_of(phase_slip=turned)).verdict == verdict
    second = [row | {"model": "n"} for row in turned]
    both = claim.finding(evidence_of(phase_slip=rows() + second)).verdict
    assert both == (HOLDS if verdict == UNTESTED else MIXED), "what is missing hides nothing"


def test_every_claim_is_among_the_turns():
    starts = tuple(start for start, _, _ in TURNS)
    of_rivals = ("(ours) Taking", "(ours) ...")  # test_rivals.py
    assert all(claim.text.startswith((*starts, *of_rivals)) for claim in phase_slip.CLAIMS)


def test_only_the_newest_weights_count():
    claim = the_claim(phase_slip.CLAIMS, "Greedy Decoding")
    old = [row | {"weights": "old"} for row in changed(rows(), {(0, "diversity"): [0.56]})]
    assert claim.finding(evidence_of(phase_slip=old + rows())).verdict == HOLDS


def test_arms_are_compared_at_equal_seeds():
    """A run with more seeds that has begun does not mix with the complete one."""
    claim = the_claim(phase_slip.CLAIMS, "Phase-Slip effectively")
    begun = strict(PUBLISHED, seeds=[0, 1, 2], values={"escaped": 0.0, "rep-4": 0.9})
    assert claim.finding(evidence_of(phase_slip=[*rows(), begun])).verdict == HOLDS
    complete = [begun, strict(GREEDY, seeds=[0, 1, 2])]
    assert claim.finding(evidence_of(phase_slip=[*rows(), *complete])).verdict == NOT
