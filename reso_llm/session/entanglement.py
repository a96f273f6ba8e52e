"""Entanglement network: agents that share memory by the fidelity of the link between them.

A link is a Werner pair of fidelity F in [1/4, 1]: a perfect pair mixed with white noise.

    swap      F' = F1 F2 + (1 - F1)(1 - F2) / 3
    distill   F' = (F1 F2 + (1 - F1)(1 - F2) / 9) / p
              p  = F1 F2 + F1 (1 - F2) / 3 + (1 - F1) F2 / 3 + 5 (1 - F1)(1 - F2) / 9
    teleport  f  = (2 F + 1) / 3
    share     s_a = sum_b C_ab s_b / sum_b C_ab,    C_aa = 1,    C_ab = max(0, 2 F_ab - 1)

With W = (4F - 1) / 3 swapping is W' = W1 W2, so a path composes by a product and the best path is
a shortest path. C is the concurrence of the pair: 0 up to F = 1/2, where it is separable.
Sources: Werner 1989; Bennett et al. 1996 (BBPSSW, PRL 76, 722); Wootters 1998 (concurrence);
Horodecki 1999 (teleportation); Hinton 2002 (product of experts).

Shapes: A agents, V vocabulary. The pure functions take numbers or tensors of fidelities.
"""

import heapq
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

NO_ENTANGLEMENT = 0.25
"""Fidelity of the maximally mixed pair, which stands for no link at all."""

Real = TypeVar("Real", float, Tensor)


class Distillation(NamedTuple):
    """Fidelity after a successful round of distillation, and the probability of success."""

    fidelity: float
    success_probability: float


def werner_swap(first: Real, second: Real) -> Real:
    """Fidelity of the pair A-C made from the pairs A-B and B-C by entanglement swapping."""
    return first * second + (1 - first) * (1 - second) / 3


def bbpssw(first: Real, second: Real) -> tuple[Real, Real]:
    """Fidelity after one successful BBPSSW round on two pairs, and the probability of success."""
    both_wrong = (1 - first) * (1 - second)
    probability = first * second + (first * (1 - second) + (1 - first) * second) / 3
    probability = probability + 5 / 9 * both_wrong
    return (first * second + both_wrong / 9) / probability, probability


def teleportation_fidelity(fidelity: Real) -> Real:
    """Mean fidelity of a qubit teleported over the pair; 2/3 is the classical limit (F = 1/2)."""
    return (2 * fidelity + 1) / 3


def concurrence(fidelity: float) -> float:
    """Entanglement of a Werner pair: 0 for F <= 1/2, where it is separable, up to 1 for F = 1."""
    return max(0.0, 2 * fidelity - 1)


def consensus_logits(logits: Tensor, coherence: Tensor) -> Tensor:
    """Logits of the product of the agents' distributions: (A,...,V), (A,) -> (...,V).

    sum_a w_a z_a with w = coherence / sum(coherence), whose softmax is the product of p_a^w_a,
    normalised; of equal logits it is those logits. An agent of coherence 0 has no say; a token any
    other agent rules out (logit -inf) is out. Raises ValueError for
    coherences that do not match the agents, are negative or not finite, or are all 0.
    """
    if coherence.shape != logits.shape[:1]:
        raise ValueError(
            f"coherence has shape {tuple(coherence.shape)}: expected one number for each of the "
            f"{logits.shape[0]} agents"
        )
    if not (coherence.isfinite().all() and (coherence >= 0).all() and coherence.any()):
        raise ValueError(
            f"coherence = {coherence.tolist()}: expected numbers of at least 0, not all 0"
        )
    heard = coherence > 0  # 0 * -inf would be NaN
    weights = coherence[heard] / coherence[heard].sum()
    return torch.tensordot(weights.to(logits.dtype), logits[heard], dims=1)


class EntanglementNetwork:
    """Named agents and the fidelities of the pairs between them: session state, no weights."""

    def __init__(self, node_ids: Iterable[str] = ()) -> None:
        self._links: dict[str, dict[str, float]] = {}
        for node_id in node_ids:
            self.add_node(node_id)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The agents, in the order they were added."""
        return tuple(self._links)

    def add_node(self, node_id: str) -> None:
        """A new agent without links (see EntanglementConfig.node_id). ValueError if it exists."""
        if node_id in self._links:
            raise ValueError(f"node {node_id!r} exists already: each agent needs its own node_id")
        self._links[node_id] = {}

    def link(self, a: str, b: str, fidelity: float) -> None:
        """Connect two agents by a Werner pair, in place of the pair they had.

        Raises ValueError for unknown or equal nodes, or a fidelity outside [1/4, 1].
        """
        self._check(a, b)
        if not NO_ENTANGLEMENT <= fidelity <= 1:
            raise ValueError(f"fidelity = {fidelity!r}: expected a number from 0.25 to 1")
        self._links[a][b] = self._links[b][a] = float(fidelity)

    def fidelity(self, a: str, b: str) -> float:
        """Best fidelity of any path of swaps from a to b; 1 to itself, 1/4 where there is no path.

        Raises ValueError for unknown nodes. The pairs stay as they are.
        """
        self._check_known(a, b)
        done, queue = set(), [(-1.0, a)]  # Dijkstra: products of W <= 1 only shrink along a path
        while queue:
            negative_w, node = heapq.heappop(queue)
            if node == b:
                return (1 - 3 * negative_w) / 4
            if node in done:
                continue
            done.add(node)
            for other, fidelity in self._links[node].items():
                heapq.heappush(queue, (negative_w * (4 * fidelity - 1) / 3, other))
        return NO_ENTANGLEMENT

    def swap(self, a: str, via: str, b: str) -> float:
        """Turn the pairs a-via and via-b into one pair a-b, and return its fidelity.

        Both pairs are consumed. An earlier pair a-b stays if it is better. Raises ValueError
        for unknown or equal nodes, or a missing pair.
        """
        self._check(a, b)
        swapped = werner_swap(self._pair(a, via), self._pair(via, b))
        for end in (a, b):
            del self._links[end][via], self._links[via][end]
        kept = max(swapped, self._links[a].get(b, NO_ENTANGLEMENT))
        self.link(a, b, kept)
        return kept

    def distill(self, a: str, b: str) -> Distillation:
        """One successful BBPSSW round on the pair a-b and a second pair of the same fidelity.

        The second pair is consumed. A round that fails costs both pairs and is repeated, so a
        success takes 2 / success_probability pairs on average. Raises ValueError for a missing
        pair, or one of F <= 1/2, which cannot be distilled.
        """
        fidelity = self._pair(a, b)
        if fidelity <= 0.5:
            raise ValueError(f"pair {a!r}, {b!r} has fidelity {fidelity:g}: expected above 0.5")
        result = Distillation(*bbpssw(fidelity, fidelity))
        self.link(a, b, min(result.fidelity, 1.0))  # rounding may leave 1 + 1e-16
        return result

    def share_weights(self, node_id: str, others: Iterable[str]) -> dict[str, float]:
        """Weights of all agents' states in the mixture that `node_id` sees; they sum to 1."""
        weights = {other: concurrence(self.fidelity(node_id, other)) for other in others}
        weights[node_id] = 1.0
        total = math.fsum(weights.values())
        return {other: weight / total for other, weight in weights.items()}

    def share(self, node_id: str, fields: Mapping[str, Real]) -> Real:
        """Mixture of the agents' states as `node_id` sees it: {node: state} -> state.

        A state is a sedenion field (tensors of one shape) or a number such as an order parameter.
        Raises ValueError when `node_id` or a node is unknown, or shapes differ.
        """
        if node_id not in fields:
            raise ValueError(
                f"fields hold no {node_id!r}: expected its own state among {[*fields]}"
            )
        shapes = {other: getattr(field, "shape", ()) for other, field in fields.items()}
        for other, shape in shapes.items():
            if shape != shapes[node_id]:
                raise ValueError(
                    f"the state of {other!r} has shape {tuple(shape)}: expected that of "
                    f"{node_id!r}, {tuple(shapes[node_id])}"
                )
        weights = self.share_weights(node_id, fields)
        mixed = weights[node_id] * fields[node_id]
        for other in fields:
            if other != node_id and weights[other]:  # an unlinked agent is not even read
                mixed = mixed + weights[other] * fields[other]
        return mixed

    def _pair(self, a: str, b: str) -> float:
        self._check(a, b)
        if b not in self._links[a]:
            raise ValueError(f"{a!r} and {b!r} share no pair: expected link({a!r}, {b!r}, ...)")
        return self._links[a][b]

    def _check(self, a: str, b: str) -> None:
        self._check_known(a, b)
        if a == b:
            raise ValueError(f"{a!r} twice: expected two different nodes")

    def _check_known(self, *node_ids: str) -> None:
        for node_id in node_ids:
            if node_id not in self._links:
                raise ValueError(f"unknown node {node_id!r}: expected one of {list(self._links)}")
