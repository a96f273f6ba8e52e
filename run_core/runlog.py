"""The record of a run: metrics.jsonl, its picture loss.png, and wandb.

    RUN/metrics.jsonl   one JSON object a line, each with "step"; `Curves` names the numbers that
                        the picture is drawn from
    RUN/loss.png        drawn from metrics.jsonl (extra `plots`)
    RUN/wandb/          offline by default; it can fail in any way and only costs one message

metrics.jsonl is the truth and a run that cannot write it stops. The picture and wandb are
conveniences and never stop or change a run.
"""

import io
import itertools
import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from run_core.checkpoint import write_file

WANDB_MODES = ("offline", "online", "disabled")
_WANDB_SECONDS = 9.0  # to start or to finish; a failed online start leaves room for offline
_ONLINE_SECONDS = 6.0

Report = Callable[[str], None]
Row = Mapping[str, Any]


class Curves(NamedTuple):
    """The numbers of the rows that loss.png shows, and the labels of their axes."""

    along: str
    training: str
    validation: str
    labels: tuple[str, str, str]


LANGUAGE_MODEL = Curves(
    along="tokens",
    training="loss_nats",
    validation="validation_bits_per_byte",
    labels=(
        "tokens seen in training", "training loss\n(nats per token)", "validation\n(bits per byte)"
    ),
)  # fmt: skip


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
        self._wandb = _Wandb(wandb, Path(run_dir).resolve(), config, report)

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
            self._report(f"no loss.png: {_reason(error)}")

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
    if before.st_nlink == 0:  # writing on would succeed and keep nothing
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


def _reason(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return lines[0] or type(error).__name__


# --- loss.png ---------------------------------------------------------------------------------


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
    write_file(png_path, _draw(training, validation, curves.labels))
    return True


Curve = tuple[list[float], list[float]]  # tokens or steps, values


def _curve(rows: list[dict[str, Any]], along: str, name: str) -> Curve:
    points = [(row.get(along), row.get(name)) for row in rows]
    points = [(place, value) for place, value in points if None not in (place, value)]
    return [place for place, _ in points], [value for _, value in points]


def _smooth(values: list[float]) -> list[float]:
    """Mean over a centred twentieth of the curve: unlike a running mean, it does not lag."""
    sums = [0.0, *itertools.accumulate(values)]
    half = len(values) // 40
    smooth = []
    for i in range(len(values)):
        left = min(half, i)
        right = min(left, len(values) - 1 - i)  # no wider than left: the first drop stays sharp
        smooth.append((sums[i + right + 1] - sums[i - left]) / (left + right + 1))
    return smooth


def _draw(training: Curve, validation: Curve, labels: tuple[str, str, str]) -> bytes:
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise ImportError("matplotlib is missing, pip install 'reso-llm[plots]'") from error
    # A Figure of its own, not pyplot: no backend, window or style of the caller is touched.
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw_training(upper, *training)
    _draw_validation(lower, *validation)
    for axes, label in ((upper, labels[1]), (lower, labels[2])):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    lower.set_xlabel(labels[0])
    lower.xaxis.set_major_formatter(EngFormatter(sep=""))
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw_training(axes, places: list[float], loss: list[float]) -> None:
    if not loss:
        return
    smooth = _smooth(loss)
    label = f"each row, from {loss[0]:.2f}"
    last = f"smoothed, to {smooth[-1]:.3f}"
    axes.plot(places, loss, color="#56B4E9", linewidth=0.8, alpha=0.6, label=label)
    axes.plot(places, smooth, color="#0072B2", linewidth=2, label=last)
    low, high = min(loss), max(smooth[len(loss) // 50 :])  # the first drop would flatten the rest
    axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
    axes.legend(frameon=False)


def _draw_validation(axes, places: list[float], scores: list[float]) -> None:
    if not scores:
        return
    best = min(range(len(scores)), key=scores.__getitem__)
    last = f"last: {scores[-1]:.4f}"
    axes.plot(places, scores, color="#D55E00", linewidth=2, marker="o", markersize=4, label=last)
    label = f"best: {scores[best]:.4f}"
    axes.plot(places[best], scores[best], "*", color="black", markersize=14, label=label)
    axes.legend(frameon=False)


# --- wandb ------------------------------------------------------------------------------------


class _Wandb:
    """A wandb run, or nothing: whatever wandb raises costs one message and ends its use."""

    def __init__(self, mode: str, run_dir: Path, config: Mapping[str, Any], report: Report):
        self._report, self._run = report, None
        deadline = time.monotonic() + _WANDB_SECONDS
        if mode == "online":
            reason = self._start("online", run_dir, config, _ONLINE_SECONDS)
            if reason is None:
                return
            report(
                f"wandb: not online ({reason}); logging offline to {run_dir / 'wandb'}, "
                "upload it later with: wandb sync"
            )
        if mode != "disabled":
            left = deadline - time.monotonic()
            reason = self._start("offline", run_dir, config, left)
            if reason is not None and mode == "offline":
                report(f"wandb: not started ({reason}); the run goes on without it")

    def _start(self, mode: str, run_dir: Path, config, seconds: float) -> str | None:
        """None when the run has started, else the reason why not."""
        try:
            self._run = _within(seconds, lambda: _init_wandb(mode, run_dir, config, seconds - 1))
        except Exception as error:  # noqa: BLE001 - wandb raises what it likes; it is reported
            return _reason(error)
        return None

    def log(self, row: Row) -> None:
        if self._run is None:
            return
        try:
            self._run.log(dict(row), step=row["step"])
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up("logging", error)

    def finish(self) -> None:
        if self._run is None:
            return
        try:
            _within(_WANDB_SECONDS, self._run.finish)
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up("finishing", error)

    def _give_up(self, action: str, error: Exception) -> None:
        self._run = None
        self._report(f"wandb: {action} failed ({_reason(error)}); the run goes on without it")


def _init_wandb(mode: str, run_dir: Path, config: Mapping[str, Any], seconds: float):
    # Without network, sending its error reports holds the process for 5 s at exit.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    for name in [name for name, value in os.environ.items() if not value]:
        if name.startswith("WANDB_"):  # empty means unset to people and is an error to wandb
            del os.environ[name]
    import wandb

    settings = wandb.Settings(silent=True, console="off", init_timeout=seconds)
    wandb.setup(settings=settings)
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        raise RuntimeError("no API key is configured")
    return wandb.init(
        mode=mode,
        project="reso-llm",
        name=run_dir.name,
        dir=str(run_dir),
        config=dict(config),
        settings=settings,
    )


def _within(seconds: float, action: Callable[[], Any]) -> Any:
    """The result of `action`, or TimeoutError; a hanging action is left behind in its thread."""
    outcome: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put((action(), None))
        except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
            outcome.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = outcome.get(timeout=max(seconds, 0))
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:.0f} s") from None
    if error is not None:
        raise RuntimeError(_reason(error)) from error
    return result
