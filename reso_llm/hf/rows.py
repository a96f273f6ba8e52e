"""The rows of one Hugging Face `generate`: what they do to logits, to the cache, and at the end.

    process: measure z (B,V) -> decide -> draw where a decision acts -> noise into the cache
    observe: read the drawn token, end rows

Two transfers to the host per token: the measures of the logits, and what is to know of the token.
Noise lands after the pass that made the logits, so it acts from the next one on; the cache keeps
its length. Source: `reso_llm.decoding.row`; cache classes of transformers 5.

Shapes: B rows of a batch, T tokens, V vocabulary, D embedding width, H heads, m candidates.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from entropy_core.signals import Signals
from reso_llm.decoding.row import Draw, Event, Row, measure
from reso_llm.decoding.stability import StabilityReading
from reso_llm.hf.cache import heat, kv_layers, left_padding

READ_AGAIN = {  # arguments of the model that a lookahead, which has the ids of a row, replaces
    "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep",
    "streamer", "synced_gpus",
}  # fmt: skip


class RowResult(NamedTuple):
    """What happened to one row of one `generate`; sequences have one item for each new token."""

    token_ids: tuple[int, ...]  # without the padding after the end
    stop_reason: str  # "end", "stop" (a criterion), "length", or a controller's: "srb_settled"
    events: tuple[Event, ...]
    signals: tuple[Signals, ...]
    temperatures: tuple[float, ...]
    surprises_nats: tuple[float, ...]  # -ln p of the token in the model's own distribution
    readings: tuple[StabilityReading, ...]  # of the stability monitor, if it is on


class Rows:
    """All rows of one call, used once. `processors` come before and after the place of a draw."""

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[Row],
        input_ids: Tensor,
        processors: tuple[Any, Any],
        config: Any,
        kwargs: dict[str, Any],
        *,
        min_prob: float | None,
        heats: bool,
    ) -> None:
        self.model, self.rows, self.kwargs = model, rows, kwargs
        self.before, self.after = processors
        self.min_prob, self.heats = min_prob, heats
        eos = config.eos_token_id
        self.eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        self.pad = self.eos[0] if config.pad_token_id is None and self.eos else config.pad_token_id
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
        if self.heats and self.num_fed == 0:
            kv_layers(cache)
        scores = self.before(input_ids, logits)
        self.logits, self.measures = logits, measure(logits, self.min_prob)
        forced = {}
        for i, row in enumerate(self.rows):
            if self.reasons[i]:
                forced |= {i: self.pad} if self.draws[i].stop else {}
                continue
            draw = self.draws[i] = row.decide(self.measures[i], self.embeddings[i])
            if draw.sampling != row.sampling or draw.logit_noise or draw.deepen is not None:
                unseen, ahead = input_ids[:1, :0], partial(self._lookahead, input_ids, i)
                forced[i] = row.draw(scores[i : i + 1], unseen, draw, ahead)
            if draw.cache_noise is not None:
                heat(cache, i, draw.cache_noise, self.num_pads[i], self.num_fed, row.noise)
        self.num_fed += 1
        return only(self.after(input_ids, scores), forced)

    def observe(self, input_ids: Tensor, done: Tensor) -> Tensor:
        """Read the new last tokens (B,T), the rows the criteria end (B,) -> rows that end (B,)."""
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

    def results(self) -> tuple[RowResult, ...]:
        """The record of each row."""
        return tuple(
            RowResult(
                tuple(tokens),
                reason,
                tuple(row.events),
                tuple(row.signals),
                tuple(row.temperatures),
                tuple(surprises),
                tuple(row.readings),
            )
            for row, tokens, reason, surprises in zip(
                self.rows, self.tokens, self.reasons, self.surprises, strict=True
            )
        )

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
        return self.model.get_input_embeddings()(ids.to(self.model.device)).float()

    def _lookahead(self, input_ids: Tensor, i: int, candidates: Tensor, horizon: int) -> Tensor:
        """`reso_llm.decoding.row.Lookahead` of row i; padding on the left is simply left out."""
        cache = self.kwargs.get("past_key_values")
        if cache is not None and int(cache.get_seq_length()) != input_ids.shape[1]:
            raise ValueError("deepening reads a row again: expected all its ids, got the last ones")
        lost = [n for n, x in self.kwargs.items() if x is not None and n not in READ_AGAIN]
        if lost:
            raise ValueError(f"deepening reads a row from its ids alone, without {lost}")
        context = input_ids[i, self.num_pads[i] :]
        kept = {n: 1 for n in ("logits_to_keep",) if n in self.kwargs}
        return continuation_log_probs(self.model, context, candidates, horizon, **kept)


def only(scores: Tensor, forced: dict[int, int]) -> Tensor:
    """Scores (B,V) that leave the rows of `forced` just this token."""
    if forced:
        scores = scores.clone()  # `generate` may keep the logits that these are
    for i, token in forced.items():
        scores[i] = -torch.inf
        scores[i, token] = 0
    return scores


def continuation_log_probs(
    model: nn.Module, context: Tensor, candidates: Tensor, horizon: int, **kwargs: Any
) -> Tensor:
    """ln p (m,) of the most probable `horizon` tokens after context (T,) and each candidate (m,).

    Taken greedily, without a cache; as many as the positions of the model leave room for.
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
