"""What was measured of each token of a text, as plain values for JSON; what is undefined is absent.

| key | value |
|---|---|
| `entropy_nats` | of the distribution behind the token, before temperature and filters |
| `surprise_nats` | -ln p of the token in that distribution |
| `coherence` | Kuramoto order parameter of the token before, 0 to 1 |
| `layers` | layers that the coherence gate let run |
| `stability`, `lyapunov`, `warning` | class, exponent in nats a token, and warning from 0 to 1 |
| `temperature` | that the token was drawn at; 0 is greedy |
| `events` | decisions of the controllers: `controller`, `cause`, `effect` |
| `source` | where the last words were read before (`sources.py`) |
| `alternatives` | the most probable tokens and their probabilities, where they are asked for |
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from reso_llm.generation.row import Alternative, TextRow
from reso_llm.generation.tokens import Tokens
from reso_llm.server.sources import Source, Sources


class Token(NamedTuple):
    """One token written: the text that it completes, its own text, ln p of it, and its facts.

    own is None for a special token, which has no text.
    """

    text: str
    own: str | None
    log_prob: float
    alternatives: list[tuple[str, float]]  # text and ln p
    facts: dict[str, Any]


def own_text(tokenizer: Tokens, token: int) -> str:
    """The text of one token alone; a part of a character is U+FFFD."""
    decoder = tokenizer.stream_decoder()
    return decoder.feed(token) + decoder.flush()


class TokenReader:
    """Reads the tokens of a row as they become certain: what a controller may take back waits."""

    def __init__(self, row: TextRow, tokenizer: Tokens, sources: Sources) -> None:
        self.row, self.tokenizer, self.sources = row, tokenizer, sources
        self._num_read = 0

    def certain(self, text: str) -> Iterator[Token]:
        """The tokens that have become certain; `text` is what they complete of the row's text."""
        while self._num_read < self.row.num_certain:
            yield self._next(text)
            text = ""

    def _next(self, text: str) -> Token:
        t, row = self._num_read, self.row
        token = row.ids[row.num_prompt + t]
        self._num_read += 1
        source, special = self.sources.add(token), token in self.tokenizer.special_ids
        alternatives = [self._named(pair) for pair in row.alternatives[t : t + 1] for pair in pair]
        return Token(
            text,
            None if special else own_text(self.tokenizer, token),
            -row.surprises[t],
            alternatives,
            dict(self._facts(t, source)),
        )

    def _named(self, alternative: Alternative) -> tuple[str, float]:
        token, log_prob = alternative
        special = token in self.tokenizer.special_ids
        return "" if special else own_text(self.tokenizer, token), log_prob

    def _facts(self, t: int, source: Source | None) -> Iterator[tuple[str, Any]]:
        row, decoded = self.row, self.row.decoding
        yield "entropy_nats", decoded.signals[t].entropy_nats
        yield "surprise_nats", row.surprises[t]
        if t < len(row.coherence) and not math.isnan(row.coherence[t]):
            yield "coherence", row.coherence[t]
        if t < len(row.layers):
            yield "layers", row.layers[t]
        yield "temperature", decoded.temperatures[t]
        if decoded.readings:
            yield "stability", decoded.readings[t].stability_class
            yield "warning", decoded.readings[t].warning
            if math.isfinite(decoded.readings[t].lyapunov_per_token):
                yield "lyapunov", decoded.readings[t].lyapunov_per_token
        # A token that was taken back several times has the last of these decisions.
        events = {(e.controller, e.cause): e for e in decoded.events if e.step == t}.values()
        if events:
            names = ("controller", "cause", "effect")
            yield "events", [{name: getattr(e, name) for name in names} for e in events]
        if source is not None:
            yield "source", {"memory": source.memory, "tokens": source.num_tokens}
