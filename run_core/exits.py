"""How a command ends: expected failures become one line on stderr and a status, Ctrl-C is 130.

Importing this module imports neither torch nor the parser of options: `reso --help` needs none.
"""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from run_core.streams import LastingStream, lasting_streams
from run_core.terminal import one_line, printable_log

FAILURE, USAGE_ERROR, INTERRUPTED = 1, 2, 130


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call a script's main and exit: expected failures become one line, Ctrl-C status 130.

    A reader of stdout or stderr that goes away is no failure, see `streams.py`.
    """
    with lasting_streams(), printable_log():
        status = _call(main)
        sys.stdout.flush()
        status = status or _output_status(sys.stdout)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # one more Ctrl-C ends the ending, silently
    raise SystemExit(status)


def _call(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except SystemExit as stop:
        return stop.code or 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except _usage_errors() as error:
        return _fail(error, USAGE_ERROR)
    except _failures() as error:
        return _fail(error, FAILURE)
    except (MemoryError, RuntimeError) as error:
        asked = _asked_memory(error)
        if asked is None:
            raise
        return _fail(f"out of memory: {asked}", FAILURE)


def _asked_memory(error: Exception) -> str | None:
    """The memory that a failed allocation asked for; None for another kind of error.

    torch says on a CPU by its words alone that it got no memory.
    """
    first = str(error).partition("\n")[0]
    _, found, request = first.partition("DefaultCPUAllocator: ")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return first or "the request is unknown"
    return request if found else None


def _output_status(stream: LastingStream) -> int:
    """The exit status of the output: a refusing disk is a failure, a closed reader is none."""
    if stream.failure is None or stream.reader_is_gone:
        return 0
    return _fail(f"cannot write to stdout: {stream.failure.strerror}", FAILURE)


def _usage_errors() -> tuple[type[Exception], ...]:
    """ValueError, DataError among them, is how the packages refuse what a user gave them."""
    from jsonargparse import ArgumentError

    return ValueError, ArgumentError


def _failures() -> tuple[type[Exception], ...]:
    """The expected failures. They are imported only after a failure, as they import torch."""
    from run_core.checkpoint import CheckpointError
    from run_core.run import TrainingError
    from run_core.runlog import RunLogError

    return TrainingError, CheckpointError, RunLogError, FloatingPointError, OSError


def _fail(error: Exception | str, status: int) -> int:
    print(f"error: {one_line(str(error))}", file=sys.stderr)
    return status
