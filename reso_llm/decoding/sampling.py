"""Sampling: from logits to the next token id.

The filters act in one fixed order: repetition penalty (Keskar 2019, arXiv 1909.05858),
temperature, top-k (Fan 2018), top-p (Holtzman 2019, arXiv 1904.09751), min-p (Nguyen 2024,
arXiv 2407.01082). A filter at its neutral value does nothing.

Shapes: B batch, V vocabulary.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from entropy_core.checks import is_number, is_whole, require


@dataclass(frozen=True)
class SamplingOptions:
    """Options of drawing a token.

    temperature 0 takes the most probable token. top_k 0, top_p 1, min_p 0 and repetition_penalty 1
    change nothing. Raises ValueError naming the option that is out of range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        t, k, penalty = self.temperature, self.top_k, self.repetition_penalty
        warm = is_number(t) and (t == 0 or t >= 1e-6)
        require(warm, "temperature", t, "0 (greedy), or a finite number from 1e-6 up")
        require(is_whole(k) and k >= 0, "top_k", k, "a count of at least 0 (0 keeps every token)")
        above = is_number(self.top_p) and 0 < self.top_p <= 1
        require(above, "top_p", self.top_p, "a number above 0 and at most 1")
        within = is_number(self.min_p) and 0 <= self.min_p <= 1
        require(within, "min_p", self.min_p, "a number from 0 to 1")
        positive = is_number(penalty) and penalty > 0
        require(positive, "repetition_penalty", penalty, "a finite number above 0")
        for item in fields(self):  # numpy's numbers become Python's
            object.__setattr__(self, item.name, item.type(getattr(self, item.name)))


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits (B,V) of the ids `seen` (B,n) by the penalty."""
    if penalty == 1 or seen.shape[-1] == 0:
        return logits
    values = logits.gather(-1, seen)
    values = torch.where(values > 0, values / penalty, values * penalty)
    return logits.scatter(-1, seen, values)


def filter_logits(logits: Tensor, options: SamplingOptions) -> Tensor:
    """Logits (B,V) after temperature, top-k, top-p and min-p; excluded tokens become -inf."""
    logits = logits / options.temperature
    if 0 < options.top_k < logits.shape[-1]:
        smallest = logits.topk(options.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if options.top_p < 1:
        values, order = logits.softmax(-1).sort(dim=-1, descending=True)
        beyond = values.cumsum(-1) - values >= options.top_p  # the tokens before hold top_p already
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    if options.min_p > 0:
        least = logits.amax(-1, keepdim=True) + math.log(options.min_p)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits


def sample(
    logits: Tensor, seen: Tensor, options: SamplingOptions, generator: torch.Generator | None
) -> Tensor:
    """Draw ids (B,1) from logits (B,V); the repetition penalty acts on the ids `seen` (B,n)."""
    logits = penalize_repetition(logits, seen, options.repetition_penalty)
    if options.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return inverted(filter_logits(logits, options).softmax(-1), generator)


def inverted(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw ids (B,1) from probabilities (B,V) by inversion: one uniform number a row.

    An id is the first whose cumulative sum passes the number. torch.multinomial draws an
    exponential number for every token of the vocabulary, which takes nine times as long.
    """
    sums = probabilities.cumsum(-1, dtype=torch.float64)
    shape, device = (len(sums), 1), sums.device
    u = torch.rand(shape, dtype=torch.float64, device=device, generator=generator)
    return torch.searchsorted(sums, u * sums[:, -1:], right=True)
