"""The claims of the SRB public README and the questions of its notes, on our own studies.

What the published files themselves say is in srb_published.py.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from benchmarks.claims import (
    HOLDS,
    MIXED,
    NOT,
    Claim,
    Evidence,
    Finding,
    Missing,
    above,
    below,
    combined,
    decided,
    each,
    newest,
    srb_published,
    untested,
)
from benchmarks.heldout import shown

README, NOTES = "SRB public README", "SRB derivation notes"
FILES = f"{README}, included files"
TASK = "python evaluate.py srb [--model DIR]"
QUALITY = {  # measure, in words
    "finished": "finished sentences", "own_end_nats": "nats of ending there",
    "code_parses": "code that parses", "steps_met": "steps as asked",
}  # fmt: skip
WORSE = {"finished": below, "code_parses": below, "steps_met": below, "own_end_nats": above}
SAME_CURVE = 0.1


def per_model(judge: Callable[[dict], tuple[str, str]]) -> Callable[[Evidence], Finding]:
    """One finding of the findings about each model's newest study."""

    def decide(evidence: Evidence) -> Finding:
        return each({r["model"]: r for r in evidence.rows("srb", kind="study")}, judge, TASK)

    return decide


def saves_time(row: dict) -> tuple[str, str]:
    minus = row["srb_minus"]["static"]
    return (
        f"{shown(minus['seconds'], 2)} s a reply, of {row['arms']['static']['seconds'][0]:.2f} s; "
        f"{minus['saved'][0]:.0%} of the tokens saved",
        below(minus["seconds"]),
    )


def keeps_quality(row: dict) -> tuple[str, str]:
    """No measure of quality is worse than the static reply's beyond its interval."""
    minus = row["srb_minus"]["static"]
    known = {name: minus[name] for name in QUALITY if minus.get(name) is not None}
    words = ", ".join(f"{QUALITY[name]} {shown(values, 2)}" for name, values in known.items())
    worse = [WORSE[name](values) == "holds" for name, values in known.items()]
    return f"SRB minus static: {words}", decided(not any(worse))


def stops_at_completion(row: dict) -> tuple[str, str]:
    """Is the place better than other places of the same replies, at as many tokens?"""
    place = row["matched"]["elsewhere"]
    return (
        f"against cuts of the same replies elsewhere: {shown(place['own_end_nats'], 2)} nats of "
        f"ending there, {shown(place['finished'], 2)} finished",
        combined(below(place["own_end_nats"]), above(place["finished"])),
    )


def prevents_both(row: dict) -> tuple[str, str]:
    """More replies that end a sentence, and fewer repeated 4-grams, than without a budget."""
    minus = row["srb_minus"]["static"]
    return (
        f"SRB minus static: finished {shown(minus['finished'], 2)}, repeated 4-grams "
        f"{shown(minus['rep4'], 3)}",
        combined(above(minus["finished"]), below(minus["rep4"])),
    )


def beats_end_rule(row: dict) -> tuple[str, str]:
    """Against the obvious rival at as many tokens; its nats of ending are what it looks for."""
    rival = row["matched"]["end_rule"]
    return (
        f"SRB minus the p(end) rule: {shown(rival['finished'], 2)} finished (and "
        f"{shown(rival['own_end_nats'], 2)} nats of ending, which is what that rule reads)",
        above(rival["finished"]),
    )


def adapts(row: dict) -> tuple[str, str]:
    """Facts settle early, stories extend: are more tokens saved in summaries than in stories?"""
    saved = {b: row["by_bucket"][b]["saved"] for b in ("summaries", "creative")}
    words = ", ".join(f"{bucket} {shown(values, 2)}" for bucket, values in saved.items())
    return f"tokens saved: {words}", decided(saved["summaries"][1] > saved["creative"][2])


def fires(row: dict) -> tuple[str, str]:
    """With thresholds of this model, and with those that the class has by default."""
    exits = row["arms"]["srb"]["exits"]
    return (
        f"the rule ends {shown(exits, 2)} of the replies with thresholds calibrated to end half, "
        f"{row['default_exits']:.0%} with our fixed defaults",
        combined(above(exits, 0.1), decided(row["default_exits"] > 0.1)),
    )


def predicts(row: dict) -> tuple[str, str]:
    """Signals of the first 32 tokens against what can fail; the model's own nats are too near."""
    rhos = {
        name: rho
        for name, rho in row["questions"]["replies"].items()
        if rho and "first 32" in name and "own_nats" not in name
    }
    if not rhos:
        raise Missing("no correlation of early signals is recorded")
    seen = {name: rho for name, rho in rhos.items() if rho[1] > 0 or rho[2] < 0}
    best = sorted(seen, key=lambda name: -abs(seen[name][0]))[:3]
    words = "; ".join(f"{name} {shown(seen[name], 2)}" for name in best) or "none"
    lucky = 1 - sum(math.comb(len(rhos), k) * 0.05**k * 0.95 ** (len(rhos) - k)
                    for k in range(len(seen)))  # fmt: skip
    verdict = NOT if lucky > 0.05 else HOLDS if len(seen) >= 0.5 * len(rhos) else MIXED
    return (
        f"{len(seen)} of {len(rhos)} rank correlations differ from 0 (p {lucky:.3f} of as many by "
        f"chance, were they independent): {words}",
        verdict,
    )


def places(row: dict) -> tuple[str, str]:
    found = row["questions"]["places"]
    words = ", ".join(f"{name} {shown(rho, 2)}" for name, rho in found.items())
    useful = [abs(rho[0]) > 0.3 and (rho[1] > 0 or rho[2] < 0) for rho in found.values()]
    return f"rank correlation with the nats of ending there: {words}", decided(any(useful))


def saves_without_loss(row: dict) -> tuple[str, str]:
    return (
        f"{saves_time(row)[0]}; {keeps_quality(row)[0]}",
        combined(saves_time(row)[1], keeps_quality(row)[1]),
    )


def invariant(row: dict) -> tuple[str, str]:
    """Only against it can replies decide: a shape that differs between the buckets."""
    curves = row["questions"]["curves"]
    if not curves:
        raise Missing("too few long replies for curves")
    words = (
        f"buckets explain {curves['between']:.2f} of the variance of {curves['replies']} curves, "
        f"{curves['between_by_chance']:.2f} by chance (p {max(curves['p'], 0.001):.3f})"
    )
    if curves["p"] > 0.05:  # a difference that was not found is no proof that there is none
        raise Missing(f"{words}: too few to tell")
    return words, NOT


def same_in_models(evidence: Evidence) -> Finding:
    """Mean curves of two models, each in units of its mean entropy, nowhere a tenth apart."""
    rows = newest(evidence.rows("srb", kind="study"), "model")
    curves = {r["model"]: r["questions"]["curves"].get("mean") for r in rows}
    means = {model: _columns(found.values()) for model, found in curves.items() if found}
    if len(means) < 2:
        raise Missing("it takes the recorded curves of two models")
    gaps = [max(abs(a - b) for a, b in zip(*pair, strict=True))
            for pair in itertools.combinations(means.values(), 2)]  # fmt: skip
    return Finding(
        f"largest gap between the mean curves of {' and '.join(means)}: {max(gaps):.2f} of the "
        f"mean entropy (holds below {SAME_CURVE})",
        decided(max(gaps) < SAME_CURVE), TASK,
    )  # fmt: skip


def _columns(curves: Iterable[Sequence[float]]) -> list[float]:
    return [statistics.fmean(column) for column in zip(*curves, strict=True)]


CLAIMS = (
    Claim("Reduced wall-clock time", f"{README}, concept", per_model(saves_time)),
    Claim("Reduced wall-clock time, in the published runs", FILES, srb_published.saves_time),
    Claim("... since the model stops early, in the published runs", FILES,
          srb_published.stops_early),
    Claim("Maintained or improved response quality", f"{README}, concept",
          per_model(keeps_quality)),
    Claim("The files contain metrics related to response quality, coherence, and computational "
          "efficiency", FILES, srb_published.has_quality),
    Claim("SRB prevents both premature truncation and excessive rambling", f"{README}, concept",
          per_model(prevents_both)),
    Claim("It determines when a response has reached its point of maximal coherence",
          f"{README}, concept", per_model(stops_at_completion)),
    Claim("Rather than relying solely on probability thresholds", f"{README}, concept",
          per_model(beats_end_rule)),
    Claim("Concise factual answers stabilize early, storytelling prompts extend naturally",
          f"{README}, concept", per_model(adapts)),
    Claim("Concise factual answers stabilize early, in the published runs", FILES,
          srb_published.adapts),
    Claim("When entropy stabilizes, SRB signals a stopping point (an optimal one? see above)",
          f"{README}, concept", per_model(fires)),
    Claim("Semantic information behaves analogously to thermodynamic energy",
          f"{README}, concept",
          untested("the document defines no quantity that would have to be conserved or to "
                   "dissipate, so nothing could come out against it")),
    Claim("The published bucket table", "srb_bucket_summary.csv", srb_published.table_agrees),
    Claim("resonance_efficiency is positive in every bucket", "srb_bucket_summary.csv",
          srb_published.efficiency),
    Claim("1. Do (H, ΔH, C+) predict quality and failure modes?", f"{NOTES}, research questions",
          per_model(predicts)),
    Claim("1. ... and where a reply can end?", f"{NOTES}, research questions", per_model(places)),
    Claim("2. Can the signals allow compute savings without quality loss?",
          f"{NOTES}, research questions", per_model(saves_without_loss)),
    Claim("3. Do collapse curves reveal task-invariant structure?",
          f"{NOTES}, research questions", per_model(invariant)),
    Claim("3. ... and model-invariant structure?", f"{NOTES}, research questions", same_in_models),
    Claim("4. Can this serve as a formal instrument for semantic thermodynamics?",
          f"{NOTES}, research questions",
          untested("no thermodynamic quantity is defined that a measurement could contradict")),
)  # fmt: skip
