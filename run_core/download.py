"""Downloads in a child process, with a deadline: what both hubs' loaders share."""

from __future__ import annotations

import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

PROBE_SECONDS = 10.0


def _offline() -> bool:
    flags = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(flag.upper() in {"1", "ON", "YES", "TRUE"} for flag in flags)


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


def _probe(url: str) -> None:
    """Fail within seconds when nothing answers at `url`; any answer is good enough."""
    try:
        urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except urllib.error.URLError as error:
        # The hub's library brings its own certificates; those of Python may be missing.
        if not isinstance(error.reason, ssl.SSLError):
            raise


def _first_line(kind: type[BaseException], error: BaseException) -> str:
    text = str(error).strip()
    return f"{kind.__name__}: {text.splitlines()[0] if text else 'no details'}"
