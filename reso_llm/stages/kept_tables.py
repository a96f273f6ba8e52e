"""The binding memory's tables in the data cache: counted once, memory-mapped by every process.

A directory `bindings-KEY` beside the tokens holds one .npy file a table, floats in float32, and
tables.json with the sha256 of each, checked whenever it is opened. It is made under a lock and
renamed, so it is complete or absent.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it whenever the same text gets other tables

Tables = dict[str, np.ndarray]
Count = Callable[[Path | None], tuple[Tables, int]]


def kept_tables(directory: Path, settings: list[Any], count: Count) -> tuple[Tables, int]:
    """The tables kept in `directory` for `settings`, and collisions; counted where there are none.

    `settings` is all that the tables depend on beside the text, which the directory stands for.
    `count` makes them, with files of its own in the directory it is given. Where `directory` cannot
    be written, nothing is kept. The arrays may be written to; the files stay as they are.
    """
    key = hashlib.sha256(json.dumps([FORMAT, *settings]).encode()).hexdigest()[:16]
    final = directory / f"bindings-{key}"
    if not os.access(directory, os.W_OK):
        return _opened(final) or count(None)
    with open(final.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _opened(final)
        if found is None:
            _make(final, count)
            found = _opened(final)
    if found is None:
        raise OSError(f"{final}: the tables changed while they were read; start again")
    return found


def _make(final: Path, count: Count) -> None:
    """Count into a temporary directory and rename it to `final`."""
    temporary = final.with_suffix(".tmp")
    for old in (temporary, final):
        shutil.rmtree(old, ignore_errors=True)
    temporary.mkdir()
    try:
        tables, collisions = count(temporary)
        for name, table in tables.items():
            kind = np.float32 if table.dtype.kind == "f" else table.dtype
            np.save(temporary / f"{name}.npy", table.astype(kind, copy=False))
        digests = {name: _sha256(temporary / f"{name}.npy") for name in tables}
        text = json.dumps({"collisions": collisions, "sha256": digests}, indent=1)
        (temporary / "tables.json").write_text(text, encoding="utf-8")
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _opened(final: Path) -> tuple[Tables, int] | None:
    """What is kept there, or None where there is nothing or it is damaged (which is logged)."""
    if not final.exists():
        return None
    try:
        manifest = json.loads((final / "tables.json").read_text(encoding="utf-8"))
        for name, digest in manifest["sha256"].items():
            if _sha256(final / f"{name}.npy") != digest:
                raise ValueError(f"{name}.npy does not match its hash")
        tables = {n: np.load(final / f"{n}.npy", mmap_mode="c") for n in manifest["sha256"]}
        return tables, int(manifest["collisions"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s: damaged tables (%s), counting again", final, error)
        return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
