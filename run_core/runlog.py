"""The record of a run, RUN/metrics.jsonl, which also feeds its picture and wandb.

    RUN/metrics.jsonl   one JSON object a line, each with "step"; `Curves` names the numbers that
                        the picture is drawn from
    RUN/loss.png        drawn from metrics.jsonl (`loss_picture.py`, extra `plots`)
    RUN/wandb/          what wandb keeps (`wandb_log.py`)

metrics.jsonl is the truth and a run that cannot write it stops. The picture and wandb are
conveniences and never stop or change a run.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from run_core.files import write_file
from run_core.loss_picture import LANGUAGE_MODEL, Curves, draw_losses
from run_core.wandb_log import WANDB_MODES, WandbLog

Report = Callable[[str], None]
Row = Mapping[str, Any]


class RunLogError(RuntimeError):
    """The metrics of a run cannot be written or read; the message says where and what to do."""


class RunLog:
    """Appends rows to RUN/metrics.jsonl and hands them to wandb.

    `resume_step` is the step of the checkpoint the run continues from: later rows, which the run
    is about to repeat, and a line torn by a kill are removed first; None starts the curve anew.
    Log the rows of a step before saving its checkpoint. `report` receives one line for each
    thing that failed without consequence.

    Raises RunLogError when metrics.jsonl cannot be written, ValueError for an unknown mode.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        resume_step: int | None,
        wandb: str,
        config: Mapping[str, Any],
        report: Report,
    ):
        if wandb not in WANDB_MODES:
            raise ValueError(f"wandb mode {wandb!r} is not one of {', '.join(WANDB_MODES)}")
        self.path = Path(run_dir, "metrics.jsonl")
        self._report, self._plots = report, True
        try:
            _rewind(self.path, resume_step, report)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._wandb = WandbLog(
            wandb, Path(run_dir).resolve(), config, report, resumes=resume_step is not None
        )

    def log(self, row: Row) -> None:
        """Append one row; it needs an integer "step". Non-finite numbers are stored as null.

        Raises ValueError for what JSON cannot hold, RunLogError when the disk refuses; then the
        file ends with the previous row.
        """
        line = _encode(row)
        try:
            _append(self._descriptor, line)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._wandb.log(row)

    def plot(self, curves: Curves = LANGUAGE_MODEL) -> None:
        """Redraw loss.png; the first failure is reported and ends the drawing."""
        if not self._plots:
            return
        try:
            plot_loss(self.path, self.path.with_name("loss.png"), curves)
        except (ImportError, OSError, RunLogError) as error:
            self._plots = False
            self._report(f"no loss.png: {str(error).partition(chr(10))[0]}")

    def close(self) -> None:
        """Finish wandb, at most 9 s, and close metrics.jsonl."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._wandb.finish()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


# --- metrics.jsonl ----------------------------------------------------------------------------


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without a last line that is still being written.

    Raises RunLogError naming file and line of a damaged row, or the file if unreadable.
    """
    rows = []
    try:
        for number, _, row in _lines(Path(path).read_bytes()):
            if row is None:
                raise RunLogError(f"{path}:{number} is not a row of metrics")
            rows.append(row)
    except OSError as error:
        raise RunLogError(f"cannot read {path}: {error.strerror}") from error
    return rows


def _lines(data: bytes) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """(line number, bytes, row or None if damaged) of each finished line."""
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            yield number, line, row if isinstance(row["step"], int) else None
        except (ValueError, TypeError, KeyError, RecursionError):
            yield number, line, None


def _rewind(path: Path, step: int | None, report: Report) -> None:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(errno.EINVAL, "it is not a plain file")
    data = path.read_bytes() if path.exists() else b""
    kept, damaged = [], []
    for number, line, row in _lines(data) if step is not None else ():
        if row is None:
            damaged.append(number)
        elif row["step"] <= step:
            kept.append(line + b"\n")
    if damaged:
        report(f"{path}: dropped {len(damaged)} damaged rows, the first is line {damaged[0]}")
    if b"".join(kept) != data:
        write_file(path, b"".join(kept))


def _encode(row: Row) -> bytes:
    if type(row.get("step")) is not int:
        raise ValueError(f"a row of metrics needs an integer step, not {row.get('step')!r}")
    plain = {}
    for name, value in row.items():
        if value is not None and not isinstance(value, str | int | float):
            raise ValueError(f"metric {name!r} is a {type(value).__name__}, not a Python number")
        finite = not isinstance(value, float) or math.isfinite(value)
        plain[name] = value if finite else None
    return json.dumps(plain).encode() + b"\n"


def _append(descriptor: int, line: bytes) -> None:
    before = os.fstat(descriptor)
    if before.st_nlink == 0:  # writing to a deleted file would succeed and be lost
        raise FileNotFoundError(None, "it was deleted while the run was writing it")
    try:
        while line:
            line = line[os.write(descriptor, line) :]
    except OSError:
        os.ftruncate(descriptor, before.st_size)
        raise


def _unwritable(path: Path, error: OSError) -> RunLogError:
    return RunLogError(
        f"cannot write {path}: {error.strerror}; make room or choose another run directory"
    )


def plot_loss(
    metrics_path: str | Path, png_path: str | Path, curves: Curves = LANGUAGE_MODEL
) -> bool:
    """Draw the training and the validation curve; False if the rows have neither.

    The picture appears whole or not at all. Raises ImportError without matplotlib (naming the
    extra), RunLogError for damaged metrics, OSError when the disk refuses.
    """
    rows = read_metrics(metrics_path)
    training = _curve(rows, curves.along, curves.training)
    validation = _curve(rows, curves.along, curves.validation)
    if not training[0] and not validation[0]:
        return False
    title = Path(png_path).resolve().parent.name
    write_file(png_path, draw_losses(training, validation, curves.labels, title))
    return True


def _curve(rows: list[dict[str, Any]], along: str, name: str) -> tuple[list[float], list[float]]:
    points = [(row.get(along), row.get(name)) for row in rows]
    points = [(place, value) for place, value in points if None not in (place, value)]
    return [place for place, _ in points], [value for _, value in points]
