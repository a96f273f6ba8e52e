"""Views of recorded rows for the claims of the Reso-LLM v2 README."""

import itertools
import statistics
from collections.abc import Sequence

from benchmarks.claims import Cases, Evidence, Missing, Row
from benchmarks.kit.records import newest
from benchmarks.kit.statistics import student
from benchmarks.studies.quality import SECONDS
from benchmarks.tasks.ablation import gain, groups
from reso_llm.generation.axes import AXES

STEPS = 80
LEVEL = 0.05  # of a test
SYNCHRONY = 0.1  # of a resultant: what is called synchrony, beyond that of other pairs
PAIRS = ("partners", "others")
OVERHEAD = 0.10  # "~10% overhead during inference"
DAMAGE = {  # name in the row, tokens read
    "8 damaged tokens read": ("corrupt", 8),
    "8 repeated tokens read": ("loop", 8),
    "5 tokens before a loop of its own": ("own loop", -5),
}


# --- the model and its stages


def stage_costs(stage: str, evidence: Evidence, **text: str) -> Cases:
    """Bits per byte that taking the stage out of the full stack costs, on every text recorded.

    text: fields of the rows, as task="guanaco".
    """
    costs = {}
    for title, group in groups(evidence.rows("ablation", **text)).items():
        saved = gain(group, f"full - {stage}") if f"full - {stage}" in group else None
        if saved is not None and saved.half is not None:
            cost = (-saved.mean, -saved.mean - saved.half, -saved.mean + saved.half)
            costs[title] = [{"cost": cost}]
    if not costs:
        raise Missing(f"no two pairs of full and full - {stage} in benchmarks/results/ablation")
    return costs


def overhead(evidence: Evidence) -> Cases:
    """A decoding step of the full stack against one without the stage."""
    rows = evidence.rows("ablation", task="shakespeare", budget="tokens", steps=STEPS)
    rows = [row for row in newest(rows, "variant", "seed") if row["decode_ms"] is not None]

    def milliseconds(variant: str) -> float:
        times = [r["decode_ms"] for r in rows if r["variant"] == variant]
        if not times:
            raise Missing(f"no row of {variant} in benchmarks/results/ablation.jsonl")
        return statistics.median(times)

    full = milliseconds("full")
    shares = {s: full / milliseconds(f"full - {s}") - 1 for s in ("agency", "prsc")}
    return {"": [shares | {"total": sum(shares.values())}]}


def equal_time(evidence: Evidence) -> Cases:
    """Bits per byte with all stages and with none, by text: means, and the seeds nearest."""
    cases = {}
    for task, seconds in SECONDS.items():
        bits = {}
        for model in ("full", "control"):
            rows = evidence.rows("quality", task=task, variant=model, seconds=seconds)
            bits[model] = [row["bits_per_byte"] for row in newest(rows, "seed")]
        means = {model: statistics.fmean(values) for model, values in bits.items()}
        ends = {"worst_full": max(bits["full"]), "best_control": min(bits["control"])}
        cases[task] = [{"seconds": seconds, **means, **ends}]
    return cases


def monitors_cost(evidence: Evidence) -> Cases:
    """All monitors together bound from above what the stability monitor costs."""
    rows = [r for r in evidence.rows("speed", work="decoding")
            if "full_unmeasured" in r["tokens_per_second"]]  # fmt: skip
    if not rows:
        raise Missing("no row of benchmarks/results/speed.jsonl with and without monitors")
    rates = rows[-1]["tokens_per_second"]
    cost = rates["full_unmeasured"] / rates["full"] - 1
    if cost > OVERHEAD:
        raise Missing(
            f"a token takes {cost:.0%} longer with all monitors of the engine, stability among "
            "them: too much to settle it, as stability was not timed alone"
        )
    return {"": [{"cost": cost}]}


def oracles_met(rows: Sequence[Row]) -> list[Row]:
    judged = [r["holds"] for r in rows if r["holds"] is not None]
    return [{"met": sum(judged), "of": len(judged)}]


def axes(evidence: Evidence) -> Cases:
    """The names of the semantic axes, and for each whether it moves as it says; a free one not."""
    rows = {row["axis"]: row for row in newest(evidence.rows("axes"), "axis")}
    missing = [name for name, axis in AXES.items() if axis is not None and name not in rows]
    if missing:
        raise Missing(f"no row of {', '.join(missing)} in benchmarks/results/axes.jsonl")
    moved = {name: axis is not None and rows[name]["p"] < LEVEL for name, axis in AXES.items()}
    return {"": [{
        "names": len(AXES),
        "tied": sum(axis is not None for axis in AXES.values()),
        "moved": sum(moved.values()),
        "texts": min(row["texts"] for row in rows.values()),
        "words": ", ".join(f"{name} {row['higher']}" for name, row in rows.items()),
        "free": ", ".join(name for name, axis in AXES.items() if axis is None),
        "truths": list(moved.values()),
    }]}  # fmt: skip


def synchrony(evidence: Evidence) -> Cases:
    """Clocks and phases: the resultant of brackets and partners, and how much more it is than of
    other pairs, with its interval over the seeds."""
    rows = newest(evidence.rows("tracking", what="brackets", form="full"), "seed")
    cases = {}
    for name in ("clocks", "phases"):
        mates, others = ([r[f"{name}, {pairs}, mean"] for r in rows] for pairs in PAIRS)
        mean, half, _ = student([a - b for a, b in zip(mates, others, strict=True)])
        if half is None:
            raise Missing("one seed of brackets in benchmarks/results/tracking.jsonl, no interval")
        more = (mean, mean - half, mean + half)
        cases[name] = [{"partners": statistics.fmean(mates), "more": more, "seeds": len(rows)}]
    return cases


# --- goals, memory, stability, noise


def goal_losses(evidence: Evidence) -> Cases:
    """A goal pooled from the prompt, or from one half of a reply and scored on the other."""
    cases = ("whole reply", "first half, second scored", "prompt")
    return {case: [evidence.row("goals", measure="loss", case=case)] for case in cases}


def aging(rows: Sequence[Row]) -> list[Row]:
    """The gain of a stored fact by its age, in words; and whether it falls in every seed."""
    gains = [row["gain_nats_per_token"] for row in rows]
    ages = sorted({int(k.split()[1].strip(",")) for k in gains[0] if k.startswith("age ")})
    by_age = {age: [seed[f"age {age}, stored"][0] for seed in gains] for age in ages}
    words = ", ".join(f"{statistics.fmean(v):.2f} at age {age}" for age, v in by_age.items())
    pairs = itertools.pairwise(by_age.values())
    falls = all(a > b for older in pairs for a, b in zip(*older, strict=True))
    return [{"words": words, "falls": falls}]


def emptied(rows: Sequence[Row]) -> list[Row]:
    """The rows that also asked with the field emptied."""
    rows = [row for row in rows if row.get("accuracy_forgetting") is not None]
    if not rows:
        raise Missing("no row of benchmarks/results/recall.jsonl with the field emptied")
    return rows


def warnings(evidence: Evidence) -> Cases:
    """By damage, of every seed: the warning's AUROC and that of the best baseline."""
    rows = newest(evidence.rows("stability", kind="warning"), "checkpoint", "data", "seed")
    return {title: [_warning(row, *place) for row in rows] for title, place in DAMAGE.items()}


def _warning(row: Row, damage: str, read: int) -> Row:
    scores = next(s for s in row[damage] if s["read"] == read)
    others = [s["auroc"][0] for name, s in scores.items()
              if isinstance(s, dict) and not name.startswith("warning")]  # fmt: skip
    return {"warning": scores["warning"]["auroc"], "best_plain": max(others),
            "alarms": row["false_alarms"]["share_of_windows"]}  # fmt: skip


def classes(evidence: Evidence) -> Cases:
    """By model: balanced accuracy of the class by the checkpoint's calibration, and what the
    exponent adds to it where both are fitted anew.
    """
    rows = newest(evidence.rows("stability", kind="classes"), "checkpoint", "data", "seed")
    if not rows:
        raise Missing("no row of the classes in benchmarks/results/stability.jsonl")
    cases: Cases = {}
    for row in rows:
        forms = ("kept", "refitted", "with exponent")
        accuracy = {form: row[form]["balanced_accuracy"] for form in forms if form in row}
        gain = accuracy.get("with exponent", accuracy["refitted"])[0] - accuracy["refitted"][0]
        cases.setdefault(row["checkpoint"], []).append({"accuracy": accuracy["kept"], "gain": gain})
    return cases


def escapes(evidence: Evidence) -> Cases:
    """Stochastic resonance beside greedy decoding, of every model whose greedy texts loop."""
    arm = {"protocol": "strict", "arm": "stochastic resonance"}
    cases = {}
    for row in newest(evidence.rows("phase_slip", **arm), "model"):
        alike = {k: row[k] for k in ("model", "weights", "seeds")}
        greedy = evidence.row("phase_slip", protocol="strict", arm="greedy", **alike)
        if row["values"]["escaped"] is not None:
            cases[row["model"]] = [{"greedy": greedy["values"], "noisy": row["values"]}]
    if not cases:
        raise Missing("no greedy text of benchmarks/results/phase_slip.jsonl ends in a loop")
    return cases
