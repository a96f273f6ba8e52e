"""Claims of this project on the rule that SRB has by default: rows of kind replay."""

from collections.abc import Sequence

from benchmarks.claims import Claim, Row
from benchmarks.claims.rules import one, rows_of, truths
from benchmarks.kit.tables import shown
from benchmarks.tasks.srb.finishing import RULE
from benchmarks.tasks.srb.replay import GOOD, counted

SOURCE = "entropy_core.budget"
TASK = "python evaluate.py srb --replay [--model DIR]"
REPLAYED = rows_of("srb", "model", case="model", kind="replay")
ENTROPY = ("+ loops by repetition", RULE)
"""The designs without and with low entropy as a sign of a loop."""


def kept(row: Row) -> Row:
    """The parts of the bar against the static reply, and the differences it is judged by."""
    minus, bar = row["srb_minus"]["static"], row["bar"]
    words = ", ".join(
        f"{name} {shown(minus[name], 2)}" for name in GOOD if any(minus.get(name) or ())
    )
    saved = shown(row["arms"]["srb"]["saved"], 2)
    return {"words": words, "saved": saved,
            "truths": [bar["saved"], bar["kept"], bar["repeats_less"]]}  # fmt: skip


def beaten(row: Row) -> Row:
    """Better, worse and all measures against each rule at equal tokens."""
    bar = row["bar"]
    words = ", ".join(
        f"{arm} {c['better']} better and {c['worse']} worse of {c['of']}"
        for arm, c in bar["against"].items()
    )
    return {"words": words, "truths": [*bar["beats"].values()]}


def entropy(row: Row) -> Row:
    """Whether a loop is seen better where entropy is low too: the score of both designs' cuts."""
    without, with_it = (row["designs"][name]["minus_static"] for name in ENTROPY)
    words = "; ".join(
        f"{name}: finished {shown(found['finished'], 2)}, repeated 4-grams "
        f"{shown(found['rep4'], 3)}, saved {shown(found['saved'], 2)}"
        for name, found in zip(ENTROPY, (without, with_it), strict=True)
    )
    better = (
        with_it["rep4"][2] < without["rep4"][1] or with_it["finished"][1] > without["finished"][2]
    )
    return {"words": words, "truths": [better]}


def deepened(row: Row) -> Row:
    """Whether a deepening costs no more tokens than whole replies, and what it betters in SRB's."""
    against = {arm: counted(found) for arm, found in row["deepened_minus"].items()}
    words = "; ".join(
        f"against {arm} {c['better']} measures better and {c['worse']} worse of {c['of']}"
        for arm, c in (("whole replies", against["static"]), ("SRB without it", against["srb"]))
    )
    srb, more = against["srb"], row["more_tokens"]
    pays = more[1] <= 0 and srb["better"] > 0 and not srb["worse"]
    return {"words": words, "more": more, "truths": [pays]}


def claim(text: str, sentence: str, view) -> Claim:
    return Claim(f"(ours) {text}", SOURCE, TASK, REPLAYED, f"{{case}}: {sentence}",
                 (truths("truths"),), one(view))  # fmt: skip


CLAIMS: Sequence[Claim] = (
    claim("A reply that ends at a finished place, by p(end), budget and loops, saves 20 % of the "
          "tokens, costs no quality and repeats less",
          "{saved} of the tokens saved; minus static: {words}", kept),
    claim("... and at equal tokens it is better than a fixed length, chance and p(end) alone in "
          "half of the measures that differ, and worse in none", "{words}", beaten),
    claim("... and low entropy tells a loop better than repetition alone", "{words}", entropy),
    Claim("(ours) Deepening pays for itself: SRB that spends on it what it saves is better than "
          "SRB alone", SOURCE, "python -m benchmarks.studies.deepening --model DIR",
          rows_of("deepening", "design", case="design"),
          "{case}: {more:.0f} tokens more than whole replies; {words}", (truths("truths"),),
          one(deepened)),
)  # fmt: skip
