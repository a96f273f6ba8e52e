"""The four files of the public SRB study, read as typed rows.

    runs      runs_longform.csv           a run of one strategy; then its seed and what is measured
    paired    runs_longform_paired.csv    a prompt in both arms, with differences in units and in %
    summary   summary_longform.csv        a prompt in both arms, and resonance_efficiency
    buckets   bucket_summary.csv          means of the summary by buckets

The header tells which file it is. Where we write them (tables.py), the last two also hold
signed_efficiency, and all the seed where there are several, as last columns. Times in seconds;
entropies in nats in ours, the public files do not say. Source: semantic-resonance-budget-public.
"""

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class Table(NamedTuple):
    """Rows of one kind: runs, paired, summary or buckets."""

    kind: str
    rows: list[Row]


# --- columns


def number(cell: str) -> float:
    """A finite number."""
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError
    return value


def maybe(cell: str) -> float | None:
    """A finite number, or None of an empty cell or nan."""
    return None if cell.lower() in ("", "nan") else number(cell)


def count(cell: str) -> int:
    """An integer from 0 on."""
    if not cell.isdecimal():
        raise ValueError
    return int(cell)


EXPECTED = {number: "a number", maybe: "a number or nothing", count: "an integer from 0 on"}
MEASURES = {"tokens_emitted": count, "wall_time_s": number, "avg_entropy": maybe}
RUNS = {
    "backend": str, "model_id": str, "bucket": str, "name": str, "prompt_ix": count,
    "prompt": str, "strategy": str, **MEASURES, "final_entropy": maybe, "stop_reason": str,
    "response_text": str,
}  # fmt: skip
PAIRED = {
    "bucket": str, "name": str, "prompt_ix": count, "prompt": str,
    **{
        column: kind
        for m, one in MEASURES.items()
        for column, kind in ((f"base_{m}", one), (f"srb_{m}", one),
                             (f"{m}_delta", maybe), (f"{m}_pct", maybe))
    },
    "base_stop_reason": str, "srb_stop_reason": str,
}  # fmt: skip
SUMMARY = {
    "bucket": str, "name": str, "prompt": str, "tokens_baseline": count, "tokens_srb": count,
    "wall_time_baseline_s": number, "wall_time_srb_s": number, "avg_entropy_baseline": maybe,
    "avg_entropy_srb": maybe, "final_entropy_srb": maybe, "stop_reason_srb": str,
    "resonance_efficiency": maybe,
}  # fmt: skip
BUCKETS = {
    "bucket": str, "tokens_baseline": number, "tokens_srb": number,
    "wall_time_baseline_s": number, "wall_time_srb_s": number, "resonance_efficiency": maybe,
    "num_prompts": count, "tokens_pct_change": maybe, "wall_time_pct_change": maybe,
}  # fmt: skip
KINDS: dict[str, dict[str, Callable[[str], Any]]] = {
    "runs": RUNS, "paired": PAIRED, "summary": SUMMARY, "buckets": BUCKETS,
}  # fmt: skip
FILES = {
    "runs": "runs_longform.csv",
    "paired": "runs_longform_paired.csv",
    "summary": "summary_longform.csv",
    "buckets": "bucket_summary.csv",
}


# --- reading


def read(path: str | Path) -> Table:
    """One of the four files. Further columns are numbers (None: empty) or, if one is not, text.

    Raises OSError, and ValueError with file, line and column: an empty or unknown file, a missing
    column, a cell that is not what its column holds, a row that is too short or too long.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        lines, start = [], 1
        try:
            for cells in reader:
                if cells:
                    lines.append((start, cells))
                start = reader.line_num + 1  # a cell may go over several lines
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {start}: {error}") from None
    if len(lines) < 2:
        raise ValueError(f"{path}: {'only a header' if lines else 'the file is empty'}")
    (_, header), *body = lines
    kind = _kind(path, header)
    for line, cells in body:
        if len(cells) != len(header):
            what = f"{len(cells)} cells, but the header has {len(header)}"
            raise ValueError(f"{path}, line {line}: {what}")
    further = {c: _further([cells[i] for _, cells in body]) for i, c in enumerate(header)}
    types = further | {"seed": count, "signed_efficiency": maybe} | KINDS[kind]
    return Table(kind, [_row(path, line, header, cells, types) for line, cells in body])


def _kind(path: str | Path, header: list[str]) -> str:
    if twice := sorted({c for c in header if header.count(c) > 1}):
        raise ValueError(f"{path}, line 1: column {twice[0]!r} occurs twice")
    kind = max(KINDS, key=lambda k: len(KINDS[k].keys() & set(header)) / len(KINDS[k]))
    missing = [c for c in KINDS[kind] if c not in header]
    if 2 * len(missing) > len(KINDS[kind]):
        known = ", ".join(FILES.values())
        raise ValueError(f"{path}, line 1: the columns are those of none of {known}")
    if missing:
        raise ValueError(f"{path}, line 1: column {missing[0]!r} of {FILES[kind]} is missing")
    return kind


def _further(cells: Iterable[str]) -> Callable[[str], Any]:
    for cell in cells:
        try:
            maybe(cell)
        except ValueError:
            return str
    return maybe


def _row(
    path: str | Path, line: int, header: list[str], cells: list[str], types: Mapping[str, Callable]
) -> Row:
    row = {}
    for column, cell in zip(header, cells, strict=True):
        try:
            row[column] = types[column](cell)
        except ValueError:
            what = f"{cell!r} is not {EXPECTED[types[column]]}"
            raise ValueError(f"{path}, line {line}, column {column!r}: {what}") from None
    return row
