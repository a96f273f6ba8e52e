"""Penalties: logits lowered for what a text has said already, or as the caller wishes.

    bias          z_v += b_v                                       OpenAI's logit_bias
    repetition    z_v / r where z_v > 0, z_v r elsewhere           Keskar 2019, arXiv 1909.05858
    presence      z_v -= p where v was said                        OpenAI's presence_penalty
    frequency     z_v -= f times how often v was said              OpenAI's frequency_penalty
    DRY           z_v -= m b^(n - l) where v would make a repeat of n tokens n + 1 long, n >= l
                                                            p-e-w, text-generation-webui #5677

Shapes: B rows, V vocabulary, n ids that were said.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

LONGEST_REPEAT = 50  # tokens of a repeat that DRY counts; its penalty is far beyond any logit then


def biased(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Logits (B,V) with bias[id] added to the logit of each id; an excluded token stays so."""
    ids = torch.tensor([*bias], device=logits.device)
    return logits.index_add(-1, ids, logits.new_tensor([*bias.values()]).expand(len(logits), -1))


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits (B,V) of the ids `seen` (B,n) by the penalty."""
    if penalty == 1 or seen.shape[-1] == 0:
        return logits
    values = logits.gather(-1, seen)
    values = torch.where(values > 0, values / penalty, values * penalty)
    return logits.scatter(-1, seen, values)


def penalize_counts(logits: Tensor, seen: Tensor, presence: float, frequency: float) -> Tensor:
    """Logits (B,V) less `presence` and `frequency` times the count of each id in `seen` (B,n)."""
    counts = torch.zeros_like(logits).scatter_add_(-1, seen, torch.ones_like(seen).to(logits))
    return logits - presence * (counts > 0).to(logits) - frequency * counts


def penalize_repeats(
    logits: Tensor,
    seen: Tensor,
    multiplier: float,
    base: float,
    allowed_length: int,
    breakers: Collection[int] = (),
) -> Tensor:
    """DRY: logits (B,V) less the penalty of each token that would go on with a repeat in `seen`.

    Ids (B,n); a repeat goes back to a breaker at most, and no breaker is penalised.
    """
    logits = logits.clone()
    for row, ids in zip(logits, seen.tolist(), strict=True):
        for token, length in repeats(ids, breakers).items():
            if length >= allowed_length:
                row[token] -= multiplier * base ** (length - allowed_length)
    return logits


def repeats(ids: Sequence[int], breakers: Collection[int] = ()) -> dict[int, int]:
    """How many last tokens stood before each token that could go on with a repeat; the longest.

    Of [1, 2, 3, 1, 2] the repeat [1, 2] of 2 tokens could go on with 3.
    """
    if not ids or ids[-1] in breakers:
        return {}
    longest: dict[int, int] = {}
    for place in range(len(ids) - 1):
        following = ids[place + 1]
        if ids[place] == ids[-1] and following not in breakers:
            length = _shared_end(ids, place, breakers)
            longest[following] = max(length, longest.get(following, 0))
    return longest


def _shared_end(ids: Sequence[int], place: int, breakers: Collection[int]) -> int:
    """Tokens up to `place` that equal the last ones, none of them a breaker."""
    length, most = 1, min(place + 1, LONGEST_REPEAT)
    while length < most and ids[place - length] == ids[-1 - length] not in breakers:
        length += 1
    return length
