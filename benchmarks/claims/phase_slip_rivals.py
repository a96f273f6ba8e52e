"""Views of the rows of `rivals` and `facts`: Phase-Slip's default, which takes repeats back."""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.claims import Missing, Row
from benchmarks.kit.records import grouped
from benchmarks.kit.tables import shown
from benchmarks.tasks.phase_slip.arms import GREEDY
from benchmarks.tasks.phase_slip.rivals import MEASURES, REWIND, against
from benchmarks.tasks.phase_slip.statistics import drawn_measures

WEAKER = ("sampling", "min-p", "top-n-sigma", "stochastic resonance")
PENALTY = ("repetition penalty",)
STRONG = ("DRY", "DRY, sampled", "XTC")
RETRY = 0.2  # share of 4-grams said before, above which a text would be written anew
CLOSE = 0.01  # shares of 4-grams and of pairs that differ by less are alike


def rival_rows(rows: Sequence[Row]) -> list[Row]:
    """The last rows of equal seeds and length that have greedy decoding and the rewinds."""
    rivals = [row for row in rows if row["protocol"] == "rivals"]
    for alike in reversed([*grouped(rivals, "tokens", "seeds", "scorer").values()]):
        if {GREEDY, REWIND} <= {row["arm"] for row in alike}:
            return alike
    raise Missing("no rows of the rivals in benchmarks/results/phase_slip.jsonl")


def escaped(rows: Sequence[Row]) -> list[Row]:
    """How many greedy texts end in a loop, and how many of these do so with rewinds."""
    values = {row["arm"]: row["values"] for row in rival_rows(rows)}
    if values[REWIND]["escaped"] is None:
        raise Missing("no greedy text of the rivals ends in a loop")
    return [{"looping": values[GREEDY]["ends"], "escaped": values[REWIND]["escaped"],
             "before": values[GREEDY]["rep-4"], "after": values[REWIND]["rep-4"]}]  # fmt: skip


def left_to_retry(rows: Sequence[Row]) -> list[Row]:
    """Texts that a second try would be for: more than RETRY of their 4-grams were said before."""
    shares = {}
    for row in rival_rows(rows):
        if row["arm"] in (GREEDY, REWIND):
            again, grams = np.array(row["pairs"]["rep-4"], dtype=float)[:, :, 0]  # no seed acts
            shares[row["arm"]] = again / grams > RETRY
    return [{"texts": len(shares[REWIND]), "greedy": float(shares[GREEDY].mean()),
             "left": float(shares[REWIND].mean())}]  # fmt: skip


def compared(families: Sequence[str], bound: float) -> Callable[[Sequence[Row]], list[Row]]:
    """The rewinds minus each family at equal nats per byte.

    A truth for each measure: repeats less than `bound` more, and less than that fewer new pairs.
    """

    def view(rows: Sequence[Row]) -> list[Row]:
        drawn = drawn_measures(rival_rows(rows))
        words, truths = [], []
        for scorer in (name for name in ("own", "outside") if name in drawn[REWIND]):
            for family in families:
                both = [against(drawn, REWIND, family, scorer, name) for name in MEASURES]
                if None in both:
                    words.append(f"{family} ({scorer}): no arm of it strays as far")
                    continue
                repeats, distinct = both
                truths += [repeats[2] < bound, distinct[1] > -bound]
                words.append(f"{family} ({scorer}) {shown(repeats, 3)} and {shown(distinct, 3)}")
        if not truths:
            raise Missing("no rival of the rewinds was measured at equal nats per byte")
        return [{"words": "; ".join(words), "truths": truths}]

    return view


def kept(rows: Sequence[Row]) -> list[Row]:
    """The right greedy answers, and what rewinds leave of them."""
    found = [row for row in rows if (row["protocol"], row["arm"]) == ("facts", REWIND)]
    if not found or not found[-1]["right"]:
        raise Missing("no right greedy answers in benchmarks/results/phase_slip.jsonl")
    return [found[-1]]
