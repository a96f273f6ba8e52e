"""Attention received: where the newest tokens of a text looked, over all layers and heads.

    a_j = sum over layers l, heads h and newest tokens t of g_lt softmax_j(q_lht . k_lhj / sqrt(K))

g_lt is 0 where the coherence gate skipped layer l for token t, else 1. Divided by its sum, a is a
share of attention, not an explanation of what was written (Jain & Wallace 2019, arXiv 1902.10186).
`Stepper.received` is the same sum, kept while a row is written. Shapes: T time, H heads, K head
width, L layers, n newest tokens.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from reso_llm.model import ResoLLMModel


@torch.inference_mode()
def received_attention(
    model: ResoLLMModel, ids: Tensor, num_new: int, goal: Tensor | None = None
) -> np.ndarray:
    """a (T,) of ids (1,T), from its last num_new >= 1 tokens, read in one pass."""
    looks: dict[int, Tensor] = {}  # of the layers that ran for any token, (n,T)

    def look(layer: int, module, inputs) -> None:
        q, k, _ = module.project(*inputs[:3])
        looks[layer] = _weights(q[:, :, -num_new:], k, module.window).sum((0, 1))

    hooks = [
        block.attention.register_forward_pre_hook(partial(look, layer))
        for layer, block in enumerate(model.blocks)
    ]
    try:  # a state, as only with one a window allows more than max_seq_len tokens
        diagnostics = model.trunk(ids, model.init_state(), goal).diagnostics
    finally:
        for hook in hooks:
            hook.remove()
    if "gates" in diagnostics:
        ran = diagnostics["gates"][0, -num_new:] != 0  # (n,L-1)
        for layer in looks.keys() - {0}:
            looks[layer] = looks[layer] * ran[:, layer - 1 : layer]
    total = torch.stack([weights.sum(0) for weights in looks.values()]).sum(0)
    return total.double().cpu().numpy()


def _weights(q: Tensor, k: Tensor, window: int) -> Tensor:
    """Causal attention weights (1,H,n,T) of the last n positions."""
    new, time = q.shape[2], k.shape[2]
    scores = q.float() @ k.float().mT * k.shape[-1] ** -0.5
    mask = torch.ones(new, time, dtype=torch.bool, device=q.device).tril(time - new)
    if window:
        mask = mask.triu(time - new - window + 1)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)
