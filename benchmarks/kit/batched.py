"""Replies of a model of transformers to many questions at once, with what it says of every token.

Each row draws from a seed of its own, so a reply does not depend on those beside it (but for
rounding), and a row that has ended leaves the batch. The layers compute in bfloat16, which moves
the nats of a token by a few hundredths, and the head in float32.

Shapes: B rows still being written, V vocabulary, n tokens of a reply.
"""

import copy
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.kit.pretrained import PretrainedWriter, padded
from benchmarks.kit.writers import SAMPLER, asked
from entropy_core.information import entropy_nats
from entropy_core.signals import SignalTracker
from reso_llm.decoding.row import SignalOptions

LIKELY = 512  # tokens that nearly always hold top_p of the probability


class TracedReply(NamedTuple):
    """A reply of n tokens, its end included where the model ended it, and its columns (n,)."""

    ids: list[int]
    text: str
    stop_reason: str  # "end" or "length"
    seconds: float  # of the batch until this reply had ended
    entropy_nats: np.ndarray
    ema_nats: np.ndarray
    coherence: np.ndarray
    surprise_nats: np.ndarray
    end_nats: np.ndarray  # (n+1,), of ending after the first 0..n tokens


class _Row:
    """One row that is being written."""

    def __init__(self, seed: int, before: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.before = before  # the last id of the prompt
        self.seconds = 0.0
        self.ids: list[int] = []
        self.columns: list[tuple[float, float]] = []  # entropy and surprise
        self.end_nats: list[float] = []


@torch.inference_mode()
def traced_replies(
    writer: PretrainedWriter, questions: Sequence[str], seeds: Sequence[int], cap: int
) -> list[TracedReply]:
    """The replies to questions, of `cap` tokens at most, with the sampler of all replies."""
    prompts = [writer.prompt_ids(asked(question)) for question in questions]
    ids, mask = padded(prompts)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    rows = [_Row(seed, prompt[-1]) for seed, prompt in zip(seeds, prompts, strict=True)]
    going, cache, stop = rows, None, writer.tokenizer.eos_token_id
    start = time.perf_counter()
    body = copy.deepcopy(writer.model.base_model).to(torch.bfloat16)
    head = writer.model.get_output_embeddings()
    while going:
        output = body(
            ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        )
        cache, z = output.past_key_values, head(output.last_hidden_state[:, -1].float())
        log_p = z.log_softmax(-1)
        entropies, ends = entropy_nats(z).tolist(), (-log_p[:, stop]).tolist()
        drawn = [_draw(row, z[b]) for b, row in enumerate(going)]
        nats = -log_p.gather(-1, torch.tensor(drawn)[:, None])[:, 0]
        kept = []
        for b, (row, token) in enumerate(zip(going, drawn, strict=True)):
            row.end_nats.append(ends[b])
            ended = row.ids[-1:] == [stop] or len(row.ids) >= cap
            if ended:
                row.seconds = time.perf_counter() - start
                continue
            row.ids.append(token)
            row.columns.append((entropies[b], nats[b].item()))
            kept.append(b)
        if len(kept) < len(going) and kept:
            cache.batch_select_indices(torch.tensor(kept))
        going = [going[b] for b in kept]
        if going:
            ids = torch.tensor([[row.ids[-1]] for row in going])
            places = places[kept, -1:] + 1
            mask = torch.cat((mask[kept], torch.ones(len(kept), 1, dtype=torch.long)), 1)
    return [_reply(writer, row, stop) for row in rows]


def _draw(row: _Row, logits: Tensor) -> int:
    """A token from logits (V,), with the temperature and top_p of SAMPLER."""
    p = (logits / SAMPLER["temperature"]).softmax(-1)
    best = p.topk(min(LIKELY, len(p)))
    if best.values.sum() < SAMPLER["top_p"]:
        best = p.sort(descending=True)
    sums = best.values.cumsum(-1)
    size = int((sums - best.values < SAMPLER["top_p"]).sum())  # those before hold less than top_p
    point = torch.rand((), generator=row.generator) * sums[size - 1]
    return int(best.indices[min(int(torch.searchsorted(sums, point, right=True)), size - 1)])


def _reply(writer: PretrainedWriter, row: _Row, stop: int) -> TracedReply:
    options, table = SignalOptions(), writer.model.get_input_embeddings().weight
    tracker = SignalTracker(options.window, options.ema_weight)
    vectors = table[torch.tensor([row.before, *row.ids[:-1]])].float().numpy()
    entropy, surprise = np.array(row.columns).T
    signals = [
        tracker.update(h, math.nan, vector) for h, vector in zip(entropy, vectors, strict=True)
    ]
    return TracedReply(
        row.ids, writer.spell(row.ids), "end" if row.ids[-1] == stop else "length",
        row.seconds, entropy,
        *(np.array([getattr(s, name) for s in signals]) for name in ("ema_nats", "coherence")),
        surprise, np.array(row.end_nats),
    )  # fmt: skip
