"""Three files of the public SRB study from the fourth: pairs, summary and buckets from the runs.

    resonance_efficiency = max(0, signed_efficiency)
    signed_efficiency    = 1 - tokens_srb / tokens_baseline, 4 decimals

The first is the published one, and cannot show where SRB took more tokens. Columns: schema.py.
Source: semantic-resonance-budget-public, whose tables these functions reproduce digit by digit.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.kit.records import grouped
from benchmarks.tasks.srb.schema import FILES, KINDS, MEASURES, Row, Table
from benchmarks.tasks.srb.statistics import ARM, OTHER, by_arm
from run_core.files import write_file


def runs_of(table: Table) -> list[Row]:
    """The runs in a table other than a bucket summary; where a row holds both arms, as two."""
    if table.kind == "runs":
        return table.rows
    names = ("base", "srb") if table.kind == "paired" else ("baseline", "srb")
    shared = [column for column in ("bucket", "name", "prompt_ix", "prompt", "seed")
              if column in table.rows[0]]  # fmt: skip
    return [
        {column: row[column] for column in shared} | {"strategy": arm} | _arm(table.kind, row, name)
        for row in table.rows
        for arm, name in zip((OTHER, ARM), names, strict=True)
    ]


def _arm(kind: str, row: Row, arm: str) -> Row:
    if kind == "paired":
        return {m: row[f"{arm}_{m}"] for m in (*MEASURES, "stop_reason")}
    run = {
        "tokens_emitted": row[f"tokens_{arm}"],
        "wall_time_s": row[f"wall_time_{arm}_s"],
        "avg_entropy": row[f"avg_entropy_{arm}"],
    }
    if arm == "srb":
        run |= {"final_entropy": row["final_entropy_srb"], "stop_reason": row["stop_reason_srb"]}
    return run


def paired_rows(runs: Sequence[Row]) -> list[Row]:
    """runs_longform_paired.csv of runs, by bucket and name."""
    rows = []
    for base, srb, seed in _both(runs):
        row = {k: base[k] for k in ("bucket", "name", "prompt_ix", "prompt")}
        for m in MEASURES:
            known = base[m] is not None and srb[m] is not None
            delta = srb[m] - base[m] if known else None
            row |= {f"base_{m}": base[m], f"srb_{m}": srb[m], f"{m}_delta": delta}
            row[f"{m}_pct"] = delta / base[m] * 100 if known and base[m] else None
        row |= {"base_stop_reason": base["stop_reason"], "srb_stop_reason": srb["stop_reason"]}
        rows.append(row | seed)
    return sorted(rows, key=lambda row: (row["bucket"], row["name"], row.get("seed", 0)))


def summary_rows(runs: Sequence[Row]) -> list[Row]:
    """summary_longform.csv of runs, in their order."""
    rows = []
    for base, srb, seed in _both(runs):
        signed = efficiency(base["tokens_emitted"], srb["tokens_emitted"])
        rows.append(
            {k: base[k] for k in ("bucket", "name", "prompt")}
            | {"tokens_baseline": base["tokens_emitted"], "tokens_srb": srb["tokens_emitted"]}
            | {"wall_time_baseline_s": base["wall_time_s"], "wall_time_srb_s": srb["wall_time_s"]}
            | {"avg_entropy_baseline": base["avg_entropy"], "avg_entropy_srb": srb["avg_entropy"]}
            | {f"{k}_srb": srb.get(k) for k in ("final_entropy", "stop_reason")}
            | {"resonance_efficiency": None if signed is None else max(0.0, signed)}
            | {"signed_efficiency": signed}
            | seed
        )
    return rows


def _both(runs: Sequence[Row]) -> list[tuple[Row, Row, Row]]:
    """The static and the SRB run of every prompt, and its seed if there are several."""
    models = {(r.get("backend"), r.get("model_id")) for r in runs if r["strategy"] in (ARM, OTHER)}
    if len(models) > 1:
        raise ValueError(f"runs of {len(models)} models; these files are for one")
    pairs = by_arm(runs)
    for (name, seed), arms in pairs.items():
        if missing := {ARM, OTHER} - arms.keys():
            raise ValueError(f"{name}, seed {seed}: no run of {missing.pop()!r}")
    several = len({seed for _, seed in pairs}) > 1
    return [
        (arms[OTHER], arms[ARM], {"seed": seed} if several else {})
        for (_, seed), arms in pairs.items()
    ]


def efficiency(tokens_baseline: int, tokens_srb: int) -> float | None:
    """Share of the baseline's tokens that SRB did not need, 4 decimals; None of no tokens."""
    return round(1 - tokens_srb / tokens_baseline, 4) if tokens_baseline else None


def bucket_table(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of summary_longform.csv -> rows of bucket_summary.csv, best efficiency first.

    Means of the bucket's rows and, in percent, ratios of those means, 3 decimals. The published
    resonance_efficiency is the mean of max(0, efficiency), so it cannot show more tokens;
    signed_efficiency, the last column, is the mean of what it cuts off at zero. num_prompts counts
    prompts, not seeds.
    """
    table = [_bucket_row(bucket, group) for (bucket,), group in grouped(rows, "bucket").items()]
    best = "resonance_efficiency"
    table.sort(key=lambda row: math.inf if row[best] is None else -row[best])
    return [{k: round(v, 3) if isinstance(v, float) else v for k, v in t.items()} for t in table]


def _bucket_row(bucket: str, group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tokens = [_mean(row[f"tokens_{arm}"] for row in group) for arm in ("baseline", "srb")]
    wall = [_mean(row[f"wall_time_{arm}_s"] for row in group) for arm in ("baseline", "srb")]
    signed = (efficiency(row["tokens_baseline"], row["tokens_srb"]) for row in group)
    return {
        "bucket": bucket, "tokens_baseline": tokens[0], "tokens_srb": tokens[1],
        "wall_time_baseline_s": wall[0], "wall_time_srb_s": wall[1],
        "resonance_efficiency": _mean(row["resonance_efficiency"] for row in group),
        "num_prompts": len({row["name"] for row in group}),
        "tokens_pct_change": _percent(*tokens), "wall_time_pct_change": _percent(*wall),
        "signed_efficiency": _mean(signed),
    }  # fmt: skip


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [x for x in values if x is not None]
    return math.fsum(known) / len(known) if known else None


def _percent(before: float | None, after: float | None) -> float | None:
    return 100 * (after / before - 1) if before and after is not None else None


def write_all(directory: str | Path, runs: Sequence[Row]) -> None:
    """Write the four files, each replaced at once, the derived ones of SRB and static.

    Raises ValueError where a run lacks a column, a prompt and seed has only one of the arms or an
    arm twice, or the runs are of several models; OSError where the directory cannot be written.
    """
    texts = {"runs": _csv("runs", runs)}
    summary = summary_rows(runs)
    derived = {"paired": paired_rows(runs), "summary": summary, "buckets": bucket_table(summary)}
    texts |= {kind: _csv(kind, rows) for kind, rows in derived.items()}
    Path(directory).mkdir(parents=True, exist_ok=True)
    for kind, text in texts.items():
        write_file(Path(directory) / FILES[kind], text.encode())


def _csv(kind: str, rows: list[Row]) -> str:
    columns = [*KINDS[kind], *(["seed"] if kind == "runs" else [])]
    columns = dict.fromkeys([*columns, *(c for row in rows for c in row)])
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*columns])
    writer.writeheader()
    for row in rows:
        if missing := [c for c in KINDS[kind] if c not in row]:
            raise ValueError(f"{row.get('name')}: no {missing[0]!r}, a column of {FILES[kind]}")
        writer.writerow({k: int(v) if isinstance(v, bool) else v for k, v in row.items()})
    return text.getvalue()
