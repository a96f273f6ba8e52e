"""The rows of the stability task as a table, and AUROC over the damaged tokens read."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.kit.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, error_bars, new_figure
from benchmarks.kit.records import Row, grouped
from benchmarks.kit.statistics import mean_interval
from benchmarks.kit.tables import shown, table
from reso_llm.decoding.text_class import CLASSES

KINDS = ("corrupt", "loop", "own loop")
TITLES = ("a share of the tokens replaced", "a span repeated", "the model's own loop")
STYLES = {
    "warning": (BLUE, "o-", "monitor's warning"),
    "surprise_ema": (ORANGE, "s--", "surprise, averaged"),
    "entropy": (GREEN, "^:", "entropy"),
    "order": (GREY, "x-.", "order parameter"),
    "max_prob": (PURPLE, "v-.", "largest probability"),
}


SETTINGS = ("checkpoint", "data", "horizon", "share", "temperature", "max_windows")


def over_seeds(rows: Sequence[Row], kind: str) -> dict[int, dict[str, list[float]]]:
    """{d: {score: value, low, high}}, means over the seeds that could be compared there."""
    by_read: dict[int, dict[str, list[list[float]]]] = {}
    for comparison in (c for row in rows for c in row[kind]):
        for name in (n for n in comparison if n != "read" and not n.startswith("num_")):
            scores = by_read.setdefault(comparison["read"], {})
            scores.setdefault(name, []).append(comparison[name]["auroc"])
    return {d: {n: mean_interval(v) for n, v in scores.items()} for d, scores in by_read.items()}


def text(rows: Sequence[Row]) -> str:
    """AUROC by damage and d, and the false alarms; then the classes; for each checkpoint."""
    warnings = [row for row in rows if row["kind"] == "warning"]
    classes = [row for row in rows if row["kind"] == "classes"]
    parts = list(map(_table, grouped(warnings, *SETTINGS).values()))
    parts += map(_class_table, grouped(classes, "checkpoint", "data", "tokens").values())
    return "\n\n".join(parts)


FORMS = ("kept", "refitted", "no spread", "with exponent", "exponent alone")


def _class_table(rows: Sequence[Row]) -> str:
    """Balanced accuracy of each form of the class, and what the texts of each class are called."""
    head = rows[0]
    shares = {form: [row[form] for row in rows] for form in FORMS if form in head}
    lines = []
    for form, found in shares.items():
        interval = mean_interval([row["balanced_accuracy"] for row in found])
        right = [
            np.mean([row["called"][name][k] for row in found]) for k, name in enumerate(CLASSES)
        ]
        lines.append([form, shown(interval, 3), *(f"{share:.2f}" for share in right)])
    counts = ", ".join(f"{n} {name}" for name, n in head["num_texts"].items())
    title = (
        f"**{head['checkpoint']}**, classes of texts of {head['tokens']} tokens of {head['data']} "
        f"({counts}), {len(rows)} seeds"
    )
    return "\n\n".join((title, table(("calibration", "balanced accuracy", *CLASSES), lines)))


def _table(rows: Sequence[Row]) -> str:
    head, columns, lines = rows[0], (), []
    seeds = ", ".join(str(row["seed"]) for row in rows)
    for kind in KINDS:
        for d, scores in over_seeds(rows, kind).items():
            columns = columns or tuple(scores)
            lines.append([kind, str(d), *(shown(v, 3) for v in scores.values())])
    alarms = {k: np.mean([row["false_alarms"][k] for row in rows]) for k in head["false_alarms"]}
    clean = [row["classes"]["clean"] for row in rows]
    stable = sum(c.get("stable", 0) for c in clean) / sum(sum(c.values()) for c in clean)
    title = (
        f"**{head['checkpoint']}**, {head['num_windows']} windows of {head['num_documents']} "
        f"documents of {head['data']}, seeds {seeds}; texts that looped "
        f"{sum(row['num_looping'] for row in rows)}, that never did "
        f"{sum(row['num_never'] for row in rows)}"
    )
    note = (
        f"False alarms on clean text: {alarms['share_of_tokens']:.2%} of tokens, "
        f"{alarms['warnings_per_100_tokens']:.2f} warnings per 100 tokens, "
        f"{alarms['share_of_windows']:.0%} of the windows have one. "
        f"Class stable: {stable:.1%} of clean tokens."
    )
    return "\n\n".join((title, table(("damage", "d", *columns), lines), note))


def figure(rows: Sequence[Row]) -> Any:
    """AUROC over damaged tokens read, the monitor beside baselines; one line of panels a group."""
    warnings = [row for row in rows if row["kind"] == "warning"]
    some = grouped(warnings, *SETTINGS).values()
    drawn = new_figure(13.5, 4.3 * len(some))
    panels = drawn.subplots(len(some), len(KINDS), squeeze=False, sharey=True)
    for line, group in zip(panels, some, strict=True):
        for axes, kind, title in zip(line, KINDS, TITLES, strict=True):
            _curves(axes, over_seeds(group, kind))
            axes.set(title=title, xlabel="damaged tokens read", ylim=(0, 1.04))
        line[0].set_ylabel(f"AUROC, {group[0]['checkpoint']} on {group[0]['data']}")
        line[1].legend(loc="lower right")
    return drawn


def _curves(axes: Any, by_read: dict[int, dict[str, list[float]]]) -> None:
    places = np.arange(len(by_read))
    for i, (name, (color, style, label)) in enumerate(STYLES.items() if by_read else ()):
        middle, bars = error_bars([scores[name] for scores in by_read.values()])
        axes.errorbar(places + 0.06 * (i - 1.5), middle, bars, fmt=style, color=color, capsize=2,
                      ms=5, label=label)  # fmt: skip
    axes.axhline(0.5, color=GREY, lw=0.8)
    axes.set_xticks(places, [str(d) for d in by_read])
