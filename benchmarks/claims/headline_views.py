"""Views of recorded rows for the ten headlines: `bars`, and other numbers that are told.

Bars are values with an interval (value, low, high), by label; a label has no full stop, as paths of
sentences are cut there.
"""

import statistics
from collections.abc import Sequence
from contextlib import suppress

from benchmarks.claims import (
    Evidence,
    Missing,
    Row,
    cer_views,
    phase_slip,
    phase_slip_rivals,
    reso_views,
)
from benchmarks.kit.records import newest
from benchmarks.kit.statistics import Interval, summary
from benchmarks.tasks.phase_slip.arms import CURVE, GREEDY, HEAT, NOISE, PUBLISHED
from benchmarks.tasks.phase_slip.rivals import REWIND
from benchmarks.tasks.phase_slip.statistics import drawn_measures
from cer.mirror import PUBLISHED as PUBLISHED_MIRROR

REAL = "SmolLM2-135M-Instruct"
STAGES = {
    "echo": "echo of what was read", "prsc": "binding memory", "prime_embedding": "prime embedding",
    "coherence_gate": "coherence gate", "resonant_attention": "resonant attention",
    "temporal_smf": "sedenion memory", "agency": "agency (goals)", "kuramoto": "Kuramoto",
}  # fmt: skip
"""The trained stages in plain words, by their names in the configuration."""
LATE = "161-400"
KEYS = "16"


def of_seeds(values: Sequence[float]) -> Interval:
    """Mean, lowest and highest of several seeds."""
    return statistics.fmean(values), min(values), max(values)


def of_intervals(values: Sequence[Sequence[float]]) -> Interval:
    """Mean value and mean ends of the intervals of several seeds."""
    middle, low, high = map(statistics.fmean, zip(*values, strict=True))
    return middle, low, high


def equal_time(evidence: Evidence) -> Row:
    """Bits per byte on held-out guanaco rows after 180 s of training."""
    names = {"full": "all stages", "control + echo": "plain decoder + echo",
             "control": "plain decoder"}  # fmt: skip
    bars = {}
    for variant, label in names.items():
        rows = evidence.rows("quality", task="guanaco", variant=variant, seconds=180.0)
        bars[label] = of_seeds([row["bits_per_byte"] for row in newest(rows, "seed")])
    return {"bars": bars}


def worth(evidence: Evidence) -> Row:
    """Bits per byte that are lost without each stage, guanaco, 180 s, and on characters."""
    bars = {label: cost_of(stage, evidence, "guanaco") for stage, label in STAGES.items()}
    helping = [label for label, cost in bars.items() if cost[1] > 0]
    characters = {}
    for stage, label in STAGES.items():
        with suppress(Missing):
            characters[label] = cost_of(stage, evidence, "shakespeare")
    also = [label for label, cost in characters.items() if cost[1] > 0 and label not in helping]
    return {
        "bars": bars, "helping": helping, "names": ", ".join(helping), "num": len(bars),
        "also": also, "characters": characters,
    }  # fmt: skip


def cost_of(stage: str, evidence: Evidence, task: str) -> Interval:
    """Bits per byte of one text that are lost without a stage. Raises Missing without rows."""
    ((row,),) = reso_views.stage_costs(stage, evidence, task=task).values()
    return row["cost"]


def tracked(evidence: Evidence) -> Row:
    """Accuracy at ten times the training's length, with and without the clocks."""
    forms = {"full": "with clocks", "coupled": "without"}
    bars, right = {}, 0
    for task in ("parity", "sum modulo 5"):
        for form, label in forms.items():
            rows = newest(evidence.rows("tracking", what="task", task=task, form=form), "seed")
            bars[f"{task}, {label}"] = of_seeds([row["accuracy"][LATE] for row in rows])
            if (task, form) == ("sum modulo 5", "full"):
                right = sum(row["accuracy"][LATE] > 0.99 for row in rows)
    return {"bars": bars, "right": right}


def recalled(evidence: Evidence) -> Row:
    """Right values of 16 keys whose values changed."""
    forms = {"delta": "sedenion memory", "linear": "linear attention, equal state",
             "product": "sedenion memory as it was first"}  # fmt: skip
    bars = {}
    for form, label in forms.items():
        rows = newest(evidence.rows("recall_pairs", part="changed", form=form), "seed")
        bars[label] = of_seeds([row["accuracy"][KEYS] for row in rows])
    kept = {
        form: of_seeds([row["accuracy"]["64"] for row in newest(rows, "seed")])[0]
        for form in ("delta", "linear")
        for rows in [evidence.rows("recall_pairs", part="ordered", form=form)]
    }
    return {"bars": bars, "kept": kept}


def remembered(evidence: Evidence) -> Row:
    """Nats a token that a told fact gains, by how many texts ago it was told."""
    rows = [row["gain_nats_per_token"] for row in newest(evidence.rows("memory"), "seed")]
    ages = {"told just now": "age 0", "10 texts ago": "age 10", "100 texts ago": "age 100",
            "1,000 texts ago": "age 1000"}  # fmt: skip
    bars = {label: of_intervals([r[f"{age}, stored"] for r in rows]) for label, age in ages.items()}
    bars["another fact, just now"] = of_intervals([r["age 0, control"] for r in rows])
    field = statistics.fmean(row["field alone, stored"][0] for row in rows)
    return {"bars": bars, "field": field}


def together(evidence: Evidence) -> Row:
    """Bits per byte of the largest team, against its best agent alone."""
    ways = {"consensus": "consensus", "one text": "parallel", "relay": "sequential"}
    team = max((row["agents"] for row in evidence.rows("consensus")), key=len)
    bars = {label: evidence.row("consensus", agents=team, way=way)["minus_best_single"]
            for way, label in ways.items()}  # fmt: skip
    gains = {label: abs(bar[0]) for label, bar in bars.items()}
    return {"bars": bars, "apart": gains, "num": len(team)}


def classified(evidence: Evidence) -> Row:
    """Balanced accuracy of the stability class, by what it is read from."""
    row = evidence.row("stability", kind="classes", checkpoint="shipped")
    forms = {"refitted": "surprise and repetition", "with exponent": "the same, and the exponent",
             "exponent alone": "Lyapunov exponent alone"}  # fmt: skip
    return {"bars": {label: row[form]["balanced_accuracy"] for form, label in forms.items()}}


def slipped(evidence: Evidence) -> Row:
    """Share of 4-grams said before, of 100 tokens of SmolLM2 after each of the rivals' prompts.

    What the hot token and the noise do alone is of the strict protocol.
    """
    cases = phase_slip.models(evidence)
    if REAL not in cases:
        raise Missing(f"no row of {REAL} in benchmarks/results/phase_slip.jsonl")
    arms = {GREEDY: "greedy", PUBLISHED: "Phase-Slip as published", CURVE[0.8]: "plain sampling",
            REWIND: "repeats taken back"}  # fmt: skip
    rows = [row for row in phase_slip_rivals.rival_rows(cases[REAL]) if row["arm"] in arms]
    drawn = drawn_measures(rows)
    values = {arms[row["arm"]]: row["values"] for row in rows}
    alone = phase_slip.strict_rows(cases[REAL], HEAT, NOISE)
    alone = {row["arm"]: row["values"]["escaped"] for row in alone}
    return {
        "bars": {label: summary(drawn[arm]["rep-4"]) for arm, label in arms.items()},
        "values": values, "texts": len(rows[0]["pairs"]["rep-4"][0]),
        "looping": values["greedy"]["ends"], "by_heat": alone[HEAT], "by_noise": alone[NOISE],
    }  # fmt: skip


def stopped(evidence: Evidence) -> Row:
    """Share of SmolLM2's replies that end in a finished sentence, by the rule that ends them."""
    row = evidence.row("srb", kind="replay", model=REAL)
    rules = {"static": "the model's own end", "published": "SRB as published",
             "end_rule": "likely end of text", "srb": "SRB at finished places"}  # fmt: skip
    arms = row["arms"]
    bars = {label: arms[arm]["finished"] for arm, label in rules.items()}
    saved = {arm: arms[arm]["saved"][0] for arm in ("published", "end_rule", "srb")}
    repeats = {arm: arms[arm]["rep4"][0] for arm in rules}
    return {"bars": bars, "saved": saved, "repeats": repeats}


def mirrored(evidence: Evidence) -> Row:
    """Final entropies of the reactor, nats, beside the published ones: mean and one deviation."""
    ((row,),) = cer_views.published("mirror", evidence).values()
    bars, equal = {}, []
    for name, (_, mean, std, *_) in PUBLISHED_MIRROR.items():
        ours = cer_views.condition(name, row)
        for label, m, s in (("ours", ours["mean"], ours["std"]), ("published", mean, float(std))):
            bars[f"{name.lower()}, {label}"] = (m, m - s, m + s)
        equal.append((ours["mean"], ours["std"]) == (mean, float(std)))
    return {"bars": bars, "equal": sum(equal), "of": len(equal)}
