"""The claims of the SRB public README and the questions of its notes, on our own studies.

They are of the published rule; what SRB does by default is in srb_finishing.py, and what the
published files themselves say in srb_published.py.
"""

import itertools
import math
import statistics

from benchmarks.claims import Cases, Claim, Evidence, Missing, Row, srb_finishing, srb_published
from benchmarks.claims.rules import above, apart, below, less, more, one, rows_of, truths
from benchmarks.kit.records import newest
from benchmarks.kit.tables import shown

README, NOTES = "SRB public README", "SRB derivation notes"
CONCEPT, QUESTIONS = f"{README}, concept", f"{NOTES}, research questions"
TASK = "python evaluate.py srb [--model DIR]"
QUALITY = {  # measure: in words, and the rule by which it is worse
    "finished": ("finished sentences", below("finished")),
    "own_end_nats": ("nats of ending there", above("own_end_nats")),
    "code_parses": ("code that parses", below("code_parses")),
    "steps_met": ("steps as asked", below("steps_met")),
}
SAME_CURVE = 0.1
STATIC = "srb_minus.static"
TIME_SAVED = (
    f"{{{STATIC}.seconds:.2f}} s a reply, of {{arms.static.seconds.0:.2f}} s; "
    f"{{{STATIC}.saved.0:.0%}} of the tokens saved"
)


def quality(row: Row) -> Row:
    """Is a measure of quality worse than the static reply's beyond its interval?"""
    minus = row["srb_minus"]["static"]
    measured = [name for name in QUALITY if minus.get(name) is not None]
    words = ", ".join(f"{QUALITY[name][0]} {shown(minus[name], 2)}" for name in measured)
    worse = [QUALITY[name][1](minus) for name in measured]
    return {**row, "quality": words, "as_good": [not any(worse)]}


def predictions(row: Row) -> Row:
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
    beyond_chance, half = lucky <= 0.05, len(seen) >= 0.5 * len(rhos)
    return {"seen": len(seen), "of": len(rhos), "lucky": lucky, "best": words,
            "truths": [beyond_chance, beyond_chance and half]}  # fmt: skip


def places(row: Row) -> Row:
    """Is a signal's rank correlation with the nats of ending there large in any direction?"""
    rhos = row["questions"]["places"]
    words = ", ".join(f"{name} {shown(rho, 2)}" for name, rho in rhos.items())
    useful = [abs(rho[0]) > 0.3 and (rho[1] > 0 or rho[2] < 0) for rho in rhos.values()]
    return {"words": words, "truths": [any(useful)]}


def curves(row: Row) -> Row:
    """Only against the claim can replies decide: a shape that differs between the buckets."""
    shape = row["questions"]["curves"]
    if not shape:
        raise Missing("too few long replies for curves")
    words = (
        f"buckets explain {shape['between']:.2f} of the variance of {shape['replies']} curves, "
        f"{shape['between_by_chance']:.2f} by chance (p {max(shape['p'], 0.001):.3f})"
    )
    if shape["p"] > 0.05:  # a difference that was not seen is no proof that there is none
        raise Missing(f"{words}: too few to tell")
    return {"words": words, "truths": [False]}


def curve_gaps(evidence: Evidence) -> Cases:
    """The largest gap between mean curves of two models, each in units of its mean entropy."""
    rows = newest(evidence.rows("srb", kind="study"), "model")
    by_model = {r["model"]: r["questions"]["curves"].get("mean") for r in rows}
    means = {
        model: [statistics.fmean(column) for column in zip(*buckets.values(), strict=True)]
        for model, buckets in by_model.items()
        if buckets
    }
    if len(means) < 2:
        raise Missing("it takes the recorded curves of two models")
    gaps = [abs(a - b) for pair in itertools.combinations(means.values(), 2)
            for a, b in zip(*pair, strict=True)]  # fmt: skip
    return {"": [{"models": " and ".join(means), "gap": max(gaps)}]}


def per_model(text: str, source: str, sentence: str, *rules, view=dict) -> Claim:
    """A claim on the newest study of each model."""
    select = rows_of("srb", "model", case="model", kind="study")
    return Claim(text, source, TASK, select, f"{{case}}: {sentence}", rules, one(view))


CLAIMS = (
    per_model("Reduced wall-clock time", CONCEPT, TIME_SAVED, below(f"{STATIC}.seconds")),
    srb_published.SAVES_TIME,
    srb_published.STOPS_EARLY,
    per_model("Maintained or improved response quality", CONCEPT, "SRB minus static: {quality}",
              truths("as_good"), view=quality),
    srb_published.HAS_QUALITY,
    per_model("SRB prevents both premature truncation and excessive rambling", CONCEPT,
              f"SRB minus static: finished {{{STATIC}.finished:.2f}}, repeated 4-grams "
              f"{{{STATIC}.rep4:.3f}}", above(f"{STATIC}.finished"), below(f"{STATIC}.rep4")),
    per_model("It determines when a response has reached its point of maximal coherence", CONCEPT,
              "against cuts of the same replies elsewhere: {matched.elsewhere.own_end_nats:.2f} "
              "nats of ending there, {matched.elsewhere.finished:.2f} finished",
              below("matched.elsewhere.own_end_nats"), above("matched.elsewhere.finished")),
    per_model("Rather than relying solely on probability thresholds", CONCEPT,
              "SRB minus the p(end) rule: {matched.end_rule.finished:.2f} finished (and "
              "{matched.end_rule.own_end_nats:.2f} nats of ending, which is what that rule reads)",
              above("matched.end_rule.finished")),
    per_model("Concise factual answers stabilize early, storytelling prompts extend naturally",
              CONCEPT, "tokens saved: summaries {by_bucket.summaries.saved:.2f}, creative "
              "{by_bucket.creative.saved:.2f}",
              apart("by_bucket.creative.saved", "by_bucket.summaries.saved")),
    srb_published.ADAPTS,
    per_model("When entropy stabilizes, SRB signals a stopping point (an optimal one? see above)",
              CONCEPT, "the rule ends {arms.srb.exits:.2f} of the replies with thresholds "
              "calibrated to end half, {default_exits:.0%} with our fixed defaults",
              above("arms.srb.exits", 0.1), more("default_exits", 0.1)),
    Claim("Semantic information behaves analogously to thermodynamic energy", CONCEPT,
          because="the document defines no quantity that would have to be conserved or to "
          "dissipate, so nothing could come out against it"),
    srb_published.TABLE_AGREES,
    srb_published.EFFICIENCY,
    per_model("1. Do (H, ΔH, C+) predict quality and failure modes?", QUESTIONS,
              "{seen} of {of} rank correlations differ from 0 (p {lucky:.3f} of as many by "
              "chance, were they independent): {best}", truths("truths"), view=predictions),
    per_model("1. ... and where a reply can end?", QUESTIONS,
              "rank correlation with the nats of ending there: {words}", truths("truths"),
              view=places),
    per_model("2. Can the signals allow compute savings without quality loss?", QUESTIONS,
              f"{TIME_SAVED}; SRB minus static: {{quality}}", below(f"{STATIC}.seconds"),
              truths("as_good"), view=quality),
    per_model("3. Do collapse curves reveal task-invariant structure?", QUESTIONS, "{words}",
              truths("truths"), view=curves),
    Claim("3. ... and model-invariant structure?", QUESTIONS, TASK, curve_gaps,
          "largest gap between the mean curves of {models}: {gap:.2f} of the mean entropy (holds "
          f"below {SAME_CURVE})", (less("gap", SAME_CURVE),)),
    Claim("4. Can this serve as a formal instrument for semantic thermodynamics?", QUESTIONS,
          because="no thermodynamic quantity is defined that a measurement could contradict"),
    *srb_finishing.CLAIMS,
)  # fmt: skip
