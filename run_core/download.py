"""Downloads from the Hugging Face hub, in a child process with a deadline.

The hub's library waits for minutes on a server that accepts and never answers, so a download runs
in a child process that is ended when nothing has moved for `deadline` seconds:

    problem = fetch("package.module:function", [argument, ...], folder, deadline)

The function fetches into `folder`, which is in the library's own cache, and calls `probe` first.
"""

from __future__ import annotations

import importlib
import os
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

PROBE_SECONDS = 10.0
CHILD = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from run_core.download import call_in_child; call_in_child(*sys.argv[2:])"
)


def is_offline() -> bool:
    """Whether the environment forbids the hub's network."""
    flags = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(flag.upper() in {"1", "ON", "YES", "TRUE"} for flag in flags)


def cache_folder(kind: str, repo_id: str) -> Path:
    """Folder in which the hub's library keeps a repository; `kind` is "datasets" or "models"."""
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE)
    return cache / f"{kind}--{repo_id.replace('/', '--')}"


def fetch(target: str, arguments: Sequence[str], folder: Path, deadline: float) -> str:
    """Call `target` with `arguments` in a child process; "" or what went wrong, in words.

    target: "package.module:function". The child is ended when `folder` has not changed for
    `deadline` seconds.
    """
    package_root = str(Path(__file__).resolve().parents[1])
    # Plain HTTP into the watched directory: the Xet transfer keeps its progress elsewhere.
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, package_root, target, *arguments],
            env=os.environ | quiet,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            code = _wait(child, folder, deadline)
        finally:
            child.kill()
            child.wait()
        errors.seek(0)
        lines = errors.read().decode("utf-8", errors="replace").strip().splitlines()
    if code is None:
        return f"the hub did not answer within {deadline:g} seconds"
    return "" if code == 0 else f"the hub cannot be used ({lines[-1] if lines else code})"


def call_in_child(target: str, *arguments: str) -> None:
    """Body of the child process: call the function; an error becomes one line on stderr."""
    sys.excepthook = lambda kind, error, trace: sys.stderr.write(_first_line(kind, error) + "\n")
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)(*arguments)


def probe(url: str) -> None:
    """Fail within seconds when nothing answers at `url`; any answer is good enough."""
    try:
        urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except urllib.error.URLError as error:
        # The hub's library brings its own certificates; those of Python may be missing.
        if not isinstance(error.reason, ssl.SSLError):
            raise


def _wait(child: subprocess.Popen[bytes], folder: Path, deadline: float) -> int | None:
    """Exit code of the child, None when `folder` stood still for `deadline` seconds."""
    before, since = _state(folder), time.monotonic()
    while time.monotonic() - since < deadline:
        try:
            return child.wait(timeout=min(0.25, deadline))
        except subprocess.TimeoutExpired:
            now = _state(folder)
            if now != before:
                before, since = now, time.monotonic()
    return None


def _state(folder: Path) -> tuple[int, int]:
    """(number, total bytes) of the files below `folder`."""
    count = size = 0
    for path in folder.rglob("*"):
        try:
            size += path.stat().st_size
        except OSError:  # renamed meanwhile
            continue
        count += 1
    return count, size


def _first_line(kind: type[BaseException], error: BaseException) -> str:
    text = str(error).strip()
    return f"{kind.__name__}: {text.splitlines()[0] if text else 'no details'}"
