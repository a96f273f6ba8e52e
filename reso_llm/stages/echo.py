"""Echo: the texts in episodic memory predict the next token, beside the network.

    p'(v) = (p(v) + c(v)) / (1 + sum_u c(u)),    c(v) = sum_j s(m_j) w_j w_j / W_{m_j} [id_j = v]

p is the model's distribution. j runs over all tokens of all stored texts; m_j is how many tokens
before j in its text equal the newest ones read (1 to M, others do not count), s(m) the strength of
such a match, w_j the weight of the text, importance * exp(-decay * age), and W_m the weight of all
matches of m tokens: all matches of one length divide one strength, as a full memory has many.
p' is the mean of the posterior of a Dirichlet prior whose base measure is p and whose concentration
is 1, given c counts (MacKay & Peto 1995); the counts are those of a cache of contexts (Grave et al.
2017, arXiv 1612.04426).

So a text of weight 1 that alone matches in full counts as much as the model itself. A token that
no text predicts loses at most ln(1 + w sum_m s(m)) nats, w the largest weight, and nothing where no
text matches. The stage has no weights: its state is the stored texts, the same for all rows.

Shapes: B batch, T time, V vocabulary, N stored tokens, M tokens of context.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from numpy import ndarray
from torch import Tensor, nn

from reso_llm.stages.arrays import view

STRENGTHS = (0.07, 0.3, 0.7, 1.0)
"""s(1) ... s(M), fitted to 37 conversations: the first half is stored, the second half predicted
without the first in the context. The echo gains .13 nats a token there."""

MAX_CONTEXT = len(STRENGTHS)


class EchoState(NamedTuple):
    """All stored tokens, the tokens before each in its text, and their weights: a value."""

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


class Echo(nn.Module):
    """The stage: logits, the stored texts and the tokens read -> logits of p'."""

    def __init__(self) -> None:
        super().__init__()
        self.strengths = STRENGTHS

    def init_state(self, batch: int, like: Tensor) -> None:
        """No text is stored before a session stores one; see `echo_state`."""

    def stepper(self, state: EchoState | None) -> "EchoStep | None":
        """The one-token form; None where no text is stored."""
        return None if state is None else EchoStep(self, state)

    def silence(self) -> None:
        """Give a match no strength, however long it is."""
        self.strengths = (0.0,) * MAX_CONTEXT

    def forward(self, logits: Tensor, state: EchoState, history: Tensor) -> Tensor:
        """Logits (B,T,V) of p', up to a constant, where p is that of `logits`.

        history (B,M-1+T) ends with the T tokens read; -1 stands for no token. The logits of tokens
        that no match supports stay as they are.
        """
        # Every pair of a token read and a stored token that its text has behind the same token.
        matches = history[:, MAX_CONTEXT - 1 :].unsqueeze(-1) == state.contexts[0]  # (B,T,N)
        row, t, j = matches.nonzero(as_tuple=True)  # (n,) each: few of all pairs match
        # How many tokens further back the two texts agree.
        length, whole = torch.zeros_like(j), torch.ones_like(j, dtype=torch.bool)
        for back in range(1, MAX_CONTEXT):
            earlier = history[row, t + MAX_CONTEXT - 1 - back]
            whole = whole & (earlier == state.contexts[back, j])
            length = length + whole
        # A match divides its strength among all matches of the same length at that token.
        weights = state.weights[j]
        rivals = (row * history.shape[1] + t) * MAX_CONTEXT + length  # one number for each (b,t,m)
        total = weights.new_zeros(history.numel() * MAX_CONTEXT).index_add(0, rivals, weights)
        share = weights / total.clamp_min(torch.finfo(total.dtype).tiny)[rivals]
        support = weights.new_tensor(self.strengths)[length] * weights * share
        # Add the counts to the distribution.
        counts = torch.zeros_like(logits).index_put(
            (row, t, state.ids[j]), support.to(logits), accumulate=True
        )
        return torch.logaddexp(logits, logits.logsumexp(-1, keepdim=True) + counts.log())


class EchoStep:
    """One-token form of `Echo`: calls `forward` only where a stored token matches."""

    def __init__(self, module: Echo, state: EchoState) -> None:
        self.module, self.state = module, state
        self.newest = view(state.contexts[0])  # (N,)

    def __call__(self, logits: ndarray, history: list[int]) -> ndarray:
        """Logits (V,) after `history`, at least M ids with the newest last."""
        if not (self.newest == history[-1]).any():
            return logits
        newest = torch.tensor([history[-MAX_CONTEXT:]])
        return self.module(torch.from_numpy(logits)[None, None], self.state, newest).numpy().ravel()
