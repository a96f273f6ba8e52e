"""Claims about the published SRB runs, on the statistics of the public files: rows of kind csv.

The files are known by the first digits of their sha256; rows of other files say nothing here.
"""

from collections.abc import Callable

from benchmarks.claims import Cases, Claim, Evidence, Missing, Row
from benchmarks.claims.rules import below, equal, one, truths
from benchmarks.claims.sentences import value

FILES = "SRB public README, included files"
SUMMARY = "srb_bucket_summary.csv"
TASK = "python evaluate.py srb --from-csv FILE FILE"
RUNS = ("2e7334f4ceca6080", "6ab188dfcc280980")  # srb_summary_longform, srb_runs_longform_paired
BUCKETS = "b428cc144fb02df8"  # srb_bucket_summary
EFFORT = {"wall_time_s", "seconds_per_token", "tokens_emitted", "avg_entropy", "final_entropy"}


def of_files(*sha256: str) -> Callable[[Evidence], Cases]:
    """All rows of these files, the newest first. Raises Missing where there is none."""

    def select(evidence: Evidence) -> Cases:
        rows = [r for r in evidence.rows("srb", kind="csv") if set(r["sha256"]) & set(sha256)]
        if not rows:
            raise Missing("no row of the published files in benchmarks/results/srb.jsonl")
        return {"": rows[::-1]}

    return select


def newest(view: Callable[[Row], Row]) -> Callable:
    """The view of the newest row."""
    return lambda rows: one(view)(rows[:1])


def intervals(**paths: str) -> Callable:
    """Intervals at the paths of measures of the newest row; the last key is mean, median, ratio."""

    def view(row: Row) -> Row:
        named = {}
        for name, path in paths.items():
            measure, _, of = path.rpartition(".")
            one_measure = value(row, measure)
            named[name] = [one_measure[of], *one_measure[f"{of}_interval"]]
        return {**row, **named}

    return newest(view)


def stalled(rows: list[Row]) -> list[Row]:
    """The mean that the files' own summary has, and the median that two stalls do not move."""
    (row,) = intervals(mean="overall.wall_time_s.mean", median="overall.wall_time_s.median")(rows)
    note = f" (the machine stood still in {len(row['stalls'])})" if row["stalls"] else ""
    return [row | {"note": note}]


def quality_measures(row: Row) -> Row:
    """Efficiency is there; is anything of quality or coherence?"""
    beyond = [name for name in row["overall"] if name not in EFFORT]
    return {"all": ", ".join(row["overall"]), "beyond": ", ".join(beyond) or "none",
            "truths": [True, bool(beyond)]}  # fmt: skip


def differences(rows: list[Row]) -> list[Row]:
    """Cells that differ from what the runs give."""
    compared = [row for row in rows if row.get("differs") is not None]
    if not compared:
        raise Missing("no row of the bucket summary beside its runs in results/srb.jsonl")
    return [{"count": len(compared[0]["differs"])}]


def signed_efficiency(row: Row) -> Row:
    """Without the max(0, .) that hides every loss."""
    signed = {r["bucket"]: r["signed_efficiency"] for r in row["bucket_table"]}
    words = ", ".join(f"{bucket} {share:+.3f}" for bucket, share in signed.items())
    return {"words": words, "truths": [all(share > 0 for share in signed.values())]}


SAVES_TIME = Claim(
    "Reduced wall-clock time, in the published runs", FILES, TASK, of_files(*RUNS),
    "SRB minus static over {overall.wall_time_s.prompts} prompts{note}: mean {mean:.1f} s, median "
    "{median:.1f} s", (below("mean"), below("median")), stalled,
)  # fmt: skip
STOPS_EARLY = Claim(  # otherwise it is the clock
    "... since the model stops early, in the published runs", FILES, TASK, of_files(*RUNS),
    "tokens, SRB minus static: mean {mean:.1f}, median {median:.1f}; seconds per token {clock:.2f} "
    "times static's", (below("mean"), below("median")),
    intervals(mean="overall.tokens_emitted.mean", median="overall.tokens_emitted.median",
              clock="overall.seconds_per_token.ratio"),
)  # fmt: skip
HAS_QUALITY = Claim(
    "The files contain metrics related to response quality, coherence, and computational "
    "efficiency", FILES, TASK, of_files(*RUNS),
    "their numbers: {all}; of quality or coherence: {beyond}", (truths("truths"),),
    newest(quality_measures),
)  # fmt: skip
ADAPTS = Claim(
    "Concise factual answers stabilize early, in the published runs", FILES, TASK, of_files(*RUNS),
    "tokens, SRB minus static: summaries {facts:.1f}, creative {stories:.1f}",
    (lambda row: row["facts"][2] < 0 <= row["stories"][2],),  # and no fewer in stories
    intervals(facts="by_bucket.tokens_emitted.summaries.mean",
              stories="by_bucket.tokens_emitted.creative.mean"),
)  # fmt: skip
TABLE_AGREES = Claim(
    "The published bucket table", SUMMARY, TASK, of_files(BUCKETS),
    "{count} cells differ from those computed from the runs", (equal("count", 0),), differences,
)  # fmt: skip
EFFICIENCY = Claim(
    "resonance_efficiency is positive in every bucket", SUMMARY, TASK, of_files(*RUNS),
    "it is the mean of max(0, share of tokens saved), so it cannot be negative; with losses "
    "counted: {words}", (truths("truths"),), newest(signed_efficiency),
)  # fmt: skip
