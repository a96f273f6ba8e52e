"""Conversations in their first window, and goals pooled from their parts.

Shapes: N conversations, T tokens of a window, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from entropy_core.primes import first_primes
from reso_llm.data.prepare import tokenise_all
from reso_llm.data.token_cache import Split
from reso_llm.stages.goal import pooled, rarity
from reso_llm.tokenizer import SPECIAL_TOKENS, ResoTokenizer

MIN_REPLY = 16  # tokens of a reply that has halves worth comparing
SMOOTH = 1e-3  # a of the smooth inverse frequency


class Row(NamedTuple):
    """The first window of a conversation: inputs and targets int64 (T,), masks (T,) of targets."""

    inputs: Tensor
    targets: Tensor
    reply: Tensor
    prompt: Tensor
    first: Tensor  # half of the reply's words
    second: Tensor


def first_windows(split: Split, context: int) -> list[Row]:
    """One row for each document with a prompt and MIN_REPLY tokens of reply in its first window."""
    stops = [*split.doc_starts[1:], split.num_tokens]
    rows = []
    for start, stop in zip(split.doc_starts, stops, strict=True):
        span = slice(int(start), min(int(stop), int(start) + context + 1))
        ids = torch.from_numpy(np.asarray(split.tokens[span], dtype=np.int64))
        reply = torch.from_numpy(np.asarray(split.reply_mask[span], dtype=bool))[1:]
        row = make_row(ids, reply)
        if row.prompt.any() and row.first.sum() + row.second.sum() >= MIN_REPLY:
            rows.append(row)
    return rows


def make_row(ids: Tensor, reply: Tensor) -> Row:
    """ids (T+1,), reply (T,) of targets -> the row. Control tokens are in no half or prompt."""
    targets = ids[1:]
    words = targets >= len(SPECIAL_TOKENS)
    reply_words = reply & words
    first = reply_words & (reply_words.cumsum(0) <= reply_words.sum() // 2)
    prompt = words & ~reply & (reply.cumsum(0) == 0)
    return Row(ids[:-1], targets, reply, prompt, first, reply_words & ~first)


def goal_vectors(
    table: Tensor, rows: Sequence[Row], part: str, weights: Tensor | None = None
) -> Tensor:
    """Pooled vectors (N,D) of one part of each row, from a table (V,D); weights (V,) of tokens."""
    targets = pad_sequence([row.targets for row in rows], batch_first=True)  # (N,T)
    mask = pad_sequence([getattr(row, part) for row in rows], batch_first=True)
    shares = None if weights is None else weights[targets]
    return pooled(F.embedding(targets, table), mask, shares)


def part_texts(rows: Sequence[Row], part: str, tokenizer: ResoTokenizer) -> list[str]:
    """One part of each row as a text."""
    return [tokenizer.decode(row.targets[getattr(row, part)].tolist()) for row in rows]


def others(count: int, generator: torch.Generator) -> Tensor:
    """A random cycle through all rows, (N,): each gets the index of another one."""
    order = torch.randperm(count, generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def weightings(table: Tensor, train: str | None, tokenizer) -> dict[str, Tensor | None]:
    """By name: None for equal weights, or what each token of the vocabulary counts for, (V,)."""
    count = len(table)
    rare = rarity(torch.arange(count), count).to(table)  # that of `stages.goal.text_vector`
    weights = {
        "equal": None,
        "rarity": rare,
        "ln prime": torch.tensor(first_primes(count)).log().to(table),
    }
    if train is not None:
        seen = np.bincount(tokenise_all(train, tokenizer).tokens, minlength=count) + 1
        unigram = torch.from_numpy(seen / seen.sum())
        weights["-ln unigram"] = -unigram.log().to(table)
        weights["smooth inverse"] = (SMOOTH / (SMOOTH + unigram)).to(table)
    return weights
