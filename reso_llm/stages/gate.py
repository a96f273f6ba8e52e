"""Coherence gate: only tokens that the binding memory is in doubt about go deep.

    H_t  = entropy, in nats, of the binding memory's distribution after token t (`prsc.py`)
    deep = H_t >= tau
    x   += [deep] f_l(x)        for the layers l > 1; layer 1 reads every token

The memory holds counts of the training text, so H is known before the network runs. A token that
stays shallow still writes keys and values in every layer, from its last state (CALM, Schuster 2022,
arXiv 2207.07061), and deep tokens attend to all (Mixture-of-Depths, Raposo 2024, arXiv 2404.02258).
Mixture-of-Depths takes the top share of each row, which reads the future of the row; here tau is
one number, set when the memory is counted, so that `deep_share` of the training text goes deep. The
rule is the same in training, evaluation and decoding. Both skip the work: training gathers the deep
tokens, decoding leaves layers out.

Shapes: B batch, T time, N deep tokens of a batch, n the most of them in one row.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reso_llm.config import CoherenceGateConfig

ALL_DEEP = -1.0  # nats: a threshold below every entropy


class DeepTokens(NamedTuple):
    """Places of the deep tokens of a batch: flat = row * T + time, and their slots in (B,n).

    row, time, slot and flat are (N,), row by row and in order of time.
    """

    row: Tensor
    time: Tensor
    slot: Tensor
    flat: Tensor
    num_slots: int

    @classmethod
    def of(cls, deep: Tensor) -> "DeepTokens":
        """The places where deep (B,T) is set."""
        row, time = deep.nonzero(as_tuple=True)
        slots = deep.long().cumsum(1)
        most = int(slots[:, -1].max())
        return cls(row, time, slots[row, time] - 1, row * deep.shape[1] + time, most)


class CoherenceGate(nn.Module):
    """H (B,T) -> which tokens go deep (B,T); see the module's docstring. It has no weights."""

    def __init__(self, config: CoherenceGateConfig) -> None:
        super().__init__()
        self.deep_share = config.deep_share
        self.register_buffer("threshold", torch.tensor(ALL_DEEP))

    def fit(self, doubts: Tensor) -> None:
        """Set tau so that `deep_share` of these doubts (n,), in nats, are at least tau."""
        ordered = doubts.flatten().sort(descending=True).values
        last = math.ceil(self.deep_share * len(ordered)) - 1
        self.threshold.copy_(ordered[max(last, 0)])

    def init_state(self, batch: int, like: Tensor) -> None:
        """A token goes deep or not by its own doubt."""

    def stepper(self, state: None) -> "GateStep":
        """The one-token form."""
        return GateStep(self)

    def silence(self) -> None:
        """Let every token go deep."""
        self.threshold.fill_(ALL_DEEP)

    def forward(self, doubt: Tensor) -> Tensor:
        return doubt >= self.threshold


class GateStep:
    """One-token form of `CoherenceGate`."""

    def __init__(self, module: CoherenceGate) -> None:
        self.threshold = module.threshold.item()

    def __call__(self, doubts: Sequence[float]) -> list[int]:
        """The numbers of the rows whose token goes deep."""
        return [row for row, doubt in enumerate(doubts) if doubt >= self.threshold]
