"""Attention received: where the newest tokens of a text looked, over all layers and heads.

    a_j = sum over layers l, heads h and newest tokens t of g_lt softmax_j(q_lht . k_lhj / sqrt(K))

g_lt is 0 where the coherence gate skipped layer l for token t, else 1. Divided by its sum, a is a
share of attention, not an explanation of what was written (Jain & Wallace 2019, arXiv 1902.10186).
`Stepper.received` is the same sum, kept while a row is written. Shapes: T time, H heads, K head
width, L layers, n newest tokens.
"""

import numpy as np
import torch
from torch import Tensor

from reso_llm.network import ResoNetwork
from reso_llm.stages.attention import AttentionReceived


@torch.inference_mode()
def received_attention(
    network: ResoNetwork, ids: Tensor, num_new: int, goal: Tensor | None = None
) -> np.ndarray:
    """a (T,) of ids (1,T), from its last num_new >= 1 tokens, read in one pass."""
    received = AttentionReceived(num_new)
    # A state, as only with one a window allows more than max_seq_len tokens.
    network.trunk(ids, network.init_state(), goal, received=received)
    return received.total.double().cpu().numpy()
