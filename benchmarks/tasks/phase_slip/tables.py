"""The rows of the study as markdown: one section for each model, one table for each protocol."""

from collections.abc import Sequence
from typing import Any

from benchmarks.kit.records import grouped
from benchmarks.kit.statistics import summary
from benchmarks.kit.tables import number, shown, table
from benchmarks.tasks.phase_slip.arms import ARMS, CAUSES, CURVE, PUBLISHED_DIVERSITY, SQUARE
from benchmarks.tasks.phase_slip.measures import TRIGGER
from benchmarks.tasks.phase_slip.rivals import equal_nats, known_facts
from benchmarks.tasks.phase_slip.statistics import Drawn, drawn_measures, matched

Rows = Sequence[dict[str, Any]]
SCORERS = ("own", "outside")
BRIEF = ("distinct-2", "looping", "ends", "escaped", "as greedy", "diversity")
SHOWN_WORDS = 60


def text(rows: Rows) -> str:
    """Markdown tables of whatever protocols, models and arms are there."""
    tables = {"published": _published, "strict": _strict, "breaker": _breaker, "loops": _loops,
              "rivals": equal_nats, "facts": known_facts}  # fmt: skip
    parts = []
    for model, some in grouped(rows, "model", "weights").items():
        parts.append("### {} (weights {})".format(*model))
        for protocol, write in tables.items():
            chosen = [row for row in some if row["protocol"] == protocol]
            for alike in grouped(chosen, "tokens", "seeds", "scorer", "prompts").values():
                parts.append(write(alike))
    return "\n\n".join(parts)


# --- the published protocol


def _published(rows: Rows) -> str:
    lines = []
    for row in rows:
        rounds = row["diversity"]
        slips = [row[f"{cause}s"] * 100 / (row["tokens"] * len(rounds)) for cause in CAUSES]
        cells = [sum(rounds) / len(rounds), min(rounds), max(rounds)]
        lines.append([
            row["arm"], *map(number, cells), number(PUBLISHED_DIVERSITY[row["arm"]]),
            ", ".join(f"{n:.1f}" for n in slips),
        ])  # fmt: skip
    title = (
        f"Published protocol: unique / all words, {len(rows[0]['seeds'])} rounds of "
        f"{rows[0]['tokens']} tokens. The published values are those of GPT-2 small."
    )
    head = ["arm", "mean", "least", "most", "published", "spikes, stale, loops / 100 tokens"]
    return f"{title}\n\n{table(head, lines)}"


# --- the strict protocol


def _strict(rows: Rows) -> str:
    rows = sorted(rows, key=lambda row: [*ARMS].index(row["arm"]))
    drawn = drawn_measures(rows)
    scorers = [s for s in SCORERS if s in rows[0]["pairs"]]
    prompts = len(rows[0]["pairs"]["rep-4"][0])
    title = (
        f"Strict protocol: {prompts} prompts, {len(rows[0]['seeds'])} seeds, {rows[0]['tokens']} "
        "tokens; nats per byte, intervals over prompts and seeds."
    )
    if rows[0]["scorer"] is not None:
        title += f" Outside: {rows[0]['scorer']}, {rows[0]['scored_seeds']} seeds."
    parts = [title, _measures(rows, drawn, scorers), _square(rows)]
    parts += [_matched(rows, drawn, scorer) for scorer in scorers]
    return "\n\n".join(part for part in parts if part)


def _measures(rows: Rows, drawn: Drawn, scorers: Sequence[str]) -> str:
    wide = ("rep-4", *scorers)
    head = ["arm", *wide, *BRIEF, "spikes, stale, loops / 100 tokens"]
    lines = []
    for row in rows:
        values = row["values"]
        cells = [shown(summary(drawn[row["arm"]][name]), 3) for name in wide]
        cells += [number(values[name]) for name in BRIEF]
        slips = ", ".join(f"{values[cause] * 100:.1f}" for cause in CAUSES)
        lines.append([row["arm"], *cells, slips])
    return table(head, lines)


def _square(rows: Rows) -> str:
    """The 2 x 2 of noise and temperature; nothing while a corner is missing."""
    values = {row["arm"]: row["values"] for row in rows}
    if not all(arm in values for arm in SQUARE):
        return ""
    cells = [f"{values[a]['rep-4']:.3f}, {number(values[a]['escaped'])}" for a in SQUARE]
    head = ["rep-4, escaped", "no noise", "noise .03"]
    lines = [["greedy", *cells[:2]], ["T 1.5 at slips", *cells[2:]]]
    return table(head, lines)


def _matched(rows: Rows, drawn: Drawn, scorer: str) -> str:
    lines = []
    for row in rows:
        against = None if row["arm"] in CURVE.values() else matched(drawn, row["arm"], scorer)
        if against is not None:
            cells = [shown(against["temperature"], 3), shown(against["rep-4 - curve"], 3)]
            lines.append([row["arm"], *cells, f"{against['inside']:.0%}"])
    head = ["arm", f"T of equal {scorer} nats/byte", "rep-4 - curve", "draws inside"]
    return table(head, lines) if lines else ""


# --- loops


def _loops(rows: Rows) -> str:
    parts = []
    for row in rows:
        starts = [first for first in row["first"] if first is not None]
        title = (
            f"Greedy texts of {row['tokens']} tokens from {row['prompts']} prompts: "
            f"{len(starts)} loop, {sum(row['ends'])} to the end; mean rep-4 "
            f"{sum(row['rep-4']) / len(row['rep-4']):.3f}."
        )
        spike, least = TRIGGER.spike_nats, TRIGGER.confident_nats
        head = ["tokens", "number", "mean entropy, nats", "quartiles"]
        head += [f"> {spike:g}", f">= {least:g}"]
        lines = [[where, *_entropies(row[where])] for where in ("inside", "outside")]
        parts.append(f"{title}\n\n{table(head, lines)}")
    return "\n\n".join(parts)


def _entropies(where: dict[str, Any]) -> list[str]:
    if not where["tokens"]:
        return ["0", "-", "-", "-", "-"]
    quartiles = ", ".join(number(q) for q in where["quartiles_nats"])
    shares = [f"{where[name]:.1%}" for name in ("spike", "unsure")]
    return [str(where["tokens"]), number(where["mean_nats"]), quartiles, *shares]


def _breaker(rows: Rows) -> str:
    head = ["arm", "looping", "at its end", "rep-4", "slips", "text"]
    lines = []
    for row in rows:
        words = row["text"].split()
        start = " ".join(words[:SHOWN_WORDS]).replace("|", "/")
        lines.append([
            row["arm"], number(row["looping"]), "a loop" if row["ends"] else "no loop",
            number(row["rep-4"]), str(len(row["slips"])), start,
        ])  # fmt: skip
    return f'After "{rows[0]["prompt"]}":\n\n{table(head, lines)}'
