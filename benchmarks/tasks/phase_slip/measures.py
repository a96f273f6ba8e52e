"""Measures of a text, each a pair (sum, what to divide it by), and entropies inside loops.

    rep-4       share of 4-grams of tokens that stood before in the text
    distinct-2  distinct pairs of tokens / pairs
    looping     share of tokens that end 12 tokens, each equal to the one a period of at most 64
                before it (the loop trigger sees periods up to 32); `ends` is that of the last token
    escaped     of the greedy texts that end so, how many no longer do
    as greedy   share of texts equal to the greedy one
    diversity   the published one: unique / all words of the lower-cased text without '.' and ',',
                prompt included
    spike, stale, loop    slips by their cause / tokens; rewinds: those that took a repeat back

Sources: the Phase-Slip sampler; distinct-n, Li 2016 (arXiv 1510.03055); rep-n, Welleck 2019 (arXiv
1908.04319). Shapes: B rows, T tokens, V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.kit.writers import Text
from benchmarks.tasks.phase_slip.arms import CAUSES
from entropy_core.policies import PhaseSlipOptions
from entropy_core.signals import LoopTracker

LOOP_WINDOW, LOOP_PERIOD = 12, 64  # tokens
TRIGGER = PhaseSlipOptions()  # the published thresholds
Scores = Callable[[Tensor], Tensor]  # ids (B,T) -> logits (B,T,V)


def repeated_grams(ids: Sequence[int], n: int) -> tuple[int, int]:
    """(n-grams that stood before, n-grams) of a text."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(grams) - len(set(grams)), len(grams)


def looping(ids: Sequence[int]) -> list[bool]:
    """At each token: are the last LOOP_WINDOW equal to those one period before?"""
    tracker = LoopTracker(LOOP_WINDOW, LOOP_PERIOD)
    return [tracker.add(i) == 1 for i in ids]


def published_diversity(text: str) -> float:
    """Unique words / words; 0 of an empty text."""
    words = text.lower().replace(".", "").replace(",", "").split()
    return len(set(words)) / max(1, len(words))


def measures_of(text: Text, prompt: str, greedy: Text) -> dict[str, tuple[float, float]]:
    """All measures of a text but the scorers', each (sum, count)."""
    inside, before = looping(text.ids), looping(greedy.ids)
    stuck, was_stuck = any(inside[-1:]), any(before[-1:])
    again, pairs = repeated_grams(text.ids, 2)
    slips = Counter(cause for _, cause in text.slips)
    return {
        "rep-4": repeated_grams(text.ids, 4),
        "distinct-2": (pairs - again, pairs),
        "looping": (sum(inside), len(inside)),
        "ends": (stuck, 1),
        "escaped": (was_stuck and not stuck, was_stuck),
        "as greedy": (text.ids == greedy.ids, 1),
        "diversity": (published_diversity(prompt + text.text), 1),
        **{cause: (slips[cause], len(text.ids)) for cause in CAUSES},
        "rewinds": (slips["repeat"], len(text.ids)),
    }


@torch.inference_mode()
def continuation_nats(
    logits: Scores, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int
) -> list[float]:
    """Nats of each continuation after its context, (context ids, ids); equal pairs scored once.

    Shorter rows are padded on the right, which a causal model does not see.
    """
    keys = [(tuple(context), tuple(ids)) for context, ids in pairs]
    unique = sorted(set(keys), key=lambda key: len(key[0]) + len(key[1]))
    nats_of: dict[Any, float] = {}
    for first in range(0, len(unique), batch_size):
        some = unique[first : first + batch_size]
        rows = [torch.tensor(context + ids) for context, ids in some]
        ids = pad_sequence(rows, batch_first=True)
        scores_of_rows = logits(ids[:, :-1])
        for key, row, scores in zip(some, rows, scores_of_rows, strict=True):
            span = slice(len(key[0]) - 1, len(row) - 1)
            nats = F.cross_entropy(scores[span].float(), row[span.start + 1 :], reduction="sum")
            nats_of[key] = nats.item()
    return [nats_of[key] for key in keys]


def loop_entropies(texts: Sequence[Text]) -> dict[str, dict[str, Any]]:
    """Entropies in nats of the tokens inside loops, and outside: how many, and what triggers see.

    spike: share above the threshold of a spike. unsure: share of at least what any slip needs.
    """
    inside = [flag for text in texts for flag in looping(text.ids)]
    entropies = np.array([entropy for text in texts for entropy in text.entropies])
    chosen = np.array(inside, dtype=bool)
    return {"inside": _entropies(entropies[chosen]), "outside": _entropies(entropies[~chosen])}


def _entropies(values: np.ndarray) -> dict[str, Any]:
    if not len(values):
        return {"tokens": 0}
    quartiles = np.quantile(values, (0.25, 0.5, 0.75))
    return {
        "tokens": len(values),
        "mean_nats": round(float(values.mean()), 4),
        "quartiles_nats": [round(float(q), 4) for q in quartiles],
        "spike": float((values > TRIGGER.spike_nats).mean()),
        "unsure": float((values >= TRIGGER.confident_nats).mean()),
    }
