"""The ablation as tables and as a forest plot, from its rows as plain values.

    gain = bits per byte of the reference - bits per byte of the variant, by pairs of equal seeds

The reference of "full - stage" is full, that of all others the control. Half the width of the 95 %
interval of the mean gain over n seeds is t(n) s / sqrt(n), s their standard deviation.
"""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from cer.zombie import T_95

LINEAR_BITS = 0.02  # the axis is linear up to here, logarithmic beyond
STYLES = {"full": ("#D55E00", "s"), "control": ("#0072B2", "o")}  # by reference
INCHES_A_VARIANT = 0.3

Row = dict[str, Any]
Group = dict[str, dict[int, Row]]  # rows by variant and seed


class Gain(NamedTuple):
    """Bits per byte less than the reference: mean over seeds, half its 95 % interval."""

    mean: float
    half: float | None  # a single pair has no interval


def groups(rows: Sequence[Row]) -> dict[str, Group]:
    """The rows by task and budget, as a title; the newest row of a variant and seed counts."""
    found: dict[str, Group] = {}
    for row in rows:
        budget = f"{row['steps']} steps each" if row["steps"] else f"{row['seconds']:g} s each"
        group = found.setdefault(f"{row['task']}, {budget}", {})
        group.setdefault(row["variant"], {})[row["seed"]] = row
    return found


def reference_of(variant: str) -> str:
    return "full" if variant.startswith("full - ") else "control"


def gain(group: Group, variant: str) -> Gain | None:
    """What a variant saves; None where no seed has both it and its reference."""
    reference, rows = group.get(reference_of(variant), {}), group[variant]
    gains = [reference[s]["bits_per_byte"] - r["bits_per_byte"] for s, r in rows.items()
             if s in reference]  # fmt: skip
    if not gains:
        return None
    if len(gains) == 1:
        return Gain(gains[0], None)
    factor = T_95[min(len(gains), max(T_95))]
    return Gain(statistics.fmean(gains), factor * statistics.stdev(gains) / len(gains) ** 0.5)


def text(rows: Sequence[Row]) -> str:
    """Markdown: bits per byte, what it is less than its reference, and what the variant costs."""
    return "\n\n".join(_section(title, group) for title, group in groups(rows).items())


def _section(title: str, group: Group) -> str:
    lines = [
        f"**{title}**", "",
        "| variant | seeds | bits/byte | less than its reference | tokens/s | decode ms "
        "| parameters | tables | pairs |",
        "|---" * 9 + "|",
    ]  # fmt: skip
    for variant, rows in group.items():
        values = [row["bits_per_byte"] for row in rows.values()]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        any_row = next(iter(rows.values()))
        lines.append(
            f"| {variant} | {len(rows)} | {statistics.fmean(values):.4f}{spread} "
            f"| {_written(gain(group, variant))} "
            f"| {statistics.median(r['tokens_per_second'] for r in rows.values()):,.0f} "
            f"| {statistics.median(r['decode_ms'] for r in rows.values()):.2f} "
            f"| {any_row['parameters']:,} | {any_row['table_parameters']:,} "
            f"| {any_row['bound_pairs']:,} |"
        )
    return "\n".join(lines)


def _written(found: Gain | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:+.4f}" + ("" if found.half is None else f" ± {found.half:.4f}")


def figure(rows: Sequence[Row]) -> Any:
    """The gains with their intervals, a panel a task and budget; hollow: one seed, no interval."""
    from matplotlib.figure import Figure

    found = groups(rows)
    sizes = [max(len(group) - 1, 1) for group in found.values()] or [1]
    height = INCHES_A_VARIANT * sum(sizes) + 1.6 * len(sizes)
    drawn = Figure(figsize=(8, height), layout="constrained")
    panels = drawn.subplots(len(sizes), 1, squeeze=False, height_ratios=sizes)[:, 0]
    for axes, (title, group) in zip(panels, found.items(), strict=False):
        _forest(axes, group)
        axes.set_title(title, fontsize=11)
    return drawn


def _forest(axes: Any, group: Group) -> None:
    gains = {name: g for name in group if name != "control" and (g := gain(group, name))}
    for i, (variant, found) in enumerate(gains.items()):
        color, marker = STYLES[reference_of(variant)]
        face = color if found.half is not None else "white"
        axes.errorbar(found.mean, i, xerr=found.half or 0, color=color, marker=marker,
                      markerfacecolor=face, capsize=3, ls="")  # fmt: skip
    for reference, (color, marker) in STYLES.items():
        axes.plot([], [], color=color, marker=marker, label=f"against {reference}")
    axes.axvline(0, color="#555555", lw=0.8)
    axes.set_xscale("symlog", linthresh=LINEAR_BITS)
    ticks = [0, *(s * t for t in (0.01, 0.1, 1) for s in (-1, 1))]
    edge = 1.5 * max([1.0, *(abs(found.mean) + (found.half or 0) for found in gains.values())])
    axes.set_xlim(-edge, edge)
    axes.set_xticks(sorted(ticks), [f"{t:+g}" if t else "0" for t in sorted(ticks)])
    axes.set_yticks(range(len(gains)), list(gains))
    axes.set_ylim(len(gains) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("bits per byte less than the reference (right of 0: better)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
