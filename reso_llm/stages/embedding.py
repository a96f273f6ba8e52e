"""Token embedding: a learned table, the factors of the token's number, a smear of the one before.

    W_id = E_id + 1/sqrt(n) sum_j P[row of factor j],    g(s) = prod_k p_(s_k)^(2^k)
    e_t  = norm(W[id_t]),   x_t = norm(e_t + sigma(w . e_t[:16]) lambda e_{t-1})

A token's name is its bytes s = s_0 s_1 ... Their Goedel number g has the prime of the k-th byte to
the power 2^k: powers of two are told apart in every sum, so g factorises into the pairs (byte,
place) and no other name has them. A name is read twice, from its start and from its end, each up to
a number of places; a leading space is taken off first and is a factor of its own. P has a row for
each pair, so "walking", " walking" and " talking" have most rows in common, and a rare token begins
as the sum of what it is made of (the sum is that of subword vectors: Bojanowski 2017, arXiv
1607.04606; n is the number of a token's factors).

P is learned from zero. Without names, which `read_names` gives, there are no factors and W is E. W
is an ordinary table, so it folds: decoding and a folded model pay nothing for the factors.

The smear gives every layer the previous token for the price of one addition (modded-nanogpt).
Its state is the embedding of the newest token.

Shapes: B batch, T time, D width, V vocabulary, J factors of a token at most; P (2 + 512 places,D).
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from entropy_core.checks import require
from entropy_core.compiled import compiled, logistic, norm
from reso_llm.config import PrimeEmbeddingConfig
from reso_llm.stages.arrays import view
from reso_llm.stages.fused import rms_norm

GATE_WIDTH = 16
PLAIN = PrimeEmbeddingConfig(enabled=False)
NOTHING, SPACE, FIRST_PAIR = 0, 1, 2  # rows of P


class EmbeddingState(NamedTuple):
    """The smear's past: the embedding (B,1,D) of the newest token, zero before the first."""

    last: Tensor


def factor_rows(name: bytes, num_places: int) -> list[int]:
    """The rows of P for a token's bytes, none of b""."""
    spaced = name[:1] == b" " and len(name) > 1
    letters = name[spaced:]
    read = enumerate((letters[:num_places], letters[::-1][:num_places]))
    pairs = [
        FIRST_PAIR + 256 * (num_places * end + place) + byte
        for end, bytes_read in read
        for place, byte in enumerate(bytes_read)
    ]
    return [SPACE, *pairs] if spaced else pairs


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
        self.num_places = places = prime.num_places
        factors = torch.zeros(vocab_size, 1 + 2 * places, dtype=torch.int32)
        self.register_buffer("factors", factors if prime.enabled else None)  # (V,J) rows of P
        rows = torch.empty(FIRST_PAIR + 512 * places, dim) if prime.enabled else None
        self.factor_table = None if rows is None else nn.Parameter(rows)
        self.smear_gate = nn.Linear(min(GATE_WIDTH, dim), 1, bias=False)
        self.smear_scale = nn.Parameter(torch.empty(()))
        self._kept: _KeptTable | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal table (it may also serve as the output head), no factors, no smear."""
        nn.init.normal_(self.table.weight, std=0.02)
        if self.factor_table is not None:
            nn.init.zeros_(self.factor_table)
        nn.init.zeros_(self.smear_gate.weight)
        nn.init.zeros_(self.smear_scale)

    def read_names(self, names: Sequence[bytes]) -> None:
        """Take the factors of every token from its bytes, b"" for a token without any.

        Fewer names than tokens leave the last ones without. ValueError for more.
        """
        size = self.table.num_embeddings
        require(len(names) <= size, "number of names", len(names), f"at most vocab_size = {size}")
        if self.factors is None:
            return
        factors = torch.full(self.factors.shape, NOTHING, dtype=torch.int32)
        for row, name in zip(factors, names, strict=False):
            found = factor_rows(name, self.num_places)
            row[: len(found)] = torch.tensor(found, dtype=torch.int32)
        self.factors.copy_(factors)
        self._kept = None

    @property
    def weight(self) -> Tensor:
        """The effective table W (V,D): lookup, and output map where the two are tied.

        With gradients it is a new product at each call: take it once in a forward pass. Without
        gradients the product is kept until a parameter changes in place, moves, or is loaded or
        replaced; assigning `p.data` is the one change that goes unseen.
        """
        if self.factor_table is None:
            return self.table.weight
        parameters = (self.table.weight, self.factor_table)
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
        counts = (self.factors != NOTHING).sum(1, keepdim=True).clamp_min(1)
        sums = F.embedding_bag(self.factors, self.factor_table, mode="sum", padding_idx=NOTHING)
        return torch.addcmul(self.table.weight, sums, counts.to(sums.dtype).rsqrt())

    def _apply(self, *args, **options) -> "TokenEmbedding":
        """Forget the kept table when the parameters move or change their type."""
        self._kept = None
        return super()._apply(*args, **options)

    def _load_from_state_dict(self, *args, **options) -> None:
        """Forget the kept table when parameters are loaded."""
        self._kept = None
        super()._load_from_state_dict(*args, **options)

    def fold(self) -> "TokenEmbedding":
        """A copy without factors whose plain table is W: the same function, parameters apart."""
        plain = copy.deepcopy(self)
        plain.table.weight = nn.Parameter(self.weight.detach().clone())
        plain.factor_table = plain.factors = None
        return plain

    def init_state(self, batch: int, like: Tensor) -> EmbeddingState:
        """No token before the first."""
        return EmbeddingState(like.new_zeros(batch, 1, self.table.embedding_dim))

    def stepper(self, state: EmbeddingState) -> "EmbeddingStep":
        """The one-token form."""
        return EmbeddingStep(self, state)

    def silence(self) -> None:
        """Drop the primes' share of the table: W is E."""
        if self.factor_table is not None:
            nn.init.zeros_(self.factor_table)

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
    """One-token form of `TokenEmbedding`: tokens of R rows -> x (R,D), each with its smear."""

    def __init__(self, module: TokenEmbedding, state: EmbeddingState) -> None:
        self.table = view(module.weight)  # (V,D)
        self.gate = view(module.smear_gate.weight)[0]  # (16,)
        self.scale = np.float32(module.smear_scale.item())
        self.last = view(state.last)[:, 0]  # (R,D)

    def __call__(self, tokens: Sequence[int]) -> ndarray:
        # New arrays each time: the caller's arrays are never written to.
        x, before, self.last = self.table[tokens], self.last, np.empty_like(self.last)
        smear(x, before, self.gate, self.scale, self.last)
        return x

    @property
    def state(self) -> EmbeddingState:
        """The state after the tokens so far."""
        return EmbeddingState(torch.from_numpy(self.last)[:, None])


@compiled
def smear(x, before, gate, scale, last):
    """Rows x (R,D) of the table become the stage's x, their norm `last`, given those before."""
    norm(x, last)
    for r in range(len(x)):
        z = np.float32(0)
        for i in range(len(gate)):
            z += last[r, i] * gate[i]
        share = scale * logistic(z)
        for i in range(x.shape[1]):
            x[r, i] = last[r, i] + share * before[r, i]
    norm(x, x)
