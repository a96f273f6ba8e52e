"""The training objective: the network's loss of a batch, with goals drawn from its own replies."""

import torch
import torch.nn.functional as F
from torch import Tensor

from reso_llm.data.windows import Batch
from reso_llm.network import ResoNetwork
from reso_llm.stages.goal import hindsight_goals


def training_loss(
    network: ResoNetwork,
    batch: Batch,
    generator: torch.Generator,
    replies_only: bool = False,
    progress: float = 1.0,
) -> Tensor:
    """`loss` of a batch of the fitted text, with hindsight goals drawn for half of the rows.

    progress is the share of the training that is done.
    """
    goal = fold = None
    weight = network.embedding.weight
    if network.goal is not None and batch.reply.any():
        vectors = F.embedding(batch.targets, weight.detach())  # (B,T,D)
        goal = hindsight_goals(vectors, batch.reply, generator)
    if network.prsc is not None:
        fold = network.prsc.fold_of(batch.starts)
    mask = batch.reply if replies_only else None
    return network.loss(batch.inputs, batch.targets, mask, goal, fold, weight, progress)
