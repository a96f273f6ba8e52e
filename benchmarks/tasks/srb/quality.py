"""How good a reply is when it is cut after k of its n tokens, for every k at once.

    finished       it ends as a sentence does, or where the model ended it
    mid_word       the cut parts a word
    rep4           4-grams of tokens that came before / 4-grams
    distinct2      distinct pairs of tokens / pairs
    own, outside   nats of what is kept, and of ending the turn there, by the model itself without
                   control and by another model; own_entropy_nats is the mean entropy of its tokens
    code_parses    it holds a block of Python, and all its blocks parse (bucket code)
    steps_met      it numbers exactly as many steps as were asked for (bucket procedures)

Each is a pair, numerator and denominator of a mean: (n+1,2). A token of the other model that
straddles a cut counts in proportion to its bytes; the end is read at the last of its token borders
before the cut. Source of distinct-n: Li 2016 (arXiv 1510.03055).
"""

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.kit.pretrained import Writer
from benchmarks.kit.writers import breaks
from benchmarks.tasks.srb.prompts import Prompt
from reso_llm.decoding.draft import FINISHED, num_steps

BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)

Measures = Mapping[str, np.ndarray]


class Scores(NamedTuple):
    """A scorer on a reply of n tokens: nats (n+1,) of its first k, and of ending after them."""

    text: np.ndarray
    end: np.ndarray


def measures(
    row: Mapping[str, Any], prompt: Prompt, writer: Writer, judge: Writer | None
) -> Measures:
    """All measures of a static reply at every cut. `writer` wrote it, `judge` is the other."""
    ids, text = row["ids"], row["text"]
    n = len(ids)
    spoken = n - (row["stop_reason"] == "end")  # the end is a token without text
    places = breaks([writer.spell(ids[:k]) for k in range(n + 1)], text)
    k, one = np.arange(n + 1), np.ones(n + 1)
    at = np.minimum(k, spoken)
    whole = (at == spoken) & (spoken < n)
    heads = [text[:c] for c in places]
    inside = [h[-1:].isalnum() and text[len(h) : len(h) + 1].isalnum() for h in heads]
    finished = [bool(FINISHED.search(head.rstrip())) for head in heads] | whole
    own = np.cumsum([0.0, *row["surprise_nats"][:spoken], *[0.0] * (n - spoken)])  # the end is free
    size, code, steps = byte_sizes(text)[places], prompt.bucket == "code", prompt.steps
    table = {
        "tokens": (k, one), "finished": (finished, one), "mid_word": (inside, one),
        "rep4": (repeats(ids[:spoken], 4)[at], np.maximum(at - 3, 0)),
        "distinct2": (np.maximum(at - 1, 0) - repeats(ids[:spoken], 2)[at], np.maximum(at - 1, 0)),
        "own_nats_per_token": (own, at), "own_nats_per_byte": (own, size),
        "own_end_nats": (np.array(row["end_nats"])[at], one),
        "own_entropy_nats": (np.cumsum([0.0, *row["entropy_nats"]]), k),
        "code_parses": ([code and parses(h) for h in heads], one * code),
        "steps_met": ([steps == num_steps(h) for h in heads], one * (steps is not None)),
    }  # fmt: skip
    if judge is not None:
        outside = judged(judge, prompt.text, text, places)
        table["outside_nats_per_byte"] = (outside.text, size)
        table["outside_end_nats"] = (outside.end[at], one)
    return {name: np.stack(pair, -1).astype(float) for name, pair in table.items()}


def judged(judge: Writer, question: str, text: str, places: np.ndarray) -> Scores:
    """Scores of a text by another model, at cuts after `places` (n+1,) of its characters."""
    ids, spans = judge.spans(text)
    return aligned(text, places, spans, *judge.scored(question, ids))


def aligned(
    text: str, places: np.ndarray, spans: Sequence[tuple[int, int]], nats: np.ndarray,
    ends: np.ndarray,
) -> Scores:  # fmt: skip
    """Scores by a scorer's tokens (m,), which span characters, at other cuts (n+1,)."""
    sizes = byte_sizes(text)
    density, end = np.zeros(len(text)), np.full(len(text) + 1, ends[0])
    for (start, stop), cost, after in zip(spans, nats, ends[1:], strict=True):
        weights = np.diff(sizes[start : stop + 1])
        if stop > start:
            density[start:stop] += cost * weights / weights.sum()
        end[stop:] = after
    total = np.concatenate([[0.0], np.cumsum(density)])
    return Scores(total[places], end[places])


def byte_sizes(text: str) -> np.ndarray:
    """UTF-8 bytes of the first c characters, (C+1,)."""
    return np.cumsum([0, *(len(c.encode()) for c in text)])


def repeats(ids: Sequence[int], order: int) -> np.ndarray:
    """Runs of `order` tokens within the first k that came before, (n+1,)."""
    seen: set[tuple[int, ...]] = set()
    counts = [0] * min(order, len(ids) + 1)
    for stop in range(order, len(ids) + 1):
        gram = tuple(ids[stop - order : stop])
        counts.append(counts[-1] + (gram in seen))
        seen.add(gram)
    return np.array(counts)


def parses(text: str) -> bool:
    """Is there a fenced block of Python, and do all of them parse? The last may lack its end."""
    blocks = [block for block in BLOCK.findall(text) if block.strip()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the model's code, not of ours
            for block in blocks:
                ast.parse(block)
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return False
    return bool(blocks)


def cut(tables: Sequence[Measures], stops: np.ndarray) -> dict[str, np.ndarray]:
    """Measures (N,2) of replies cut at stops (N,), or the mean over deals (R,N)."""
    deals = np.atleast_2d(stops)
    return {
        name: np.stack([t[name][deals[:, i]].mean(0) for i, t in enumerate(tables)])
        for name in tables[0]
    }
