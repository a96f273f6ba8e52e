"""Standard streams that outlive their readers: the work goes on when output fails.

A reader that closes its end (`train.py | head`), a terminal that is gone and a stream that was
never open (`>&-`) cost the text and nothing else.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_READER_IS_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


class LastingStream:
    """A text stream whose `write` and `flush` never raise OSError; all else is the stream's.

    `failure` is the first error; later text is dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    @property
    def reader_is_gone(self) -> bool:
        """Whether the stream has lost its reader."""
        return self.failure is not None and self.failure.errno in _READER_IS_GONE

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._fail(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fail(self, error: OSError) -> None:
        self.failure = self.failure or error
        with contextlib.suppress(OSError, ValueError):  # what is buffered has somewhere to go
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Inside the block stdout and stderr are `LastingStream`s, and no standard stream is missing.

    Lines are written when they end, and a character that the encoding lacks is "?".
    """
    before = sys.stdin, sys.stdout, sys.stderr
    _open_missing()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace", line_buffering=True)
    sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        restored = zip(("stdin", "stdout", "stderr"), before, strict=True)
        for name, stream in restored:
            if stream is not None:
                setattr(sys, name, stream)


def reader_is_gone(stream: TextIO) -> bool:
    """Whether a stream is known to have no reader."""
    return isinstance(stream, LastingStream) and stream.reader_is_gone


def _open_missing() -> None:
    """Descriptors 0, 1 and 2 exist, so that no file is opened as one of them and written into."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
