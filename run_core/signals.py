"""Signals that end a run, after it has saved.

SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 ask a run to stop. It finishes its step and saves; work
that can be abandoned (a long step, a validation) is given up after GRACE_SECONDS. A second SIGINT
or SIGTERM ends the process at once; the others may come twice from one closed terminal.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

GRACE_SECONDS = 1.0
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
IMPATIENT = ("SIGINT", "SIGTERM")


class Abandoned(BaseException):
    """Raised inside `StopRequests.abandonable`; `except Exception` lets it pass."""


class StopRequests:
    """The stop signals that came; true after the first."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._may_abandon = False
        self._is_overdue = False

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def first(self) -> str | None:
        """Name of the first signal, as SIGTERM."""
        return self.names[0] if self.names else None

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Raise Abandoned inside the block once a stop request has waited for GRACE_SECONDS."""
        self._may_abandon = True
        try:
            if self._is_overdue:
                raise Abandoned
            yield
        finally:
            self._may_abandon = False

    def _overdue(self, number: int, frame: Any) -> None:
        self._is_overdue = True
        if self._may_abandon:
            self._may_abandon = False
            raise Abandoned


@contextmanager
def catch_signals(report: Callable[[str], None]) -> Iterator[StopRequests]:
    """Collect the stop signals while the block runs; one that is ignored (nohup) stays ignored."""
    requests = StopRequests()

    def catch(number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if name in IMPATIENT and any(name in IMPATIENT for name in requests.names):
            signal.signal(number, before[number])
            signal.raise_signal(number)
            return
        requests.names.append(name)
        if len(requests.names) > 1:
            return
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        with suppress(OSError, RuntimeError):  # a closed pipe, or a print inside a print
            report(f"{name}: saving (Ctrl-C or SIGTERM again to leave at once)")

    caught = [s for s in STOPPING if signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, catch) for s in caught}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, requests._overdue)
    try:
        yield requests
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in before.items():
            signal.signal(each, handler)
