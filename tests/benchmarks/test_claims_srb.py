"""The claims on SRB turn when the rows of our studies, or of the published files, turn."""

import pytest
from claim_rows import changed, evidence_of, the_claim

from benchmarks.claims import HOLDS, MIXED, NOT, UNTESTED, srb
from benchmarks.claims.srb_published import BUCKETS, RUNS
from benchmarks.tasks.srb.comparison import from_csv


def study(model="m"):
    """A study in which SRB is as good as its document says."""
    good = {
        "seconds": (-2.0, -3.0, -1.0), "saved": (0.3, 0.2, 0.4), "finished": (0.1, 0.05, 0.2),
        "own_end_nats": (-1.0, -2.0, -0.5), "code_parses": None, "steps_met": (0.0, -0.1, 0.1),
        "rep4": (-0.2, -0.3, -0.1),
    }  # fmt: skip
    return {
        "kind": "study", "model": model, "default_exits": 0.5,
        "arms": {"static": {"seconds": (9.0, 8.0, 10.0)}, "srb": {"exits": (0.5, 0.4, 0.6)}},
        "srb_minus": {"static": good},
        "matched": {"elsewhere": good, "end_rule": good},
        "by_bucket": {
            "summaries": {"saved": (0.5, 0.4, 0.6)},
            "creative": {"saved": (0.1, 0.0, 0.2)},
        },
        "questions": {
            "replies": {f"{i}, first 32: rep4": (0.5, 0.3, 0.7) for i in ("E", "C+")},
            "places": {"E": (0.5, 0.4, 0.6)},
            "curves": {"between": 0.1, "between_by_chance": 0.1, "p": 0.5, "replies": 30,
                       "mean": {"code": [1.2, 0.8], "essays": [1.0, 1.0]}},
        },
    }  # fmt: skip


STATIC = ("srb_minus", "static")
REPLIES = ("questions", "replies")
UNSEEN = {f"E, first 32: {i}": (0.1, -0.1, 0.3) for i in range(11)}
SEEN = {"C+, first 32: rep4": (0.5, 0.3, 0.7)}
TURNS = [
    ("Reduced wall-clock time", {(*STATIC, "seconds"): (-1.0, -3.0, 1.0)}, NOT),
    ("Maintained or", {(*STATIC, "finished"): (-0.3, -0.4, -0.2)}, NOT),
    ("Maintained or", {(*STATIC, "own_end_nats"): (1.0, 0.5, 2.0)}, NOT),
    ("SRB prevents both", {(*STATIC, "finished"): (0.0, -0.1, 0.1)}, MIXED),
    ("SRB prevents both", {(*STATIC, "rep4"): (0.0, -0.1, 0.1)}, MIXED),
    ("It determines when", {("matched", "elsewhere", "own_end_nats"): (0.0, -1.0, 1.0)}, MIXED),
    ("Rather than", {("matched", "end_rule", "finished"): (-0.1, -0.2, 0.0)}, NOT),
    ("Concise factual", {("by_bucket", "summaries", "saved"): (0.15, 0.1, 0.2)}, NOT),
    ("When entropy", {("default_exits",): 0.0}, MIXED),
    ("When entropy", {("default_exits",): 0.0, ("arms", "srb", "exits"): (0.1, 0.0, 0.2)}, NOT),
    ("1. Do", {REPLIES: UNSEEN}, NOT),
    ("1. Do", {REPLIES: UNSEEN | SEEN}, NOT),
    ("1. Do", {REPLIES: dict([*UNSEEN.items()][:3]) | SEEN}, NOT),
    (
        "1. Do",
        {REPLIES: dict([*UNSEEN.items()][:4]) | SEEN | {"abs ΔE, first 32: x": (1, 1, 1)}},
        MIXED,
    ),
    ("1. Do", {REPLIES: {"E, whole: rep4": (0.5, 0.3, 0.7)}}, UNTESTED),
    ("1. ...", {("questions", "places"): {"E": (0.1, 0.05, 0.2)}}, NOT),
    ("2. Can", {(*STATIC, "finished"): (-0.3, -0.4, -0.2)}, MIXED),
]


def ours(start):
    """The claim on our studies; its namesake on published runs comes after it."""
    return next(c for c in srb.CLAIMS if c.text.startswith(start))


@pytest.mark.parametrize(("start", "changes", "verdict"), TURNS)
def test_a_claim_turns_with_its_study(start, changes, verdict):
    good = ours(start).finding(evidence_of(srb=[study()]))
    assert good.verdict == HOLDS, good
    turned = changed(study(), changes)
    assert ours(start).finding(evidence_of(srb=[study(), turned])).verdict == verdict, "the newest"
    two = ours(start).finding(evidence_of(srb=[study(), turned | {"model": "n"}])).verdict
    assert two == (HOLDS if verdict == UNTESTED else MIXED), "what is missing hides nothing"


def test_a_shape_that_was_not_told_apart_is_no_proof():
    claim = the_claim(srb.CLAIMS, "3. Do")
    curves = ("questions", "curves")
    for changes, verdict in (
        ({}, UNTESTED), ({(*curves, "p"): 0.001}, NOT), ({curves: {}}, UNTESTED),
    ):  # fmt: skip
        assert claim.finding(evidence_of(srb=[changed(study(), changes)])).verdict == verdict


def test_curves_of_two_models_are_compared():
    claim = the_claim(srb.CLAIMS, "3. ...")
    assert claim.finding(evidence_of(srb=[study()])).verdict == UNTESTED
    near = changed(study("n"), {("questions", "curves", "mean", "code"): [1.3, 0.7]})
    far = changed(study("n"), {("questions", "curves", "mean", "code"): [2.2, 0.0]})
    assert claim.finding(evidence_of(srb=[study(), near])).verdict == HOLDS
    assert claim.finding(evidence_of(srb=[study(), far])).verdict == NOT


# --- the published files


def measure(mean, low, high):
    return {"prompts": 85, **{of: mean for of in ("mean", "median", "ratio")},
            **{f"{of}_interval": [low, high] for of in ("mean", "median", "ratio")}}  # fmt: skip


def published():
    """Files of runs that stopped early, and quicker for it."""
    table = [{"bucket": b, "signed_efficiency": 0.1} for b in ("code", "essays")]
    runs = {
        "kind": "csv", "sha256": [RUNS[0]], "stalls": [["essays_002", 0]], "bucket_table": table,
        "overall": {"wall_time_s": measure(-8, -9, -7), "tokens_emitted": measure(-50, -60, -40),
                    "seconds_per_token": measure(1.0, 0.9, 1.1), "quality": measure(1, 0, 2)},
        "by_bucket": {"tokens_emitted": {"summaries": measure(-80, -90, -70),
                                         "creative": measure(0, -10, 10)}},
    }  # fmt: skip
    return [runs, {"kind": "csv", "sha256": [BUCKETS], "bucket_table": table, "differs": []}]


PUBLISHED_TURNS = [
    ("Reduced wall-clock time, in", {(0, "overall", "wall_time_s", "mean_interval"): [-9, 1]},
     MIXED),
    ("... since", {(0, "overall", "tokens_emitted"): measure(0, -1, 1)}, NOT),
    ("The files contain", {(0, "overall"): {"wall_time_s": 1, "avg_entropy": 1}}, MIXED),
    ("Concise factual answers stabilize early, in",
     {(0, "by_bucket", "tokens_emitted", "summaries"): measure(-9, -20, 2)}, NOT),
    ("The published bucket table", {(1, "differs"): ["code: one cell"]}, NOT),
    ("The published bucket table", {(1, "differs"): None}, UNTESTED),
    ("resonance_efficiency", {(0, "bucket_table", 1, "signed_efficiency"): -0.01}, NOT),
]  # fmt: skip


@pytest.mark.parametrize(("start", "changes", "verdict"), PUBLISHED_TURNS)
def test_a_claim_turns_with_the_published_rows(start, changes, verdict):
    claim = the_claim(srb.CLAIMS, start)
    assert claim.finding(evidence_of(srb=published())).verdict == HOLDS
    assert claim.finding(evidence_of(srb=changed(published(), changes))).verdict == verdict


def test_the_newest_row_of_the_published_files_counts():
    newer = changed(published(), {(0, "overall", "tokens_emitted"): measure(0, -1, 1)})
    claim = the_claim(srb.CLAIMS, "... since")
    assert claim.finding(evidence_of(srb=published() + newer)).verdict == NOT
    assert claim.finding(evidence_of(srb=newer + published())).verdict == HOLDS


def test_files_of_others_say_nothing_about_the_published_runs():
    others = [row | {"sha256": ["0" * 16]} for row in published()]
    for start, _, _ in PUBLISHED_TURNS:
        found = the_claim(srb.CLAIMS, start).finding(evidence_of(srb=others))
        assert found.verdict == UNTESTED, start


def test_rows_of_real_files_have_what_the_claims_read(tmp_path):
    """One summary file, as the task reads it, under the hash of the published one."""
    header = ("backend,model_id,bucket,name,prompt_ix,prompt,strategy,tokens_emitted,wall_time_s,"
              "avg_entropy,final_entropy,stop_reason,response_text\n")  # fmt: skip
    lines = [
        f"hf,m,{bucket},{bucket}_{i:03},{i},p,{arm},{100 + 7 * i - 20 * (arm == 'srb')},"
        f"{9 + i - 2 * (arm == 'srb')},1.0,1.0,eos_token,text\n"
        for bucket in ("summaries", "creative") for i in range(4) for arm in ("static", "srb")
    ]  # fmt: skip
    (tmp_path / "runs_longform.csv").write_text(header + "".join(lines))
    rows = [r | {"sha256": [RUNS[1]]} for r in from_csv([tmp_path / "runs_longform.csv"], draws=50)]
    for start, _, _ in PUBLISHED_TURNS:
        claim = the_claim(srb.CLAIMS, start)
        known = claim.finding(evidence_of(srb=rows)).verdict != UNTESTED
        assert known == (start != "The published bucket table"), start


def test_every_claim_with_rows_is_among_the_turns():
    starts = tuple(start for start, *_ in (*TURNS, *PUBLISHED_TURNS, ("3. ...",)))
    for claim in srb.CLAIMS:
        evidence = evidence_of(srb=[study(), study("n"), *published()])
        judged = claim.finding(evidence).verdict != UNTESTED
        assert claim.text.startswith(starts) == judged, claim.text


RULE = "+ loops of low entropy"
NOTHING = {"finished": (0.0, -0.1, 0.05), "rep4": (0.0, -0.05, 0.1), "saved": (0.4, 0.3, 0.5)}


def replayed():
    """A replay that meets its bar, and in which low entropy tells loops."""
    good = {"finished": (0.2, 0.1, 0.3), "rep4": (-0.2, -0.3, -0.1), "saved": (0.4, 0.3, 0.5)}
    return {
        "kind": "replay", "model": "m", "arms": {"srb": {"saved": (0.4, 0.3, 0.5)}},
        "srb_minus": {"static": good},
        "designs": {"+ loops by repetition": {"minus_static": NOTHING},
                    RULE: {"minus_static": good}},
        "bar": {"saved": True, "kept": True, "repeats_less": True,
                "against": {"fixed": {"better": 4, "worse": 0, "of": 7}}, "beats": {"fixed": True}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "changes", "verdict"),
    [
        ("(ours) A reply", {("bar", "kept"): False}, MIXED),
        ("(ours) ... and at equal", {("bar", "beats"): {"fixed": False}}, NOT),
        ("(ours) ... and low", {("designs", RULE, "minus_static"): NOTHING}, NOT),
    ],
)  # fmt: skip
def test_claims_on_the_rule_that_finishes_turn(text, changes, verdict):
    claim = the_claim(srb.CLAIMS, text)
    assert claim.finding(evidence_of(srb=[replayed()])).verdict == HOLDS
    assert claim.finding(evidence_of(srb=[changed(replayed(), changes)])).verdict == verdict
    assert claim.finding(evidence_of(srb=[study()])).verdict == UNTESTED


def deepened():
    """A deepening that costs as many tokens as whole replies and repeats less than SRB alone."""
    better = {"rep4": (-0.2, -0.3, -0.1), "finished": (0.0, -0.1, 0.1)}
    return {"design": "best", "more_tokens": (3.0, -9.0, 15.0),
            "deepened_minus": {"static": better, "srb": better}}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {("more_tokens",): (20.0, 5.0, 30.0)},
        {("deepened_minus", "srb", "rep4"): (-0.1, -0.2, 0.1)},
        {("deepened_minus", "srb", "finished"): (-0.3, -0.4, -0.1)},
    ],
)
def test_the_claim_on_deepening_turns(changes):
    claim = the_claim(srb.CLAIMS, "(ours) Deepening")
    assert claim.finding(evidence_of(deepening=[deepened()])).verdict == HOLDS
    rows = [changed(deepened(), changes)]
    assert claim.finding(evidence_of(deepening=rows)).verdict == NOT
