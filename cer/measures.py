"""Measures of a reactor: semantic and full mass, commutation cost, residence in entropy zones.

    semantic mass   M(z) = 1 - Σ p²                           p = softmax(z), `semantic_mass`
    full mass       Tr I(θ) = E_x E_{y ~ p(·|x)} |∇_θ ln p(y|x)|²     all weights θ of the network
    commutation     μ = KL( E_ξ[P_ξ(S(p))] ‖ E_ξ[S(P_ξ(p))] )   P_ξ(p) ∝ p e^{σξ}, S the reactor

M is the full mass of a distribution whose only parameters are its own logits; the CER README names
both. The outputs of S positions are independent given x, so their scores are uncorrelated and the
trace of a sequence is the sum of its positions' (Amari 1998; CER README).

Shapes: B batch, S positions, D input width, O output width, M draws, T steps. Entropies and costs
in nats; a trace in nats² per squared unit of the weights.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import one_hot

from entropy_core.commutation import NORMAL_QUANTILE_95, CommutationCost, commutation_cost
from entropy_core.information import ZONES, semantic_mass, zone_index

__all__ = [
    "MassEstimate", "Residence", "commutation", "full_mass", "logit_noise", "output_distribution",
    "residence", "sampled_full_mass", "semantic_mass",
]  # fmt: skip

Weights = Mapping[str, Tensor]
LogitsFn = Callable[[Weights, Tensor], Tensor]
CHUNK = 16  # pullbacks at a time


# --- full-definition mass ----------------------------------------------------------------------


class MassEstimate(NamedTuple):
    """Monte Carlo full mass of each input, with a 95 % normal interval; each (B,)."""

    trace: Tensor
    standard_error: Tensor
    low: Tensor
    high: Tensor


def _reactions(reactor: nn.Module) -> LogitsFn:
    """(weights, x (S,D)) -> the reactor's logits (S,O)."""
    return lambda weights, x: functional_call(reactor, dict(weights), (x[None],)).reactions[0]


def _trainable(reactor: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in reactor.named_parameters() if p.requires_grad}


def _squared_scores(reactor: nn.Module, x: Tensor, labels_of: Callable[[Tensor], Tensor]):
    """Log-probabilities (S,O) of one input, and |∇_θ Σ c ln p|² of labels_of(log p): (N,S,O)."""
    logits_fn = _reactions(reactor)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batched backward pass
        log_p, pullback = vjp(lambda w: logits_fn(w, x).log_softmax(-1), _trainable(reactor))

        def squared_norm(cotangent: Tensor) -> Tensor:
            (scores,) = pullback(cotangent)
            return sum(score.square().sum() for score in scores.values())

        log_p = log_p.detach()
        # In chunks: each pullback holds a copy of all the weights.
        return log_p, vmap(squared_norm, chunk_size=CHUNK)(labels_of(log_p))


def full_mass(reactor: nn.Module, x: Tensor) -> Tensor:
    """Tr I(θ) of each input, exact over the outputs: x (B,S,D) -> (B,).

    Costs S·O backward passes per input; `sampled_full_mass` costs one per draw. The reactor must
    be deterministic (eval mode, or no dropout) and keep gradients (`corrected`).
    """
    traces = []
    for one in x:
        log_p, norms = _squared_scores(reactor, one, _each_label)
        traces.append((log_p.exp().flatten() * norms).sum())
    return torch.stack(traces)


def sampled_full_mass(
    reactor: nn.Module, x: Tensor, *, num_draws: int, generator: torch.Generator
) -> MassEstimate:
    """Unbiased Monte Carlo form of `full_mass`: x (B,S,D), outputs drawn from the reactor itself.

    One draw labels all positions at once: the cross terms have mean 0. Raises ValueError when
    num_draws < 2.
    """
    if num_draws < 2:
        raise ValueError(f"num_draws must be at least 2, got {num_draws}")
    draw = functools.partial(_drawn_labels, num_draws=num_draws, generator=generator)
    draws = [_squared_scores(reactor, one, draw)[1] for one in x]
    values = torch.stack(draws)  # (B,N)
    mean, error = values.mean(-1), values.std(-1) / math.sqrt(num_draws)
    margin = NORMAL_QUANTILE_95 * error
    return MassEstimate(mean, error, mean - margin, mean + margin)


def _each_label(log_p: Tensor) -> Tensor:
    """All labels of all positions, one at a time: (S,O) -> one-hot (S·O,S,O)."""
    basis = torch.eye(log_p.numel(), dtype=log_p.dtype, device=log_p.device)
    return basis.view(-1, *log_p.shape)


def _drawn_labels(log_p: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """One label for every position in every draw: (S,O) -> one-hot (N,S,O)."""
    labels = torch.multinomial(log_p.exp(), num_draws, replacement=True, generator=generator)
    return one_hot(labels.mT, log_p.shape[-1]).to(log_p)


# --- commutation cost --------------------------------------------------------------------------


def logit_noise(std: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Perturbation P_ξ(p) ∝ p exp(std ξ): distributions (..., V), noise (..., V) -> (..., V).

    It keeps the support; std 0 is the identity. Raises ValueError for a negative std.
    """
    if not std >= 0:
        raise ValueError(f"std must not be negative, got {std}")
    smallest = torch.finfo(torch.float32).tiny  # the logarithm of 0 has no gradient
    return lambda p, noise: (p.clamp_min(smallest).log() + std * noise).softmax(-1)


def output_distribution(reactor: nn.Module) -> Callable[[Tensor], Tensor]:
    """The reactor as a map of distributions: (B,S,V) -> softmax of its reactions (B,S,V)."""

    def system(p: Tensor) -> Tensor:
        out = reactor(p).reactions.softmax(-1)
        if out.shape != p.shape:
            raise ValueError(f"input {tuple(p.shape)} and output {tuple(out.shape)} must be alike")
        return out

    return system


def commutation(
    reactor: nn.Module, x: Tensor, *, std: float, num_draws: int, generator: torch.Generator
) -> CommutationCost:
    """Does it matter whether noise comes before or after the reactor? x (B,S,V) -> each (B,S).

    Both orders see the same draws (common random numbers). `mu_nats` and `corrected_nats` carry
    gradients to the reactor's weights; bias, interval and errors are those of
    `entropy_core.commutation.commutation_cost`. The reactor must be deterministic.

    Raises ValueError for a negative std, num_draws < 2, or unlike input and output widths.
    """
    noise = torch.randn(num_draws, *x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return commutation_cost(output_distribution(reactor), logit_noise(std), x, noise)


# --- zones -------------------------------------------------------------------------------------


class Residence(NamedTuple):
    """Times that trajectories of entropy stay in each zone; the last axis follows ZONES."""

    share: Tensor  # (..., 4) of all steps; undefined entropy belongs to no zone
    mean_stay: Tensor  # (..., 4) steps of an uninterrupted stay, NaN where there was none
    transitions: Tensor  # (..., 4, 4) counts from the row's zone to the column's, one step later


def residence(entropy: Tensor) -> Residence:
    """Zones LASER, CAGE, LANTERN, CHAOS over time: entropy (..., T) in nats -> Residence.

    Raises ValueError when there is no step.
    """
    if entropy.dim() == 0 or entropy.shape[-1] < 1:
        raise ValueError(f"entropy must have at least one step, got {tuple(entropy.shape)}")
    zones = torch.arange(len(ZONES), device=entropy.device)
    inside = (zone_index(entropy).unsqueeze(-1) == zones).to(entropy.dtype)  # (..., T, 4)
    steps = inside.sum(-2)
    transitions = inside[..., :-1, :].mT @ inside[..., 1:, :]
    stays = steps - transitions.diagonal(dim1=-2, dim2=-1)  # every step but those that only stay
    return Residence(steps / entropy.shape[-1], steps / stays, transitions)
