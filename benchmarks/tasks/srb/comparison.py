"""SRB's long-form files as rows of statistics: any of the four kinds, alone or together.

A row is either the comparison of two arms over the runs of one model, or a bucket summary as its
file has it, with where it differs from the comparison. Of several kinds the most detailed is
computed on (runs, else summary, else pairs); the others are checked against it. Rows hold what is
computed and the names and hashes of the files; the numbers of the runs, under "runs", are there for
the figure and are not recorded. Statistics: statistics.py.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.tasks.srb.comparison_text import MEASURES
from benchmarks.tasks.srb.schema import FILES, RUNS, Row, Table, read
from benchmarks.tasks.srb.statistics import (
    ARM,
    DRAWS,
    OTHER,
    Run,
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
    sources = [_source(Path(file)) for file in files]
    joined = {
        kind: [run for source in sources if source.table.kind == kind
               for run in runs_of(source.table)]
        for kind in DETAIL
    }  # fmt: skip
    given = [kind for kind in DETAIL if joined[kind]]
    for kind in given[1:]:
        _check_same(given[0], joined[given[0]], kind, joined[kind])
    runs = joined[given[0]] if given else []
    names = _about([source for source in sources if source.table.kind in given[:1]])
    comparisons: list[dict[str, Any]] = []
    for model in dict.fromkeys((run.get("backend"), run.get("model_id")) for run in runs):
        mine = [r for r in runs if (r.get("backend"), r.get("model_id")) == model]
        comparisons.append({
            "kind": "csv", **names, **comparison(mine, draws),
            "runs": [{c: run[c] for c in DRAWN if c in run} for run in mine],
        })  # fmt: skip
    computed = comparisons[0]["bucket_table"] if len(comparisons) == 1 else None
    return comparisons + [
        _buckets(source, computed) for source in sources if source.table.kind == "buckets"
    ]


class Source(NamedTuple):
    """A file: its name without directories, the first 16 digits of its hash, what is in it."""

    name: str
    sha256: str
    table: Table


def _source(path: Path) -> Source:
    table = read(path)
    return Source(path.name, hashlib.sha256(path.read_bytes()).hexdigest()[:16], table)


def _about(sources: Iterable[Source]) -> dict[str, list[str]]:
    sources = list(sources)
    return {"files": [s.name for s in sources], "sha256": [s.sha256 for s in sources]}


def _buckets(source: Source, computed: list[Row] | None) -> dict[str, Any]:
    """The row of a bucket summary."""
    differs = None if computed is None else differences(source.table, computed)
    return {"kind": "csv", **_about([source]), "bucket_table": source.table.rows,
            "differs": differs}  # fmt: skip


def comparison(runs: Iterable[Row], draws: int = DRAWS) -> dict[str, Any]:
    """SRB and static of one model in every measure, as one JSON-serialisable row.

    Measures are time, tokens and entropy, and any further numeric column of the runs. Raises
    ValueError for an arm without runs, a prompt and seed with one arm only, and several models.
    """
    runs = list(runs)
    seeds = {seed for _, seed in by_arm(runs)}
    runs = [run for run in runs if run["strategy"] in (ARM, OTHER)]
    slow = stalls(runs)
    calm = [run for run in runs if key_of(run) not in slow]
    measures = [*MEASURES, *further_measures(runs)]
    measures = [m for m in measures if m == "seconds_per_token" or _known(runs, m)]
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


def further_measures(runs: Iterable[Run]) -> list[str]:
    """Columns of the runs that are not in the public schema and hold numbers only."""
    runs = list(runs)
    columns = dict.fromkeys(c for run in runs for c in run if c not in RUNS and c != "seed")
    return [
        c
        for c in columns
        if _known(runs, c) and all(isinstance(r.get(c), int | float | None) for r in runs)
    ]


def differences(published: Table, computed: Iterable[Row]) -> list[str]:
    """Cells of a bucket summary that are not those computed, as sentences."""
    theirs, ours = ({r["bucket"]: r for r in rows} for rows in (published.rows, computed))
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


def _check_same(kind: str, runs: Iterable[Run], other: str, others: Iterable[Run]) -> None:
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


def _known(runs: Iterable[Run], measure: str) -> bool:
    return any(run.get(measure) is not None for run in runs)
