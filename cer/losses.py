"""Losses of a reactor: how far its answers are from the target, and from other reactors'.

    loss = KL(p ‖ q) + w_H (H(q) - H(p))² + w_M (M(q) - M(p))² + w_μ μ + w_C JS̄

p is the target, q = softmax(reactions), H entropy, M semantic mass, μ the commutation cost of
the reactor with logit noise, JS̄ the mean Jensen–Shannon divergence between the reactors' answers to
the same input (mutual learning, Zhang et al. 2018, arXiv 1706.00384). Every term is differentiable
and reaches every weight. The convergence score is 1 - JS̄ / ln 2.

Shapes: B batch, S positions, V outcomes, R reactors. KL, μ and JS in nats, (H - H)² in nats².
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cer.measures import commutation
from cer.tasks import Batch
from entropy_core.information import (
    entropy_nats,
    entropy_nats_from_probs,
    jensen_shannon_nats,
    kl_nats,
    semantic_mass,
)

NOISE_DRAWS = 2  # of a commutation cost in training: the fewest there can be


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms beside the KL; 0 leaves a term out. Raises ValueError if negative.

    Args:
        entropy: of the squared error of the answer's entropy.
        mass: of the squared error of the answer's semantic mass.
        commutation: of the commutation cost.
        coupling: of the divergence between several reactors.
        noise_std: of the logits in the commutation cost.
    """

    entropy: float = 0.01
    mass: float = 0.1
    commutation: float = 0.01
    coupling: float = 0.0
    noise_std: float = 0.5

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"loss.{name} must be at least 0, got {value}")


class Losses(NamedTuple):
    """Terms of one reactor's loss before weighting, each (); None where the weight is 0."""

    kl_nats: Tensor
    entropy: Tensor | None = None
    mass: Tensor | None = None
    commutation_nats: Tensor | None = None


def reactor_losses(
    reactor: nn.Module,
    batch: Batch,
    logits: Tensor,
    weights: LossWeights,
    generator: torch.Generator,
) -> Losses:
    """Terms of the loss for logits (B,S,V) = the reactor's reactions to batch.x.

    The commutation cost takes a quarter of the batch, as it costs five passes of the reactor.
    """
    answer = logits[:, -batch.target.shape[1] :]
    target = batch.target
    entropy = mass = cost = None
    if weights.entropy:
        entropy = (entropy_nats(answer) - entropy_nats_from_probs(target)).square().mean()
    if weights.mass:
        mass = (semantic_mass(answer) - (1 - target.square().sum(-1))).square().mean()
    if weights.commutation:
        cost = commutation(
            reactor,
            batch.x[: math.ceil(len(batch.x) / 4)],
            std=weights.noise_std,
            num_draws=NOISE_DRAWS,
            generator=generator,
        ).mu_nats.mean()
    return Losses(kl_nats(target.log(), answer).mean(), entropy, mass, cost)


def total_loss(losses: Losses, weights: LossWeights) -> Tensor:
    """Weighted sum of the terms that are not None."""
    factors = (1.0, weights.entropy, weights.mass, weights.commutation)
    return sum(f * term for f, term in zip(factors, losses, strict=True) if term is not None)


def divergence_nats(answers: Sequence[Tensor]) -> Tensor:
    """Mean Jensen–Shannon divergence over all pairs of reactors: R times logits (B,S,V) -> ().

    Raises ValueError for fewer than 2 reactors.
    """
    if len(answers) < 2:
        raise ValueError(f"a divergence needs at least 2 reactors, got {len(answers)}")
    p = [logits.softmax(-1) for logits in answers]
    pairs = itertools.combinations(p, 2)
    return torch.stack([jensen_shannon_nats(a, b).mean() for a, b in pairs]).mean()


def convergence_score(answers: Sequence[Tensor]) -> Tensor:
    """1 - JS̄ / ln 2 of the answers to the same input, in [0, 1]: R times (B,S,V) -> ()."""
    return 1 - divergence_nats(answers) / math.log(2)


def mean_losses(losses: Iterable[Losses]) -> dict[str, float]:
    """Terms by name, averaged over the reactors."""
    columns = zip(Losses._fields, zip(*losses, strict=True), strict=True)
    return {
        f"{name}_loss" if name in ("entropy", "mass") else name: torch.stack(terms).mean().item()
        for name, terms in columns
        if terms[0] is not None
    }
