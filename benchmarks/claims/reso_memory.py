"""Claims of the Reso-LLM v2 README on the episodic memory, decided by rows."""

import itertools
import statistics
from collections.abc import Callable

from benchmarks.claims import Evidence, Finding, Missing, Row, above, decided, newest
from benchmarks.heldout import mean_interval, shown


def _gains(evidence: Evidence) -> list[Row]:
    """Nats per token gained, of every seed of the newest checkpoint."""
    name = evidence.row("memory")["checkpoint"]
    rows = newest(evidence.rows("memory", checkpoint=name), "seed")
    return [row["gain_nats_per_token"] for row in rows]


def remembers(what: str, title: str) -> Callable[[Evidence], Finding]:
    """A stored fact against one that was not, in every seed."""

    def decide(evidence: Evidence) -> Finding:
        rows = _gains(evidence)
        pairs = [(row[f"{what}, stored"], row[f"{what}, control"]) for row in rows]
        stored, control = (mean_interval(some) for some in zip(*pairs, strict=True))
        return Finding(
            f"{title}: telling the model a fact makes it {shown(stored, 3)} nats/token likelier, "
            f"another fact {shown(control, 3)} ({len(rows)} seeds)",
            decided(all(s[1] > c[2] for s, c in pairs)), "python evaluate.py memory",
        )  # fmt: skip

    return decide


def forgets(evidence: Evidence) -> Finding:
    """Less with every age, in every seed."""
    rows = _gains(evidence)
    ages = sorted({int(k.split()[1].strip(",")) for k in rows[0] if k.startswith("age ")})
    gains = [[row[f"age {age}, stored"][0] for age in ages] for row in rows]
    means = [statistics.fmean(column) for column in zip(*gains, strict=True)]
    words = ", ".join(f"{mean:.2f} at age {a}" for a, mean in zip(ages, means, strict=True))
    falls = all(a > b for some in gains for a, b in itertools.pairwise(some))
    return Finding(f"a stored fact is likelier by {words} (nats/token; decay 0.01)",
                   decided(falls), "python evaluate.py memory")  # fmt: skip


def dates(evidence: Evidence) -> Finding:
    """Is the moment that was meant the first found, for more than half of the questions?"""
    name = evidence.row("memory")["checkpoint"]
    rows = newest(evidence.rows("memory", checkpoint=name), "seed")
    kinds = ("question", "three words", "typo")

    def hits(kind: str, by: str) -> list[float]:
        return mean_interval([r["recall_hit_at_1"][f"{kind}, {by}"] for r in rows])

    words = [
        f"{kind} {shown(hits(kind, 'memory'), 2)} (BM25 {hits(kind, 'bm25 words')[0]:.2f})"
        for kind in kinds
    ]
    right = [above(r["recall_hit_at_1"]["question, memory"], 0.5) == "holds" for r in rows]
    return Finding(
        f"share of queries that find their moment, and with it its time, first of "
        f"{rows[-1]['num_stored']:,}: {', '.join(words)}",
        decided(all(right)), "python evaluate.py memory",
    )  # fmt: skip


def beyond_window(evidence: Evidence) -> Finding:
    rows = [r for r in evidence.rows("recall", memory=True, tied=False, filler=32)
            if r.get("accuracy_forgetting") is not None]  # fmt: skip
    if not rows:
        raise Missing("no row of benchmarks/results/recall.jsonl with the field emptied")
    kept, emptied = (
        statistics.fmean(r[k] for r in rows) for k in ("accuracy", "accuracy_forgetting")
    )
    return Finding(
        f"pairs told 32 tokens ago to attention that sees {rows[0]['window']}: {kept:.0%} right, "
        f"{emptied:.1%} with the field emptied, {rows[0]['chance']:.1%} by chance",
        decided(all(r["accuracy"] > 2 * r["accuracy_forgetting"] for r in rows)),
        "python -m benchmarks.recall",
    )  # fmt: skip
