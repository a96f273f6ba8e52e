"""Claims about the published SRB runs, on the statistics of the public files: rows of kind csv.

The files are known by the first digits of their sha256; rows of other files say nothing here.
"""

from collections.abc import Sequence
from functools import partial

from benchmarks.claims import Cases, Claim, Evidence, Missing, Row
from benchmarks.claims.rules import below, equal, one, truths

FILES = "SRB public README, included files"
SUMMARY = "srb_bucket_summary.csv"
TASK = "python evaluate.py srb --from-csv FILE FILE"
RUNS = ("2e7334f4ceca6080", "6ab188dfcc280980")  # srb_summary_longform, srb_runs_longform_paired
BUCKETS = "b428cc144fb02df8"  # srb_bucket_summary
EFFORT = {"wall_time_s", "seconds_per_token", "tokens_emitted", "avg_entropy", "final_entropy"}


def of_files(sha256: Sequence[str], field: str, evidence: Evidence) -> Cases:
    """The newest row of these files that has the field. Raises Missing where there is none."""
    rows = [
        row
        for row in evidence.rows("srb", kind="csv")
        if set(row["sha256"]) & set(sha256) and row.get(field) is not None
    ]
    if not rows:
        raise Missing(f"no row of the published files with {field} in benchmarks/results/srb.jsonl")
    return {"": rows[-1:]}


FACTS, STORIES = (f"by_bucket.tokens_emitted.{b}.mean±" for b in ("summaries", "creative"))
OF_RUNS = partial(of_files, RUNS, "overall")
OF_BUCKETS = partial(of_files, (BUCKETS,), "differs")


def stalled(row: Row) -> Row:
    """The row, and a note of the prompts at which the machine stood still."""
    note = f" (the machine stood still in {len(row['stalls'])})" if row["stalls"] else ""
    return {**row, "note": note}


def quality_measures(row: Row) -> Row:
    """Efficiency is there; is anything of quality or coherence?"""
    beyond = [name for name in row["overall"] if name not in EFFORT]
    return {"all": ", ".join(row["overall"]), "beyond": ", ".join(beyond) or "none",
            "truths": [True, bool(beyond)]}  # fmt: skip


def signed_efficiency(row: Row) -> Row:
    """Without the max(0, .) that hides every loss."""
    signed = {r["bucket"]: r["signed_efficiency"] for r in row["bucket_table"]}
    words = ", ".join(f"{bucket} {share:+.3f}" for bucket, share in signed.items())
    return {"words": words, "truths": [all(share > 0 for share in signed.values())]}


SAVES_TIME = Claim(
    "Reduced wall-clock time, in the published runs", FILES, TASK, OF_RUNS,
    "SRB minus static over {overall.wall_time_s.prompts} prompts{note}: mean "
    "{overall.wall_time_s.mean±:.1f} s, median {overall.wall_time_s.median±:.1f} s",
    (below("overall.wall_time_s.mean±"), below("overall.wall_time_s.median±")), one(stalled),
)  # fmt: skip
STOPS_EARLY = Claim(  # otherwise it is the clock
    "... since the model stops early, in the published runs", FILES, TASK, OF_RUNS,
    "tokens, SRB minus static: mean {overall.tokens_emitted.mean±:.1f}, median "
    "{overall.tokens_emitted.median±:.1f}; seconds per token "
    "{overall.seconds_per_token.ratio±:.2f} times static's",
    (below("overall.tokens_emitted.mean±"), below("overall.tokens_emitted.median±")),
)  # fmt: skip
HAS_QUALITY = Claim(
    "The files contain metrics related to response quality, coherence, and computational "
    "efficiency", FILES, TASK, OF_RUNS,
    "their numbers: {all}; of quality or coherence: {beyond}", (truths("truths"),),
    one(quality_measures),
)  # fmt: skip
ADAPTS = Claim(
    "Concise factual answers stabilize early, in the published runs", FILES, TASK, OF_RUNS,
    "tokens, SRB minus static: summaries {by_bucket.tokens_emitted.summaries.mean±:.1f}, creative "
    "{by_bucket.tokens_emitted.creative.mean±:.1f}",
    (lambda row: below(FACTS)(row) and not below(STORIES)(row),),  # and no fewer in stories
)  # fmt: skip
TABLE_AGREES = Claim(
    "The published bucket table", SUMMARY, TASK, OF_BUCKETS,
    "{count} cells differ from those computed from the runs", (equal("count", 0),),
    one(lambda row: {"count": len(row["differs"])}),
)  # fmt: skip
EFFICIENCY = Claim(
    "resonance_efficiency is positive in every bucket", SUMMARY, TASK, OF_RUNS,
    "it is the mean of max(0, share of tokens saved), so it cannot be negative; with losses "
    "counted: {words}", (truths("truths"),), one(signed_efficiency),
)  # fmt: skip
