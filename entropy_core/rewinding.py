"""Taking back a repeat: which of its tokens to draw anew, and without which choices.

    repeat   the last L tokens stood before among the last N, in this order
    place    of these L tokens the one that was drawn anew the fewest times, and of those the one
             that was least sure: argmax H

A loop is cheap to leave where the model was undecided, and dear in the middle of a phrase. So the
text goes back there, and each token that led into a repeat at that place is excluded from the draw.
Of a place, the exclusions hold until the text is taken back to an earlier one.

Source: ours; backtracking (Golomb & Baumert 1965), with the entropies of the tokens as its order.
Entropies are in nats. Shapes: T tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from entropy_core.checks import require


@dataclass(frozen=True, kw_only=True)
class RewindOptions:
    """When a repeat is taken back.

    repeat_length: tokens of a repeat, L; None takes none back. repeat_window: N; a loop is short,
    and a long text may say something again. repeat_nats: mean entropy of the repeat, at most.
    max_attempts: tokens that are excluded at one place. rewind_tokens: how far behind the longest
    text so far a place may be. max_share: tokens taken back for each of the text, at most. A repeat
    that needs more stays. Raises ValueError naming a field out of range.
    """

    repeat_length: int | None = 3
    repeat_window: int = 128
    repeat_nats: float = math.inf
    max_attempts: int = 8
    rewind_tokens: int = 16
    max_share: float = 2.0

    def __post_init__(self) -> None:
        n = self.repeat_length
        require(n is None or n >= 2, "repeat_length", n, "None, or at least 2 tokens")
        window, least = self.repeat_window, n or 1
        require(window > least, "repeat_window", window, f"more than the repeat's {least} tokens")
        require(self.repeat_nats >= 0, "repeat_nats", self.repeat_nats, "at least 0 nats")
        require(self.max_attempts >= 1, "max_attempts", self.max_attempts, "at least 1")
        fits = self.rewind_tokens >= least
        require(fits, "rewind_tokens", self.rewind_tokens, f"at least the repeat's {least}")
        require(self.max_share >= 0, "max_share", self.max_share, "at least 0")


class RewindState(NamedTuple):
    """Memory of `rewind_step`; its defaults are the state before the first token."""

    excluded: Mapping[int, frozenset[int]] = {}
    """The tokens that led into a repeat, by their places in the text."""
    num_taken_back: int = 0
    num_longest: int = 0  # tokens of the text when it was longest


def ends_in_repeat(tokens: Sequence[int], length: int) -> bool:
    """Whether the last `length` of some tokens stood before, possibly overlapping themselves."""
    tail, last = list(tokens[-length:]), len(tokens) - length
    if last < 1:
        return False
    return any(
        tokens[start] == tail[0] and list(tokens[start : start + length]) == tail
        for start in range(last)
    )


def rewind_step(
    state: RewindState, tokens: Sequence[int], entropies: Sequence[float], options: RewindOptions
) -> tuple[int | None, RewindState]:
    """Decide about the newest tokens of a text: the place (from 0) to draw anew, and a new state.

    tokens (T,) are those written so far, entropies (T,) those of the distributions behind them. The
    place is None where nothing is taken back; else the new state's `excluded` has the tokens that
    may not stand there.
    """
    length, num = options.repeat_length, len(tokens)
    state = state._replace(num_longest=max(state.num_longest, num))
    if length is None or not ends_in_repeat(tokens[-options.repeat_window :], length):
        return None, state
    span = range(max(num - length, state.num_longest - options.rewind_tokens), num)
    sure = sum(entropies[num - length : num]) <= length * options.repeat_nats
    tries = {place: len(state.excluded.get(place, ())) for place in span}
    free = [place for place in span if tries[place] < options.max_attempts]
    if not sure or not free:
        return None, state
    place = min(free, key=lambda k: (tries[k], -entropies[k]))
    taken_back = state.num_taken_back + num - place
    if taken_back > options.max_share * num:
        return None, state
    excluded = {k: ids for k, ids in state.excluded.items() if k < place}
    excluded[place] = state.excluded.get(place, frozenset()) | {tokens[place]}
    return place, RewindState(excluded, taken_back, state.num_longest)
