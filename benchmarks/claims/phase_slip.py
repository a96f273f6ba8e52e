"""The claims of the Phase-Slip sampler's README, on every model that was measured."""

import statistics
from collections.abc import Callable, Sequence

from benchmarks.claims import Cases, Claim, Evidence, Missing, Row
from benchmarks.claims import phase_slip_rivals as rivals
from benchmarks.claims.rules import all_of, below, less, more, truths
from benchmarks.kit.records import grouped
from benchmarks.kit.statistics import summary
from benchmarks.kit.tables import shown
from benchmarks.tasks.phase_slip.arms import (
    AT_LOOPS,
    CAUSES,
    CURVE,
    GREEDY,
    HEAT,
    NOISE,
    PUBLISHED,
    PUBLISHED_DIVERSITY,
    TOP_K,
)
from benchmarks.tasks.phase_slip.statistics import drawn_measures, matched

README = "Phase-Slip README"
CONCEPT = f"{README}, the concept"
DIVERSITY = f"{README}, vocabulary diversity"
LOOP_BREAKER = f"{README}, loop breaker test"
OURS = "reso_llm.decoding.controllers"
TASK = "python evaluate.py phase-slip [--model DIR]"
HOT = "slip, noise 1 only"  # so much noise that a cache that has it cannot go unnoticed
CLOSE = 0.05  # shares (diversity, rep-4) that differ by less are alike
NAMES = {GREEDY: "greedy", PUBLISHED: "slip", TOP_K: "sampling", NOISE: "noise", HEAT: "heat",
         HOT: "hot"}  # fmt: skip

Rows = Sequence[Row]
View = Callable[[Rows], list[Row]]


def models(evidence: Evidence) -> Cases:
    """All rows of each model's newest weights."""
    weights = {r["model"]: r["weights"] for r in evidence.rows("phase_slip")}
    return {model: evidence.rows("phase_slip", model=model, weights=hashed)
            for model, hashed in weights.items()}  # fmt: skip


def newest_of(rows: Rows, protocol: str, arm: str) -> Row:
    chosen = [r for r in rows if (r["protocol"], r["arm"]) == (protocol, arm)]
    if not chosen:
        raise Missing(f"no row of {arm}, {protocol}, in benchmarks/results/phase_slip.jsonl")
    return chosen[-1]


def strict_rows(rows: Rows, *needed: str) -> list[Row]:
    """Strict rows of equal seeds and length that have these arms; the last such group."""
    strict = [r for r in rows if r["protocol"] == "strict"]
    groups = grouped(strict, "tokens", "seeds", "scorer", "scored_seeds").values()
    for alike in reversed([*groups]):
        if set(needed) <= {r["arm"] for r in alike}:
            return alike
    raise Missing(f"no strict rows of {' and '.join(needed)} in results/phase_slip.jsonl")


def difference(rows: Rows, arm: str, other: str, measure: str) -> Sequence[float]:
    """Arm minus other with its interval over prompts and seeds."""
    drawn = drawn_measures(strict_rows(rows, arm, other))
    change = summary(drawn[arm][measure] - drawn[other][measure])
    if change is None:
        raise Missing(f"{measure} of {arm} and {other} is not defined")
    return change


def curve_arms(rows: Rows) -> tuple[str, ...]:
    """The arms of plain sampling, two temperatures at least."""
    measured = {r["arm"] for r in strict_rows(rows, GREEDY)}
    curve = tuple(arm for arm in CURVE.values() if arm in measured)
    if len(curve) < 3:
        raise Missing("too few temperatures in benchmarks/results/phase_slip.jsonl")
    return curve


# --- views: the rows of a model as one row of what a claim reads


def measures(*arms: str, minus: tuple[str, str, str] | None = None, loops: bool = False) -> View:
    """Measures of strict arms by their short names.

    `minus`: arm, other and measure of a difference. `loops`: only where a greedy text ends in one.
    """

    def view(rows: Rows) -> list[Row]:
        by_arm = {r["arm"]: r["values"] for r in strict_rows(rows, *arms)}
        seen = {NAMES[arm]: by_arm[arm] for arm in arms}
        if loops and any(seen[NAMES[arm]]["escaped"] is None for arm in arms if arm != GREEDY):
            raise Missing("no greedy text of the strict protocol ends in a loop")
        return [seen | ({"change": difference(rows, *minus)} if minus else {})]

    return view


def slips(values: Row) -> float:
    """Slips of any cause, of a token."""
    return sum(values[cause] for cause in CAUSES)


def diversity(rows: Rows) -> list[Row]:
    """Mean diversity of the published protocol, by short names of the arms."""
    return [{NAMES[arm]: statistics.fmean(newest_of(rows, "published", arm)["diversity"])
             for arm in (GREEDY, TOP_K, PUBLISHED)}]  # fmt: skip


def slip_shares(rows: Rows) -> list[Row]:
    """Are nine of ten slips at spikes, and texts that do not loop left as they were?"""
    (seen,) = measures(GREEDY, PUBLISHED)(rows)
    greedy, slip, total = seen["greedy"], seen["slip"], slips(seen["slip"])
    spikes = slip["spike"] / total if total else 0.0
    words = f"{100 * total:.0f} slips in 100 tokens, {spikes:.0%} at spikes"
    verdicts = [spikes > 0.9]
    if greedy["ends"] < 1:
        words += (f"; {1 - greedy['ends']:.0%} of greedy texts end in no loop, "
                  f"{slip['as greedy']:.0%} of all stay as they were")  # fmt: skip
        verdicts.append(slip["as greedy"] > 0.5 * (1 - greedy["ends"]))
    return [{"words": words, "truths": verdicts}]


def temperatures_needed(rows: Rows) -> list[Row]:
    """Hot at less than half of the tokens; and no more repeats than sampling that strays alike."""
    (seen,) = measures(PUBLISHED)(rows)
    hot = slips(seen["slip"])
    words, verdicts = f"hot at {hot:.0%} of the tokens; ", [hot < 0.5]
    drawn = drawn_measures(strict_rows(rows, PUBLISHED, *curve_arms(rows)))
    against = matched(drawn, PUBLISHED, "own")
    if against is None or against["rep-4 - curve"] is None:
        words += "no plain sampling strays as far from the model"
    else:
        change = against["rep-4 - curve"]
        words += (
            f"strays from the model as plain sampling at T {against['temperature'][0]:.2f} does, "
            f"and repeats {shown(change, 3)} more 4-grams"
        )
        verdicts.append(change[2] < CLOSE)
    return [{"words": words, "truths": verdicts}]


def temperatures_between(rows: Rows) -> list[Row]:
    """The plain temperatures that halve the repeats and stray less than sampling does."""
    by_arm = {r["arm"]: r["values"] for r in strict_rows(rows, TOP_K, *curve_arms(rows))}
    greedy, sampled = by_arm[GREEDY], by_arm[TOP_K]
    between = [t for t, arm in CURVE.items() if arm in by_arm
               and by_arm[arm]["rep-4"] < 0.5 * greedy["rep-4"]
               and by_arm[arm]["own"] < sampled["own"]]  # fmt: skip
    words = ", ".join(f"T {t:g}" for t in between) or "no temperature"
    return [{"words": words, "truths": [not between]}]


def breaker(rows: Rows) -> list[Row]:
    """Whether the texts of the loop-breaker prompt end in a loop, and the entropies logged."""
    words = {True: "ends in a loop", False: "does not"}
    greedy, slip = (newest_of(rows, "breaker", arm) for arm in (GREEDY, PUBLISHED))
    entropies = [h for h in slip["entropies_nats"] if h is not None and h >= 0]
    return [{"greedy": words[greedy["ends"]], "slip": words[slip["ends"]],
             "broken": [greedy["ends"] and not slip["ends"]],
             "entropies": len(entropies), "tokens": slip["tokens"]}]  # fmt: skip


def loops(rows: Rows) -> list[Row]:
    """Entropies inside and outside the loops of greedy texts."""
    row = dict(newest_of(rows, "loops", GREEDY))
    if not row["inside"]["tokens"]:
        raise Missing("no greedy text of the loops protocol loops")
    return [row | {"stuck": sum(row["ends"]), "texts": len(row["ends"])}]


def per_model(text: str, source: str, sentence: str, view: View, *rules) -> Claim:
    """A claim on the rows of each model."""
    return Claim(text, source, TASK, models, f"{{case}}: {sentence}", rules, view)


CLAIMS = (
    per_model("A forced choice between rigidity (Greedy Decoding) and randomness (Standard "
              "Sampling)", CONCEPT,
              "{words} at least halves greedy's repeats and strays less than sampling",
              temperatures_between, truths("truths")),
    per_model("It calculates the Shannon Entropy of the model at every step", CONCEPT,
              "{entropies} entropies of {tokens} tokens", breaker,
              lambda row: row["entropies"] == row["tokens"]),
    per_model("It injects Gaussian noise into the Key-Value memory", CONCEPT,
              "with noise of deviation 1 and no hot token {hot.as greedy:.0%} of the texts stay "
              "as greedy's", measures(HOT), less("hot.as greedy", 0.5)),
    per_model('The noise forces the model to "shake loose" from repetitive loops', CONCEPT,
              "noise alone: {noise.escaped:.0%} of greedy loops escaped, repeated 4-grams "
              "{greedy.rep-4:.2f} → {noise.rep-4:.2f}, {change:.3f}; hot token alone: "
              "{heat.escaped:.0%}",
              measures(GREEDY, NOISE, HEAT, minus=(NOISE, GREEDY, "rep-4"), loops=True),
              below("change")),
    per_model("... only when necessary, when confusion spikes", CONCEPT, "{words}", slip_shares,
              truths("truths")),
    per_model("... preserving structure when the model is confident", CONCEPT,
              "{change:.3f} nats/byte above standard sampling",
              measures(minus=(PUBLISHED, TOP_K, "own")),
              lambda row: row["change"][1] <= 0),  # not less likely, to the model itself
    per_model("Phase-Slip effectively breaks repetition loops", f"{README}, evidence",
              "{slip.escaped:.0%} of greedy loops escaped, repeated 4-grams {greedy.rep-4:.2f} → "
              "{slip.rep-4:.2f}", measures(GREEDY, PUBLISHED, loops=True),
              all_of(more("slip.escaped", 0.9), less("slip.rep-4", "greedy.rep-4"))),
    per_model("... without requiring constant high-temperature sampling", f"{README}, evidence",
              "{words}", temperatures_needed, truths("truths")),
    per_model("Greedy Decoding is highly repetitive next to Standard Sampling (of gpt2, which we "
              f"could not have: {PUBLISHED_DIVERSITY[GREEDY]} and {PUBLISHED_DIVERSITY[TOP_K]})",
              DIVERSITY, "greedy {greedy:.2f}, sampling {sampling:.2f}", diversity,
              lambda row: row["greedy"] < row["sampling"] - CLOSE),
    per_model("Phase-Slip matches standard sampling diversity (of gpt2: "
              f"{PUBLISHED_DIVERSITY[PUBLISHED]:.2f})", DIVERSITY,
              "Phase-Slip {slip:.2f}, sampling {sampling:.2f}", diversity,
              lambda row: row["slip"] > row["sampling"] - CLOSE),
    per_model('The "Loop Breaker" test: greedy stuck in a logic loop, Phase-Slip a success',
              LOOP_BREAKER, "greedy {greedy}, Phase-Slip {slip}", breaker, truths("broken")),
    per_model("Detected entropy spike (in a loop)", LOOP_BREAKER,
              "{inside.spike:.0%} of looping tokens are above 3.5 nats, {outside.spike:.0%} of the "
              "others (means {inside.mean_nats:.2f} and {outside.mean_nats:.2f} nats; {stuck} of "
              "{texts} texts end in a loop)", loops,
              more("inside.spike", 0.1)),  # a spike within ten tokens of a loop, on average
    per_model("(ours) A trigger that sees loops repeats less", OURS,
              "repeated 4-grams {change:.3f} more than as published",
              measures(minus=(AT_LOOPS, PUBLISHED, "rep-4")), below("change")),
    per_model("(ours) Taking repeats back ends every loop of greedy decoding", OURS,
              "{looping:.0%} of greedy texts end in a loop, {escaped:.0%} of these no longer; "
              "repeated 4-grams {before:.3f} → {after:.3f}", rivals.escaped,
              lambda row: row["escaped"] == 1),
    per_model("(ours) ... and leaves no text to be written anew at a higher temperature", OURS,
              "{left:.0%} of {texts} texts repeat a fifth of their 4-grams, {greedy:.0%} of greedy "
              "ones", rivals.left_to_retry, lambda row: row["left"] == 0),
    per_model("(ours) ... and repeats less than sampling, min-p, top-n-sigma and stochastic "
              "resonance at equal nats per byte", OURS,
              "repeated 4-grams and new pairs, minus {words}",
              rivals.compared(rivals.WEAKER, 0.0), truths("truths")),
    per_model("(ours) ... and less than a repetition penalty", OURS,
              "repeated 4-grams and new pairs, minus {words}",
              rivals.compared(rivals.PENALTY, 0.0), truths("truths")),
    per_model("(ours) ... and no more than DRY and XTC", OURS,
              "repeated 4-grams and new pairs, minus {words}",
              rivals.compared(rivals.STRONG, rivals.CLOSE), truths("truths")),
    per_model("(ours) ... and leaves known facts right", OURS,
              "{still} of {right} right answers still right", rivals.kept,
              lambda row: row["still"] >= 0.98 * row["right"]),
    per_model("(ours) ... and their answers word for word", OURS,
              "{same} of {right} right answers unchanged", rivals.kept,
              lambda row: row["same"] >= 0.98 * row["right"]),
)  # fmt: skip
