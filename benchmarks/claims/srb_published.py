"""Claims about the published SRB runs, on the statistics of the public files: rows of kind csv.

The files are known by the first digits of their sha256; rows of other files say nothing here.
"""

from collections.abc import Iterator

from benchmarks.claims import HOLDS, Evidence, Finding, Missing, Row, below, combined, decided
from benchmarks.heldout import shown

TASK = "python evaluate.py srb --from-csv FILE FILE"
RUNS = ("2e7334f4ceca6080", "6ab188dfcc280980")  # srb_summary_longform, srb_runs_longform_paired
BUCKETS = "b428cc144fb02df8"  # srb_bucket_summary
EFFORT = {"wall_time_s", "seconds_per_token", "tokens_emitted", "avg_entropy", "final_entropy"}


def _rows(evidence: Evidence, *sha256: str) -> Iterator[Row]:
    """Rows of these files, the newest first. Raises Missing where there is none."""
    rows = [r for r in evidence.rows("srb", kind="csv") if set(r["sha256"]) & set(sha256)]
    if not rows:
        raise Missing("no row of the published files in benchmarks/results/srb.jsonl")
    return reversed(rows)


def _runs(evidence: Evidence) -> Row:
    return next(_rows(evidence, *RUNS))


def _interval(measure: Row, of: str = "mean") -> list[float]:
    return [measure[of], *measure[f"{of}_interval"]]


def saves_time(evidence: Evidence) -> Finding:
    """The mean that its own summary has, and the median that two stalls do not move."""
    row = _runs(evidence)
    time = row["overall"]["wall_time_s"]
    mean, median = (_interval(time, of) for of in ("mean", "median"))
    stalled = f" (the machine stood still in {len(row['stalls'])})" if row["stalls"] else ""
    return Finding(
        f"SRB minus static over {time['prompts']} prompts{stalled}: mean {shown(mean, 1)} s, "
        f"median {shown(median, 1)} s",
        combined(below(mean), below(median)), TASK,
    )  # fmt: skip


def stops_early(evidence: Evidence) -> Finding:
    """Fewer tokens, by mean and median? Otherwise it is the clock."""
    overall = _runs(evidence)["overall"]
    tokens = overall["tokens_emitted"]
    mean, median = (_interval(tokens, of) for of in ("mean", "median"))
    clock = _interval(overall["seconds_per_token"], "ratio")
    return Finding(
        f"tokens, SRB minus static: mean {shown(mean, 1)}, median {shown(median, 1)}; seconds per "
        f"token {shown(clock, 2)} times static's",
        combined(below(mean), below(median)), TASK,
    )  # fmt: skip


def adapts(evidence: Evidence) -> Finding:
    """Are fewer tokens written in summaries and no fewer in stories?"""
    buckets = _runs(evidence)["by_bucket"]["tokens_emitted"]
    facts, stories = (_interval(buckets[b]) for b in ("summaries", "creative"))
    return Finding(
        f"tokens, SRB minus static: summaries {shown(facts, 1)}, creative {shown(stories, 1)}",
        decided(facts[2] < 0 <= stories[2]), TASK,
    )  # fmt: skip


def has_quality(evidence: Evidence) -> Finding:
    """Efficiency is there; is anything of quality or coherence?"""
    measures = [*_runs(evidence)["overall"]]
    beyond = [name for name in measures if name not in EFFORT]
    return Finding(
        f"their numbers: {', '.join(measures)}; of quality or coherence: "
        f"{', '.join(beyond) or 'none'}",
        combined(HOLDS, decided(bool(beyond))), TASK,
    )  # fmt: skip


def table_agrees(evidence: Evidence) -> Finding:
    """With what the runs give."""
    known = [r for r in _rows(evidence, BUCKETS) if r.get("differs") is not None]
    if not known:
        raise Missing("no row of the bucket summary beside its runs in results/srb.jsonl")
    differs = known[0]["differs"]
    words = f"{len(differs)} cells differ from those computed from the runs"
    return Finding(words, decided(not differs), TASK)


def efficiency(evidence: Evidence) -> Finding:
    """Without the max(0, .) that hides every loss."""
    table = _runs(evidence)["bucket_table"]
    signed = {r["bucket"]: r["signed_efficiency"] for r in table}
    words = ", ".join(f"{bucket} {value:+.3f}" for bucket, value in signed.items())
    return Finding(
        "it is the mean of max(0, share of tokens saved), so it cannot be negative; with losses "
        f"counted: {words}",
        decided(all(value > 0 for value in signed.values())), TASK,
    )  # fmt: skip
