"""Commutation cost: does it matter whether a system is perturbed before or after it acts?

    μ = KL( E_ξ[P_ξ(S(x))] ‖ E_ξ[S(P_ξ(x))] )

S is the system and P_ξ the perturbation with noise ξ; both map distributions (..., V) to
distributions (..., V), so μ is a KL between real distributions, in nats. Source: the
Mass-Coherence Correspondence, CER README; its published code compares two entropies instead.

Both orders see the same noise ξ_1..ξ_M (common random numbers), so μ is exactly 0, with an interval
of length 0, when S and P_ξ commute for every ξ.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_core.information import kl_nats_from_probs

NORMAL_QUANTILE_95 = 1.959964


class CommutationCost(NamedTuple):
    """The plug-in cost and its error over noise draws; each (...), in nats."""

    mu_nats: Tensor
    corrected_nats: Tensor  # jackknife: removes the O(1/M) upward bias, may be slightly negative
    standard_error_nats: Tensor
    low_nats: Tensor  # 95 % interval around corrected_nats
    high_nats: Tensor


def commutation_cost(
    system: Callable[[Tensor], Tensor],
    perturb: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    noise: Tensor,
) -> CommutationCost:
    """μ of distributions x (..., V) over the draws in noise (M, ...), used in both orders.

    perturb(p, ξ) receives one draw ξ = noise[m]. Bias and standard error come from the
    leave-one-out jackknife (Efron & Stein 1981). The interval is normal, so it is too short when μ
    is within a few standard errors of 0. Costs M + 1 calls of the system.

    Raises ValueError when M < 2 or when a result is not a distribution.
    """
    if noise.shape[0] < 2:
        raise ValueError(f"noise needs at least 2 draws, got {noise.shape[0]}")
    evolved = system(x)
    after = torch.stack([perturb(evolved, draw) for draw in noise])  # (M, ..., V)
    before = torch.stack([system(perturb(x, draw)) for draw in noise])
    _check_distributions("perturb(system(x))", after)
    _check_distributions("system(perturb(x))", before)
    mu = kl_nats_from_probs(after.mean(0), before.mean(0))
    left_out = kl_nats_from_probs(_leave_one_out(after), _leave_one_out(before))  # (M, ...)
    M = noise.shape[0]
    corrected = M * mu - (M - 1) * left_out.mean(0)
    standard_error = ((M - 1) * left_out.var(0, correction=0)).sqrt()
    margin = NORMAL_QUANTILE_95 * standard_error
    return CommutationCost(mu, corrected, standard_error, corrected - margin, corrected + margin)


def _leave_one_out(samples: Tensor) -> Tensor:
    """Means without draw m: (M, ..., V) -> (M, ..., V); rounding may not create a negative."""
    return ((samples.sum(0) - samples) / (samples.shape[0] - 1)).clamp_min(0)


def _check_distributions(name: str, p: Tensor) -> None:
    tolerance = 1e-4 if p.dtype == torch.float32 else 1e-8
    if not ((p >= 0).all() and ((p.sum(-1) - 1).abs() <= tolerance).all()):
        raise ValueError(f"{name} is not a distribution over its last axis")
