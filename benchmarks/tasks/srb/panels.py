"""The figure of all rows of the SRB study: each study from its files, comparisons from themselves.

study   average entropy of every prompt and tokens saved; time against quality; every token's
        entropy, where a cut reply's trace is the beginning of the static one's
csv     the first three where the row holds its runs; differences by bucket and the factors of
        wall time, or the changes by bucket of a summary that no comparison stands beside
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kit.figures import new_figure
from benchmarks.kit.records import REPOSITORY
from benchmarks.tasks.srb import figures
from benchmarks.tasks.srb.analysis import complete
from benchmarks.tasks.srb.figures import Canvas
from benchmarks.tasks.srb.forest import bucket_changes, comparison_figure
from benchmarks.tasks.srb.schema import FILES, read
from benchmarks.tasks.srb.study import Replies
from benchmarks.tasks.srb.traces import Traces, token_entropy_overlay

WIDTH = 13  # inches
Row = Mapping[str, Any]


def figure(rows: Iterable[Row]) -> Any:
    """One matplotlib Figure, the rows under each other; those without a kind are left out.

    Raises OSError where the files of a study are not there.
    """
    parts = [(row, *part) for row in rows if (part := _part(row)) is not None]
    heights = [height for *_, height in parts]
    whole = new_figure(WIDTH, sum(heights) or 1)
    if parts:
        places = whole.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
        for (row, title, draw, _), on in zip(parts, places, strict=True):
            on.suptitle(title, fontsize=12)
            draw(row, on)
    return whole


def pictures(rows: Iterable[Row]) -> dict[str, Any]:
    """A Figure of each row, by name: together they would be too tall for a page."""
    return {_name(row): figure([row]) for row in rows if _part(row) is not None}


def _name(row: Row) -> str:
    if row["kind"] == "study":
        return f"srb_{row['model']}"
    stem = "_".join(Path(file).stem for file in row["files"])
    return "_".join(filter(None, ("srb_files", row.get("model_id"), stem)))


def _part(row: Row) -> tuple[str, Callable[[Row, Canvas], None], float] | None:
    """Title, drawing and height in inches of a row; None where there is nothing to draw."""
    if row.get("kind") == "study":
        return f"{row['model']}: static and srb", study_figure, 15
    if row.get("kind") != "csv" or row.get("differs") == []:
        return None
    title = ": ".join(filter(None, (row.get("model_id"), ", ".join(row["files"]))))
    if "runs" in row and "avg_entropy" in row["overall"]:
        return title, files_figure, 15.8
    if "overall" in row:
        return title, comparison_figure, 7
    return title, lambda row, on: bucket_changes(row["bucket_table"], on), 4.5


def study_figure(row: Row, on: Canvas) -> None:
    """Static and srb of one study, from its files."""
    directory = where(row["files"])
    runs = [run for run in read(directory / FILES["runs"]).rows if run["seed"] in row["seeds"]]
    top, bottom = on.subfigures(2, 1, height_ratios=(8.8, 6.2))
    prompts_figure(runs, top)
    replies = Replies(directory / "replies.jsonl.gz")
    token_entropy_overlay(*traces(replies, row["seeds"]), on=bottom)


def files_figure(row: Row, on: Canvas) -> None:
    """Both arms of given files, prompt by prompt and in differences."""
    top, bottom = on.subfigures(2, 1, height_ratios=(8.8, 7))
    prompts_figure(row["runs"], top)
    comparison_figure(row, bottom)


def prompts_figure(runs: Sequence[Row], on: Canvas) -> None:
    """Entropies and tokens saved of every prompt, and time against quality."""
    top, bottom = on.subfigures(2, 1, height_ratios=(4.2, 4.6))
    left, right = top.subfigures(1, 2)
    figures.entropy_overlay(runs, on=left)
    figures.efficiency_heatmap(runs, on=right)
    figures.time_quality(runs, on=bottom)


def traces(replies: Replies, seeds: Iterable[int]) -> tuple[Traces, dict[str, str]]:
    """Nats of every token of static and srb, by name, seed and arm; and the buckets of names."""
    runs = complete(replies, list(seeds))
    entropies = {
        (row["name"], row["seed"]): np.array(row["entropy_nats"]) for row in runs["static"]
    }
    return {
        (row["name"], row["seed"], arm): entropies[row["name"], row["seed"]][: row["tokens"]]
        for arm in ("static", "srb")
        for row in runs[arm]
    }, {row["name"]: row["bucket"] for row in runs["static"]}


def where(files: str) -> Path:
    """The directory of a study that a row names: a path in the repository, or as given."""
    inside = REPOSITORY / files
    return inside if inside.is_dir() else Path(files)
