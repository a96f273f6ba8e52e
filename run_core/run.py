"""A run directory: who may write to it, its records, and which of its checkpoints counts.

    RUN/.lock               the process that writes to it (`lock.py`)
    RUN/config.yaml         what was asked for; environment.json says where it is done
    RUN/best.json           step and validation bits per byte of the best checkpoint
    RUN/checkpoints/        step_00000100, ...: the checkpoints (`checkpoint.py`)
        corrupt-step_*          set aside because verification failed
        .tmp-*  .trash-*        half written or deleted; never read, cleared at start

A directory that holds other files is not written to: they belong to the user.
"""

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from run_core.checkpoint import (
    MANIFEST,
    STEP_NAME,
    CheckpointError,
    CorruptCheckpointError,
    Document,
    FormatVersionError,
    save_directory,
    verify,
)
from run_core.files import (
    cannot,
    entries,
    leftovers,
    remove,
    seal,
    sync_directory,
    trash_name,
    unseal,
    write_file,
)
from run_core.hardware import environment
from run_core.lock import LOCK, is_marked, lock_run

BEST, CONFIG, ENVIRONMENT = "best.json", "config.yaml", "environment.json"
_RECORDS = {BEST, CONFIG, ENVIRONMENT, "metrics.jsonl", "loss.png", "wandb.json"}
_BEST_KEYS = {"step", "validation_bits_per_byte"}

Report = Callable[[str], None]


class TrainingError(RuntimeError):
    """A run of either model cannot start or go on; the message says why and what to do."""


# --- the directory --------------------------------------------------------------------------


@contextmanager
def open_run(run_dir: str | Path, resume: bool = False) -> Iterator[Path]:
    """Lock a run directory for one writer, and remove the leftovers of killed processes.

    It is made where it is missing, unless to `resume`. Raises TrainingError for no run to resume,
    CheckpointError for a directory with files of the user's own (nothing in it is touched) or
    where the disk refuses, RunBusyError while another process writes to it.
    """
    run_dir = Path(run_dir)
    if resume and not run_dir.is_dir():
        raise TrainingError(f"{run_dir} holds no run to resume; leave out --resume")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(run_dir)
    except OSError as error:
        raise CheckpointError(cannot("make the run directory", run_dir, error)) from error
    with lock_run(run_dir):
        clean_leftovers(run_dir)
        yield run_dir


def _refuse_foreign(run_dir: Path) -> None:
    names = sorted(set(os.listdir(run_dir)) - {LOCK})
    if names and not (is_marked(run_dir) or _has_checkpoint(run_dir) or _has_record(run_dir)):
        raise CheckpointError(
            f"{run_dir} holds files that are no run's ({', '.join(names[:3])}); "
            "choose a new or an empty directory with --out"
        )


def _has_checkpoint(run_dir: Path) -> bool:
    checkpoints = entries(run_dir / "checkpoints", "step_", "corrupt-step_")
    return any((path / MANIFEST).is_file() for path in checkpoints)


def _has_record(run_dir: Path) -> bool:
    """Whether environment.json is a run's: earlier versions left no mark in .lock."""
    try:
        record = json.loads((run_dir / ENVIRONMENT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and {"command", "commit", "packages", "seed"} <= record.keys()


def find_start(run_dir: Path, resume: bool, report: Report) -> Path | None:
    """The checkpoint to go on from; TrainingError where `resume` and the directory disagree."""
    newest = newest_checkpoint(run_dir, report) if resume else None
    if resume and newest is None:
        if not (run_dir / CONFIG).exists():
            raise TrainingError(f"{run_dir} holds no run to resume; leave out --resume")
        report(f"{run_dir} has no checkpoint yet: starting from step 0")
    elif not resume and entries(run_dir / "checkpoints", "step_", "corrupt-step_"):
        raise TrainingError(f"{run_dir} already holds a run; add --resume or choose another --out")
    return newest


def write_records(run_dir: str | Path, config: Any, device: torch.device, **more: Any) -> None:
    """Write config.yaml (from `to_dict`) and environment.json, with `more` in it, of a run."""
    run_dir = Path(run_dir)
    import yaml  # here, so that a model needs no more than torch

    write_file(run_dir / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False).encode())
    record = json.dumps(environment(device) | {"seed": config.seed} | more, indent=2)
    write_file(run_dir / ENVIRONMENT, record.encode() + b"\n")


def changed_keys(
    saved: dict[str, Any], now: dict[str, Any], resumable: Collection[str], prefix: str = ""
) -> list[str]:
    """Dotted keys in which two resolved configurations differ, but for the `resumable` ones."""
    changed = []
    for key in sorted(saved.keys() | now.keys()):
        old, new = saved.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += changed_keys(old, new, resumable, f"{prefix}{key}.")
        elif old != new and f"{prefix}{key}" not in resumable:
            changed.append(f"{prefix}{key} ({old} -> {new})")
    return changed


def clean_leftovers(run_dir: str | Path) -> list[Path]:
    """Remove what killed processes left half written or half deleted; return it.

    Call it holding the lock: a live writer's temporary files look the same. Files of other names
    stay. Raises CheckpointError when the disk refuses.
    """
    run_dir = Path(run_dir)
    stale = leftovers(run_dir, _RECORDS.__contains__)
    stale += leftovers(run_dir / "checkpoints", lambda name: bool(STEP_NAME.fullmatch(name)))
    for each in stale:
        try:
            remove(each.path)
        except OSError as error:
            raise CheckpointError(cannot("remove", each.path, error)) from error
    return [each.path for each in stale]


# --- its checkpoints ------------------------------------------------------------------------


def checkpoint_path(run_dir: str | Path, step: int) -> Path:
    """RUN/checkpoints/step_00000100 for step 100."""
    return Path(run_dir, "checkpoints", f"step_{step:08d}")


def save_checkpoint(
    run_dir: str | Path,
    step: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Document],
) -> Path:
    """Write the checkpoint of `step` and return its directory.

    A sound checkpoint of that step is returned as it is; a corrupt one is set aside first. The host
    needs memory for one more copy of the largest part. Arguments and errors are those of
    `save_directory`; the earlier checkpoints are untouched.
    """
    path = checkpoint_path(run_dir, step)
    if not Path(run_dir).is_dir():
        raise CheckpointError(f"run directory {run_dir} is gone; step {step} was not saved")
    if os.path.lexists(path):
        try:
            verify(path)
            return path
        except FormatVersionError:
            raise
        except CorruptCheckpointError:
            _set_aside(path)
    if not path.parent.is_dir():
        _make_directory(path.parent)
    return save_directory(path, tensors=tensors, documents=documents, step=step)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir()
        sync_directory(path.parent)
    except OSError as error:
        raise CheckpointError(cannot("make directory", path, error)) from error


def newest_checkpoint(run_dir: str | Path, warn: Callable[[str], None]) -> Path | None:
    """The newest sound checkpoint of a run; None only if the run never had one.

    For the writer of the run: corrupt newer ones, files and broken links of such a name among
    them, are renamed to `corrupt-step_…` with one warning line each. Raises CheckpointError
    listing them when none is sound, so that a run never restarts at step 0 in silence, and
    FormatVersionError for another format.
    """
    for path in step_paths(run_dir):
        try:
            verify(path)
        except FormatVersionError:
            raise
        except CorruptCheckpointError as error:
            aside = _set_aside(path)
            warn(f"checkpoint {path} set aside as {aside.name}: {error.file} {error.reason}")
        else:
            _clear_stale_best(run_dir, warn)
            return path
    corrupt = entries(Path(run_dir, "checkpoints"), "corrupt-")
    if corrupt:
        raise CheckpointError(
            f"no usable checkpoint in {run_dir}, all are corrupt: "
            f"{', '.join(path.name for path in corrupt)}; restore one from a copy, "
            "or delete them to start the run again from step 0"
        )
    return None


def resolve(path: str | Path) -> Path:
    """The checkpoint directory meant by `path`: itself, or the best (else newest) of a run.

    Read-only and without verification, which loading does. Raises CheckpointError naming what
    was looked for.
    """
    path = Path(path).expanduser()
    if (path / MANIFEST).is_file():
        return path
    best = best_checkpoint(path)
    if best:
        return best
    for newest in filter(Path.is_dir, step_paths(path)):
        return newest
    raise CheckpointError(
        f"no checkpoint at {path}: looked for {MANIFEST}, {BEST} and checkpoints/step_* in it"
    )


def step_paths(run_dir: str | Path) -> list[Path]:
    """The paths with the name of a checkpoint, the newest first, sound or not."""
    directory = Path(run_dir, "checkpoints")
    try:
        paths = entries(directory, "step_")
    except OSError as error:
        raise CheckpointError(cannot("read", directory, error)) from error
    steps = [path for path in paths if STEP_NAME.fullmatch(path.name)]
    return sorted(steps, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def prune(run_dir: str | Path, keep_last: int, best_step: int | None = None) -> list[Path]:
    """Delete all but the newest `keep_last` checkpoints and `best_step`; return the deleted.

    Nothing is deleted unless the newest one verifies, so a sound one remains at every instant. Of
    a checkpoint that was moved away and linked back, the link is deleted.
    Raises ValueError for keep_last < 1, CheckpointError when the disk refuses.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; at least one checkpoint must stay")
    paths = [path for path in step_paths(run_dir) if path.is_dir()]
    old = [path for path in paths[keep_last:] if _step_of(path) != best_step]
    if not old or not _is_sound(paths[0]):
        return []
    for path in old:
        try:
            _delete(path)
        except OSError as error:
            raise CheckpointError(cannot("delete", path, error)) from error
    return old


def _is_sound(path: Path) -> bool:
    try:
        verify(path)
    except CorruptCheckpointError:
        return False
    return True


def _delete(path: Path) -> None:
    """Out of sight in one step, then file by file: a kill never leaves a torn checkpoint."""
    trash = trash_name(path)
    os.rename(path, trash)
    remove(trash)


def _set_aside(path: Path) -> Path:
    """Rename to corrupt-NAME, so that it is neither used nor lost."""
    base = path.with_name(f"corrupt-{path.name}")
    aside, number = base, 1
    while os.path.lexists(aside):
        number += 1
        aside = base.with_name(f"{base.name}-{number}")
    try:
        os.rename(path, aside)
    except OSError as error:
        raise CheckpointError(cannot("set aside", path, error)) from error
    return aside


# --- the best of them -----------------------------------------------------------------------


def record_best(run_dir: str | Path, step: int, bits_per_byte: float) -> None:
    """Note in RUN/best.json, with a checksum, that `step`, already saved, is the best so far.

    A kill may fall between the save and this record: repeat it when resuming.
    Raises ValueError for a non-finite value or an unsaved step, CheckpointError when the disk
    refuses.
    """
    if not math.isfinite(bits_per_byte) or not checkpoint_path(run_dir, step).is_dir():
        raise ValueError(f"step {step} ({bits_per_byte} bits per byte) is no saved, finite best")
    path = Path(run_dir, BEST)
    record = {"step": step, "validation_bits_per_byte": float(bits_per_byte)}
    try:
        write_file(path, seal(record))
    except OSError as error:
        raise CheckpointError(cannot("write", path, error)) from error


def best_checkpoint(run_dir: str | Path) -> Path | None:
    """The checkpoint named by RUN/best.json, None if none was recorded.

    Raises CheckpointError when the record is damaged or its checkpoint is gone.
    """
    step = _best_step(run_dir)
    if step is None:
        return None
    path = checkpoint_path(run_dir, step)
    if not path.is_dir():
        raise CheckpointError(f"{Path(run_dir, BEST)} names {path.name}, which is gone; {_UNBEST}")
    return path


_UNBEST = f"delete {BEST} to use the newest checkpoint, or --resume the run"


def _best_step(run_dir: str | Path) -> int | None:
    path = Path(run_dir, BEST)
    try:
        data = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise CheckpointError(cannot("read", path, error)) from error
    if data is None:
        return None
    record = unseal(data) or _unsealed(data)
    if record.keys() != _BEST_KEYS or type(record["step"]) is not int:
        raise CheckpointError(f"{path} is damaged; {_UNBEST}")
    return record["step"]


def _unsealed(data: bytes) -> dict[str, Any]:
    """The record of an earlier version, which wrote no checksum; empty for anything else."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _clear_stale_best(run_dir: str | Path, warn: Report) -> None:
    """Remove a best.json that is damaged, with a warning, or whose checkpoint is gone."""
    try:
        step = _best_step(run_dir)
    except CheckpointError as error:
        warn(str(error))
    else:
        if step is None or checkpoint_path(run_dir, step).is_dir():
            return
    remove(Path(run_dir, BEST))
