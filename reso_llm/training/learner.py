"""Learner: the model, its optimizers and its place in the data; one optimizer step a call.

A step reads its windows, takes the gradient in one pass or in several, and moves the parameters
only where the loss and every gradient are finite.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from reso_llm.data.token_cache import TokenData
from reso_llm.data.windows import Batch, BatchStream
from reso_llm.model import ResoLLMModel
from reso_llm.training.config import TrainConfig
from reso_llm.training.document_past import DocumentPast
from reso_llm.training.initial import Initial
from reso_llm.training.objective import StepObjective, count_targets
from reso_llm.training.optim import (
    distributed,
    learning_rate_factor,
    make_optimizers,
    match_layout,
    set_learning_rate,
)
from reso_llm.training.sharding import (
    by_sharding,
    gathered,
    gradient_norm,
    is_sharded,
    own_part,
    recompute_blocks,
    shard,
)
from run_core.hardware import autocast, keep_freed_memory
from run_core.run import TrainingError
from run_core.saved_state import rng_state, set_rng_state
from run_core.signals import Abandoned
from run_core.world import ALONE, World

MAX_EPOCHS = 10  # each cuts the data at other places, so a short reply may be missed by a few


class StepResult(NamedTuple):
    """Result of one optimizer step."""

    loss_nats: float  # mean over all targets of the step
    tokens: int  # read
    problem: str | None  # what is not finite; then no parameter has moved


class Learner:
    """Model, optimizers and place in the data of one run: all that a step reads or changes.

    In a `world` of several processes each has its own, all equal after every step.
    `abandonable` makes a context in which Abandoned may be raised; by default it never is.
    """

    abandonable: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init__(
        self,
        config: TrainConfig,
        data: TokenData,
        device: torch.device,
        initial: Initial | None = None,
        world: World = ALONE,
    ) -> None:
        keep_freed_memory()
        torch.manual_seed(config.seed)
        self.config, self.data, self.device, self.world = config, data, device, world
        self.model = ResoLLMModel(config.model).to(device)
        if initial is not None:
            self.model.load_weights(initial.weights, initial.path)
        if not config.keep_memory:
            self.model.fit_bindings(data.train.tokens, data.path)
        self.past = DocumentPast(data.train, self.model)
        if config.activation_checkpointing:
            recompute_blocks(self.model)
        self.sharded = config.shard and world.size > 1
        if self.sharded:
            shard(self.model, device, world)
        self.optimizers = make_optimizers(self.model, config.optim)
        _let_signals_into_backward(self.model)
        if config.compile:
            self.model.loss = torch.compile(self.model.loss)
        self.go_to(0)

    def go_to(self, position: int) -> None:
        """Read on from `position`, the number of windows read so far."""
        context, seed = self.config.model.max_seq_len, self.config.seed
        self.stream = BatchStream(self.data.train, context, self.config.batch_size, seed, position)

    def step(self, progress: float) -> StepResult:
        """One optimizer step at `progress` (0 to 1) of the budget.

        The gradient is taken within `abandonable()`: a step given up there has changed nothing but
        the place in the data; where one process gives it up, all do. Raises TrainingError where
        MAX_EPOCHS of windows have no token for the loss, or another process is gone.
        """
        start = self.stream.position
        set_learning_rate(self.optimizers, learning_rate_factor(self.config.optim, progress))
        losses = self.world.gather(self._own_gradient())
        if None in losses:
            self.model.zero_grad(set_to_none=True)
            raise Abandoned
        loss = sum(losses)
        self.world.sum_gradients(p for p in self.model.parameters() if not is_sharded(p))
        problem = self.clip(loss)
        if problem is None:
            for optimizer in self.optimizers.values():
                optimizer.step()
        self.model.zero_grad(set_to_none=True)
        num_windows = self.stream.position - start
        return StepResult(loss, num_windows * self.stream.context, problem)

    def _own_gradient(self) -> float | None:
        """`_gradient`, or None where it was given up for a signal.

        A sharded step is not: the processes wait for each other within it.
        """
        try:
            with nullcontext() if self.sharded else self.abandonable():
                return self._gradient()
        except Abandoned:
            return None

    def _gradient(self) -> float:
        """Add up the gradient of this process's rows; their part of the loss, nats per target."""
        batches, generator = self.read()
        objective = StepObjective(
            self.model,
            batches,
            generator,
            past=self.past,
            replies_only=self.config.replies_only,
            world=self.world,
        )
        return sum(self.backward(objective, index) for index in range(len(batches)))

    def read(self) -> tuple[list[Batch], torch.Generator]:
        """The windows of the next step, one batch a pass, and the generator of its goals.

        Every process reads the windows of all, so that they draw and count alike. Windows are
        passed over, a whole step at a time, as long as none has a token for the loss.
        """
        last = self.stream.position + MAX_EPOCHS * self.stream.windows_per_epoch
        while True:
            # Seeded by the place in the data, so that a resumed run draws the same. 32 bits are
            # all that torch reads of a seed.
            place = self.config.seed * 2654435761 + self.stream.position
            batches = [self._next_batch() for _ in range(self.config.grad_accumulation)]
            if count_targets(batches, self.config.replies_only):
                if self.world.size > 1:  # each process drops out units of its own
                    torch.manual_seed((place + self.world.rank) % 2**63)
                return batches, torch.Generator().manual_seed(place % 2**32)
            if self.stream.position > last:
                raise TrainingError(
                    f"replies_only: {MAX_EPOCHS} epochs of windows have no token of a reply; give "
                    "data with longer replies or a larger model.max_seq_len"
                )

    def _next_batch(self) -> Batch:
        return Batch(*(values.to(self.device) for values in self.stream.next()))

    def backward(self, objective: StepObjective, index: int) -> float:
        """Add the gradient of one pass; what it adds to the step's loss, nats per target."""
        forward = partial(objective.pass_loss, index)
        with autocast(self.device):
            loss = self.model.forward_pass(forward) if self.sharded else forward()
        loss.backward()
        return loss.item()

    def clip(self, loss: float) -> str | None:
        """Clip the gradients, or name what is not finite and leave them as they are."""
        if not math.isfinite(loss):
            return "the loss"
        norm = gradient_norm(self.model.parameters(), self.world)
        if not math.isfinite(norm):
            names = self.world.gather(_first_bad_gradient(self.model))
            return f"the gradient of {next(filter(None, names), 'all parameters together')}"
        for parameters in by_sharding(self.model.parameters()):
            clip_grads_with_norm_(parameters, self.config.optim.grad_clip, norm)
        return None

    def whole_model(self) -> ResoLLMModel | None:
        """The model with all of its weights; all processes call it together.

        Of a sharded one a copy, in the first process, and None in the others.
        """
        if not self.sharded:
            return self.model
        weights = gathered(self.model.state_dict(), self.world)
        if not self.world.is_first:
            return None
        model = ResoLLMModel.from_weights(self.config.model, weights, "this run")
        return model.to(self.device)

    def load_weights(self, weights: dict[str, Tensor], source: str | Path) -> None:
        """Take over the whole weights of a checkpoint; ValueError where they do not fit."""
        own = self.model.state_dict()
        parts = {n: distributed(t, own[n]) if n in own else t for n, t in weights.items()}
        self.model.load_weights(parts, source)

    def state(self) -> dict[str, Any]:
        """State of the optimizers and generators, for `restore`; all processes call it together.

        What is sharded is whole in the first process, and None in the others.
        """
        state = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return gathered(state, self.world) | {"generators": rng_state({})}

    def restore(self, state: dict[str, Any], position: int) -> None:
        """Take over a saved `state`; full learning rates stay those of this run."""
        for name, optimizer in self.optimizers.items():
            for own, saved in zip(optimizer.param_groups, state[name]["param_groups"], strict=True):
                saved["peak_lr"] = own["peak_lr"]  # the learning rates may be lowered on the way
            optimizer.load_state_dict(state[name])
            match_layout(optimizer)
        set_rng_state(state["generators"], {})
        self.go_to(position)


def _let_signals_into_backward(model: ResoLLMModel) -> None:
    """Let a backward pass run some Python: Python handles a signal only between instructions."""

    def nothing(parameter: Tensor) -> None:
        pass

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(nothing)


def _first_bad_gradient(model: ResoLLMModel) -> str | None:
    return next((n for n, p in model.named_parameters() if not _is_finite(p.grad)), None)


def _is_finite(grad: Tensor | None) -> bool:
    return grad is None or bool(torch.isfinite(own_part(grad)).all())
