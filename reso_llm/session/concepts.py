"""PRSC concepts: names bound to primes, composed and taken apart by adding and removing phases.

    z_f(n) = exp(i w_f ln n),    w_f = W phi^(f / F),    f = 0 ... F - 1

    bind a b    unbind a b*    bundle sum(z) / |sum(z)|    coherence |<a, b>| / F

Token id i owns the i-th prime p_i. As ln(pq) = ln p + ln q, binding is the homomorphism
z(p) z(q) = z(pq): a composition is the phasor of an integer, whose factors are its parts. Phases
of different integers are unrelated as long as W |ln(n / m)| is far above 1, and coherence is then
that of random phasors: about 0.89 / sqrt(F). A golden octave of frequencies reaches that without
a random draw; equal or golden-ratio steps do not (some pairs of primes then agree in every wave).

Source: Plate 1995 (holographic reduced representations, here in the Fourier domain, FHRR).
Shapes: phasors are (..., F), F frequencies, complex numbers of modulus 1.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_core.checks import nearest
from entropy_core.primes import GOLDEN_RATIO, first_primes
from reso_llm.config import PRSCConfig

NUM_FREQUENCIES = 512
"""F: unrelated concepts have a coherence of about 0.04, at most 0.2 among a thousand."""

LOWEST_FREQUENCY = 1e8
"""W: tells apart neighbouring integers up to 1e7; float64 holds such phases to 1e-6."""


def phasors(integers: Sequence[int], num_frequencies: int = NUM_FREQUENCIES) -> Tensor:
    """Unit phasors of positive integers of any size: n of them -> (n, F), complex128.

    Raises ValueError for an integer below 1.
    """
    if any(n < 1 for n in integers):
        raise ValueError(f"{min(integers)} has no phasor: expected integers of at least 1")
    steps = torch.arange(num_frequencies, dtype=torch.float64) / num_frequencies
    logs = torch.tensor([math.log(n) for n in integers], dtype=torch.float64)
    phases = logs.unsqueeze(-1) * (LOWEST_FREQUENCY * GOLDEN_RATIO**steps)  # (n, F)
    return torch.polar(torch.ones_like(phases), phases)


def bind(a: Tensor, b: Tensor) -> Tensor:
    """Bind two phasors: add their phases, (..., F), (..., F) -> (..., F)."""
    return a * b


def unbind(a: Tensor, b: Tensor) -> Tensor:
    """Remove b from a: subtract its phases, (..., F), (..., F) -> (..., F)."""
    return a * b.conj()


def bundle(parts: Tensor) -> Tensor:
    """Bundle n phasors: (n, F) -> (F,), their sum brought back to modulus 1.

    A frequency at which the parts cancel exactly is 0.
    """
    return torch.sgn(parts.sum(-2))


def coherence(a: Tensor, b: Tensor) -> Tensor:
    """Agreement |<a, b>| / F in [0, 1], whatever the common phase: (..., F), (..., F) -> (...)."""
    return torch.linalg.vecdot(a, b).abs() / a.shape[-1]


@dataclass(frozen=True, eq=False)
class Binding:
    """A name and the phasor it stands for.

    prime is the token's prime, for several tokens the product of theirs. coherence is that of the
    phasor with the token it fits worst: 1 for a single token.
    """

    name: str
    token_ids: tuple[int, ...]
    prime: int
    phasor: Tensor = field(repr=False)  # (F,)
    coherence: float


@dataclass(frozen=True, eq=False)
class Interference:
    """Concepts bound together: pattern (F,), product of all primes, mean coherence of two parts.

    coherence is 1 where all parts are the same (or there is only one), about 0.04 for unrelated
    ones. Where each name holds one token the pattern is the phasor of the product.
    """

    names: tuple[str, ...]
    pattern: Tensor = field(repr=False)
    coherence: float
    product: int


class Match(NamedTuple):
    """A bound name and its coherence with a pattern."""

    name: str
    coherence: float


class Unbinding(NamedTuple):
    """The rest of a pattern (F,), and the bound names most like it, the best first."""

    residual: Tensor
    nearest: tuple[Match, ...]


class ConceptSpace:
    """The concepts of one session over a vocabulary of vocab_size tokens."""

    def __init__(self, config: PRSCConfig, vocab_size: int) -> None:
        self.config = config
        self._primes = first_primes(vocab_size)
        self._bindings: dict[str, Binding] = {}

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """All bindings, the oldest first; at most PRSCConfig.max_bindings."""
        return tuple(self._bindings.values())

    def bind_concept(self, name: str, token_id: int) -> Binding:
        """Let a name stand for a token, or for one more token if it is bound already.

        A name of several tokens is their bundle. Each further token makes it less like the others:
        two unrelated tokens leave 0.64 = 2 / pi, three 0.52. Raises ValueError when a token's
        coherence falls below PRSCConfig.coherence_threshold, for a token id outside the
        vocabulary, or when PRSCConfig.max_bindings names are bound; nothing changes then.
        """
        if not 0 <= token_id < len(self._primes):
            raise ValueError(f"token_id = {token_id!r}: expected 0 to {len(self._primes) - 1}")
        old = self._bindings.get(name)
        if old is None and len(self._bindings) >= self.config.max_bindings:
            raise ValueError(
                f"{name!r} cannot be bound: {len(self._bindings)} names are, PRSCConfig."
                f"max_bindings = {self.config.max_bindings}; forget one first"
            )
        if old is not None and token_id in old.token_ids:
            return old
        binding = self._binding(name, (*(old.token_ids if old else ()), token_id))
        if binding.coherence < self.config.coherence_threshold:
            raise ValueError(
                f"{name!r} as tokens {binding.token_ids} has coherence {binding.coherence:.2f}: "
                "expected at least PRSCConfig.coherence_threshold = "
                f"{self.config.coherence_threshold}; bind two names and compose them instead"
            )
        self._bindings[name] = binding
        return binding

    def forget(self, name: str) -> None:
        """Remove a binding. Raises ValueError for an unknown name."""
        self._known(name)
        del self._bindings[name]

    def compose(self, names: Sequence[str]) -> Interference:
        """Bind concepts together; a name may come twice, their order has no effect on the pattern.

        Raises ValueError for no names or an unknown one.
        """
        if isinstance(names, str) or not names:
            raise ValueError(f"names = {names!r}: expected a list of at least one bound name")
        parts = [self._known(name) for name in names]
        waves = torch.stack([part.phasor for part in parts])  # (n, F)
        agreement = [coherence(a, b) for a, b in itertools.combinations(waves, 2)]
        return Interference(
            names=tuple(names),
            pattern=waves.prod(0),
            coherence=torch.stack(agreement).mean().item() if agreement else 1.0,
            product=math.prod(part.prime for part in parts),
        )

    def unbind(self, pattern: Tensor, name: str, *, count: int = 5) -> Unbinding:
        """Remove a concept from a pattern (F,); find the `count` names most like the rest.

        Unbinding one of two composed names leaves the other exactly; one that was not in it, or
        one of three, leaves a rest that is like no name. Raises ValueError for an unknown name.
        """
        residual = unbind(pattern, self._known(name).phasor)
        waves = torch.stack([binding.phasor for binding in self.bindings])
        values = coherence(waves, residual)
        best = values.argsort(descending=True, stable=True)[:count].tolist()
        names = list(self._bindings)
        return Unbinding(residual, tuple(Match(names[i], values[i].item()) for i in best))

    def _binding(self, name: str, token_ids: tuple[int, ...]) -> Binding:
        primes = [self._primes[i] for i in token_ids]
        parts = phasors(primes)
        whole = parts[0] if len(parts) == 1 else bundle(parts)
        worst = coherence(parts, whole).min().item()
        return Binding(name, token_ids, math.prod(primes), whole, worst)

    def _known(self, name: str) -> Binding:
        if name not in self._bindings:
            hint = nearest(name, list(self._bindings))
            raise ValueError(f"{name!r} is not bound: expected a name given to bind_concept{hint}")
        return self._bindings[name]
