"""Windows over tokens: random ones for training, overlapping ones for evaluation.

    BatchStream(split, context, batch_size, seed)          endless batches of T = context tokens
    eval_windows(tokens, doc_starts, context, stride)      every token of every document once

Shapes: B windows, T tokens of a window.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reso_llm.data.errors import DataError
from reso_llm.data.token_cache import Split


class Batch(NamedTuple):
    """inputs and targets (B,T) int64, reply (B,T) bool, starts (B,) int64.

    targets[:, t] follows inputs[:, t]; reply is True where the target is part of a reply; starts
    are the windows' places in the split.
    """

    inputs: Tensor
    targets: Tensor
    reply: Tensor
    starts: Tensor


class BatchStream:
    """Endless random windows of T = `context` tokens, resumable from one integer.

    The windows of epoch e are tokens[offset_e + i T : offset_e + (i+1) T + 1], i = 0..n-1,
    with a random offset per epoch, visited in a random order; both follow from (seed, e) alone.
    `position` is the number of windows drawn so far and the whole state:
    `BatchStream(..., position=p)` goes on exactly where another stream was at p.
    DataError when the split is shorter than one window.
    """

    def __init__(
        self, split: Split, context: int, batch_size: int, seed: int, position: int = 0
    ) -> None:
        if context < 1 or batch_size < 1 or position < 0 or seed < 0:
            raise ValueError(
                "context and batch_size must be at least 1, seed and position at least 0; found "
                f"context={context}, batch_size={batch_size}, seed={seed}, position={position}"
            )
        num_tokens = len(split.tokens)
        if num_tokens < context + 1:
            raise DataError(
                f"the data has {num_tokens} tokens, but one window of context {context} needs "
                f"{context + 1}: give more data or a smaller context"
            )
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.position = position
        # One window fewer than fits leaves room for the offset and keeps n equal in all epochs.
        self.windows_per_epoch = max(1, num_tokens // context - 1)
        self._max_offset = num_tokens - 1 - self.windows_per_epoch * context
        self._split = split
        self._epoch = -1
        self._starts = np.zeros(0, dtype=np.int64)

    @property
    def epoch(self) -> float:
        """Passes over the data so far, with the fraction of the current one."""
        return self.position / self.windows_per_epoch

    def next(self) -> Batch:
        """The next batch_size windows."""
        starts = [self._start_of(self.position + k) for k in range(self.batch_size)]
        self.position += self.batch_size
        spans = [slice(start, start + self.context + 1) for start in starts]
        tokens = torch.from_numpy(np.stack([self._split.tokens[s] for s in spans]).astype(np.int64))
        reply = torch.from_numpy(np.stack([self._split.reply_mask[s] for s in spans]).astype(bool))
        return Batch(
            tokens[:, :-1].contiguous(),
            tokens[:, 1:].contiguous(),
            reply[:, 1:].contiguous(),
            torch.tensor(starts),
        )

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        return self.next()

    def _start_of(self, position: int) -> int:
        epoch, index = divmod(position, self.windows_per_epoch)
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            offset = int(generator.integers(0, self._max_offset + 1))
            order = generator.permutation(self.windows_per_epoch)
            self._epoch, self._starts = epoch, offset + order * self.context
        return int(self._starts[index])


class EvalWindow(NamedTuple):
    """inputs, targets int64 and scored bool, all (T',) with T' <= context; start: its place."""

    inputs: np.ndarray
    targets: np.ndarray
    scored: np.ndarray
    start: int


def eval_windows(
    tokens: np.ndarray, doc_starts: np.ndarray, context: int, stride: int
) -> Iterator[EvalWindow]:
    """Windows in which every token after each document's <|bos|> is scored exactly once.

    Documents never see each other. After a document's first window every scored token has at least
    `context - stride` tokens before it in its window. 1 <= stride <= context.
    """
    if not 1 <= stride <= context:
        raise ValueError(f"stride is {stride}, expected 1 to context ({context})")
    stops = [*doc_starts[1:], len(tokens)]
    for start, stop in zip(map(int, doc_starts), map(int, stops), strict=True):
        done, last = start, stop - 1  # targets up to index `done` are scored
        while done < last:
            end = min(last, done + (context if done == start else stride))
            begin = max(start, end - context)
            window = np.asarray(tokens[begin : end + 1], dtype=np.int64)
            yield EvalWindow(window[:-1], window[1:], np.arange(begin, end) >= done, begin)
            done = end


def eval_batches(
    tokens: np.ndarray, doc_starts: np.ndarray, context: int, stride: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """`eval_windows` as batches: inputs, targets, scored (B,T), starts (B,); T <= context.

    Windows of similar length go together; shorter ones are padded on the right with id 0, never
    scored, which a causal model does not see. The order of windows is not that of the text.
    """
    windows = eval_windows(tokens, doc_starts, context, stride)
    while True:
        held = list(itertools.islice(windows, 64 * batch_size))
        if not held:
            return
        held.sort(key=lambda window: len(window.inputs))
        for first in range(0, len(held), batch_size):
            yield _padded(held[first : first + batch_size])


def _padded(windows: list[EvalWindow]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    length = max(len(window.inputs) for window in windows)
    shape = (len(windows), length)
    inputs, targets = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    scored = torch.zeros(shape, dtype=torch.bool)
    for row, window in enumerate(windows):
        count = len(window.inputs)
        inputs[row, :count] = torch.from_numpy(window.inputs)
        targets[row, :count] = torch.from_numpy(window.targets)
        scored[row, :count] = torch.from_numpy(window.scored)
    return inputs, targets, scored, torch.tensor([window.start for window in windows])
