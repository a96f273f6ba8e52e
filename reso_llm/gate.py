"""Coherence gate: adaptive depth per token, the same function in training and inference.

    h_l  = sigma(w_l . norm(x) + c_l r + b_l)               halting probability after layer l
    g_l  = max(0, 1 - (h_1 + ... + h_{l-1}) / threshold)    what is left for layer l, g_1 = 1
    x   <- x + g_l attention(norm x),   x <- x + g_l feed_forward(norm x)

The halting probabilities accumulate as in adaptive computation time (Graves 2016, arXiv
1603.08983), and r is the token's Kuramoto order parameter, zero without that stage. Once the sum
reaches the threshold, g is exactly zero: leaving the layer out changes nothing, so what inference
skips is what training has learnt. A skipped token's keys and values are still written from its
last state (CALM, Schuster 2022, arXiv 2207.07061). Training adds a price on the mean of sum_l g_l.

Shapes: B batch, T time, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reso_llm.fused import rms_norm

FIRST_HALTING = -4.0  # sigma(-4) = 0.018: a new model uses nearly all of every layer


class CoherenceGate(nn.Module):
    """Halting probability after one layer: x (B,T,D), r (B,T) or None -> (B,T,1)."""

    def __init__(self, dim: int, has_coherence: bool) -> None:
        super().__init__()
        self.halting = nn.Linear(dim, 1)
        self.coherence_scale = nn.Parameter(torch.empty(())) if has_coherence else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Blind to the token, and hardly ever halting."""
        nn.init.zeros_(self.halting.weight)
        nn.init.constant_(self.halting.bias, FIRST_HALTING)
        if self.coherence_scale is not None:
            nn.init.zeros_(self.coherence_scale)

    def forward(self, x: Tensor, coherence: Tensor | None) -> Tensor:
        z = self.halting(rms_norm(x))
        if coherence is not None and self.coherence_scale is not None:
            z = torch.addcmul(z, self.coherence_scale, coherence.unsqueeze(-1))
        return torch.sigmoid(z)


def remaining(gate: Tensor | None, halting: Tensor, threshold: float) -> Tensor:
    """g of the next layer from that of this one (None: the first) and the halting after it.

    What is left never rises again, so taking h / threshold away each time is the sum's form.
    """
    before = torch.ones_like(halting) if gate is None else gate
    return F.relu(torch.sub(before, halting, alpha=1 / threshold))
