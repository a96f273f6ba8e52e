"""Attention received: where the newest tokens of a text looked, over all layers and heads.

    a_j = mean over layers l, heads h and newest tokens t of softmax_j(q_lht . k_lhj / sqrt(K))

A share of attention, not an explanation of what was written (Jain & Wallace 2019, arXiv
1902.10186). Shapes: T time, H heads, K head width, n newest tokens.
"""

import numpy as np
import torch
from torch import Tensor

from reso_llm.model import ResoLLMModel


@torch.inference_mode()
def received_attention(
    model: ResoLLMModel, ids: Tensor, num_new: int, goal: Tensor | None = None
) -> np.ndarray:
    """a (T,) of ids (1,T), from its last num_new tokens; it sums to 1, or is 0 for none."""
    total = torch.zeros(ids.shape[1], device=ids.device)
    if not num_new:
        return total.cpu().numpy()

    def look(module, inputs) -> None:
        x, rotary, value, *_ = inputs
        q, k, _ = module._project(x, rotary, value)
        total.add_(_weights(q[:, :, -num_new:], k, module.window).mean((0, 1, 2)))

    hooks = [block.attention.register_forward_pre_hook(look) for block in model.blocks]
    try:
        model.trunk(ids, goal=goal)
    finally:
        for hook in hooks:
            hook.remove()
    return (total / len(model.blocks)).float().cpu().numpy()


def _weights(q: Tensor, k: Tensor, window: int) -> Tensor:
    """Causal attention weights (1,H,n,T) of the last n positions."""
    new, time = q.shape[2], k.shape[2]
    scores = q @ k.mT * k.shape[-1] ** -0.5
    mask = torch.ones(new, time, dtype=torch.bool, device=q.device).tril(time - new)
    if window:
        mask = mask.triu(time - new - window + 1)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)
