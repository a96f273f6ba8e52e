"""Token embedding with a smear of the previous token.

    e_t = norm(E[id_t]),   x_t = norm(e_t + sigma(w . e_t[:16]) lambda e_{t-1})

The smear gives every layer the previous token for the price of one addition (modded-nanogpt).
Its state in decoding is the last token's embedding.
"""

import torch
from torch import Tensor, nn

from reso_llm.fused import rms_norm

GATE_WIDTH = 16


class TokenEmbedding(nn.Module):
    """ids (B,T) and the previous embedding (B,1,D) or None -> x (B,T,D) and the last embedding."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, dim)
        self.smear_gate = nn.Linear(min(GATE_WIDTH, dim), 1, bias=False)
        self.smear_scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal table (it may also serve as the output head), no smear."""
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.zeros_(self.smear_gate.weight)
        nn.init.zeros_(self.smear_scale)

    def forward(self, ids: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        e = rms_norm(self.table(ids))
        if previous is None:
            previous = torch.zeros_like(e[:, :1])
        shifted = torch.cat((previous, e[:, :-1]), dim=1)
        gate = self.smear_scale * torch.sigmoid(
            self.smear_gate(e[..., : self.smear_gate.in_features])
        )
        return rms_norm(e + gate * shifted), e[:, -1:]
