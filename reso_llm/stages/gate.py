"""Coherence gate: adaptive depth per token, the same function in training and inference.

    h_l  = sigma(w_l . norm(x) + c_l r + b_l)        halting probability in front of layer l > 1
    g_l  = g_{l-1} - h_l / threshold                 share of layer l that is added, g_1 = 1,
           and 0 where that is at most skip_below
    x   <- x + g_l attention(norm x),   x <- x + g_l feed_forward(norm x)

The halting probabilities accumulate as in adaptive computation time (Graves 2016, arXiv
1603.08983): g_l = 1 - (h_2 + ... + h_l) / threshold. r is the token's Kuramoto order parameter,
zero without that stage. A small share is cut to exactly zero: leaving the layer out changes
nothing, so inference skips what training has learnt to skip. A skipped token's keys and values
are still written from its last state (CALM, Schuster 2022, arXiv 2207.07061). Training adds a
price on the mean of sum_l g_l, which grows from 0 to its full size over the training. The price
alone makes gates small, not zero, so they are cut (soft depth 1.5 at 3.99 layers used,
benchmarks/README.md). The gradient passes the cut, so that a closed layer can open again.

Shapes: B batch, T time, D width.
"""

import math

import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from reso_llm.config import ResoLLMConfig
from reso_llm.stages.arrays import view

FIRST_HALTING = -4.0  # sigma(-4) = 0.018: a new model uses nearly all of every layer


class CoherenceGate(nn.Module):
    """The share g of this layer: norm(x) (B,T,D), r (B,T) or None, g before -> g (B,T,1)."""

    def __init__(self, config: ResoLLMConfig) -> None:
        super().__init__()
        self.threshold = config.coherence_gate.threshold
        self.skip_below = config.coherence_gate.skip_below
        self.halting = nn.Linear(config.dim, 1)
        has_coherence = config.kuramoto.enabled
        self.coherence_scale = nn.Parameter(torch.empty(())) if has_coherence else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Halt almost never, whatever the token."""
        nn.init.zeros_(self.halting.weight)
        nn.init.constant_(self.halting.bias, FIRST_HALTING)
        if self.coherence_scale is not None:
            nn.init.zeros_(self.coherence_scale)

    def silence(self) -> None:
        """Skip no layer whose share is above zero."""
        self.skip_below = 0.0

    def forward(self, normed: Tensor, coherence: Tensor | None, share: Tensor | None) -> Tensor:
        z = self.halting(normed)
        if self.coherence_scale is not None and coherence is not None:
            z = torch.addcmul(z, self.coherence_scale, coherence.unsqueeze(-1))
        before = torch.ones_like(z) if share is None else share
        share = torch.sub(before, torch.sigmoid(z), alpha=1 / self.threshold)
        cut = F.threshold(share, self.skip_below, 0.0)
        # The value is `cut`; the gradient passes the cut, or a closed layer would stay closed.
        return share + (cut - share).detach() if share.requires_grad else cut


class GateStep:
    """One-token form of `CoherenceGate`: the share of a layer, 0 where it is skipped."""

    def __init__(self, module: CoherenceGate) -> None:
        self.weight = view(module.halting.weight)[0]
        self.bias = module.halting.bias.item()
        scale = module.coherence_scale
        self.coherence_scale = None if scale is None else scale.item()
        self.threshold, self.skip_below = module.threshold, module.skip_below

    def __call__(self, normed: ndarray, coherence: float, share: float) -> float:
        z = float(self.weight.dot(normed)) + self.bias
        if self.coherence_scale is not None:
            z += self.coherence_scale * coherence
        share -= (0.5 + 0.5 * math.tanh(0.5 * z)) / self.threshold
        return 0.0 if share <= self.skip_below else share  # NaN stays: damage must show
