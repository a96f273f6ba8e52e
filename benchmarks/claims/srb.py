"""The claims of the SRB public README, its published files, and the questions of its notes."""

from collections.abc import Callable

from benchmarks.claims import (
    Claim,
    Evidence,
    Finding,
    above,
    below,
    combined,
    decided,
    shown,
    untested,
)

README, NOTES = "SRB public README", "SRB derivation notes"
TASK = "evaluate.py srb --model DIR"
QUALITY = ("finished", "own_end_nats", "code_parses", "steps_met")
WORSE = {"finished": below, "code_parses": below, "steps_met": below, "own_end_nats": above}


def per_model(judge: Callable[[dict], tuple[str, str]]) -> Callable[[Evidence], Finding]:
    """One finding of the findings about each model's newest study."""

    def decide(evidence: Evidence) -> Finding:
        rows = {row["model"]: row for row in evidence.rows("srb", kind="study")}
        found = {model: judge(row) for model, row in rows.items()}
        words = "; ".join(f"{model}: {words}" for model, (words, _) in found.items())
        return Finding(words, combined(*(verdict for _, verdict in found.values())), TASK)

    return decide


def saves_time(row: dict) -> tuple[str, str]:
    minus = row["srb_minus"]["static"]
    return (
        f"{shown(minus['seconds'], 1)} s a reply of {row['arms']['static']['seconds'][0]:.1f} s "
        f"({shown(minus['saved'], 2)} of the tokens)",
        below(minus["seconds"]),
    )


def keeps_quality(row: dict) -> tuple[str, str]:
    """No measure of quality is worse than the static reply's beyond its interval."""
    minus = row["srb_minus"]["static"]
    known = {name: minus[name] for name in QUALITY if minus.get(name) is not None}
    words = ", ".join(f"{name} {shown(values, 2)}" for name, values in known.items())
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


def beats_end_rule(row: dict) -> tuple[str, str]:
    """Against the obvious rival at as many tokens."""
    rival = row["matched"]["end_rule"]
    return (
        f"SRB minus the p(end) rule: {shown(rival['own_end_nats'], 2)} nats of ending, "
        f"{shown(rival['finished'], 2)} finished",
        combined(below(rival["own_end_nats"]), above(rival["finished"])),
    )


def adapts(row: dict) -> tuple[str, str]:
    """Facts settle early, stories extend: are more tokens saved in summaries than in stories?"""
    saved = {b: row["by_bucket"][b]["saved"] for b in ("summaries", "creative")}
    words = ", ".join(f"{bucket} {shown(values, 2)}" for bucket, values in saved.items())
    return f"tokens saved: {words}", decided(saved["summaries"][1] > saved["creative"][2])


def fires(row: dict) -> tuple[str, str]:
    exits = row["arms"]["srb"]["exits"]
    return (
        f"the rule ends {shown(exits, 2)} of the replies when calibrated, "
        f"{row['default_exits']:.0%} with fixed default thresholds",
        combined(above(exits), decided(row["default_exits"] > 0.1)),
    )


def predicts(row: dict) -> tuple[str, str]:
    """Signals of the first 32 tokens against what can fail; the model's own nats are too near."""
    rhos = {
        name: rho
        for name, rho in row["questions"]["replies"].items()
        if rho and "first 32" in name and "own_nats" not in name
    }
    seen = {name: rho for name, rho in rhos.items() if rho[1] > 0 or rho[2] < 0}
    best = sorted(seen, key=lambda name: -abs(seen[name][0]))[:3]
    words = "; ".join(f"{name} {shown(seen[name], 2)}" for name in best) or "none differs from 0"
    half = combined(decided(bool(seen)), decided(len(seen) == len(rhos)))
    return f"{len(seen)} of {len(rhos)} correlations differ from 0: {words}", half


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
    curves = row["questions"]["curves"]
    return (
        f"buckets explain {curves['between']:.2f} of the curves' variance, "
        f"{curves['between_by_chance']:.2f} by chance (p {curves['p']:.3f})",
        decided(curves["p"] > 0.05),
    )


def published_table(evidence: Evidence) -> Finding:
    raise NotImplementedError


CLAIMS = (
    Claim("SRB reduces wall-clock time", f"{README}, overview", per_model(saves_time)),
    Claim("Quality is maintained or improved", f"{README}, overview", per_model(keeps_quality)),
    Claim("SRB stops where a response is complete", f"{README}, concept",
          per_model(stops_at_completion)),
    Claim("It need not rely on probability thresholds", f"{README}, concept",
          per_model(beats_end_rule)),
    Claim("Facts stabilise early, stories extend", f"{README}, concept", per_model(adapts)),
    Claim("Entropy that settles gives a signal to stop", f"{README}, concept", per_model(fires)),
    Claim("Semantic information behaves like thermodynamic energy", f"{README}, concept",
          untested("the document defines no quantity that would have to be conserved or to "
                   "dissipate, so nothing could come out against it")),
    Claim("1. (H, ΔH, C+) predict quality and failure modes", f"{NOTES}, question 1",
          per_model(predicts)),
    Claim("1. ... and where a reply can end", f"{NOTES}, question 1", per_model(places)),
    Claim("2. Compute is saved without loss of quality", f"{NOTES}, question 2",
          per_model(saves_without_loss)),
    Claim("3. Collapse curves have a task-invariant shape", f"{NOTES}, question 3",
          per_model(invariant)),
    Claim("4. SRB is a formal instrument for semantic thermodynamics", f"{NOTES}, question 4",
          untested("no thermodynamic quantity is defined that a measurement could contradict")),
)  # fmt: skip
