"""Information measures of categorical distributions.

    H(p) = -sum_k p_k ln p_k        (Shannon 1948; nats)

Shapes: logits and probabilities are (..., V); measures are (...), one per distribution.
Logits enter through log_softmax, so no constant is added inside a logarithm. A token with logit
-inf (or probability 0) lies outside the support: it contributes exactly 0 and gets gradient 0.
A row without any distribution (all -inf, or NaN) gives NaN.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

ZONES = ("LASER", "CAGE", "LANTERN", "CHAOS")
ZONE_BOUNDARIES_NATS = (2.0, 3.5, 5.0)
UNKNOWN_ZONE = -1


def _masked_log(p: Tensor) -> Tensor:
    """ln p with 0 where p = 0, so that p * _masked_log(p) is exactly 0·ln 0 = 0."""
    return torch.where(p == 0, 1.0, p).log()


def _support_log_probs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(p, ln p) with ln p set to 0 where the logit is -inf."""
    log_p = logits.log_softmax(-1)
    return log_p.exp(), log_p.masked_fill(log_p == -math.inf, 0.0)


def entropy_nats(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(logits): (..., V) -> (...), in [0, ln V] nats."""
    p, log_p = _support_log_probs(logits)
    return -(p * log_p).sum(-1)


def entropy_nats_from_probs(p: Tensor) -> Tensor:
    """Shannon entropy of probabilities: (..., V) -> (...) nats. A negative entry gives NaN."""
    return -(p * _masked_log(p)).sum(-1)


def varentropy_nats2(logits: Tensor) -> Tensor:
    """Variance of the surprisal, sum p (ln p + H)^2: (..., V) -> (...) in nats squared."""
    p, log_p = _support_log_probs(logits)
    entropy = -(p * log_p).sum(-1, keepdim=True)
    return (p * (log_p + entropy).square()).sum(-1)


def normalised_entropy(logits: Tensor, min_prob: float | None = None) -> Tensor:
    """Entropy as a fraction of its maximum: (..., V) -> (...), in [0, 1], no unit.

    Without `min_prob` this is H / ln V over the full vocabulary. With it, p is restricted to the
    effective support {p >= min_prob} and renormalised before H is divided by ln |support|; the
    SRB derivation notes (section 1) divide the unrestricted H instead, which passes 1 when the
    tail is heavy. The most likely token always belongs to the support, and a support of one
    token (0/0) has value 0.

    Raises ValueError when min_prob is outside (0, 1].
    """
    if min_prob is None:
        size = logits.new_full(logits.shape[:-1], logits.shape[-1])
    else:
        if not 0.0 < min_prob <= 1.0:
            raise ValueError(f"min_prob must be in (0, 1], got {min_prob}")
        p = logits.softmax(-1)
        inside = p >= p.amax(-1, keepdim=True).clamp(max=min_prob)
        size = inside.sum(-1).to(logits.dtype)
        logits = logits.masked_fill(~inside, -math.inf)
    return entropy_nats(logits) / torch.where(size > 1, size, math.e).log()


def kl_nats(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p ‖ q) of two softmax distributions: (..., V) -> (...) nats; +inf outside q's support."""
    p, log_p = _support_log_probs(p_logits)
    log_q = q_logits.log_softmax(-1).masked_fill(p == 0, 0.0)
    return (p * (log_p - log_q)).sum(-1)


def kl_nats_from_probs(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of probabilities: (..., V) -> (...) nats; +inf where q = 0 < p."""
    log_q = torch.where(p == 0, 1.0, q).log()
    return (p * (_masked_log(p) - log_q)).sum(-1)


def jensen_shannon_nats(p: Tensor, q: Tensor) -> Tensor:
    """Jensen–Shannon divergence of probabilities: (..., V) -> (...), in [0, ln 2] nats.

    JS = (KL(p ‖ m) + KL(q ‖ m)) / 2 with m = (p + q) / 2 (Lin 1991).
    """
    m = (p + q) / 2
    return (kl_nats_from_probs(p, m) + kl_nats_from_probs(q, m)) / 2


def semantic_mass(logits: Tensor) -> Tensor:
    """1 - sum p^2 of softmax(logits): (..., V) -> (...), in [0, 1 - 1/V] (CER README).

    It equals the Fisher trace of a categorical in its own logits (`fisher_trace`).
    """
    return 1 - logits.softmax(-1).square().sum(-1)


def fisher_trace(
    logits_fn: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    params: Mapping[str, Tensor],
    inputs: Tensor,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    """Exact trace of the Fisher information in the parameters, one value per input.

    Tr I(θ) = sum_y p(y|x) |∇_θ ln p(y|x)|^2, the expectation over the model's own labels
    (Amari 1998), not over data labels ("empirical Fisher"). Average over inputs for a data set.

    logits_fn(params, x) maps one input (no batch axis) to logits (V,); for a module use
    ``lambda params, x: torch.func.functional_call(module, params, x[None])[0]``.
    inputs (B, ...) -> (B,), in nats² per squared parameter unit. Costs V backward passes per
    input; chunk_size bounds how many of them are in memory at once.
    """

    def trace_of_one(x: Tensor) -> Tensor:
        def log_probs(theta: Mapping[str, Tensor]) -> Tensor:
            return logits_fn(theta, x).log_softmax(-1)

        jacobians = jacrev(log_probs, chunk_size=chunk_size)(params)
        score_norms = sum(j.flatten(1).square().sum(1) for j in jacobians.values())  # (V,)
        return (log_probs(params).exp() * score_norms).sum()

    return torch.stack([trace_of_one(x) for x in inputs])


def sampled_fisher_trace(
    logits_fn: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    params: Mapping[str, Tensor],
    inputs: Tensor,
    *,
    num_samples: int,
    generator: torch.Generator,
) -> Tensor:
    """Unbiased Monte Carlo form of `fisher_trace` for large V: labels drawn from the model.

    inputs (B, ...) -> (num_samples, B) draws of |∇_θ ln p(y|x)|^2; their mean over axis 0
    estimates the trace and their spread its error.
    """

    def score_norms_of_one(x: Tensor) -> Tensor:
        def log_prob(theta: Mapping[str, Tensor], label: Tensor) -> Tensor:
            return (logits_fn(theta, x).log_softmax(-1) * label).sum()

        p = logits_fn(params, x).softmax(-1)
        drawn = torch.multinomial(p, num_samples, replacement=True, generator=generator)
        labels = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)[drawn]
        scores = vmap(grad(log_prob), in_dims=(None, 0))(params, labels)
        return sum(s.flatten(1).square().sum(1) for s in scores.values())

    return torch.stack([score_norms_of_one(x) for x in inputs], dim=1)


def zone_index(entropy: Tensor) -> Tensor:
    """Index into ZONES of an entropy in nats: (...) -> (...) int64.

    LASER below 2 nats, CAGE below 3.5, LANTERN below 5, CHAOS from 5 (CER). NaN is no zone: it
    gives UNKNOWN_ZONE = -1.
    """
    boundaries = torch.tensor(ZONE_BOUNDARIES_NATS, dtype=entropy.dtype, device=entropy.device)
    index = torch.bucketize(entropy.detach(), boundaries, right=True)
    return torch.where(entropy.isnan(), UNKNOWN_ZONE, index)
