"""Training of one reactor, or of several that may converge.

Several reactors see the same batches and differ by their start alone; the losses are those of
`cer.losses`. A step depends on its number, the seed, the weights and the optimizer alone, so a
resumed run ends with the same bits. The run directory, its checkpoints and its metrics are
`cer.run`'s.

Shapes: B batch, S positions, V outcomes, R reactors.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cer.losses import (
    LossWeights,
    convergence_score,
    divergence_nats,
    mean_losses,
    reactor_losses,
    total_loss,
)
from cer.next_byte import NextBytes
from cer.reactor import CoherentEntropyReactor
from cer.tasks import Batch, Distributions, TaskConfig
from entropy_core.information import kl_nats

WEIGHTS, STEPS, HELD_OUT = range(3)  # uses of a run's seed, each with a stream of its own


@dataclass(frozen=True)
class ReactorConfig:
    """Shape and set point of a reactor (mode `corrected`); widths in and out are the task's.

    Args:
        hidden_dim: D, width of the state.
        num_layers: refinement blocks.
        num_heads: of attention, a divisor of hidden_dim.
        num_refinement_steps: steps of each block.
        num_oscillators: N, a divisor of hidden_dim.
        target_entropy: set point, nats.
        drift_strength: modulation by the oscillators.
        max_drift_deficit: most that one step changes the entropy, nats; 0 for no control.
    """

    hidden_dim: int = 256
    num_layers: int = 2
    num_heads: int = 4
    num_refinement_steps: int = 3
    num_oscillators: int = 16
    target_entropy: float = 3.0
    drift_strength: float = 0.1
    max_drift_deficit: float = 2.0


@dataclass(frozen=True)
class CERTrainConfig:
    """A training run of reactors. Raises ValueError for an option out of range.

    Args:
        kind: what is trained; a configuration of kind language_model is reso_llm's.
        reactor: shape of each reactor.
        task: what they learn from.
        loss: weights of its terms.
        num_reactors: how many are trained together.
        steps: optimizer steps.
        batch_size: examples a step.
        learning_rate: of AdamW; it rises over the first twentieth and falls to 0 linearly.
        grad_clip: largest norm of a reactor's gradient.
        seed: of the weights and of the data.
        validate_every: steps between scores on held-out examples.
        val_size: held-out examples.
        log_every: steps between rows of metrics.
        save_every: steps between checkpoints.
        keep_last: checkpoints kept.
        out: run directory.
        wandb: where the run is also logged: offline, online or disabled.
    """

    kind: Literal["reactor"] = "reactor"
    reactor: ReactorConfig = field(default_factory=ReactorConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    num_reactors: int = 1
    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 1e-3
    grad_clip: float = (math.sqrt(5) - 1) / 2
    seed: int = 0
    validate_every: int = 50
    val_size: int = 128
    log_every: int = 10
    save_every: int = 100
    keep_last: int = 2
    out: str = "runs/cer"
    wandb: Literal["offline", "online", "disabled"] = "offline"

    def __post_init__(self) -> None:
        for name in ("num_reactors", "steps", "batch_size", "validate_every", "val_size",
                     "log_every", "save_every", "keep_last"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "grad_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed}")
        if self.loss.coupling and self.num_reactors == 1:
            raise ValueError("loss.coupling needs num_reactors of at least 2")

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as nested plain values."""
        return asdict(self)


# --- the loop -----------------------------------------------------------------------------------


class Progress(NamedTuple):
    """State of a run that a checkpoint holds beside the weights."""

    step: int
    seconds: float
    optimizer: dict[str, Any]


class Validation(NamedTuple):
    """Means over the held-out examples."""

    kl_nats: tuple[float, ...]  # one a reactor
    convergence: float | None  # None for one reactor

    def to_row(self) -> dict[str, float]:
        """The scores by name, the mean over the reactors among them."""
        row = {f"validation_kl_nats_{i}": kl for i, kl in enumerate(self.kl_nats)}
        row["validation_kl_nats"] = sum(self.kl_nats) / len(self.kl_nats)
        return row if self.convergence is None else row | {"convergence": self.convergence}


Row = dict[str, Any]


def stream_seed(seed: int, purpose: int, index: int = 0) -> int:
    """The seed of one stream, 32 bits: torch's CPU generator ignores all higher bits."""
    return int(np.random.SeedSequence((seed, purpose, index)).generate_state(1)[0])


def _generator(seed: int, purpose: int, index: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(seed, purpose, index))


def make_reactors(config: CERTrainConfig) -> nn.ModuleList:
    """New reactors from the seed alone; no two reactors or seeds share weights."""
    reactors = nn.ModuleList()
    V = config.task.num_outcomes
    with torch.random.fork_rng(devices=()):
        for i in range(config.num_reactors):
            torch.manual_seed(stream_seed(config.seed, WEIGHTS, i))
            reactors.append(CoherentEntropyReactor(V, output_dim=V, **asdict(config.reactor)))
    return reactors


def make_data(config: TaskConfig, texts: Sequence[str] | None) -> Distributions | NextBytes:
    """The batches of a task; ValueError where next_byte has no texts."""
    if config.task != "next_byte":
        return Distributions(config)
    if texts is None:
        raise ValueError("task next_byte needs texts: name them as task.data")
    return NextBytes(config, texts)


class Trainer:
    """Reactors, optimizer and data of one run.

    `reactors` may hold other modules to compare with, called alike and with `.reactions`. `texts`
    are the task next_byte's; ValueError where it has none.
    """

    def __init__(
        self,
        config: CERTrainConfig,
        reactors: nn.ModuleList | None = None,
        texts: Sequence[str] | None = None,
    ) -> None:
        self.config = config
        self.data = make_data(config.task, texts)
        self.reactors = make_reactors(config) if reactors is None else reactors
        self.optimizer = torch.optim.AdamW(
            self.reactors.parameters(), lr=config.learning_rate, weight_decay=0.0
        )
        self.step, self.seconds = 0, 0.0
        self.abandonable: Callable[[], AbstractContextManager] = nullcontext
        for parameter in self.reactors.parameters():
            # Python handles a signal between its own instructions: a backward pass gets some.
            parameter.register_post_accumulate_grad_hook(lambda _: None)

    def restore(self, weights: Mapping[str, Tensor], progress: Progress) -> None:
        """Go on from a checkpoint."""
        self.reactors.load_state_dict(dict(weights))
        self.optimizer.load_state_dict(progress.optimizer)
        self.step, self.seconds = progress.step, progress.seconds

    def progress(self) -> Progress:
        return Progress(self.step, self.seconds, self.optimizer.state_dict())

    def train_step(self) -> Row:
        """One optimizer step; the terms of its loss, means over the reactors.

        Raises FloatingPointError when a reaction or a gradient is not finite, and whatever
        `abandonable()` raises in a long step; the weights are then as before.
        """
        started = time.perf_counter()
        with self.abandonable():
            row = self._gradient()
        self._update()
        self.step += 1
        self.seconds += time.perf_counter() - started
        return {"step": self.step, "seconds": self.seconds, **row}

    def _gradient(self) -> Row:
        """Take the gradient of a step; the terms of its loss."""
        config = self.config
        generator = _generator(config.seed, STEPS, self.step)
        batch = self.data.batch(config.batch_size, generator)
        answers = [reactor(batch.x, log=False).reactions for reactor in self.reactors]
        self._require_finite("a reaction", torch.stack(answers))
        losses = [
            reactor_losses(reactor, batch, logits, config.loss, generator)
            for reactor, logits in zip(self.reactors, answers, strict=True)
        ]
        total = sum(total_loss(each, config.loss) for each in losses)
        row = mean_losses(losses)
        if config.loss.coupling:
            coupling = divergence_nats(answers)
            total = total + config.loss.coupling * coupling
            row["coupling_nats"] = coupling.item()
        self._backward(total)
        return row

    def _backward(self, total: Tensor) -> None:
        """Take the gradient of a loss and clip each reactor's."""
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        for reactor in self.reactors:  # each alone, so that none is shortened by another
            norm = nn.utils.clip_grad_norm_(reactor.parameters(), self.config.grad_clip)
            self._require_finite("a gradient", norm)

    def _update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._schedule()
        self.optimizer.step()

    def _require_finite(self, what: str, values: Tensor) -> None:
        if not values.isfinite().all():
            raise FloatingPointError(f"step {self.step + 1}: {what} is not finite")

    def _schedule(self) -> float:
        done = self.step / self.config.steps
        return min(1.0, (self.step + 1) / math.ceil(self.config.steps / 20), 1 - done)

    @torch.no_grad()
    def validate(self) -> Validation:
        """Scores on held-out examples, the same at every call."""
        batch = held_out_batch(self.config, self.data)
        answers = [reactor(batch.x, log=False).reactions for reactor in self.reactors]
        wanted = batch.target.shape[1]
        answers = [logits[:, -wanted:] for logits in answers]
        kl = tuple(kl_nats(batch.target.log(), logits).mean().item() for logits in answers)
        several = len(answers) > 1
        return Validation(kl, convergence_score(answers).item() if several else None)


def held_out_batch(config: CERTrainConfig, data: Distributions | NextBytes) -> Batch:
    """The val_size held-out examples of a run; no training step draws from their stream."""
    return data.batch(config.val_size, _generator(config.seed, HELD_OUT), held_out=True)
