"""The training objective: the mean loss of one optimizer step, taken in one pass or in several.

    loss = (sum of nats over all targets of the step) / (number of these targets)

The sum is over every window of the step, so a step of eight windows has one loss however the
windows are split into passes, and the passes over processes. Goals are drawn from the step's own
replies (hindsight). Half of the windows know of their document what a reader of all of it would,
the other half nothing: a text may begin anywhere, and a network that never meets that leaves too
much to the echo.

Shapes: B windows of a pass, T tokens, V vocabulary, D width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reso_llm.data.windows import Batch
from reso_llm.network import ResoNetwork
from reso_llm.stages.goal import draw_goals, hindsight_goals
from reso_llm.training.document_past import DocumentPast
from run_core.world import ALONE, World

KNOWN_SHARE = 0.5  # of the windows that know their document's past


def count_targets(batches: Sequence[Batch], replies_only: bool) -> int:
    """The number of tokens in the batches that the loss counts."""
    return sum(int(b.reply.sum()) if replies_only else b.targets.numel() for b in batches)


class StepObjective:
    """The loss of one optimizer step over `batches`, one batch a pass.

    The losses of the passes, over all processes of `world`, sum to the step's mean loss. Every
    process is given the whole batches, draws for all of their windows, and takes the loss of its
    own rows. past: what the windows know of their documents; without it they know of nothing before
    them. `num_targets` is the step's total.
    """

    def __init__(
        self,
        network: ResoNetwork,
        batches: Sequence[Batch],
        generator: torch.Generator,
        *,
        past: DocumentPast | None = None,
        replies_only: bool = False,
        world: World = ALONE,
    ) -> None:
        self.network, self.batches, self.world = network, batches, world
        self.past, self.replies_only = past, replies_only
        self.num_targets = count_targets(batches, replies_only)
        num_windows = sum(len(batch.inputs) for batch in batches)
        self.draws = None
        if network.goal is not None and any(bool(batch.reply.any()) for batch in batches):
            shape = (num_windows, batches[0].inputs.shape[1], network.config.dim)
            self.draws = draw_goals(shape, generator)
        self.known = torch.rand(num_windows, generator=generator) < KNOWN_SHARE

    def pass_loss(self, index: int) -> Tensor:
        """The term of this process's rows of pass `index` in the step's mean loss: nats, ()."""
        own = self.world.rows(len(self.batches[index].inputs), "batch_size")
        batch = Batch(*(values[own] for values in self.batches[index]))
        past, rows = self.past, self._rows(index, own)
        weight = self.network.embedding.weight
        count = count_targets([batch], self.replies_only)
        loss = self.network.loss(
            batch.inputs,
            batch.targets,
            batch.reply if self.replies_only else None,
            self._goals(batch, rows, weight.detach()),
            self.network.prsc.fold_of(batch.starts) if self.network.prsc is not None else None,
            weight,
            None if past is None else past.tail(batch.starts, self.known[rows]),
            None if past is None else past.evidence(
                batch.starts, batch.inputs.shape[1], self.known[rows]
            ),
        )  # fmt: skip
        return loss * (count / self.num_targets)

    def _goals(self, batch: Batch, rows: slice, table: Tensor) -> Tensor | None:
        """Hindsight goals (B,D) of a batch, from its rows of the step's draws."""
        if self.draws is None:
            return None
        vectors = F.embedding(batch.targets, table)
        return hindsight_goals(vectors, batch.reply, self.draws.part(rows))

    def _rows(self, index: int, own: slice) -> slice:
        """Where rows of a pass are among the windows of the step."""
        first = sum(len(before.inputs) for before in self.batches[:index])
        return slice(first + own.start, first + own.stop)
