"""The terminal: lines from the keyboard or a pipe, and text to the screen that cannot harm it.

All text shown passes `Screen`, which lets no control character, escape sequence or mark that
reorders text through; its own dimming is added after that. NO_COLOR (no-color.org), TERM=dumb and
a screen that is no terminal switch the dimming off.
"""

import contextlib
import io
import logging
import math
import os
import re
import shutil
import statistics
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from tqdm import tqdm

from run_core.streams import reader_is_gone

PIPE_COLUMNS = 80
"""Width of a line where no terminal shows it."""
MIN_COLUMNS, MAX_COLUMNS = 20, 200
"""Bounds of the width taken from a terminal."""
# All control characters but newline and tab, lone surrogates, and what reorders or breaks lines.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
BYTE_ORDER_MARK = "\ufeff"
DIM, NORMAL = "\x1b[2m", "\x1b[0m"


def printable(text: str) -> str:
    """Text that cannot move the cursor, change colours or reorder a terminal's line."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """Printable text without the line breaks and tabs that a name or a value may hold."""
    return printable(text).replace("\n", " ").replace("\t", " ")


def report(text: str) -> None:
    """Print a message of a run to stdout, above a progress bar where there is one."""
    tqdm.write(printable(text))


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextlib.contextmanager
def printable_log() -> Iterator[None]:
    """Meanwhile warnings of the log are shown on stderr, as printable text like all else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter())
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def progress_bar(what: str, *, silent: bool = False, **options: Any) -> tqdm:
    """A bar on stderr at a terminal; elsewhere one plain line that says what is done."""
    bar = tqdm(desc=what, file=sys.stderr, disable=silent or None, **options)
    if bar.disable and not silent:
        print(what, file=sys.stderr, flush=True)
    return bar


def encodable(text: str) -> str:
    """Text whose lone surrogates are U+FFFD, and pairs of them the character they stand for."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Screen:
    """The output of a conversation: a stream, and whether notes on it are dimmed."""

    def __init__(self, stream: TextIO, *, dims: bool = False) -> None:
        self.stream, self.dims = stream, dims

    @classmethod
    def of(cls, stream: TextIO | None) -> "Screen":
        """The screen behind a stream; of a stream that is closed, one that shows nothing."""
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(stream or io.StringIO(), dims=_is_terminal(stream) and not plain)

    @property
    def columns(self) -> int:
        """Width of a line: that of the terminal at present, within bounds."""
        if not _is_terminal(self.stream):
            return PIPE_COLUMNS
        columns = shutil.get_terminal_size((PIPE_COLUMNS, 24)).columns
        return max(MIN_COLUMNS, min(columns, MAX_COLUMNS))

    def write(self, text: str) -> None:
        """Show text now."""
        self.stream.write(printable(text))
        self.stream.flush()

    def mark(self, text: str) -> None:
        """Show a remark within a line, dimmed where that is possible."""
        self.stream.write(f"{DIM}{printable(text)}{NORMAL}" if self.dims else printable(text))
        self.stream.flush()

    def note(self, text: str) -> None:
        """Show one line about the conversation, dimmed where that is possible.

        A terminal gets it broken between words; a pipe gets it whole.
        """
        line = printable(text)
        if _is_terminal(self.stream):
            line = textwrap.fill(line, self.columns, subsequent_indent="  ")
        self.stream.write(f"{DIM}{line}{NORMAL}\n" if self.dims else f"{line}\n")
        self.stream.flush()


def is_interactive() -> bool:
    """Whether a terminal is at both ends: a person types and sees the replies."""
    return _is_terminal(sys.stdin) and _is_terminal(sys.stdout)


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream belongs to a terminal; None stands for one that is closed."""
    return stream is not None and stream.isatty()


def lines(screen: Screen) -> Iterator[str]:
    """Yield the lines typed (with line editing and this process's history), or those of a pipe.

    At a prompt Ctrl-C drops the line, and a second one in a row leaves, as does the end of input.
    It reads nothing more once the answers have no reader.
    """
    if not is_interactive():
        for line in _piped():
            if reader_is_gone(screen.stream):
                return
            yield line
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
    """Lines of stdin, none where it is closed; a byte order mark at the start of one is no text.

    Bytes that are no text are read as U+FFFD.
    """
    binary = getattr(sys.stdin, "buffer", None)
    if binary is None:  # stdin is closed, or a stand-in that holds text
        decoded = iter(sys.stdin or ())
    else:
        decoded = (line.decode(sys.stdin.encoding, "replace") for line in binary)
    for line in decoded:
        yield line.removeprefix(BYTE_ORDER_MARK)


@contextlib.contextmanager
def undecodable_replaced() -> Iterator[None]:
    """In the block an unshowable character is "?", and bytes that are no text are U+FFFD."""
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


# --- numbers as text

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], top: float, width: int) -> str:
    """A line of at most `width` bars for values from 0 to `top`; "-" without values.

    Each bar is the mean of equally many values in a row; a dash is a bar without a finite value.
    """
    size = max(1, math.ceil(len(values) / max(1, width)))
    groups = [values[i : i + size] for i in range(0, len(values), size)]
    return "".join(_bar(finite_mean(group) / top) for group in groups) or "-"


def _bar(share: float) -> str:
    """The bar for a share of the full height, limited to 0 to 1; "-" for NaN."""
    if math.isnan(share):
        return "-"
    return BARS[round(min(max(share, 0.0), 1.0) * (len(BARS) - 1))]


def finite_mean(values: Iterable[float]) -> float:
    """Mean of the finite values; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def formatted(value: float, spec: str = ".2f") -> str:
    """The number in a format of `format`; "-" where it is not finite."""
    return format(value, spec) if math.isfinite(value) else "-"
