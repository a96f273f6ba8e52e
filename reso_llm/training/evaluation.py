"""Language-model evaluation: the code length of a text, every byte counted exactly once.

    bits per byte = (sum of nats over all targets) / (ln 2 * UTF-8 bytes of the text)

Targets are all tokens after each document's <|bos|>, control tokens included. The bytes are those
of the text as it stands in the file, so models with different tokenizers compare. Long documents
are read in overlapping windows: each token is scored once, with at least context - stride tokens
before it (strided context, Baevski & Auli 2019).

Shapes: B windows, T tokens of a window, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from reso_llm.data.token_cache import Split
from reso_llm.data.windows import eval_batches
from reso_llm.model import ResoLLMModel

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


@torch.inference_mode()
def score_split(
    model: ResoLLMModel,
    split: Split,
    *,
    stride: int | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> LanguageModelScore:
    """Score all documents of a split; `progress` receives the targets of each batch.

    stride defaults to half the context. The model keeps its mode (train or eval).
    """
    context = model.config.max_seq_len
    device = model.head_weight.device
    stride = context // 2 if stride is None else stride
    nats, tokens = 0.0, 0
    with _eval_mode(model):
        batches = eval_batches(split.tokens, split.doc_starts, context, stride, BATCH_SIZE)
        for inputs, targets, scored in batches:
            count = int(scored.sum())
            loss = model.loss(inputs.to(device), targets.to(device), scored.to(device))
            nats += loss.item() * count
            tokens += count
            progress(count)
    return LanguageModelScore(nats, tokens, split.num_bytes, split.num_documents)


@torch.inference_mode()
def nats_by_position(
    model: ResoLLMModel,
    split: Split,
    *,
    stride: int | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The sums of `score_split` by position: (nats, tokens), float64 and int64, both (context,).

    Entry t sums over the targets predicted by the token at position t of their window.
    """
    context = model.config.max_seq_len
    device = model.head_weight.device
    stride = context // 2 if stride is None else stride
    nats, tokens = np.zeros(context), np.zeros(context, dtype=np.int64)
    with _eval_mode(model):
        batches = eval_batches(split.tokens, split.doc_starts, context, stride, BATCH_SIZE)
        for inputs, targets, scored in batches:
            logits = model(inputs.to(device)).logits.transpose(1, 2)  # (B,V,T)
            losses = F.cross_entropy(logits, targets.to(device), reduction="none").cpu().double()
            length = inputs.shape[1]
            nats[:length] += (losses * scored).sum(0).numpy()
            tokens[:length] += scored.sum(0).numpy()
            progress(int(scored.sum()))
    return nats, tokens


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
