"""A run directory: its lock, its checkpoints, its records, and the signals that end it."""

import contextlib
import fcntl
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import util as process_util
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from torch import Tensor

from run_core.checkpoint import (
    MANIFEST,
    STEP_NAME,
    CheckpointError,
    CorruptCheckpointError,
    Document,
    FormatVersionError,
    RunBusyError,
    cannot,
    entries,
    make_directory,
    save_directory,
    trash_name,
    verify,
    write_file,
)
from run_core.hardware import environment


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


Report = Callable[[str], None]


class TrainingError(RuntimeError):
    """The run cannot start or go on; the message says why and what to do."""


def find_start(run_dir: Path, resume: bool, report: Report) -> Path | None:
    """The checkpoint to go on from; TrainingError where `resume` and the directory disagree."""
    newest = newest_checkpoint(run_dir, report) if resume else None
    if resume and newest is None:
        if (run_dir / "config.yaml").exists():
            report(f"{run_dir} has no checkpoint yet: starting from step 0")
        else:
            raise TrainingError(f"{run_dir} holds no run to resume; leave out --resume")
    elif not resume and any((run_dir / "checkpoints").glob("*step_*")):
        raise TrainingError(f"{run_dir} already holds a run; add --resume or choose another --out")
    return newest


def write_records(run_dir: Path, config: Any, device: torch.device) -> None:
    """What a run was asked to do (`to_dict`, `seed`), and where it is done."""
    write_file(run_dir / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False).encode())
    record = json.dumps(environment(device) | {"seed": config.seed}, indent=2)
    write_file(run_dir / "environment.json", record.encode() + b"\n")


@contextmanager
def catch_signals(report: Report) -> Iterator[list[str]]:
    """Collect SIGINT and SIGTERM; after the first, a second one acts as usual and ends at once."""
    caught: list[str] = []

    def catch(number: int, frame: Any) -> None:
        caught.append(signal.Signals(number).name)
        for each, handler in before.items():
            signal.signal(each, handler)
        with suppress(OSError, RuntimeError):  # a closed pipe, or a print inside a print
            report(f"{caught[0]}: saving after this step (again to leave at once)")

    before = {s: signal.signal(s, catch) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


BEST = "best.json"


@contextlib.contextmanager
def lock_run(run_dir: str | Path) -> Iterator[None]:
    """Hold RUN/.lock: the only writer of the run directory while the block runs.

    Raises RunBusyError when a live process holds it, CheckpointError when it cannot be made.
    """
    path = Path(run_dir, ".lock")
    try:
        handle = path.open("a+")
    except OSError as error:
        raise CheckpointError(cannot("lock the run directory", path, error)) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunBusyError(_busy(handle, run_dir)) from error
        except OSError as error:
            raise CheckpointError(cannot("lock the run directory", path, error)) from error
        # A forked worker shares the lock and may outlive a killed parent: it lets go at once.
        process_util.register_after_fork(handle, lambda inherited: inherited.close())
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _busy(handle: TextIO, run_dir: str | Path) -> str:
    handle.seek(0)
    pid = handle.read().strip() or "unknown"
    return (
        f"another process (pid {pid}) is writing to {run_dir}; "
        "wait for it, stop it, or choose another run directory"
    )


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

    `tensors` is {part: {name: tensor}}, `documents` is {file name: text or JSON object}. A sound
    checkpoint of that step is returned as it is; a corrupt one is set aside first. The host needs
    memory for one more copy of the largest part.

    Raises ValueError (naming the tensor) for non-finite or tied tensors and for what is not JSON,
    CheckpointError when the disk refuses; then the earlier checkpoints are untouched.
    """
    path = checkpoint_path(run_dir, step)
    if not Path(run_dir).is_dir():
        raise CheckpointError(f"run directory {run_dir} is gone; step {step} was not saved")
    if path.exists():
        try:
            verify(path)
            return path
        except FormatVersionError:
            raise
        except CorruptCheckpointError:
            _set_aside(path)
    if not path.parent.is_dir():
        make_directory(path.parent)
    return save_directory(path, tensors=tensors, documents=documents, step=step)


def newest_checkpoint(run_dir: str | Path, warn: Callable[[str], None]) -> Path | None:
    """The newest sound checkpoint of a run; None only if the run never had one.

    For the writer of the run: corrupt newer ones are renamed to `corrupt-step_…`, with one
    warning line each. Raises CheckpointError listing them when none is sound, so that a run
    never restarts at step 0 in silence, and FormatVersionError for another format.
    """
    for path in _step_directories(run_dir):
        try:
            verify(path)
            return path
        except FormatVersionError:
            raise
        except CorruptCheckpointError as error:
            aside = _set_aside(path)
            warn(f"checkpoint {path} set aside as {aside.name}: {error.file} {error.reason}")
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
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    best = best_checkpoint(path)
    if best:
        return best
    for newest in _step_directories(path):
        return newest
    raise CheckpointError(
        f"no checkpoint at {path}: looked for {MANIFEST}, {BEST} and checkpoints/step_* in it"
    )


def record_best(run_dir: str | Path, step: int, bits_per_byte: float) -> None:
    """Note in RUN/best.json that `step`, already saved, is the best so far.

    A kill may fall between the save and this record: repeat it when resuming from such a step.
    Raises ValueError for a non-finite value or an unsaved step, CheckpointError when the disk
    refuses.
    """
    if not math.isfinite(bits_per_byte) or not checkpoint_path(run_dir, step).is_dir():
        raise ValueError(f"step {step} ({bits_per_byte} bits per byte) is no saved, finite best")
    path = Path(run_dir, BEST)
    record = {"step": step, "validation_bits_per_byte": float(bits_per_byte)}
    try:
        write_file(path, json.dumps(record).encode() + b"\n")
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


_UNBEST = f"delete {BEST} to use the newest checkpoint"


def _best_step(run_dir: str | Path) -> int | None:
    path = Path(run_dir, BEST)
    try:
        return int(json.loads(path.read_bytes())["step"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(cannot("read", path, error)) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged; {_UNBEST}") from error


def _step_directories(run_dir: str | Path) -> list[Path]:
    """Newest first."""
    found = entries(Path(run_dir, "checkpoints"), "step_")
    steps = [path for path in found if STEP_NAME.fullmatch(path.name)]
    return sorted(steps, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def prune(run_dir: str | Path, keep_last: int, keep_best: bool) -> list[Path]:
    """Delete all but the newest `keep_last` checkpoints (and the best); return the deleted.

    Nothing is deleted unless the newest one verifies, so a sound one remains at every instant.
    Raises ValueError for keep_last < 1, CheckpointError when the disk refuses.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; at least one checkpoint must stay")
    paths = _step_directories(run_dir)
    best = _best_step(run_dir) if keep_best else None
    old = [path for path in paths[keep_last:] if _step_of(path) != best]
    if not old or not _is_sound(paths[0]):
        return []
    for path in old:
        try:
            _delete(path)
        except OSError as error:
            raise CheckpointError(cannot("delete", path, error)) from error
    return old


def clean_leftovers(run_dir: str | Path) -> list[Path]:
    """Remove what killed processes left half written or half deleted; return it.

    Call it holding the lock: a live writer's temporary files look the same.
    Raises CheckpointError when the disk refuses.
    """
    run_dir = Path(run_dir)
    left = [p for d in (run_dir, run_dir / "checkpoints") for p in entries(d, ".tmp-", ".trash-")]
    for path in left:
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise CheckpointError(cannot("remove", path, error)) from error
    return left


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
    shutil.rmtree(trash)


def _set_aside(path: Path) -> Path:
    base = path.with_name(f"corrupt-{path.name}")
    aside, number = base, 1
    while aside.exists():
        number += 1
        aside = base.with_name(f"{base.name}-{number}")
    run_dir = path.parent.parent
    try:
        if _best_step(run_dir) == _step_of(path):
            Path(run_dir, BEST).unlink()  # a record must not outlive what it names
        os.rename(path, aside)
    except OSError as error:
        raise CheckpointError(cannot("set aside", path, error)) from error
    return aside
