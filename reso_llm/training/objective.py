"""The training objective: the mean loss of one optimizer step, taken in one pass or in several.

    loss = (sum of nats over all targets of the step) / (number of these targets)

The sum is over every window of the step, so a step of eight windows has one loss however the
windows are split into passes. Goals are drawn from the step's own replies (hindsight).

Shapes: B windows of a pass, T tokens, V vocabulary, D width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reso_llm.data.windows import Batch
from reso_llm.network import ResoNetwork
from reso_llm.stages.goal import draw_goals, hindsight_goals


def count_targets(batches: Sequence[Batch], replies_only: bool) -> int:
    """The number of tokens in the batches that the loss counts."""
    return sum(int(b.reply.sum()) if replies_only else b.targets.numel() for b in batches)


class StepObjective:
    """The loss of one optimizer step over `batches`, one batch a pass.

    The losses of the passes sum to the step's mean loss. progress is the share of the training
    that is done. `num_targets` and `num_windows` are the step's totals; were its batches spread
    over several processes, the totals of all of them would be summed here.
    """

    def __init__(
        self,
        network: ResoNetwork,
        batches: Sequence[Batch],
        generator: torch.Generator,
        *,
        replies_only: bool = False,
        progress: float = 1.0,
    ) -> None:
        self.network, self.batches = network, batches
        self.replies_only, self.progress = replies_only, progress
        self.num_targets = count_targets(batches, replies_only)
        self.num_windows = sum(len(batch.inputs) for batch in batches)
        self.draws = None
        if network.goal is not None and any(bool(batch.reply.any()) for batch in batches):
            shape = (self.num_windows, batches[0].inputs.shape[1], network.config.dim)
            self.draws = draw_goals(shape, generator)

    def pass_loss(self, index: int) -> Tensor:
        """The term of pass `index` in the step's mean loss: nats per target, ().

        The price of depth is a mean over windows, the loss one over targets. The price is scaled
        so that a pass pays for its share of the windows, whatever its share of the targets.
        """
        batch = self.batches[index]
        weight = self.network.embedding.weight
        windows = self.num_windows / len(batch.inputs)  # as many such passes make up the step
        count = count_targets([batch], self.replies_only)
        targets = self.num_targets / count if count else windows  # without targets the loss is 0
        loss = self.network.loss(
            batch.inputs,
            batch.targets,
            batch.reply if self.replies_only else None,
            self._goals(index, weight.detach()),
            self.network.prsc.fold_of(batch.starts) if self.network.prsc is not None else None,
            weight,
            self.progress * (targets / windows),
        )
        return loss / targets

    def _goals(self, index: int, table: Tensor) -> Tensor | None:
        """Hindsight goals (B,D) of a pass, from its rows of the step's draws."""
        if self.draws is None:
            return None
        batch = self.batches[index]
        first = sum(len(before.inputs) for before in self.batches[:index])
        draws = self.draws.part(slice(first, first + len(batch.inputs)))
        return hindsight_goals(F.embedding(batch.targets, table), batch.reply, draws)


def training_loss(
    network: ResoNetwork,
    batch: Batch,
    generator: torch.Generator,
    replies_only: bool = False,
    progress: float = 1.0,
) -> Tensor:
    """The loss of a step of one batch: mean nats per target, ()."""
    options = {"replies_only": replies_only, "progress": progress}
    return StepObjective(network, [batch], generator, **options).pass_loss(0)
