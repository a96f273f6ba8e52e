"""wandb for a run, offline by default. A failure of wandb costs one message and nothing else.

WANDB_MODE, WANDB_DISABLED, WANDB_PROJECT, WANDB_NAME and WANDB_RUN_ID mean what they mean to wandb.
RUN/wandb.json keeps the run's id, so that a resumed run goes on as the same run of wandb.
"""

import json
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from run_core.files import write_file

WANDB_MODES = ("offline", "online", "disabled")
PROJECT = "reso-llm"
SECONDS = 9.0  # to start or to finish; a failed online start leaves room for offline
_ONLINE_SECONDS = 6.0
_OTHER_NAMES = {"dryrun": "offline", "run": "online"}  # of modes, in wandb's earlier versions

Report = Callable[[str], None]


def chosen_mode(environment: Mapping[str, str], configured: str, is_flag: bool) -> str:
    """The mode of a run whose configuration, or a flag that overrode it, says `configured`.

    A flag comes before the environment and that before a file; `disabled` is never overridden.
    Raises ValueError naming a variable that holds no mode.
    """
    if is_flag or configured == "disabled":
        return configured
    if environment.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    mode = environment.get("WANDB_MODE") or configured
    mode = _OTHER_NAMES.get(mode, mode)
    if mode not in WANDB_MODES:
        raise ValueError(f"WANDB_MODE = {mode}: expected {', '.join(WANDB_MODES)}")
    return mode


def run_id(run_dir: Path, resumes: bool) -> str:
    """WANDB_RUN_ID, the id the resumed run had, or a new one; kept in RUN/wandb.json."""
    path = run_dir / "wandb.json"
    identity = os.environ.get("WANDB_RUN_ID") or (_kept_id(path) if resumes else None)
    identity = identity or secrets.token_hex(4)
    write_file(path, json.dumps({"id": identity}).encode() + b"\n")
    return identity


def _kept_id(path: Path) -> str | None:
    try:
        kept = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    known = isinstance(kept, dict) and isinstance(kept.get("id"), str)
    return kept["id"] if known else None


class WandbLog:
    """A wandb run, or none: the first error of wandb costs one message and ends its use."""

    def __init__(
        self,
        mode: str,
        run_dir: Path,
        config: Mapping[str, Any],
        report: Report,
        resumes: bool,
    ) -> None:
        self._report, self._run = report, None
        self._run_dir, self._config, self._resumes = run_dir, config, resumes
        deadline = time.monotonic() + SECONDS
        if mode == "online":
            reason = self._start("online", _ONLINE_SECONDS)
            if reason is None:
                return
            report(
                f"wandb: not online ({reason}); logging offline to {run_dir / 'wandb'}, "
                "upload it later with: wandb sync"
            )
        if mode != "disabled":
            seconds = deadline - time.monotonic()
            reason = self._start("offline", seconds)
            if reason is not None and mode == "offline":
                report(f"wandb: not started ({reason}); the run goes on without it")

    def _start(self, mode: str, seconds: float) -> str | None:
        """None when the run has started, else the reason why not."""
        try:
            self._run = _within(seconds, lambda: self._init(mode, seconds - 1))
        except Exception as error:  # noqa: BLE001 - wandb may raise anything; it is reported
            return _reason(error)
        return None

    def _init(self, mode: str, seconds: float) -> Any:
        project, name = os.environ.get("WANDB_PROJECT"), os.environ.get("WANDB_NAME")
        identity = run_id(self._run_dir, self._resumes)
        wandb = _import_wandb()
        settings = wandb.Settings(silent=True, console="off", init_timeout=seconds)
        wandb.setup(settings=settings)
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("no API key is configured")
        return wandb.init(
            mode=mode,
            project=project or PROJECT,
            name=name or self._run_dir.name,
            id=identity,
            resume="allow" if mode == "online" else None,
            dir=str(self._run_dir),
            config=dict(self._config),
            settings=settings,
        )

    def log(self, row: Mapping[str, Any]) -> None:
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
            _within(SECONDS, self._run.finish)
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up("finishing", error)

    def _give_up(self, action: str, error: Exception) -> None:
        self._run = None
        self._report(f"wandb: {action} failed ({_reason(error)}); the run goes on without it")


def _import_wandb() -> Any:
    """wandb, with the variables out of its way that are decided here or that it cannot read."""
    # Without network, sending its error reports holds the process for 5 s at exit.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    decided = {"WANDB_MODE", "WANDB_DISABLED"}
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if name in decided or not os.environ[name]:  # empty means unset to people
            del os.environ[name]
    import wandb

    return wandb


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


def _reason(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return lines[0] or type(error).__name__
