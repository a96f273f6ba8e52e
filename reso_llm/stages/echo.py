"""Echo: what the texts in episodic memory say comes next, mixed into the model's distribution.

    p'(v) = (p(v) + c(v)) / (1 + sum_u c(u)),    c(v) = sum_j s(m_j) w_j w_j / W_{m_j} [id_j = v]

p is the model's distribution. j runs over all tokens of all stored texts; m_j is how many tokens
before j in its text equal the newest ones read (1 to M, others do not count), s(m) the strength of
such a match, w_j the weight of the text, importance * exp(-decay * age), and W_m the weight of all
matches of m tokens: a match shares its strength with its rivals, of which a full memory has many.
p' is the mean of the posterior of a Dirichlet prior whose base measure is p and whose concentration
is 1, given c counts (MacKay & Peto 1995); the counts are those of a cache of contexts (Grave et al.
2017, arXiv 1612.04426).

So a text of weight 1 that alone matches in full counts as much as the model itself. What no text
says costs at most ln(1 + w sum_m s(m)) nats, w the largest weight, and nothing where nothing
matches.

Shapes: B batch, T time, V vocabulary, N stored tokens, M tokens of context.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STRENGTHS = (0.07, 0.3, 0.7, 1.0)
"""s(1) ... s(M), fitted to 37 conversations of which the first half is stored and the second,
without it in the context, is predicted: worth .13 nats a token there."""

MAX_CONTEXT = len(STRENGTHS)


class EchoState(NamedTuple):
    """All stored tokens, what precedes them in their text, and their weights: a value."""

    ids: Tensor  # (N,)
    contexts: Tensor  # (M,N), the nearest first, -2 for nothing, which equals no id
    weights: Tensor  # (N,), at least 0


def echo_state(texts: Iterable[tuple[Sequence[int], float]], like: Tensor) -> EchoState | None:
    """The state for texts of (ids, weight), with dtype and device of `like`; None without any.

    The first token of a text has no context, so it is in no state.
    """
    ids, contexts, weights = [], [], []
    for tokens, weight in texts:
        padded = [-2] * (MAX_CONTEXT - 1) + list(tokens)
        for j in range(MAX_CONTEXT, len(padded)):
            ids.append(padded[j])
            contexts.append(padded[j - MAX_CONTEXT : j][::-1])
            weights.append(weight)
    if not ids:
        return None
    device = like.device
    rows = torch.tensor(contexts, device=device)  # (N,M)
    return EchoState(torch.tensor(ids, device=device), rows.T, like.new_tensor(weights))


def echoed(logits: Tensor, echo: EchoState, history: Tensor) -> Tensor:
    """Logits (B,T,V) of p', up to a constant, where p is that of `logits`.

    history (B,M-1+T) ends with the T tokens read; -1 stands for no token. The logits of tokens
    that no match supports stay as they are.
    """
    matches = history[:, MAX_CONTEXT - 1 :].unsqueeze(-1) == echo.contexts[0]  # (B,T,N)
    row, t, j = matches.nonzero(as_tuple=True)  # (n,) each: few of all pairs match
    length, whole = torch.zeros_like(j), torch.ones_like(j, dtype=torch.bool)
    for back in range(1, MAX_CONTEXT):
        earlier = history[row, t + MAX_CONTEXT - 1 - back]
        whole = whole & (earlier == echo.contexts[back, j])
        length = length + whole
    weights = echo.weights[j]
    rivals = (row * history.shape[1] + t) * MAX_CONTEXT + length  # one number for each (b, t, m)
    total = weights.new_zeros(history.numel() * MAX_CONTEXT).index_add(0, rivals, weights)
    share = weights / total.clamp_min(torch.finfo(total.dtype).tiny)[rivals]
    support = weights.new_tensor(STRENGTHS)[length] * weights * share
    counts = torch.zeros_like(logits).index_put(
        (row, t, echo.ids[j]), support.to(logits), accumulate=True
    )
    return torch.logaddexp(logits, logits.logsumexp(-1, keepdim=True) + counts.log())
