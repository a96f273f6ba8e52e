"""Comparisons of two SRB arms, and bucket summaries, in markdown: rows of comparison.py.

Numbers are means, medians and geometric-mean ratios with their intervals; `-` where there is none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.kit.tables import number, shown, table

MEASURES = {  # title, decimals
    "wall_time_s": ("wall time, s", 1),
    "seconds_per_token": ("seconds per token", 4),
    "tokens_emitted": ("tokens", 2),
    "avg_entropy": ("average entropy, nats", 4),
}


def csv_text(row: Mapping[str, Any]) -> str:
    """Markdown of a row: its bucket table to 3 decimals, and its paired statistics if any."""
    return _comparison_text(row) if "overall" in row else _buckets_text(row)


def _buckets_text(row: Mapping[str, Any]) -> str:
    title = f"**{', '.join(row['files'])}**"
    if row["differs"] == []:
        return f"{title}: every cell is the one computed above."
    differs = f", not as computed above: {'; '.join(row['differs'])}" if row["differs"] else ""
    return f"{title}{differs}\n\n{bucket_markdown(row['bucket_table'])}"


def _comparison_text(row: Mapping[str, Any]) -> str:
    model = " ".join(filter(None, (row["backend"], row["model_id"])))
    title = ": ".join(filter(None, (", ".join(row["files"]), model)))
    return "\n\n".join((
        f"**{title}**", bucket_markdown(row["bucket_table"]), paired_markdown(row),
        *bucket_differences_markdown(row), _factors(row),
    ))  # fmt: skip


def bucket_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A bucket summary, 3 decimals."""
    lines = [
        [number(v, ".3f") if isinstance(v, float | None) else str(v) for v in row.values()]
        for row in rows
    ]
    return table(rows[0], lines)


def paired_markdown(row: Mapping[str, Any]) -> str:
    """Treated minus baseline over all prompts, and without those at which the machine stalled."""
    measured = [(m, one, "") for m, one in row["overall"].items()]
    measured += [(m, one, " (without stalls)") for m, one in row["without_stalls"].items()]
    lines = []
    for measure, one, note in measured:
        title, decimals = MEASURES.get(measure, (measure, 4))
        lines.append([
            title + note, str(one["prompts"]), str(one["dropped"]),
            _with(one["mean"], one["mean_interval"], decimals),
            _with(one["median"], one["median_interval"], decimals), number(one["p"], ".3g"),
            _with(one["ratio"], one["ratio_interval"], 3),
        ])  # fmt: skip
    arms = f"{row['treated']} − {row['baseline']}"
    columns = [arms, "prompts", "dropped", "mean [95 %]", "median [95 %]", "p", "ratio [95 %]"]
    seeds = f"{row['seeds']} seed{'s' if row['seeds'] > 1 else ''} each"
    note = f"Over prompts, {seeds}; bootstrap intervals, Wilcoxon's p, geometric-mean ratio."
    return f"{table(columns, lines)}\n\n{note}"


def bucket_differences_markdown(row: Mapping[str, Any]) -> list[str]:
    """A table of each measure's differences by bucket, with p values raw and by Holm."""
    tables = []
    for measure, buckets in row["by_bucket"].items():
        title, decimals = MEASURES.get(measure, (measure, 4))
        columns = [f"{title}: {row['treated']} − {row['baseline']}", "prompts", "mean [95 %]",
                   "median", "p", "p (Holm)", "ratio"]  # fmt: skip
        lines = [
            [bucket, str(one["prompts"]), _with(one["mean"], one["mean_interval"], decimals),
             number(one["median"], f".{decimals}f"), number(one["p"], ".3g"),
             number(one["p_holm"], ".3g"), number(one["ratio"], ".3f")]
            for bucket, one in buckets.items()
        ]  # fmt: skip
        tables.append(table(columns, lines))
    return tables


def _factors(row: Mapping[str, Any]) -> str:
    parts = row["decomposition"]
    wall, tokens, clock = (
        _with(parts[m][0], parts[m][1:], 3)
        for m in ("wall_time_s", "tokens_emitted", "seconds_per_token")
    )
    share = parts["tokens_share"]
    of_it = "" if share is None else f" Tokens are {share:.0%} of the logarithm."
    slow = ", ".join(f"{n} (seed {s})" if row["seeds"] > 1 else n for n, s in row["stalls"])
    return (
        f"Wall time ratio {wall} = tokens {tokens} × seconds per token {clock}.{of_it} Stalls "
        f"(seconds per token above 3 times the arm's median): {slow or 'none'}."
    )


def _with(value: float | None, edges: Sequence[float | None] | None, decimals: int) -> str:
    if value is None or edges is None or edges[0] is None:
        return number(value, f".{decimals}f")
    return shown([value, *edges], decimals)
