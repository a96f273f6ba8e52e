"""One writer of a run directory: a second one is refused while the first is alive.

The kernel's lock is on the directory itself, so that it holds where RUN/.lock is deleted, and on
RUN/.lock, which names the writer and holds on file systems that lock no directories. The
kernel frees both when the writer dies, however it dies.
"""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from multiprocessing import util as process_util
from pathlib import Path

from run_core.checkpoint import CheckpointError
from run_core.files import cannot, opened_regular

LOCK = ".lock"
_MARK = b"run of process "
_CONTENT = re.compile(rb"(?:%b)?(\d*)\n?" % _MARK)  # earlier versions wrote the number alone
_LIMIT = 100  # bytes


class RunBusyError(CheckpointError):
    """Another live process is writing to the run directory."""


@contextlib.contextmanager
def lock_run(run_dir: str | Path) -> Iterator[None]:
    """Hold the lock of a run directory: its only writer while the block runs.

    Raises RunBusyError when a live process holds it, CheckpointError when it cannot be made or
    RUN/.lock is not a file of this package.
    """
    path = Path(run_dir, LOCK)
    with contextlib.ExitStack() as held:
        try:
            folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, folder)
            file = held.enter_context(opened_regular(path, os.O_RDWR | os.O_CREAT))
            content = os.read(file, _LIMIT)
            if not _CONTENT.fullmatch(content):
                raise CheckpointError(f"{path} is not the lock of a run; choose another directory")
            _lock_folder(folder)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A forked worker shares the locks and may outlive a killed parent: it lets go at once.
            descriptors = _Descriptors(folder, file)
            process_util.register_after_fork(descriptors, _Descriptors.close)
            os.ftruncate(file, 0)
            os.pwrite(file, _MARK + b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            raise RunBusyError(_busy(content, folder, run_dir)) from error
        except OSError as error:
            raise CheckpointError(cannot("lock the run directory", path, error)) from error
        yield


def is_marked(run_dir: str | Path) -> bool:
    """Whether RUN/.lock marks the directory as a run of this package."""
    try:
        with opened_regular(Path(run_dir, LOCK), os.O_RDONLY) as file:
            return os.read(file, _LIMIT).startswith(_MARK)
    except OSError:
        return False


def _lock_folder(folder: int) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # a network file system may lock only files that are open for writing
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EINVAL, errno.ENOTSUP):
            raise


def _busy(content: bytes, folder: int, run_dir: str | Path) -> str:
    pid = _CONTENT.fullmatch(content)[1].decode() or _holder(folder)
    writer = f"another process (pid {pid})" if pid else "another process"
    return (
        f"{writer} is writing to {run_dir}; wait for it, stop it, or choose another run directory"
    )


def _holder(folder: int) -> str:
    """The pid of the process that holds the lock of a folder, from Linux's list; else ""."""
    inode = os.fstat(folder).st_ino
    try:
        locks = Path("/proc/locks").read_text()
    except OSError:
        return ""
    found = re.search(rf"FLOCK +\S+ +WRITE +(\d+) +\S+:{inode} ", locks)
    return found[1] if found else ""


class _Descriptors:
    """Open files whose locks end with them; an object, because the hook after a fork takes one."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def close(self) -> None:
        for number in self.numbers:
            os.close(number)
