"""The terminal: lines from the keyboard or a pipe, and text to the screen that cannot harm it.

All that is shown passes `Screen`, which lets no control character, escape sequence or mark that
reorders text through; its own dimming is added after that. NO_COLOR (no-color.org), TERM=dumb and
a screen that is no terminal switch the dimming off.
"""

import contextlib
import math
import os
import re
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

MAX_COLUMNS = 80
# All control characters but newline and tab, lone surrogates, and what reorders or breaks lines.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
DIM, NORMAL = "\x1b[2m", "\x1b[0m"


def printable(text: str) -> str:
    """Text that cannot move the cursor, change colours or reorder a terminal's line."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def encodable(text: str) -> str:
    """Text whose lone surrogates are U+FFFD, and pairs of them the character they stand for."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Screen:
    """Where a conversation is shown. `columns` is how wide a note may be."""

    def __init__(self, stream: TextIO, *, dims: bool = False, columns: int = MAX_COLUMNS) -> None:
        self.stream, self.dims, self.columns = stream, dims, columns

    @classmethod
    def of(cls, stream: TextIO) -> "Screen":
        """The screen behind a stream, with its width and what the environment says of colour."""
        shown = stream.isatty()
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        columns = shutil.get_terminal_size((MAX_COLUMNS, 24)).columns if shown else MAX_COLUMNS
        return cls(stream, dims=shown and not plain, columns=max(20, min(columns, MAX_COLUMNS)))

    def write(self, text: str) -> None:
        """Show text now."""
        self.stream.write(printable(text))
        self.stream.flush()

    def note(self, text: str) -> None:
        """Show one line about the conversation, dimmed where that is possible."""
        line = printable(text)
        self.stream.write(f"{DIM}{line}{NORMAL}\n" if self.dims else f"{line}\n")
        self.stream.flush()


def is_interactive() -> bool:
    """Whether someone types and sees the answers."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def lines(screen: Screen) -> Iterator[str]:
    """What is typed, with line editing and a history of this process, or what a pipe holds.

    At a prompt Ctrl-C drops the line, and a second one in a row leaves, as does the end of input.
    """
    if not is_interactive():
        yield from _piped()
        return
    with contextlib.suppress(ImportError):  # some builds of Python have none
        import readline  # noqa: F401  (importing it is what gives input() its line editing)

    interrupted = False
    while True:
        try:
            line = input("> ")
        except EOFError:
            screen.write("\n")
            return
        except KeyboardInterrupt:
            screen.write("\n")
            if interrupted:
                return
            interrupted = True
            screen.note("[Ctrl-C once more leaves]")
            continue
        interrupted = False
        yield line


def _piped() -> Iterator[str]:
    """Lines of stdin; bytes that are no text are U+FFFD."""
    binary = getattr(sys.stdin, "buffer", None)
    if binary is None:  # a stand-in that holds text
        yield from sys.stdin
        return
    for line in binary:
        yield line.decode(sys.stdin.encoding, "replace")


@contextlib.contextmanager
def undecodable_replaced() -> Iterator[None]:
    """Meanwhile what cannot be shown is "?", and typed bytes that are no text are U+FFFD."""
    streams = [sys.stdout, sys.stdin] if is_interactive() else [sys.stdout]
    streams = [stream for stream in streams if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], top: float, width: int) -> str:
    """Values from 0 to `top` as at most `width` bars, each the mean of as many as it takes.

    A dash stands for values that are not defined, and for none at all.
    """
    size = max(1, -(-len(values) // max(1, width)))
    groups = [values[i : i + size] for i in range(0, len(values), size)]
    return "".join(_bar(mean(group) / top) for group in groups) or "-"


def _bar(level: float) -> str:
    if math.isnan(level):
        return "-"
    return BARS[round(min(max(level, 0.0), 1.0) * (len(BARS) - 1))]


def mean(values: Sequence[float]) -> float:
    """Mean of the values that are defined; NaN without any."""
    known = [v for v in values if math.isfinite(v)]
    return statistics.fmean(known) if known else math.nan


def number(value: float, form: str = ".2f") -> str:
    """A number, or a dash where it is not defined."""
    return format(value, form) if math.isfinite(value) else "-"
