"""Filters: which tokens can be drawn. What a filter excludes gets the logit -inf.

    top-n-sigma  z_v >= max z - n std(z), of those not excluded     Tang 2024, arXiv 2411.07641
    top-k        the k most probable, with ties                      Fan 2018, arXiv 1805.04833
    top-p        the fewest whose sum reaches p                      Holtzman 2019, arXiv 1904.09751
    min-p        p_v >= min_p max p                                  Nguyen 2024, arXiv 2407.01082
    typical      the fewest, by |ln p_v + H|, whose sum reaches p    Meister 2022, arXiv 2202.00666
    XTC          without all of p_v >= threshold but the least    p-e-w, text-generation-webui 6335
    mirostat 2   -log2 p_v <= bound, which follows what was drawn    Basu 2021, arXiv 2007.14966

At least one token is left in each row. Shapes: B rows, V vocabulary.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor


def top_n_sigma(logits: Tensor, n: float) -> Tensor:
    """Logits (B,V) of the tokens within n standard deviations of the best."""
    possible = logits.isfinite()
    count = possible.sum(-1, keepdim=True)
    finite = logits.where(possible, torch.zeros_like(logits))
    mean = finite.sum(-1, keepdim=True) / count
    squares = ((finite - mean) * possible).square().sum(-1, keepdim=True)
    least = logits.amax(-1, keepdim=True) - n * (squares / count).sqrt()
    return logits.masked_fill(logits < least, -torch.inf)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B,V) of the k most probable tokens; equals of the last one stay."""
    if k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B,V) of the most probable tokens, as few as sum to p."""
    values, order = logits.softmax(-1).sort(dim=-1, descending=True)
    beyond = values.cumsum(-1) - values >= p  # the tokens before hold p already
    return logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B,V) of the tokens at least p times as probable as the best."""
    least = logits.amax(-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < least, -torch.inf)


def typical_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B,V) of the tokens whose surprise is next to the entropy, as few as sum to p."""
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).nansum(-1, keepdim=True)
    order = (log_p + entropy).abs().argsort(dim=-1)
    values = log_p.exp().gather(-1, order)
    beyond = values.cumsum(-1) - values >= p
    return logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)


def exclude_top_choices(
    logits: Tensor, threshold: float, protected: Collection[int] = ()
) -> Tensor:
    """XTC: logits (B,V) without the tokens of at least `threshold`, the least probable one kept.

    A row in which a protected token would be excluded stays as it is.
    """
    p, order = logits.softmax(-1).sort(dim=-1, descending=True)
    following = p.roll(-1, -1)
    following[..., -1] = 0
    gone = torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, following >= threshold)
    kept = torch.zeros_like(gone)
    kept[..., [i for i in protected if i < kept.shape[-1]]] = True
    spared = (gone & kept).any(-1, keepdim=True)
    return logits.masked_fill(gone & ~spared, -torch.inf)


class Mirostat:
    """Mirostat 2 of one row: a bound on the surprise of a token, in bits, that follows a target.

    It begins at twice the target, and after each token sinks by `rate` times what the token's
    surprise, among the tokens that were left, was above the target.
    """

    def __init__(self) -> None:
        self.bound: float | None = None  # bits

    def filter(self, logits: Tensor, target: float) -> Tensor:
        """Logits (1,V) of the tokens within the bound; the best one stays."""
        self.bound = 2 * target if self.bound is None else self.bound
        log_p = logits.log_softmax(-1)
        beyond = (-log_p / math.log(2) > self.bound) & (log_p < log_p.amax(-1, keepdim=True))
        return logits.masked_fill(beyond, -torch.inf)

    def observe(self, probability: float, target: float, rate: float) -> None:
        """Take the probability with which a token was drawn."""
        self.bound -= rate * (-math.log2(probability) - target)
