"""Files written whole or not at all, records with a checksum, and errors that name the path.

    write_file       replaces a file atomically: readers see the old bytes or the new
    seal, unseal     a JSON object as bytes that carry the sha256 of their own content
    exchange         puts one directory in another's place in one step
    leftovers        what killed processes left half written or half deleted
    remove           deletes a file, a directory or a link, never what a link points to
    expanded         a path with ~ written in full

All functions here raise OSError when the disk refuses; `cannot` turns it into a sentence.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

_LEFTOVER = re.compile(r"\.(?:tmp|trash)-(.+)-(\d+)")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def write_file(path: str | Path, data: bytes) -> None:
    """Replace a small file atomically. A link of that name is replaced, its target stays."""
    path = Path(path)
    temporary = temporary_name(path)
    try:
        write_and_sync(temporary, data)
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_and_sync(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the disk has the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """The name under which this process writes the file that becomes `path`."""
    return path.parent / f".tmp-{path.name}-{os.getpid()}"


def trash_name(path: Path) -> Path:
    """The name to which this process moves `path` before it deletes it."""
    return path.parent / f".trash-{path.name}-{os.getpid()}"


def exchange(one: Path, other: Path) -> bool:
    """Swap two names of one file system in one step; False where the system cannot (not Linux)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def remove(path: Path) -> None:
    """Delete a file, a directory or a link; what a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def entries(directory: Path, *prefixes: str) -> list[Path]:
    """The sorted entries of a directory whose names begin so; none where there is no directory."""
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [directory / name for name in names if name.startswith(prefixes)]


class Leftover(NamedTuple):
    """An entry that the process `pid` left half written or half deleted; it stands for `name`."""

    path: Path
    name: str
    pid: int


def leftovers(directory: Path, is_ours: Callable[[str], bool]) -> list[Leftover]:
    """The `temporary_name` and `trash_name` entries of a directory for names that are ours."""
    matches = ((path, _LEFTOVER.fullmatch(path.name)) for path in entries(directory, "."))
    all_leftovers = [Leftover(path, match[1], int(match[2])) for path, match in matches if match]
    return [each for each in all_leftovers if is_ours(each.name)]


def is_alive(pid: int) -> bool:
    """Whether a process of that number runs."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def opened_regular(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of a plain file: OSError for a link, a pipe or a device of that name."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link", str(path))
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def seal(body: dict[str, Any]) -> bytes:
    """A JSON object as bytes, with the sha256 of its body: no bit of it is unguarded."""
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({**body, "sha256": digest})


def unseal(data: bytes) -> dict[str, Any] | None:
    """Inverse of `seal`; None for any other bytes."""
    try:
        sealed = json.loads(data)
        body = {key: value for key, value in sealed.items() if key != "sha256"}
        return body if seal(body) == data else None
    except (ValueError, AttributeError, RecursionError):
        return None


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, indent=2, sort_keys=True).encode() + b"\n"


def expanded(path: str) -> str:
    """A path, or several with + between them, with ~ written in full; ValueError without a home."""
    parts = [os.path.expanduser(part) for part in path.split("+")]
    for part in parts:
        if part == "~" or part.startswith("~/"):
            raise ValueError(f"{part}: there is no home directory (HOME is not set)")
    return "+".join(parts)


def cannot(action: str, path: Path, error: OSError, needed: int | None = None) -> str:
    """The sentence for a refusal of the disk; with `needed` bytes also what is free."""
    message = f"cannot {action} {path}: {error.strerror or error}"
    if needed is None:
        return message
    try:
        free = f"{shutil.disk_usage(path.parent).free:,} bytes are free"
    except OSError:
        free = "its directory cannot be read"
    return (
        f"{message}; it needs {needed:,} bytes and {free}; "
        "earlier checkpoints are untouched: make room or choose another run directory"
    )


def require_writable(path: str | Path, key: str) -> None:
    """Check, before the work, that the file of an option can be written.

    Raises ValueError naming the option for a directory, a missing parent, and one without rights.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{key} = {path}: this is a directory; give the name of a file")
    if not path.parent.is_dir():
        raise ValueError(f"{key} = {path}: there is no directory {path.parent}; make it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{key} = {path}: you may not write there; give another place")
