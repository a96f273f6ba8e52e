"""Agency in the network: a goal shifts what every position looks for.

    x_t <- x_t + W_g g            g (D,) the pooled vector of a text, W_g zero at the start

Training makes goals mean something: the goal of a row is the pooled vector of a random part of
its own reply (hindsight goals, Andrychowicz 2017, arXiv 1707.01495). A goal that somebody states
says less about the reply than the reply's own words, so it is trusted less: g is TRUST times its
pooled vector, in which rare tokens count for more. Foci and the goals of a session are kept by
`reso_llm.session.agency`.

Shapes: B batch, T time, D width, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropy_core.primes import GOLDEN_RATIO
from reso_llm.stages.fused import linear, rms_norm

TRUST = 1 / GOLDEN_RATIO
"""Length of a stated goal's vector, in those of the goals of training."""

SMOOTH = 1e-3
"""Frequency of a token that counts half as much as a rare one in the vector of a text."""

ZIPF_OFFSET = 2.7


class GoalMap(nn.Module):
    """The map W_g: a goal (B,D) -> what is added to every x_t of its row (B,D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = linear(dim, dim).weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ignore the goal."""
        nn.init.zeros_(self.weight)

    def init_state(self, batch: int, like: Tensor) -> None:
        """A goal is an argument of the network, not a state."""

    def stepper(self, state: None) -> None:
        """The goal's share of x is the same for every token: `forward` computes it once."""

    def silence(self) -> None:
        """Ignore the goal."""
        self.reset_parameters()

    def forward(self, goal: Tensor) -> Tensor:
        return F.linear(goal, self.weight)


def pooled(embeddings: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """The vector of the tokens in the mask: (B,T,D), (B,T) -> (B,D) of rms 1, 0 for no token.

    The mean of the rms-normalised token vectors, normalised again. weights (B,T) >= 0 may count
    rare tokens for more, such as their information in nats.
    """
    share = mask.to(embeddings.dtype)
    if weights is not None:
        share = share * weights.to(share)
    total = torch.einsum("bt,btd->bd", share, rms_norm(embeddings))
    return rms_norm(total)  # the sum and the mean have one direction


def text_vector(table: Tensor, ids: Sequence[int]) -> Tensor:
    """The vector of a text: `pooled` rows of a table (V,D) by `rarity` -> (D,); 0 for no token."""
    ids = torch.as_tensor(ids, dtype=torch.long, device=table.device)
    vectors, weights = table[ids].unsqueeze(0), rarity(ids, len(table)).unsqueeze(0)
    return pooled(vectors, torch.ones_like(weights), weights)[0]


def rarity(ids: Tensor, vocab_size: int) -> Tensor:
    """What each token counts for in the vector of a text, a / (a + u), in (0, 1): ids -> weights.

    u is the frequency of a token, here Zipf's law over its id: BPE numbers its tokens in the order
    of their merges, frequent ones first. Sources: Arora 2017, "A simple but tough-to-beat
    baseline"; Mandelbrot 1953 for the offset 2.7.
    """
    frequency = 1 / ((ids + ZIPF_OFFSET) * math.log1p(vocab_size / ZIPF_OFFSET))
    return SMOOTH / (SMOOTH + frequency)


class GoalDraws(NamedTuple):
    """The random numbers behind the goals of B rows of T tokens, row by row."""

    rows: Tensor  # (B,1) uniform: which rows get a goal
    tokens: Tensor  # (B,T) uniform: which tokens of the reply are left out
    noise: Tensor  # (B,D) normal

    def part(self, rows: slice) -> "GoalDraws":
        """The draws of a slice of the rows."""
        return GoalDraws(*(values[rows] for values in self))


def draw_goals(shape: Sequence[int], generator: torch.Generator) -> GoalDraws:
    """Draws for vectors of `shape` (B,T,D), on the generator's device."""
    B, T, D = shape
    options = {"generator": generator, "device": generator.device}
    return GoalDraws(
        torch.rand(B, 1, **options), torch.rand(B, T, **options), torch.randn(B, D, **options)
    )


def hindsight_goals(
    vectors: Tensor,
    reply: Tensor,
    draws: GoalDraws | torch.Generator,
    *,
    keep: float = 0.5,
    token_dropout: float = 0.5,
    noise: float = 0.1,
    weights: Tensor | None = None,
) -> Tensor:
    """Goals for training: token vectors (B,T,D), reply (B,T) bool -> (B,D).

    A row gets a goal with probability `keep`: the pooled vector of its reply tokens, each left out
    with probability token_dropout (all stay if none would), plus Gaussian noise of deviation
    `noise` times the vector's rms. All other rows, and rows without a reply, are exactly 0.
    weights (B,T) as in `pooled`. A generator makes the draws of this batch. A row's draws do not
    depend on its contents. Raises ValueError for probabilities outside [0, 1] or negative noise.
    """
    for name, value in (("keep", keep), ("token_dropout", token_dropout)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} = {value!r}: expected a number from 0 to 1")
    if not noise >= 0:
        raise ValueError(f"noise = {noise!r}: expected a number of at least 0")
    if isinstance(draws, torch.Generator):
        draws = draw_goals(vectors.shape, draws)
    draws = GoalDraws(*(values.to(vectors.device) for values in draws))
    rows = draws.rows < keep
    some = reply & (draws.tokens >= token_dropout)
    some = torch.where(some.any(1, keepdim=True), some, reply)
    goals = pooled(vectors, some, weights)  # rms 1
    goals = goals + noise * draws.noise.to(goals.dtype)
    return torch.where(rows & reply.any(1, keepdim=True), goals, 0.0)
