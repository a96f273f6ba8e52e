"""The rows of one Hugging Face `generate`: they decide on each token, and record what they did.

    process: measure z (B,V) -> decide -> draw where a decision acts -> noise into the cache
    observe: read the drawn token, end rows

A token costs two transfers to the host: the measures of its logits, and its id, logit and
embedding. Noise enters the cache after the pass that made the logits, so it acts from the next pass
on; the cache keeps its length. Source: `reso_llm.decoding.row`; cache classes of transformers 5.

Shapes: B rows of a batch, T tokens, V vocabulary, D embedding width, H heads, m candidates.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from entropy_core.signals import Signals
from reso_llm.decoding.measure import measure
from reso_llm.decoding.row import Draw, Event, Row
from reso_llm.decoding.stability import StabilityReading
from reso_llm.hf.cache import add_noise, left_padding, takes_noise
from reso_llm.hf.processors import only, process


class RowResult(NamedTuple):
    """The record of one row of one `generate`; sequences have one item for each new token."""

    token_ids: tuple[int, ...]  # without the padding after the end
    stop_reason: str  # "end", "stop" (a criterion), "length", or a controller's: "srb_settled"
    events: tuple[Event, ...]
    signals: tuple[Signals, ...]
    temperatures: tuple[float, ...]
    surprises_nats: tuple[float, ...]  # -ln p of the token in the model's own distribution
    readings: tuple[StabilityReading, ...]  # of the stability monitor, if it is on
    call: int  # the `generate` of the block that it belongs to, counted from 0


class Rows:
    """All rows of one call of `generate`.

    processors, config and kwargs are those that `generate` gives its loop; `adds_noise` says that a
    controller adds noise to the cache, so that a cache out of reach is refused at the first token.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[Row],
        input_ids: Tensor,
        processors: Any,
        config: Any,
        kwargs: dict[str, Any],
        *,
        min_prob: float | None,
        adds_noise: bool,
    ) -> None:
        self.model, self.rows, self.kwargs = model, rows, kwargs
        self.processors = processors
        self.min_prob, self.adds_noise = min_prob, adds_noise
        eos = config.eos_token_id
        self.eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        pads = [i for i in (config.pad_token_id, *self.eos, 0) if i is not None]
        self.pad = pads[0]
        self.max_length = config.max_length
        self.num_pads = left_padding(kwargs.get("attention_mask"), len(rows))
        self.embeddings = self._embed(input_ids[:, -1]).cpu().numpy()  # (B,D)
        self.draws = [Draw(row.sampling) for row in rows]
        self.reasons = [""] * len(rows)
        self.tokens: list[list[int]] = [[] for _ in rows]
        self.surprises: list[list[float]] = [[] for _ in rows]
        self.num_fed = 0  # new tokens that the model has read

    def process(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        """Decide about each row; logits (B,V) -> scores (B,V) for `generate` to draw from."""
        cache = self.kwargs.get("past_key_values")
        if self.adds_noise and self.num_fed == 0:
            takes_noise(cache)
        self.logits, self.measures = logits, measure(logits, self.min_prob)
        drawn = [self._decide(i) for i in range(len(self.rows))]
        scores = process(self.processors, input_ids, logits, drawn)
        forced = {}
        for i, (row, draw) in enumerate(zip(self.rows, self.draws, strict=True)):
            if drawn[i]:
                forced[i] = self._draw(i, input_ids, scores[i : i + 1])
            elif self.reasons[i] and draw.stop:  # `generate` pads the rows that it ended itself
                forced[i] = self.pad
            if draw.cache_noise is not None and not self.reasons[i]:
                add_noise(cache, i, draw.cache_noise, self.num_pads[i], self.num_fed, row.noise)
        self.num_fed += 1
        return only(scores, forced) if forced else scores

    def observe(self, input_ids: Tensor, done: Tensor) -> Tensor:
        """Read the last tokens of ids (B,T); return which rows have ended (B,), `done` included."""
        ids = input_ids[:, -1:]
        logits = self.logits.gather(-1, ids)
        embedded = self._embed(ids[:, 0]).to(logits.device)
        facts = torch.cat((ids, done[:, None], logits, embedded), 1).cpu()  # ids < 2^24: exact
        self.embeddings = facts[:, 3:].numpy()
        for i, (token, ended, logit) in enumerate(facts[:, :3].tolist()):
            if not self.reasons[i]:
                self._note(i, int(token), self.measures[i].log_total - logit)
                self.reasons[i] = self._reason(i, int(token), bool(ended), input_ids.shape[1])
        return done | torch.tensor([bool(r) for r in self.reasons], device=done.device)

    def results(self, call: int) -> tuple[RowResult, ...]:
        """The record of each row, as part of the given call."""
        return tuple(
            RowResult(
                tuple(tokens),
                reason,
                tuple(row.events),
                tuple(row.signals),
                tuple(row.temperatures),
                tuple(surprises),
                tuple(row.readings),
                call,
            )
            for row, tokens, reason, surprises in zip(
                self.rows, self.tokens, self.reasons, self.surprises, strict=True
            )
        )

    def _decide(self, i: int) -> bool:
        """Take the decision of row i; return whether the row draws its token itself."""
        if self.reasons[i]:
            return False
        row = self.rows[i]
        self.draws[i] = row.decide(self.measures[i], self.embeddings[i], self._end_nats(i))
        if self.draws[i].end:
            self.reasons[i] = self.draws[i].stop
            return False
        return self.draws[i].changes(row.sampling)

    def _end_nats(self, i: int) -> float:
        """-ln p of an end token in row i, where a controller reads it."""
        if not self.rows[i].reads_text or not self.eos:
            return math.inf
        return self.measures[i].log_total - self.logits[i, self.eos].logsumexp(-1).item()

    def _draw(self, i: int, input_ids: Tensor, scores: Tensor) -> int:
        """Draw the token of row i from its scores (1,V)."""

        def lookahead(candidates: Tensor, horizon: int) -> Tensor:
            return self._lookahead(input_ids, i, candidates, horizon)

        penalised = input_ids[:1, :0]  # none: the repetition penalty is one of the processors
        return self.rows[i].draw(scores, penalised, self.draws[i], lookahead)

    def _note(self, i: int, token: int, surprise_nats: float) -> None:
        self.tokens[i].append(token)
        self.surprises[i].append(surprise_nats)
        self.rows[i].observe(token, surprise_nats)

    def _reason(self, i: int, token: int, ended: bool, length: int) -> str:
        if ended and token in self.eos:
            return "end"
        if ended and length < self.max_length:
            return "stop"
        return self.draws[i].stop or ("length" if ended else "")

    def _embed(self, ids: Tensor) -> Tensor:
        """Embeddings (B,D) of ids (B,), in float32; their scale does not matter."""
        vectors = getattr(self.model, "token_vectors", self.model.get_input_embeddings())
        return vectors(ids.to(self.model.device)).float()

    def _lookahead(self, input_ids: Tensor, i: int, candidates: Tensor, horizon: int) -> Tensor:
        """`reso_llm.decoding.row.Lookahead` of row i, without the padding on its left."""
        cache = self.kwargs.get("past_key_values")
        if cache is not None and int(cache.get_seq_length()) != input_ids.shape[1]:
            raise ValueError("deepening reads a row again: expected all its ids, got the last ones")
        context = input_ids[i, self.num_pads[i] :]
        given = {"logits_to_keep": 1} if "logits_to_keep" in self.kwargs else {}
        if "num_read" in self.kwargs:  # a ResoLLM weighs the words that it wrote itself
            given["num_read"] = self.kwargs["num_read"] - self.num_pads[i]
        return continuation_log_probs(self.model, context, candidates, horizon, **given)


def continuation_log_probs(
    model: nn.Module, context: Tensor, candidates: Tensor, horizon: int, **kwargs: Any
) -> Tensor:
    """ln p (m,) of the greedy `horizon` tokens after context (T,) and each candidate (m,).

    The model reads without a cache. The horizon ends at its last position.
    """
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    horizon = horizon if room is None else max(min(horizon, room - len(context)), 0)
    ids = torch.cat((context.expand(len(candidates), -1), candidates[:, None]), 1)
    ids = ids.to(model.device)  # (m,T)
    total = torch.zeros(len(ids), device=model.device)
    for _ in range(horizon):
        logits = model(input_ids=ids, use_cache=False, **kwargs).logits[:, -1]
        best = logits.float().log_softmax(-1).max(-1)
        total, ids = total + best.values, torch.cat((ids, best.indices[:, None]), 1)
    return total.to(candidates.device)
