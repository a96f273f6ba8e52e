"""A run of reactors: `cer.training` computes, the run directory is `run_core`'s.

    RUN/config.yaml  environment.json  metrics.jsonl  loss.png  checkpoints/  wandb/

The directory is locked, written and resumed by the same rules as a language model's: a run killed
at any moment and resumed ends with the same weights.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cer.training import CERTrainConfig, Progress, Trainer, Validation
from run_core import terminal
from run_core.checkpoint import get_document, load_checkpoint
from run_core.files import expanded
from run_core.hardware import require_memory
from run_core.loss_picture import Curves
from run_core.run import (
    Report,
    TrainingError,
    changed_keys,
    find_start,
    open_run,
    prune,
    save_checkpoint,
    write_records,
)
from run_core.runlog import RunLog
from run_core.saved_state import flatten_state, unflatten_state
from run_core.signals import Abandoned, StopRequests, catch_signals
from run_core.world import launch

# Keys that may change when a run is resumed: its budget, its place, how it is watched. Every other
# key changes the weights.
RESUMABLE = {
    "kind", "out", "steps", "validate_every", "log_every", "save_every", "keep_last", "wandb",
}  # fmt: skip
CURVES = Curves(
    along="step",
    training="kl_nats",
    validation="validation_kl_nats",
    labels=("optimizer steps", "training KL\n(nats)", "validation KL\n(nats)"),
)

Start = tuple[Mapping[str, Tensor], Progress]


class TrainResult(NamedTuple):
    """The trained reactors and how they ended."""

    reactors: nn.ModuleList
    step: int
    seconds: float
    validation: Validation | None  # None where a signal cut the run short


def train(
    config: CERTrainConfig,
    *,
    resume: bool = False,
    report: Report = terminal.report,
    texts: Sequence[str] | None = None,
) -> TrainResult:
    """Train reactors into config.out; messages go to `report`, progress to stderr.

    `texts` are what the task next_byte reads.

    A signal to stop saves after the step at hand and ends the run. Raises TrainingError,
    CheckpointError or RunLogError with one message, ValueError for unfit data, FloatingPointError
    when a reaction or a gradient is not finite.
    """
    config = dataclasses.replace(config, out=expanded(config.out))
    if launch()["processes"] > 1:
        raise TrainingError("a reactor trains in one process: start it without torchrun")
    _require_memory(config)
    with open_run(config.out, resume) as run_dir:
        start = _start(config, resume, report)
        trainer = Trainer(config, texts=texts)
        if start is not None:
            trainer.restore(*start)
            report(f"resuming at step {trainer.step:,}")
        if trainer.step >= config.steps:
            report(
                f"{config.out} is finished at step {trainer.step:,} (steps = {config.steps}); to "
                f"go on give a larger budget, for example --resume --steps {2 * config.steps}"
            )
        write_records(run_dir, config, torch.device("cpu"))
        with (
            catch_signals(report) as stops,
            _open_log(trainer, report) as log,
            _progress_bar(trainer) as bar,
        ):
            _run(trainer, log, bar, stops)
            validation = _validate(trainer, stops)
        if trainer.step < config.steps or validation is None:
            report(f"stopped by {stops.first} at step {trainer.step}; --resume goes on")
        return TrainResult(trainer.reactors, trainer.step, trainer.seconds, validation)


def _validate(trainer: Trainer, stops: StopRequests) -> Validation | None:
    """The scores, or None where they are given up for a signal."""
    try:
        with stops.abandonable():
            return trainer.validate()
    except Abandoned:
        return None


def _require_memory(config: CERTrainConfig) -> None:
    """MemoryError, before anything is built, for reactors or examples that cannot fit."""
    cpu, shape, V = torch.device("cpu"), config.reactor, config.task.num_outcomes
    least = config.num_reactors * (shape.num_layers * shape.hidden_dim**2 + V * shape.hidden_dim)
    require_memory(16 * least, cpu, f"training {least:,} parameters")  # weight, gradient, AdamW's
    for name in ("batch_size", "val_size"):
        size = getattr(config, name)
        needed = size * config.task.num_positions * (V + shape.hidden_dim) * 4
        require_memory(needed, cpu, f"{name} = {size:,} examples")


def _run(trainer: Trainer, log: RunLog, bar: tqdm, stops: StopRequests) -> None:
    """Step to config.steps or to the first signal; the last step is logged, scored and saved.

    The rows of a step are logged before its checkpoint is saved.
    """
    config, stopped = trainer.config, False
    trainer.abandonable = stops.abandonable
    while trainer.step < config.steps and not stopped:
        try:
            row, stopped = trainer.train_step(), bool(stops)
        except Abandoned:
            return _save(trainer)
        bar.update()
        last = stopped or trainer.step == config.steps
        if last or trainer.step % config.log_every == 0:
            log.log(row)
            bar.set_postfix_str(f"KL {row['kl_nats']:.4f} nats")
        if last or trainer.step % config.validate_every == 0:
            scores = _validate(trainer, stops)
            if scores is not None:
                row = {"step": trainer.step, "seconds": trainer.seconds, **scores.to_row()}
                log.log(row)
                log.plot(CURVES)
        if last or trainer.step % config.save_every == 0:
            _save(trainer)


def _open_log(trainer: Trainer, report: Report) -> RunLog:
    return RunLog(
        trainer.config.out,
        resume_step=trainer.step or None,
        wandb=trainer.config.wandb,
        config=trainer.config.to_dict(),
        report=report,
    )


def _progress_bar(trainer: Trainer) -> tqdm:
    steps = trainer.config.steps
    return terminal.progress_bar("training", total=steps, initial=trainer.step, unit="step")


def _start(config: CERTrainConfig, resume: bool, report: Report) -> Start | None:
    """(weights, progress) to go on from; TrainingError where --resume and --out disagree."""
    newest = find_start(Path(config.out), resume, report)
    if newest is None:
        return None
    tensors, documents = load_checkpoint(newest, ("model", "optimizer"))
    saved = get_document(documents, newest, "training.json", "config")
    if "reactor" not in saved["config"]:
        raise TrainingError(f"{newest} is no reactor's checkpoint; choose another --out")
    changed = changed_keys(saved["config"], config.to_dict(), RESUMABLE)
    if changed:
        raise TrainingError(
            f"{newest} was trained with another configuration: {', '.join(changed)}; resume "
            "without these options, or start a new run with another --out"
        )
    get_document(documents, newest, "training.json", "state", "step", "seconds")
    optimizer = unflatten_state(tensors["optimizer"], saved["state"])
    return tensors["model"], Progress(saved["step"], saved["seconds"], optimizer)


def _save(trainer: Trainer) -> None:
    config, progress = trainer.config, trainer.progress()
    optimizer, state = flatten_state(progress.optimizer)
    record = {"step": progress.step, "seconds": progress.seconds}
    save_checkpoint(
        config.out,
        progress.step,
        tensors={"model": trainer.reactors.state_dict(), "optimizer": optimizer},
        documents={"training.json": record | {"config": config.to_dict(), "state": state}},
    )
    prune(config.out, config.keep_last)
