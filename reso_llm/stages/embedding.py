"""Token embedding: a learned table, waves of the token's prime, a smear of the previous token.

    W   = E + Phi P,    Phi_id = (cos(w_f ln p_id), sin(w_f ln p_id)),  f = 1 ... F
    e_t = norm(W[id_t]),   x_t = norm(e_t + sigma(w . e_t[:16]) lambda e_{t-1})

Token id i owns the i-th prime p_i (id 0 -> 2). Phi is fixed: multiplying primes adds phases (see
`entropy_core.primes`). P is learned from zero. W is an ordinary table, so it folds: decoding and a
folded model pay nothing for the primes. Without them W is E.

The smear gives every layer the previous token for the price of one addition (modded-nanogpt).
Its state is the embedding of the newest token.

Shapes: B batch, T time, D width, V vocabulary, F frequencies; Phi (V,2F), P (2F,D).
"""

import copy
import math
from typing import NamedTuple

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


class EmbeddingState(NamedTuple):
    """The smear's past: the embedding (B,1,D) of the newest token, zero before the first."""

    last: Tensor


def prime_waves(vocab_size: int, num_frequencies: int) -> Tensor:
    """Phi, (V,2F): all cosines, then all sines; ValueError for too many frequencies."""
    primes = first_primes(vocab_size)
    phases = log_phases(primes, golden_frequencies(primes[-1], num_frequencies))
    waves = np.concatenate((np.cos(phases), np.sin(phases)), axis=-1)
    return torch.tensor(waves, dtype=torch.get_default_dtype())


class _KeptTable(NamedTuple):
    """The effective table, and the parameters and their versions that it was computed from."""

    parameters: tuple[Tensor, Tensor]
    versions: tuple[int, int]
    table: Tensor

    def is_of(self, parameters: tuple[Tensor, Tensor]) -> bool:
        """Whether these are the same parameters, unchanged."""
        return all(
            p is kept and p._version == version
            for p, kept, version in zip(parameters, self.parameters, self.versions, strict=True)
        )


class TokenEmbedding(nn.Module):
    """ids (B,T) and the state before them, None at the start -> x (B,T,D) and the next state."""

    def __init__(self, vocab_size: int, dim: int, prime: PrimeEmbeddingConfig = PLAIN) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, dim)
        waves = prime_waves(vocab_size, prime.num_frequencies) if prime.enabled else None
        self.register_buffer("waves", waves, persistent=False)
        self.prime_map = nn.Parameter(torch.empty(waves.shape[1], dim)) if prime.enabled else None
        self.smear_gate = nn.Linear(min(GATE_WIDTH, dim), 1, bias=False)
        self.smear_scale = nn.Parameter(torch.empty(()))
        self._kept: _KeptTable | None = None
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
        gradients the product is kept until a parameter changes in place, moves, or is loaded or
        replaced; assigning `p.data` is the one change that goes unseen.
        """
        if self.prime_map is None:
            return self.table.weight
        parameters = (self.table.weight, self.prime_map)
        # Fused optimizers change parameters without counting a version: a gradient announces one.
        changing = torch.is_grad_enabled() or any(
            p.grad is not None or p.is_inference() for p in parameters
        )
        if changing:
            self._kept = None
            return self._product()
        kept = self._kept  # read once: another thread may replace it
        if kept is None or not kept.is_of(parameters):
            with torch.inference_mode(False), torch.no_grad():
                versions = tuple(p._version for p in parameters)
                kept = self._kept = _KeptTable(parameters, versions, self._product())
        return kept.table

    def _product(self) -> Tensor:
        with torch.autocast(self.waves.device.type, enabled=False):  # it would round the table
            return torch.addmm(self.table.weight, self.waves, self.prime_map)

    def _apply(self, *args, **options) -> "TokenEmbedding":
        """Forget the kept table when the parameters move or change their type."""
        self._kept = None
        return super()._apply(*args, **options)

    def _load_from_state_dict(self, *args, **options) -> None:
        """Forget the kept table when parameters are loaded."""
        self._kept = None
        super()._load_from_state_dict(*args, **options)

    def fold(self) -> "TokenEmbedding":
        """A copy without primes whose plain table is W: the same function, parameters apart."""
        plain = copy.deepcopy(self)
        plain.table.weight = nn.Parameter(self.weight.detach().clone())
        plain.prime_map = plain.waves = None
        return plain

    def init_state(self, batch: int, like: Tensor) -> EmbeddingState:
        """No token before the first."""
        return EmbeddingState(like.new_zeros(batch, 1, self.table.embedding_dim))

    def stepper(self, state: EmbeddingState) -> "EmbeddingStep":
        """The one-token form."""
        return EmbeddingStep(self, state)

    def silence(self) -> None:
        """Drop the primes' share of the table: W is E."""
        if self.prime_map is not None:
            nn.init.zeros_(self.prime_map)

    def forward(
        self, ids: Tensor, state: EmbeddingState | None, weight: Tensor | None = None
    ) -> tuple[Tensor, EmbeddingState]:
        """`weight` is `self.weight` where the caller has it already."""
        e = rms_norm(F.embedding(ids, self.weight if weight is None else weight))
        before = torch.zeros_like(e[:, :1]) if state is None else state.last
        shifted = torch.cat((before, e[:, :-1]), dim=1)
        gate = self.smear_scale * torch.sigmoid(
            self.smear_gate(e[..., : self.smear_gate.in_features])
        )
        return rms_norm(e + gate * shifted), EmbeddingState(e[:, -1:])


class EmbeddingStep:
    """One-token form of `TokenEmbedding`: a token -> x (D,), with the smear of the one before."""

    def __init__(self, module: TokenEmbedding, state: EmbeddingState) -> None:
        self.table = view(module.weight)  # (V,D)
        self.gate = view(module.smear_gate.weight)[0]
        self.scale = module.smear_scale.item()
        self.last = view(state.last).ravel()

    def __call__(self, token: int) -> ndarray:
        e = arrays.rms_norm(self.table[token])
        z = float(self.gate.dot(e[: len(self.gate)]))
        x = self.last * (self.scale * (0.5 + 0.5 * math.tanh(0.5 * z)))
        x += e
        self.last = e  # a new array each time: the caller's arrays are never written to
        return arrays.rms_norm(x, out=x)

    @property
    def state(self) -> EmbeddingState:
        """The state after the tokens so far."""
        return EmbeddingState(torch.from_numpy(self.last).view(1, 1, -1))
