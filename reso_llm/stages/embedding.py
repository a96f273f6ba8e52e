"""Token embedding: a learned table, waves of the token's prime, a smear of the previous token.

    W   = E + Phi P,    Phi_id = (cos(w_f ln p_id), sin(w_f ln p_id)),  f = 1 ... F
    e_t = norm(W[id_t]),   x_t = norm(e_t + sigma(w . e_t[:16]) lambda e_{t-1})

Token id i owns the i-th prime p_i (id 0 -> 2). Phi is fixed: multiplying primes adds phases (see
`reso_llm.primes`). P is learned from zero. W is an ordinary table, so it folds: decoding and a
folded model pay nothing for the primes. Without them W is E.

The smear gives every layer the previous token for the price of one addition (modded-nanogpt).
Its state in decoding is the last token's embedding.

Shapes: B batch, T time, D width, V vocabulary, F frequencies; Phi (V,2F), P (2F,D).
"""

import copy
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from entropy_core.primes import first_primes, golden_frequencies, log_phases
from reso_llm.config import PrimeEmbeddingConfig
from reso_llm.stages import arrays
from reso_llm.stages.arrays import view
from reso_llm.stages.fused import rms_norm

GATE_WIDTH = 16
PLAIN = PrimeEmbeddingConfig(enabled=False)


def prime_waves(vocab_size: int, num_frequencies: int) -> Tensor:
    """Phi, (V,2F): all cosines, then all sines; ValueError for too many frequencies."""
    primes = first_primes(vocab_size)
    phases = log_phases(primes, golden_frequencies(primes[-1], num_frequencies))
    waves = np.concatenate((np.cos(phases), np.sin(phases)), axis=-1)
    return torch.tensor(waves, dtype=torch.get_default_dtype())


class TokenEmbedding(nn.Module):
    """ids (B,T) and the previous embedding (B,1,D) or None -> x (B,T,D) and the last embedding."""

    def __init__(self, vocab_size: int, dim: int, prime: PrimeEmbeddingConfig = PLAIN) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, dim)
        waves = prime_waves(vocab_size, prime.num_frequencies) if prime.enabled else None
        self.register_buffer("waves", waves, persistent=False)
        self.prime_map = nn.Parameter(torch.empty(waves.shape[1], dim)) if prime.enabled else None
        self.smear_gate = nn.Linear(min(GATE_WIDTH, dim), 1, bias=False)
        self.smear_scale = nn.Parameter(torch.empty(()))
        self._memo: tuple[list[Tensor], list[int], Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal table (it may also serve as the output head), no waves, no smear."""
        nn.init.normal_(self.table.weight, std=0.02)
        if self.prime_map is not None:
            nn.init.zeros_(self.prime_map)
        nn.init.zeros_(self.smear_gate.weight)
        nn.init.zeros_(self.smear_scale)

    @property
    def weight(self) -> Tensor:
        """The effective table W (V,D): lookup, and output map where the two are tied.

        With gradients it is a new product at each call: take it once in a forward pass. Without
        them it is kept for as long as the parameters stay as they are; writing through `p.data`
        in place is the one change that goes unseen.
        """
        if self.prime_map is None:
            return self.table.weight
        sources = [self.table.weight, self.prime_map]
        # Fused optimizers change parameters without counting a version: gradients are the sign
        # that a step may come. Inference tensors do not count either.
        at_rest = all(p.grad is None and not p.is_inference() for p in sources)
        if torch.is_grad_enabled() or not at_rest:
            self._memo = None
            return self._product()
        if self._memo is None or not _unchanged(sources, *self._memo[:2]):
            with torch.inference_mode(False), torch.no_grad():
                # The aliases hold the memory, so that no other tensor can take its address.
                aliases, versions = [p.detach() for p in sources], [p._version for p in sources]
                self._memo = aliases, versions, self._product()
        return self._memo[2]

    def _product(self) -> Tensor:
        with torch.autocast(self.waves.device.type, enabled=False):  # it would round the table
            return torch.addmm(self.table.weight, self.waves, self.prime_map)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry no memo."""
        return self.__dict__ | {"_memo": None}

    def fold(self) -> "TokenEmbedding":
        """A copy without primes whose plain table is W: the same function, parameters apart."""
        plain = copy.deepcopy(self)
        plain.table.weight = nn.Parameter(self.weight.detach().clone())
        plain.prime_map = plain.waves = None
        return plain

    def forward(
        self, ids: Tensor, previous: Tensor | None, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`weight` is `self.weight` where the caller has it already."""
        e = rms_norm(F.embedding(ids, self.weight if weight is None else weight))
        if previous is None:
            previous = torch.zeros_like(e[:, :1])
        shifted = torch.cat((previous, e[:, :-1]), dim=1)
        gate = self.smear_scale * torch.sigmoid(
            self.smear_gate(e[..., : self.smear_gate.in_features])
        )
        return rms_norm(e + gate * shifted), e[:, -1:]


def _unchanged(sources: list[Tensor], aliases: list[Tensor], versions: list[int]) -> bool:
    """Whether each source has the memory of its alias, and the version noted then."""
    return all(
        p.data_ptr() == alias.data_ptr() and p.dtype is alias.dtype and p._version == version
        for p, alias, version in zip(sources, aliases, versions, strict=True)
    )


class EmbeddingStep:
    """`TokenEmbedding`: a token -> x (D,), with the smear of the token before."""

    def __init__(self, module: nn.Module, last: Tensor | None) -> None:
        self.table = view(module.weight)  # (V,D)
        self.gate = view(module.smear_gate.weight)[0]
        self.scale = module.smear_scale.item()
        self.last = np.zeros_like(self.table[0]) if last is None else view(last).ravel()

    def __call__(self, token: int) -> ndarray:
        e = arrays.rms_norm(self.table[token])
        z = float(self.gate.dot(e[: len(self.gate)]))
        x = self.last * (self.scale * (0.5 + 0.5 * math.tanh(0.5 * z)))
        x += e
        self.last = e  # a new array each time: what was given is never written to
        return arrays.rms_norm(x, out=x)

    @property
    def state(self) -> Tensor:
        return torch.from_numpy(self.last).view(1, 1, -1)
