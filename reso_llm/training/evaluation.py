"""Language-model evaluation: the code length of a text, every byte counted exactly once.

    bits per byte = (sum of nats over all targets) / (ln 2 * UTF-8 bytes of the text)

Targets are all tokens after each document's <|bos|>, control tokens included. The bytes are those
of the text as it stands in the file, so models with different tokenizers compare. Long documents
are read in overlapping windows: each token is scored once, with at least context - stride tokens
before it (strided context, Baevski & Auli 2019).

Two protocols:

    stateful   a window knows of its document what a reader of all of it would: the ids that n-grams
               reach back to, and what the echo has counted. So a model in use reads. The default
    windowed   a window knows of nothing before it, the protocol of models without memory

The field and the phases begin empty in every window of both.

Shapes: B windows, T tokens of a window, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reso_llm.data.token_cache import Split
from reso_llm.data.windows import eval_batches
from reso_llm.model import ResoLLMModel
from reso_llm.training.document_past import DocumentPast

BATCH_SIZE = 16


@dataclass(frozen=True)
class LanguageModelScore:
    """Total nats over `tokens` targets, for `bytes` UTF-8 bytes in `documents` documents."""

    nats: float
    tokens: int
    bytes: int
    documents: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Per token: exp(nats per token); inf where a float cannot hold it."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf

    @property
    def byte_perplexity(self) -> float:
        """Per byte: 2 ** bits per byte, independent of the tokenizer."""
        try:
            return 2**self.bits_per_byte
        except OverflowError:
            return math.inf

    def to_dict(self) -> dict[str, Any]:
        """Counts and measures as plain values, ready for JSON."""
        names = ("nats_per_token", "bits_per_byte", "perplexity", "byte_perplexity")
        return asdict(self) | {name: getattr(self, name) for name in names}


def score_split(
    model: ResoLLMModel,
    split: Split,
    *,
    stride: int | None = None,
    stateful: bool = True,
    progress: Callable[[int], None] = lambda tokens: None,
) -> LanguageModelScore:
    """Score all documents of a split; `progress` receives the targets of each batch.

    stride defaults to half the context. stateful: the protocol. The model keeps its mode (train or
    eval).
    """
    total, tokens = 0.0, 0
    for nats, scored in scored_nats(model, split, stride=stride, stateful=stateful):
        total += nats[scored].double().sum().item()
        count = int(scored.sum())
        tokens += count
        progress(count)
    return LanguageModelScore(total, tokens, split.num_bytes, split.num_documents)


def nats_by_position(
    model: ResoLLMModel,
    split: Split,
    *,
    stride: int | None = None,
    stateful: bool = True,
    progress: Callable[[int], None] = lambda tokens: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The sums of `score_split` by position: (nats, tokens), float64 and int64, both (context,).

    Entry t sums over the targets predicted by the token at position t of their window.
    """
    context = model.config.max_seq_len
    total, tokens = np.zeros(context), np.zeros(context, dtype=np.int64)
    for nats, scored in scored_nats(model, split, stride=stride, stateful=stateful):
        length = nats.shape[1]
        total[:length] += (nats.double() * scored).sum(0).numpy()
        tokens[:length] += scored.sum(0).numpy()
        progress(int(scored.sum()))
    return total, tokens


@torch.inference_mode()
def scored_nats(
    model: ResoLLMModel, split: Split, *, stride: int | None = None, stateful: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Nats (B,T) of the targets of every window, and which of them are scored there (B,T)."""
    context = model.config.max_seq_len
    device = model.head_weight.device
    stride = context // 2 if stride is None else stride
    past = DocumentPast(split, model) if stateful else None
    batches = eval_batches(split.tokens, split.doc_starts, context, stride, BATCH_SIZE)
    with _eval_mode(model):
        for inputs, targets, scored, starts in batches:
            known = {}
            if past is not None:
                known["tail"] = past.tail(starts)
                known["evidence"] = past.evidence(starts, inputs.shape[1])
            nats = model.nats(inputs.to(device), targets.to(device), **known)
            yield nats.cpu(), scored


@contextmanager
def _eval_mode(model: ResoLLMModel) -> Iterator[None]:
    """Evaluate without dropout; the model's mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def head_of(split: Split, num_tokens: int) -> Split:
    """The first documents of a split, about `num_tokens` tokens: a quick, fixed sample.

    Its bytes are estimated from the whole split's bytes per token.
    """
    if split.num_tokens <= num_tokens:
        return split
    count = max(1, int(np.searchsorted(split.doc_starts, num_tokens)))
    stop = int(split.doc_starts[count]) if count < split.num_documents else split.num_tokens
    stop = min(stop, max(num_tokens, 2))
    num_bytes = round(split.num_bytes * stop / split.num_tokens)
    return Split(
        split.tokens[:stop], split.reply_mask[:stop], split.doc_starts[:count],
        stop, num_bytes, count,
    )  # fmt: skip
