"""Claims of the Reso-LLM v2 README on agency, stability, agents and noise, by rows."""

import statistics
from collections.abc import Callable

from benchmarks.claims import (
    Evidence,
    Finding,
    Interval,
    Missing,
    Row,
    above,
    below,
    combined,
    decided,
    newest,
)
from benchmarks.heldout import mean_interval, shown

# --- agency


def tracks_goals(evidence: Evidence) -> Finding:
    """Achievement of a reply's own goal against another reply's, as the package decides it."""
    rows = evidence.rows("goals", measure="achieved", weighting="equal", centred=False)
    rows = newest(rows, "checkpoint", "seed")
    true, false, auc = (mean_interval([r[k] for r in rows]) for k in ("true", "false", "auc"))
    return Finding(
        f"achieved: {shown(true, 2)} of the goals a reply was written for, {shown(false, 2)} of "
        f"other replies' goals; AUROC {shown(auc, 2)}",
        combined(*(decided(r["true"][1] > r["false"][2]) for r in rows)),
        "python evaluate.py goals --data FILE --train FILE",
    )  # fmt: skip


def goals_move(evidence: Evidence) -> Finding:
    """Does the generated text come nearer to its goal, in every seed?"""
    rows = newest(evidence.rows("goals", measure="generated"), "checkpoint", "goal", "seed")
    words = [f"{goal} {shown(mean_interval([r['rise'] for r in rows if r['goal'] == goal]), 2)}"
             for goal in dict.fromkeys(r["goal"] for r in rows)]  # fmt: skip
    return Finding(
        "what a goal adds to the cosine of the generated text with it, the conversation's own goal "
        f"or another's: {', '.join(words)}",
        decided(all(above(r["rise"]) == "holds" for r in rows)),
        "python evaluate.py goals --data FILE --train FILE",
    )  # fmt: skip


def goals_help(evidence: Evidence) -> Finding:
    """A goal pooled from the prompt, or from one half of a reply and scored on the other."""
    cases = {
        case: evidence.row("goals", measure="loss", case=case)["matching - none"]
        for case in ("whole reply", "first half, second scored", "prompt")
    }
    words = "; ".join(f"{case} {shown(values, 3)}" for case, values in cases.items())
    return Finding(
        f"nats/token of replies with a goal minus without, by what the goal is made of: {words}",
        combined(*(below(values) for values in cases.values())),
        "python evaluate.py goals --data FILE --train FILE",
    )  # fmt: skip


# --- stability

DAMAGE = {  # name in the row, tokens read
    "8 damaged tokens read": ("corrupt", 8),
    "8 repeated tokens read": ("loop", 8),
    "5 tokens before a loop of its own": ("own loop", -5),
}


def warns(rival: bool) -> Callable[[Evidence], Finding]:
    """Above chance in every seed; or above the best of the plain signals, read at that place."""

    def decide(evidence: Evidence) -> Finding:
        rows = newest(evidence.rows("stability"), "checkpoint", "data", "seed")
        words, verdicts = [], []
        for title, (damage, read) in DAMAGE.items():
            found = [_warning(row, damage, read) for row in rows]
            ours = mean_interval([o for o, _ in found])
            best = statistics.fmean(b for _, b in found)
            words.append(f"{title} {shown(ours, 2)}" + (f", best plain {best:.2f}" * rival))
            verdicts.append(decided(all(o[1] > (max(0.5, b) if rival else 0.5) for o, b in found)))
        alarms = statistics.fmean(row["false_alarms"]["share_of_windows"] for row in rows)
        note = "" if rival else f"; {alarms:.0%} of clean windows have a false warning, too"
        return Finding(
            f"AUROC of the warning, {len(rows)} seeds: {'; '.join(words)}{note}",
            combined(*verdicts), "python evaluate.py stability --data FILE",
        )  # fmt: skip

    return decide


def _warning(row: Row, damage: str, read: int) -> tuple[Interval, float]:
    """AUROC of the warning with its interval, and of the best baseline."""
    scores = next(s for s in row[damage] if s["read"] == read)
    others = [s["auroc"][0] for name, s in scores.items()
              if isinstance(s, dict) and name != "warning"]  # fmt: skip
    return scores["warning"]["auroc"], max(others)


def chaotic(evidence: Evidence) -> Finding:
    """Is damaged text called chaotic or divergent more often than clean text, in every seed?"""
    rows = newest(evidence.rows("stability"), "checkpoint", "data", "seed")

    def share(text: str, *classes: str) -> list[float]:
        return [sum(row["classes"][text].get(c, 0) for c in classes)
                / sum(row["classes"][text].values()) for row in rows]  # fmt: skip

    damaged, clean = (share(text, "chaotic", "divergent") for text in ("corrupt", "clean"))
    unknown = statistics.fmean(share("clean", "unknown"))
    return Finding(
        f"chaotic or divergent: {statistics.fmean(damaged):.2%} of the tokens of text of which "
        f"half is replaced, {statistics.fmean(clean):.2%} of clean text; {unknown:.1%} of clean "
        "tokens have no class, as text shows no deterministic dynamics",
        decided(all(d > c for d, c in zip(damaged, clean, strict=True))),
        "python evaluate.py stability --data FILE",
    )  # fmt: skip


# --- agents and noise


def share_state(evidence: Evidence) -> Finding:
    """At full fidelity, with every listener."""
    rows = newest(evidence.rows("consensus", measure="memory", state="F 1"), "listener")
    words = "; ".join(
        f"{r['listener']} {shown(r['fact'], 3)}, a fact nobody was told {shown(r['control'], 3)}"
        for r in rows
    )
    return Finding(
        f"change of another agent's nats/token on a fact that the first was told: {words}",
        combined(*(decided(r["fact"][2] < r["control"][1]) for r in rows)),
        "python -m benchmarks.consensus",
    )  # fmt: skip


def coordinates(way: str, note: str = "") -> Callable[[Evidence], Finding]:
    """Against the best agent of the team alone, for every team."""

    def decide(evidence: Evidence) -> Finding:
        rows = evidence.rows("consensus", measure="bits per byte", way=way)
        rows = newest(rows, "agents")
        words = ", ".join(shown(r["minus_best_single"], 3) for r in rows)
        return Finding(
            f"bits/byte minus the best single agent's, {len(rows)} teams: {words}{note}",
            combined(*(below(r["minus_best_single"]) for r in rows)),
            "python -m benchmarks.consensus",
        )  # fmt: skip

    return decide


def resonance_escapes(evidence: Evidence) -> Finding:
    """More than half of the loops of greedy decoding, and fewer repeats, on every model."""
    arm = {"protocol": "strict", "arm": "stochastic resonance"}
    rows = newest(evidence.rows("phase_slip", **arm), "model")
    words, verdicts = [], []
    for row in rows:
        alike = {k: row[k] for k in ("model", "weights", "seeds")}
        greedy = evidence.row("phase_slip", protocol="strict", arm="greedy", **alike)["values"]
        values = row["values"]
        escaped = values["escaped"]
        if escaped is None:
            continue  # greedy texts without a loop leave nothing to escape
        words.append(f"{row['model']} {escaped:.0%}, repeated 4-grams {values['rep-4']:.2f} "
                     f"against {greedy['rep-4']:.2f}")  # fmt: skip
        verdicts.append(decided(escaped > 0.5 and values["rep-4"] < greedy["rep-4"]))
    if not verdicts:
        raise Missing("no greedy text of benchmarks/results/phase_slip.jsonl ends in a loop")
    return Finding(f"of greedy texts that end in a loop, no longer do: {'; '.join(words)}",
                   combined(*verdicts), "python evaluate.py phase-slip")  # fmt: skip
