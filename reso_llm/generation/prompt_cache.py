"""The model's state after each of the newest prompts, for a prompt that goes on from one of them.

A chat's prompt begins with the prompt before it: what follows is that prompt's reply, as it was
sent, and a question. With the cache only these are read, so a turn costs the same however long the
conversation has grown, while its context is not cut. What the model wrote is read once more, as a
text may have other tokens than those it was written in, and counts otherwise for the echo.

A state counts only for a prompt that would have begun with an equal state: the same goal, and the
same stored texts with the same weights. Shapes: T tokens, V vocabulary.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reso_llm.generation.row import PROMPT_WINDOW

NEWEST = 4
"""Prompts whose states are kept: a retried reply goes on from the prompt before its own."""


class Read(NamedTuple):
    """A prompt that was read: what its state began from, its ids, the state and last logits."""

    start: Hashable
    ids: tuple[int, ...]
    state: Any  # the model's state after the ids; whoever goes on with it leaves it as it is
    logits: Tensor  # (T,V) after the last ids, those that a stability monitor reads


class PromptCache:
    """The states after the newest prompts of one conversation, with one model.

    num_read: tokens of prompts that the model has read; reused: those it did not have to.
    """

    def __init__(self) -> None:
        self._newest: deque[Read] = deque(maxlen=NEWEST)
        self.num_read = self.reused = 0

    def before(self, start: Hashable, ids: Sequence[int]) -> Read | None:
        """The longest prompt read from an equal start that these ids begin with, and go on from."""
        fitting = [
            read
            for read in self._newest
            if read.start == start
            and len(read.ids) < len(ids)
            and read.ids == tuple(ids[: len(read.ids)])
        ]
        longest = max(fitting, key=lambda read: len(read.ids), default=None)
        self.reused += 0 if longest is None else len(longest.ids)
        return longest

    def keep(
        self,
        start: Hashable,
        ids: Sequence[int],
        state: Any,
        logits: Tensor,
        before: Read | None = None,
    ) -> Tensor:
        """Keep the state after ids, which went on from `before`; logits (T,V) after the last ids.

        These are the new logits and, where they are fewer than a monitor reads, those before them.
        """
        self.num_read += len(ids) - (0 if before is None else len(before.ids))
        if before is not None:
            logits = torch.cat((before.logits, logits))
        logits = logits[-PROMPT_WINDOW - 1 :].clone()  # not a view of those of the whole prompt
        self._newest.append(Read(start, tuple(ids), state, logits))
        return logits
