"""Claims of the Reso-LLM v2 README on the model, its stages and its numbers, decided by rows."""

import statistics
from collections.abc import Callable

from benchmarks.ablation_report import gain, groups
from benchmarks.claims import (
    HOLDS,
    UNTESTED,
    Evidence,
    Finding,
    Missing,
    above,
    below,
    combined,
    decided,
    newest,
)
from benchmarks.heldout import shown

STEPS = 80
ABLATION = f"python evaluate.py ablation shakespeare --data FILE --steps {STEPS}"
OVERHEAD = 0.10  # "~10% overhead during inference"
SECONDS = {"shakespeare": 130, "guanaco": 180}


def brings(stage: str, note: str = "") -> Callable[[Evidence], Finding]:
    """Bits per byte that taking the stage out of the full stack costs, on every text recorded."""

    def decide(evidence: Evidence) -> Finding:
        costs = {}
        for title, group in groups(evidence.rows("ablation")).items():
            found = gain(group, f"full - {stage}") if f"full - {stage}" in group else None
            if found is not None and found.half is not None:
                costs[title] = (-found.mean, -found.mean - found.half, -found.mean + found.half)
        if not costs:
            raise Missing(f"no two pairs of full and full - {stage} in benchmarks/results/ablation")
        words = "; ".join(f"{shown(cost, 4)} ({title})" for title, cost in costs.items())
        return Finding(
            f"taking it out costs, in bits/byte over paired seeds: {words}{note}",
            combined(*(above(cost) for cost in costs.values())), ABLATION,
        )  # fmt: skip

    return decide


def overhead(evidence: Evidence) -> Finding:
    """A decoding step of the full stack against one without the stage; twice 10 % is still ~."""
    rows = evidence.rows("ablation", task="shakespeare", steps=STEPS)
    rows = newest(rows, "variant", "seed")

    def milliseconds(variant: str) -> float:
        times = [r["decode_ms"] for r in rows if r["variant"] == variant]
        if not times:
            raise Missing(f"no row of {variant} in benchmarks/results/ablation.jsonl")
        return statistics.median(times)

    full = milliseconds("full")
    shares = {s: full / milliseconds(f"full - {s}") - 1 for s in ("agency", "prsc")}
    words = ", ".join(f"{stage} {share:+.0%}" for stage, share in shares.items())
    return Finding(
        f"time of a decoding step of the PyTorch path: {words} (medians over seeds, busy machine)",
        decided(sum(shares.values()) <= 2 * OVERHEAD), ABLATION,
    )  # fmt: skip


def better_model(evidence: Evidence) -> Finding:
    """Every seed of the full stack below every seed of the same model without stages."""
    verdicts, words = [], []
    for task, seconds in SECONDS.items():
        bits = {}
        for model in ("full", "control"):
            rows = newest(evidence.rows("quality", task=task, model=model), "seed")
            bits[model] = [r["bits_per_byte"] for r in rows if abs(r["seconds"] - seconds) < 5]
            if not bits[model]:
                raise Missing(f"no row of {model}, {task}, {seconds} s in results/quality.jsonl")
        means = [statistics.fmean(values) for values in bits.values()]
        verdicts.append(decided(max(bits["full"]) < min(bits["control"])))
        words.append("{} in {} s {:.3f} against {:.3f}".format(task, seconds, *means))
    return Finding(
        f"bits/byte after equal training time, with all stages against with none: "
        f"{'; '.join(words)} (3 seeds each; longer runs were not compared)",
        combined(*verdicts), "python -m benchmarks.quality TASK --data FILE",
    )  # fmt: skip


def lightweight(evidence: Evidence) -> Finding:
    """All monitors bound what the stability monitor costs from above."""
    rows = [r for r in evidence.rows("speed", work="decoding")
            if "full_unmeasured" in r["tokens_per_second"]]  # fmt: skip
    if not rows:
        raise Missing("no row of benchmarks/results/speed.jsonl with and without monitors")
    rates = rows[-1]["tokens_per_second"]
    cost = rates["full_unmeasured"] / rates["full"] - 1
    words = f"a token takes {cost:.0%} longer with all monitors of the engine, stability among them"
    if cost > OVERHEAD:
        return Finding(f"{words}: too much to settle it, as stability was not timed alone",
                       UNTESTED, "")  # fmt: skip
    return Finding(words, HOLDS, "python -m benchmarks.speed")


def gate_saves(evidence: Evidence) -> Finding:
    """A tenth of the layers saved at no more than 1 % of the best bits per byte."""
    last = evidence.row("gating")
    rows = evidence.rows("gating", checkpoint=last["checkpoint"], data=last["data"])
    rows = newest(rows, "skip_below")
    best = min(r["bits_per_byte"][0] for r in rows)
    cheap = min((r for r in rows if r["bits_per_byte"][0] <= 1.01 * best),
                key=lambda r: r["layers"][0])  # fmt: skip
    return Finding(
        f"of the cuts within 1 % of the best bits/byte the cheapest uses "
        f"{shown(cheap['layers'], 2)} of {cheap['num_layers']} layers a token (holds below 90 %)",
        below(cheap["layers"], 0.9 * cheap["num_layers"]), "python evaluate.py gating --data FILE",
    )  # fmt: skip


def oracles(group: str) -> Callable[[Evidence], Finding]:
    """The newest row of every oracle of one group of the dynamics task."""

    def decide(evidence: Evidence) -> Finding:
        rows = newest(evidence.rows("dynamics", group=group), "name")
        rows = [r for r in rows if r["holds"] is not None]
        right = sum(r["holds"] for r in rows)
        return Finding(
            f"{right} of {len(rows)} numbers of the literature are met within their tolerance",
            decided(right == len(rows)), "python evaluate.py dynamics",
        )  # fmt: skip

    return decide
