"""A run of reactors: `cer.training` computes, the run directory is `run_core`'s.

The directory is locked, written and resumed by the same rules as a language model's.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from cer import training
from cer.training import CERTrainConfig, Progress, TrainResult
from run_core.checkpoint import load_checkpoint
from run_core.run import (
    Report,
    TrainingError,
    catch_signals,
    changed_keys,
    clean_leftovers,
    find_start,
    lock_run,
    prune,
    save_checkpoint,
    write_records,
)
from run_core.runlog import RunLog
from run_core.saved_state import flatten_state, unflatten_state

# What may differ when a run is resumed: how long, where to, how it is watched; not what is learnt.
RESUMABLE = {"out", "steps", "validate_every", "log_every", "save_every", "keep_last", "wandb"}

Start = tuple[Mapping[str, Tensor], Progress]


def train(
    config: CERTrainConfig, *, resume: bool = False, report: Report = tqdm.write
) -> TrainResult:
    """Train reactors into config.out; messages go to `report`.

    Raises TrainingError, CheckpointError or RunLogError with one message, ValueError for unfit
    data, FloatingPointError when a reaction or a gradient is not finite.
    """
    run_dir = Path(config.out)
    run_dir.mkdir(parents=True, exist_ok=True)
    with lock_run(run_dir):
        clean_leftovers(run_dir)
        start = _start(config, resume, report)
        write_records(run_dir, config, torch.device("cpu"))
        with catch_signals(report) as caught, _open_log(config, start, report) as log:
            return training.train(
                config,
                start=start,
                save=lambda *parts: _save(config, *parts),
                log=log.log,
                stop=lambda: bool(caught),
            )


def _open_log(config: CERTrainConfig, start: Start | None, report: Report) -> RunLog:
    return RunLog(
        Path(config.out),
        resume_step=start[1].step if start else None,
        wandb=config.wandb,
        config=config.to_dict(),
        report=report,
    )


def _start(config: CERTrainConfig, resume: bool, report: Report) -> Start | None:
    """(weights, progress) to go on from; TrainingError where --resume and --out disagree."""
    newest = find_start(Path(config.out), resume, report)
    if newest is None:
        return None
    tensors, documents = load_checkpoint(newest, ("model", "optimizer"))
    saved = documents["training.json"]
    if "reactor" not in saved["config"]:
        raise TrainingError(f"{newest} is no reactor's checkpoint; choose another --out")
    changed = changed_keys(saved["config"], config.to_dict(), RESUMABLE)
    if changed:
        raise TrainingError(
            f"{newest} was trained with another configuration: {', '.join(changed)}"
        )
    optimizer = unflatten_state(tensors["optimizer"], saved["state"])
    return tensors["model"], Progress(saved["step"], saved["seconds"], optimizer)


def _save(
    config: CERTrainConfig, step: int, weights: dict[str, Tensor], progress: Progress
) -> None:
    optimizer, state = flatten_state(progress.optimizer)
    record = {"step": step, "seconds": progress.seconds, "config": config.to_dict(), "state": state}
    save_checkpoint(
        config.out,
        step,
        tensors={"model": weights, "optimizer": optimizer},
        documents={"training.json": record},
    )
    prune(config.out, config.keep_last, keep_best=False)
