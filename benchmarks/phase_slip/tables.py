"""The rows of the study as markdown: one section for each model, one table for each protocol."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.heldout import shown, table
from benchmarks.phase_slip.arms import ARMS, CAUSES, CURVE, PUBLISHED_DIVERSITY, SQUARE
from benchmarks.phase_slip.measures import TRIGGER
from benchmarks.phase_slip.statistics import drawn_measures, matched, summary

Rows = Sequence[dict[str, Any]]
SCORERS = ("own", "outside")
BRIEF = ("distinct-2", "looping", "ends", "escaped", "as greedy", "diversity")
SHOWN_WORDS = 60


def text(rows: Rows) -> str:
    """Markdown tables of whatever protocols, models and arms are there."""
    tables: dict[str, Callable[[Rows], str]] = {
        "published": _published, "strict": _strict, "breaker": _breaker, "loops": _loops,
    }  # fmt: skip
    parts = []
    for about, some in grouped(rows, "model", "weights"):
        parts.append("### {} (weights {})".format(*about))
        for protocol, told in tables.items():
            chosen = [row for row in some if row["protocol"] == protocol]
            for _, alike in grouped(chosen, "tokens", "seeds", "scorer", "prompts"):
                parts.append(told(alike))
    return "\n\n".join(parts)


def grouped(rows: Rows, *fields: str) -> Iterator[tuple[tuple[Any, ...], Rows]]:
    """(values of the fields, the rows that have them), in the order of their first rows."""
    found: dict[str, tuple[tuple[Any, ...], list[dict[str, Any]]]] = {}
    for row in rows:
        about = tuple(row.get(field) for field in fields)
        found.setdefault(repr(about), (about, []))[1].append(row)
    yield from found.values()


def strict_draws(rows: Rows) -> dict[str, dict[str, Any]]:
    """Bootstrap draws (1+R,) of rep-4 and nats per byte, by arm, of strict rows that are alike."""
    pairs = {row["arm"]: row["pairs"] for row in rows}
    shape = rows[0]["pairs"]["rep-4"][0]
    return drawn_measures(pairs, len(shape), len(shape[0]))


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


# --- the published protocol


def _published(rows: Rows) -> str:
    lines = []
    for row in rows:
        rounds = row["diversity"]
        slips = [row[f"{cause}s"] * 100 / (row["tokens"] * len(rounds)) for cause in CAUSES]
        cells = [sum(rounds) / len(rounds), min(rounds), max(rounds)]
        lines.append([
            row["arm"], *map(_number, cells), _number(PUBLISHED_DIVERSITY[row["arm"]]),
            ", ".join(f"{n:.1f}" for n in slips),
        ])  # fmt: skip
    about = (
        f"Published protocol: unique / all words, {len(rows[0]['seeds'])} rounds of "
        f"{rows[0]['tokens']} tokens. The published values are those of GPT-2 small."
    )
    head = ["arm", "mean", "least", "most", "published", "spikes, stale, loops / 100 tokens"]
    return f"{about}\n\n{table(head, lines)}"


# --- the strict protocol


def _strict(rows: Rows) -> str:
    rows = sorted(rows, key=lambda row: [*ARMS].index(row["arm"]))
    drawn = strict_draws(rows)
    scorers = [s for s in SCORERS if s in rows[0]["pairs"]]
    prompts = len(rows[0]["pairs"]["rep-4"][0])
    about = (
        f"Strict protocol: {prompts} prompts, {len(rows[0]['seeds'])} seeds, {rows[0]['tokens']}"
    )
    about += " tokens; nats per byte, intervals over prompts and seeds."
    if rows[0]["scorer"] is not None:
        about += f" Outside: {rows[0]['scorer']}, {rows[0]['scored_seeds']} seeds."
    parts = [about, _measures(rows, drawn, scorers), _square(rows)]
    parts += [_matched(rows, drawn, scorer) for scorer in scorers]
    return "\n\n".join(part for part in parts if part)


def _measures(rows: Rows, drawn: dict[str, Any], scorers: Sequence[str]) -> str:
    wide = ("rep-4", *scorers)
    head = ["arm", *wide, *BRIEF, "spikes, stale, loops / 100 tokens"]
    lines = []
    for row in rows:
        values = row["values"]
        cells = [shown(summary(drawn[row["arm"]][name]), 3) for name in wide]
        cells += [_number(values[name]) for name in BRIEF]
        slips = ", ".join(f"{values[cause] * 100:.1f}" for cause in CAUSES)
        lines.append([row["arm"], *cells, slips])
    return table(head, lines)


def _square(rows: Rows) -> str:
    """The 2 x 2 of noise and temperature; nothing while a corner is missing."""
    values = {row["arm"]: row["values"] for row in rows}
    if not all(arm in values for arm in SQUARE):
        return ""
    cells = [f"{values[a]['rep-4']:.3f}, {_number(values[a]['escaped'])}" for a in SQUARE]
    head = ["rep-4, escaped", "no noise", "noise .03"]
    lines = [["greedy", *cells[:2]], ["T 1.5 at slips", *cells[2:]]]
    return table(head, lines)


def _matched(rows: Rows, drawn: dict[str, Any], scorer: str) -> str:
    lines = []
    for row in rows:
        found = None if row["arm"] in CURVE.values() else matched(drawn, row["arm"], scorer)
        if found is not None:
            cells = [shown(found["temperature"], 3), shown(found["rep-4 - curve"], 3)]
            lines.append([row["arm"], *cells, f"{found['inside']:.0%}"])
    head = ["arm", f"T of equal {scorer} nats/byte", "rep-4 - curve", "draws inside"]
    return table(head, lines) if lines else ""


# --- loops


def _loops(rows: Rows) -> str:
    parts = []
    for row in rows:
        starts = [first for first in row["first"] if first is not None]
        about = (
            f"Greedy texts of {row['tokens']} tokens from {row['prompts']} prompts: "
            f"{len(starts)} loop, {sum(row['ends'])} to the end; mean rep-4 "
            f"{sum(row['rep-4']) / len(row['rep-4']):.3f}."
        )
        spike, least = TRIGGER.spike_nats, TRIGGER.confident_nats
        head = [
            "tokens",
            "number",
            "mean entropy, nats",
            "quartiles",
            f"> {spike:g}",
            f">= {least:g}",
        ]
        lines = [[where, *_entropies(row[where])] for where in ("inside", "outside")]
        parts.append(f"{about}\n\n{table(head, lines)}")
    return "\n\n".join(parts)


def _entropies(found: dict[str, Any]) -> list[str]:
    if not found["tokens"]:
        return ["0", "-", "-", "-", "-"]
    quartiles = ", ".join(_number(q) for q in found["quartiles_nats"])
    shares = [f"{found[name]:.1%}" for name in ("spike", "unsure")]
    return [str(found["tokens"]), _number(found["mean_nats"]), quartiles, *shares]


def _breaker(rows: Rows) -> str:
    head = ["arm", "looping", "at its end", "rep-4", "slips", "text"]
    lines = []
    for row in rows:
        words = row["text"].split()
        start = " ".join(words[:SHOWN_WORDS]).replace("|", "/")
        lines.append([
            row["arm"], _number(row["looping"]), "a loop" if row["ends"] else "no loop",
            _number(row["rep-4"]), str(len(row["slips"])), start,
        ])  # fmt: skip
    return f'After "{rows[0]["prompt"]}":\n\n{table(head, lines)}'
