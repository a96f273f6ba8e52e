"""What a written token was read in before: a stored text, or the conversation.

    run(t, p) = run(t - 1, p - 1) + 1  where token t of the text is token p of a text read, else 0

The source of a token is the place with the longest run, of at least MIN_RUN tokens. That says that
these words were read there, not that they were written because of it. Special tokens end a run.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

MIN_RUN = 3
"""Tokens in a row that make a source."""
NUM_BEFORE = 16
"""Last tokens of a prompt that a run may begin in."""


class Source(NamedTuple):
    """Where the last `num_tokens` were read: the stored text `memory`, or "" for the prompt."""

    memory: str
    num_tokens: int


class Sources:
    """The places of all tokens of some texts, and the runs that end at the newest token."""

    def __init__(
        self,
        prompt: Sequence[int],
        memories: Sequence[tuple[str, Sequence[int]]],
        special: Collection[int],
    ) -> None:
        """prompt: ids that the text goes on from; memories: stored texts and their ids."""
        self._texts = ["", *(text for text, _ in memories)]
        self._special = special
        self._places: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, ids in enumerate([prompt, *(ids for _, ids in memories)]):
            for place, token in enumerate(ids):
                self._places[token].append((number, place))
        self._runs: dict[tuple[int, int], int] = {}
        for token in prompt[-NUM_BEFORE:]:
            self._read(token)

    def add(self, token: int) -> Source | None:
        """Read one more token of the text, and say where it and those before it were read."""
        self._read(token)
        # Of equal runs a stored text wins: the prompt may quote it.
        run, number = max(((n, text) for (text, _), n in self._runs.items()), default=(0, 0))
        return Source(self._texts[number], run) if run >= MIN_RUN else None

    def _read(self, token: int) -> None:
        places = () if token in self._special else self._places.get(token, ())
        before = self._runs
        self._runs = {(n, place): before.get((n, place - 1), 0) + 1 for n, place in places}
