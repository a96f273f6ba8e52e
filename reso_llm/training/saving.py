"""Checkpoints of a training run: saving one, and going on from it.

A checkpoint holds everything the next step depends on: weights, optimizer state, generators,
position in the data, counters, configuration and tokenizer. So a run killed at any moment and
resumed ends with the same weights, bit for bit, on the same CPU (with a budget in steps or
tokens; a budget in minutes makes the schedule follow the clock).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import ResoTokenizer
from reso_llm.training.calibration import has_system_messages, stability_calibration
from reso_llm.training.config import RESUMABLE, completed
from reso_llm.training.learner import Learner
from run_core import run
from run_core.checkpoint import build_from, get_document, load_checkpoint
from run_core.run import TrainingError, changed_keys
from run_core.saved_state import flatten_state, unflatten_state

# What a checkpoint's training.json holds at least.
SAVED = ("counters", "tokenizer_fingerprint", "data", "config", "state")


@dataclass
class Counters:
    """Progress of a run; all of it is saved."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    position: int = 0  # windows read
    skipped_steps: int = 0
    bad_steps_in_a_row: int = 0
    best_bits_per_byte: float = math.inf
    best_step: int | None = None


def save(learner: Learner, tokenizer: ResoTokenizer, counters: Counters) -> None:
    """Save the step of `counters`, note it where it is the best, and delete old checkpoints.

    Of several processes, which all call it together, the first does it. Raises TrainingError where
    the weights are not finite, CheckpointError when the disk refuses.
    """
    config = learner.config
    model, state = learner.whole_model(), learner.state()
    if not learner.world.is_first:
        return
    try:
        _save_checkpoint(learner, model, state, tokenizer, counters)
    except ValueError as error:  # non-finite weights after a finite loss
        raise TrainingError(
            f"step {counters.step}: {error}; --resume from the checkpoint before it with lower "
            "learning rates (optim.*_lr)"
        ) from error
    record_best(config.out, counters)
    run.prune(config.out, config.keep_last, counters.best_step)


def restore(learner: Learner, path: Path) -> Counters:
    """Give `learner` the state of a checkpoint; the counters to go on from.

    Raises TrainingError naming the keys or the data that differ from this run's.
    """
    config, data = learner.config, learner.data
    tensors, documents = load_checkpoint(path, parts=("model", "optimizer"))
    training = get_document(documents, path, "training.json", *SAVED)
    changed = changed_keys(completed(training["config"]), config.to_dict(), RESUMABLE)
    if changed:
        raise TrainingError(
            f"{path} was trained with another configuration: {', '.join(changed)}; resume "
            "without these options, or start a new run with another --out"
        )
    if training["data"] != data.path.name:
        raise TrainingError(f"the content of {config.data} changed since {path} was saved")
    counters = build_from(Counters, training["counters"], f"{path}/training.json: counters")
    if counters.best_bits_per_byte is None:
        counters.best_bits_per_byte = math.inf
    learner.load_weights(tensors["model"], path)
    try:
        state = unflatten_state(tensors["optimizer"], training["state"])
        learner.restore(state, counters.position)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise TrainingError(
            f"{path}: the state of its optimizers does not fit this run "
            f"({type(error).__name__}: {error}); use another checkpoint"
        ) from error
    if learner.world.is_first:
        record_best(config.out, counters)  # a kill may have come between the save and this note
    return counters


def _save_checkpoint(
    learner: Learner,
    model: ResoLLMModel,
    state: dict[str, Any],
    tokenizer: ResoTokenizer,
    counters: Counters,
) -> None:
    tensors, document = flatten_state(state)
    best = counters.best_bits_per_byte
    run.save_checkpoint(
        learner.config.out,
        counters.step,
        tensors={"model": model.state_dict(), "optimizer": tensors},
        documents={
            "config.json": learner.config.model.to_dict(),
            "tokenizer.json": tokenizer.to_json(),
            "training.json": {
                "counters": vars(counters)
                | {"best_bits_per_byte": best if math.isfinite(best) else None},
                "tokenizer_fingerprint": tokenizer.fingerprint,
                "system_messages": has_system_messages(learner.data.train),
                "stability_calibration": _stability_calibration(learner, model),
                "data": learner.data.path.name,
                "config": learner.config.to_dict(),
                "state": document,
            },
        },
    )


def record_best(run_dir: str, counters: Counters) -> None:
    """Note in best.json the best step of which there is a checkpoint."""
    step = counters.best_step
    if step and run.checkpoint_path(run_dir, step).is_dir():
        run.record_best(run_dir, step, counters.best_bits_per_byte)


def _stability_calibration(learner: Learner, model: ResoLLMModel) -> dict[str, Any] | None:
    if not model.config.stability.enabled:
        return None
    was_training = model.training
    calibration = stability_calibration(learner.data.val, model.eval())
    model.train(was_training)
    return calibration and calibration._asdict()
