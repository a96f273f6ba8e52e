"""The claims of the Phase-Slip sampler's README, on every model that was measured."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.claims import (
    Claim,
    Evidence,
    Finding,
    Missing,
    Row,
    above,
    below,
    combined,
    decided,
    each,
)
from benchmarks.heldout import shown
from benchmarks.phase_slip.arms import (
    AT_LOOPS,
    CURVE,
    GREEDY,
    HEAT,
    NOISE,
    PUBLISHED,
    PUBLISHED_DIVERSITY,
    TOP_K,
)
from benchmarks.phase_slip.statistics import matched, summary
from benchmarks.phase_slip.tables import grouped, strict_draws

README = "Phase-Slip README"
CONCEPT = f"{README}, the concept"
TASK = "python evaluate.py phase-slip [--model DIR]"
HOT = "slip, noise 1 only"  # so much noise that a cache that has it cannot go unnoticed
CLOSE = 0.05  # shares (diversity, rep-4) that differ by less are alike
Judged = tuple[str, str]
Rows = Sequence[Row]


def per_model(judge: Callable[[Rows], Judged]) -> Callable[[Evidence], Finding]:
    """One finding of the findings about each model's newest weights."""

    def decide(evidence: Evidence) -> Finding:
        weights = {r["model"]: r["weights"] for r in evidence.rows("phase_slip")}
        known = {model: evidence.rows("phase_slip", model=model, weights=hashed)
                 for model, hashed in weights.items()}  # fmt: skip
        return each(known, judge, TASK)

    return decide


def _row(rows: Rows, protocol: str, arm: str) -> Row:
    found = [r for r in rows if (r["protocol"], r["arm"]) == (protocol, arm)]
    if not found:
        raise Missing(f"no row of {arm}, {protocol}, in benchmarks/results/phase_slip.jsonl")
    return found[-1]


def _strict(rows: Rows, *needed: str) -> list[Row]:
    """Strict rows of equal seeds and length that have these arms; the last such group."""
    strict = [r for r in rows if r["protocol"] == "strict"]
    for _, alike in reversed([*grouped(strict, "tokens", "seeds", "scorer", "scored_seeds")]):
        if set(needed) <= {r["arm"] for r in alike}:
            return [*alike]
    raise Missing(f"no strict rows of {' and '.join(needed)} in results/phase_slip.jsonl")


def _values(rows: Rows, *arms: str) -> list[dict[str, Any]]:
    """Measures of strict arms, in this order."""
    by_arm = {r["arm"]: r["values"] for r in _strict(rows, *arms)}
    return [by_arm[arm] for arm in arms]


def _difference(rows: Rows, arm: str, other: str, measure: str) -> list[float]:
    """Arm minus other with its interval over prompts and seeds."""
    draws = strict_draws(_strict(rows, arm, other))
    found = summary(draws[arm][measure] - draws[other][measure])
    if found is None:
        raise Missing(f"{measure} of {arm} and {other} is not defined")
    return found


# --- diversity, the published protocol


def _diversity(rows: Rows, *arms: str) -> list[float]:
    return [statistics.fmean(_row(rows, "published", arm)["diversity"]) for arm in arms]


def greedy_stuck(rows: Rows) -> Judged:
    """Is greedy text less diverse than sampled text?"""
    greedy, sampled = _diversity(rows, GREEDY, TOP_K)
    return f"greedy {greedy:.2f}, sampling {sampled:.2f}", decided(greedy < sampled - CLOSE)


def matches_sampling(rows: Rows) -> Judged:
    slip, sampled = _diversity(rows, PUBLISHED, TOP_K)
    return f"Phase-Slip {slip:.2f}, sampling {sampled:.2f}", decided(slip > sampled - CLOSE)


# --- loops


def breaks_loops(rows: Rows) -> Judged:
    """Nine of ten greedy loops, and fewer repeats."""
    greedy, slip = _values(rows, GREEDY, PUBLISHED)
    return _loops_broken(greedy, slip, 0.9)


def noise_does_it(rows: Rows) -> Judged:
    """Of noise x temperature: fewer repeats by the noise alone; beside it the hot token's."""
    greedy, noise, heat = _values(rows, GREEDY, NOISE, HEAT)
    words, _ = _loops_broken(greedy, noise, 0.5)
    difference = _difference(rows, NOISE, GREEDY, "rep-4")
    return (
        f"noise alone: {words}, {shown(difference, 3)}; hot token alone: {heat['escaped']:.0%}",
        below(difference),
    )


def _loops_broken(greedy: dict[str, Any], arm: dict[str, Any], share: float) -> Judged:
    if arm["escaped"] is None:
        raise Missing("no greedy text of the strict protocol ends in a loop")
    return (
        f"{arm['escaped']:.0%} of greedy loops escaped, repeated 4-grams {greedy['rep-4']:.2f} → "
        f"{arm['rep-4']:.2f}",
        decided(arm["escaped"] > share and arm["rep-4"] < greedy["rep-4"]),
    )


def without_high_temperature(rows: Rows) -> Judged:
    """Hot at less than half of the tokens; and no more repeats than sampling that strays alike."""
    (slip,) = _values(rows, PUBLISHED)
    hot = sum(slip[cause] for cause in ("spike", "stale", "loop"))
    found = matched(strict_draws(_strict(rows, PUBLISHED, *_curve(rows))), PUBLISHED, "own")
    words = f"hot at {hot:.0%} of the tokens; "
    if found is None or found["rep-4 - curve"] is None:
        return f"{words}no plain sampling strays as far from the model", decided(hot < 0.5)
    difference = found["rep-4 - curve"]
    return (
        f"{words}strays from the model as plain sampling at T {found['temperature'][0]:.2f} does, "
        f"and repeats {shown(difference, 3)} more 4-grams",
        combined(decided(hot < 0.5), decided(difference[2] < CLOSE)),
    )


def _curve(rows: Rows) -> tuple[str, ...]:
    """Two temperatures of plain sampling at least."""
    known = {r["arm"] for r in _strict(rows, GREEDY)}
    curve = tuple(arm for arm in CURVE.values() if arm in known)
    if len(curve) < 3:
        raise Missing("too few temperatures in benchmarks/results/phase_slip.jsonl")
    return curve


def forced_choice(rows: Rows) -> Judged:
    """Is there no plain temperature that halves the repeats and strays less than sampling does?"""
    by_arm = {r["arm"]: r["values"] for r in _strict(rows, TOP_K, *_curve(rows))}
    greedy, sampled = by_arm[GREEDY], by_arm[TOP_K]
    between = [t for t, arm in CURVE.items() if arm in by_arm
               and by_arm[arm]["rep-4"] < 0.5 * greedy["rep-4"]
               and by_arm[arm]["own"] < sampled["own"]]  # fmt: skip
    temperatures = ", ".join(f"T {t:g}" for t in between) or "no temperature"
    return (
        f"{temperatures} at least halves greedy's repeats and strays less than sampling",
        decided(not between),
    )


def loop_trigger(rows: Rows) -> Judged:
    difference = _difference(rows, AT_LOOPS, PUBLISHED, "rep-4")
    return f"repeated 4-grams {shown(difference, 3)} more than as published", below(difference)


def breaker(rows: Rows) -> Judged:
    greedy, slip = (_row(rows, "breaker", arm)["ends"] for arm in (GREEDY, PUBLISHED))
    words = {True: "ends in a loop", False: "does not"}
    return f"greedy {words[greedy]}, Phase-Slip {words[slip]}", decided(greedy and not slip)


# --- the trigger and the noise


def monitors(rows: Rows) -> Judged:
    row = _row(rows, "breaker", PUBLISHED)
    entropies = [h for h in row["entropies_nats"] if h is not None and h >= 0]
    return f"{len(entropies)} entropies of {row['tokens']} tokens", decided(
        len(entropies) == row["tokens"]
    )


def heats_cache(rows: Rows) -> Judged:
    """Does much noise in the cache, and nothing else, change the text?"""
    (noisy,) = _values(rows, HOT)
    same = noisy["as greedy"]
    return (
        f"with noise of deviation 1 and no hot token {same:.0%} of the texts stay as greedy's",
        decided(same < 0.5),
    )


def only_when_necessary(rows: Rows) -> Judged:
    """Nine of ten slips at spikes; and texts that do not loop are left as they were."""
    greedy, slip = _values(rows, GREEDY, PUBLISHED)
    total = slip["spike"] + slip["stale"] + slip["loop"]
    spikes = slip["spike"] / total if total else 0.0
    words = f"{100 * total:.0f} slips in 100 tokens, {spikes:.0%} at spikes"
    verdicts = [decided(spikes > 0.9)]
    if greedy["ends"] < 1:
        words += (
            f"; {1 - greedy['ends']:.0%} of greedy texts end in no loop, "
            f"{slip['as greedy']:.0%} of all stay as they were"
        )
        verdicts.append(decided(slip["as greedy"] > 0.5 * (1 - greedy["ends"])))
    return words, combined(*verdicts)


def preserves_structure(rows: Rows) -> Judged:
    """Its text is no less likely, to the model itself, than that of standard sampling."""
    difference = _difference(rows, PUBLISHED, TOP_K, "own")
    return (
        f"{shown(difference, 3)} nats/byte above standard sampling",
        decided(above(difference) != "holds"),
    )


def sees_loops(rows: Rows) -> Judged:
    """Does a spike come within ten tokens of a loop, on average?"""
    row = _row(rows, "loops", GREEDY)
    inside, outside = row["inside"], row["outside"]
    if not inside["tokens"]:
        raise Missing("no greedy text of the loops protocol loops")
    return (
        f"{inside['spike']:.0%} of looping tokens are above 3.5 nats, {outside['spike']:.0%} of "
        f"the others (means {inside['mean_nats']:.2f} and {outside['mean_nats']:.2f} nats; "
        f"{sum(row['ends'])} of {len(row['ends'])} texts end in a loop)",
        decided(inside["spike"] > 0.1),
    )


DIVERSITY = f"{README}, vocabulary diversity"
CLAIMS = (
    Claim("A forced choice between rigidity (Greedy Decoding) and randomness (Standard Sampling)",
          CONCEPT, per_model(forced_choice)),
    Claim("It calculates the Shannon Entropy of the model at every step", CONCEPT,
          per_model(monitors)),
    Claim("It injects Gaussian noise into the Key-Value memory", CONCEPT, per_model(heats_cache)),
    Claim('The noise forces the model to "shake loose" from repetitive loops', CONCEPT,
          per_model(noise_does_it)),
    Claim("... only when necessary, when confusion spikes", CONCEPT,
          per_model(only_when_necessary)),
    Claim("... preserving structure when the model is confident", CONCEPT,
          per_model(preserves_structure)),
    Claim("Phase-Slip effectively breaks repetition loops", f"{README}, evidence",
          per_model(breaks_loops)),
    Claim("... without requiring constant high-temperature sampling", f"{README}, evidence",
          per_model(without_high_temperature)),
    Claim("Greedy Decoding is highly repetitive next to Standard Sampling (of gpt2, which we could "
          f"not have: {PUBLISHED_DIVERSITY[GREEDY]} and {PUBLISHED_DIVERSITY[TOP_K]})", DIVERSITY,
          per_model(greedy_stuck)),
    Claim("Phase-Slip matches standard sampling diversity (of gpt2: "
          f"{PUBLISHED_DIVERSITY[PUBLISHED]:.2f})", DIVERSITY, per_model(matches_sampling)),
    Claim('The "Loop Breaker" test: greedy stuck in a logic loop, Phase-Slip a success',
          f"{README}, loop breaker test", per_model(breaker)),
    Claim("Detected entropy spike (in a loop)", f"{README}, loop breaker test",
          per_model(sees_loops)),
    Claim("(ours) A trigger that sees loops repeats less", "reso_llm.decoding.controllers",
          per_model(loop_trigger)),
)  # fmt: skip
