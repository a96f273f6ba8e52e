"""SRB's long-form files as rows of statistics: any of the four kinds, alone or together.

A row is either the comparison of two arms over the runs of one model, or a bucket summary as its
file has it, with where it differs from the comparison. Of several kinds the most detailed is
computed on (runs, else summary, else pairs); the others are checked against it. Rows hold what is
computed and the names and hashes of the files; the numbers of the runs, under "runs", are there for
the figure and are not recorded. Statistics: statistics.py.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.kit.records import grouped
from benchmarks.tasks.srb.comparison_text import MEASURES
from benchmarks.tasks.srb.schema import FILES, RUNS, Row, read
from benchmarks.tasks.srb.statistics import (
    ARM,
    DRAWS,
    OTHER,
    by_arm,
    by_bucket,
    decomposition,
    key_of,
    paired,
    stalls,
)
from benchmarks.tasks.srb.tables import bucket_table, runs_of, summary_rows

DETAIL = ("runs", "summary", "paired")  # the most detailed first
DRAWN = ("name", "bucket", "seed", "strategy", "tokens_emitted", "wall_time_s", "avg_entropy",
         "own_nats_per_byte")  # fmt: skip
ROUNDING = 0.0011  # by which bucket means of 3 decimals may differ


def from_csv(files: Sequence[str | Path], draws: int = DRAWS) -> list[dict[str, Any]]:
    """Rows of the files; several of a kind are joined.

    Raises OSError, and ValueError for a file that is none of the four, an arm without runs, a
    prompt and seed that occurs twice, and files that do not tell of the same runs.
    """
    sources = [(Path(file), read(file)) for file in files]
    joined = {
        kind: [run for _, table in sources if table.kind == kind for run in runs_of(table)]
        for kind in DETAIL
    }
    given = [kind for kind in DETAIL if joined[kind]]
    for kind in given[1:]:
        _check_same(given[0], joined[given[0]], kind, joined[kind])
    about = _about([path for path, table in sources if table.kind in given[:1]])
    comparisons = [
        {**about, **comparison(runs, draws),
         "runs": [{c: run[c] for c in DRAWN if c in run} for run in runs]}
        for kind in given[:1]
        for runs in grouped(joined[kind], "backend", "model_id").values()
    ]  # fmt: skip
    computed = comparisons[0]["bucket_table"] if len(comparisons) == 1 else None
    return comparisons + [
        {**_about([path]), "bucket_table": table.rows,
         "differs": None if computed is None else differences(table.rows, computed)}
        for path, table in sources
        if table.kind == "buckets"
    ]  # fmt: skip


def _about(paths: Sequence[Path]) -> dict[str, Any]:
    """The kind of the row, the names of its files, and the first 16 digits of their hashes."""
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths]
    return {"kind": "csv", "files": [path.name for path in paths], "sha256": hashes}


def comparison(runs: Sequence[Row], draws: int = DRAWS) -> dict[str, Any]:
    """SRB and static of one model in every measure, as one JSON-serialisable row.

    Measures are time, tokens and entropy, and any further numeric column of the runs. Raises
    ValueError for an arm without runs, a prompt and seed with one arm only, and several models.
    """
    seeds = {seed for _, seed in by_arm(runs)}
    runs = [run for run in runs if run["strategy"] in (ARM, OTHER)]
    slow = stalls(runs)
    calm = [run for run in runs if key_of(run) not in slow]
    measures = measures_of(runs)
    clock = ("wall_time_s", "seconds_per_token")
    return {
        "backend": runs[0].get("backend"),
        "model_id": runs[0].get("model_id"),
        "baseline": OTHER,
        "treated": ARM,
        "seeds": len(seeds),
        "bucket_table": bucket_table(summary_rows(runs)),
        "overall": {m: paired(runs, m, draws) for m in measures},
        "stalls": [list(key) for key in slow],
        "without_stalls": {m: paired(calm, m, draws) for m in clock if slow},
        "by_bucket": {m: by_bucket(runs, m, draws) for m in measures},
        "decomposition": decomposition(runs, draws),
    }


def measures_of(runs: Sequence[Row]) -> list[str]:
    """Those of MEASURES that the runs have, and the columns beyond the schema of numbers alone."""
    further = (c for run in runs for c in run if c not in RUNS and c != "seed")

    def known(measure: str) -> bool:
        cells = [run[measure] for run in runs if run.get(measure) is not None]
        return bool(cells) and all(isinstance(cell, int | float) for cell in cells)

    columns = dict.fromkeys([*MEASURES, *further])
    return [m for m in columns if m == "seconds_per_token" or known(m)]


def differences(published: Sequence[Row], computed: Sequence[Row]) -> list[str]:
    """Cells of a bucket summary that are not those computed, as sentences."""
    theirs, ours = ({r["bucket"]: r for r in rows} for rows in (published, computed))
    sentences = [
        f"{bucket} is in one of the two only" for bucket in sorted(theirs.keys() ^ ours.keys())
    ]
    for bucket in theirs.keys() & ours.keys():
        for column, cell in theirs[bucket].items():
            own = ours[bucket].get(column, cell)
            if (cell is None) != (own is None) or (
                isinstance(cell, int | float) and abs(cell - own) > ROUNDING
            ):
                sentences.append(f"{bucket}: {column} is {cell}, computed {own}")
    return sorted(sentences)


def _check_same(kind: str, runs: Sequence[Row], other: str, others: Sequence[Row]) -> None:
    known: dict[tuple, set[int]] = {}
    for run in runs:
        known.setdefault((*key_of(run), run["strategy"]), set()).add(run["tokens_emitted"])
    for run in others:
        name, seed, arm = key = (*key_of(run), run["strategy"])
        if run["tokens_emitted"] not in known.get(key, ()):
            ours = " or ".join(map(str, known.get(key, ["none"])))
            raise ValueError(
                f"{name}, seed {seed}, {arm!r}: {run['tokens_emitted']} tokens in {FILES[other]}, "
                f"{ours} in {FILES[kind]}; expected files of one study"
            )
