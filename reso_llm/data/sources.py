"""Sources: the files that `--data` names, and their documents.

    sample                    the pip package chitchat-dataset, 7,168 real conversations
    guanaco                   the hub dataset timdettmers/openassistant-guanaco
    owner/name                any other hub dataset; :subset and @split choose from its files
    owner/name/file.jsonl     one file of a hub dataset
    path                      a file, a directory of files, or a glob; ~ is the home directory
    first+second+...          several of them, one after the other (an existing path with + wins)

Files are .jsonl, .ndjson, .json, .csv, .parquet, .arrow and .txt; those that are text may end in
.gz or .zst. A path has a slash or a suffix, so a folder called `guanaco` does not hide the name.

`resolve` turns such a text into files, `read_documents` reads them. A row that is no document is
reported as file:line: reason.
"""

from __future__ import annotations

import glob
import importlib.metadata
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from entropy_core.checks import nearest_name
from reso_llm.data.conversation import Document
from reso_llm.data.data_file import Source
from reso_llm.data.errors import BadRow, BadRows, DataError
from reso_llm.data.files import (
    KINDS,
    PACKED,
    Selection,
    choose_files,
    data_kind,
    files_left_out,
)
from reso_llm.data.hub import dataset_files, known_files
from reso_llm.data.readers import SAMPLE_FILE, SAMPLE_PACKAGE, documents_of
from reso_llm.data.rows import parse_columns
from reso_llm.data.summary import DataSummary

__all__ = ["absolute", "read_documents", "read_source", "resolve"]

HUB_NAMES = {"guanaco": "timdettmers/openassistant-guanaco"}
HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:/(?P<file>[\w./ -]+)|(?::(?P<subset>[\w./-]+))?"
    r"(?:@(?P<split>[\w-]+))?)"
)
DEFAULT_HUB_DEADLINE = 45.0
POINTER = b"version https://git-lfs.github.com/spec/"
# Text of more than so many bytes, and so many times its file's size, is refused.
UNPACKED_BYTES, UNPACKED_RATIO = 1 << 26, 1000

OnBadRow = Literal["error", "skip"]


def read_documents(
    spec: str,
    *,
    columns: str | None = None,
    on_bad_row: OnBadRow = "error",
    report: BadRows | None = None,
    summary: DataSummary | None = None,
    hub_deadline: float = DEFAULT_HUB_DEADLINE,
) -> Iterator[Document]:
    """Documents of everything `spec` names, in order, streamed; counted in `summary`.

    A bad row raises DataError ("error") or is added to `report` ("skip"). DataError as well for a
    source that is missing, unreadable or has no document at all.
    """
    for source in resolve(spec, columns=columns, hub_deadline=hub_deadline):
        yield from read_source(source, on_bad_row=on_bad_row, report=report, summary=summary)


def resolve(
    spec: str, *, columns: str | None = None, hub_deadline: float = DEFAULT_HUB_DEADLINE
) -> tuple[Source, ...]:
    """The files `spec` stands for, downloaded when they are on the hub; DataError.

    `columns`: names of their columns, as in prompt=question,reply=answer.
    `hub_deadline`: seconds a download may go without progress.
    """
    named = parse_columns(columns) if columns else None
    return tuple(
        source._replace(columns=named)
        for part in _parts(spec)
        for source in _resolve_part(part, hub_deadline)
    )


def absolute(spec: str) -> str:
    """`spec` with every path in it absolute: what a run saves, to be resumed from anywhere."""
    return "+".join(os.path.abspath(_path(p)) if _is_path(p) else p for p in _parts(spec))


def read_source(
    source: Source,
    *,
    on_bad_row: OnBadRow = "error",
    report: BadRows | None = None,
    summary: DataSummary | None = None,
) -> Iterator[Document]:
    """Documents of one file; errors as in `read_documents`."""
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f'on_bad_row is {on_bad_row!r}, expected "error" or "skip"')
    report = BadRows() if report is None else report
    summary = DataSummary() if summary is None else summary
    before = report.count
    summary.left_out += source.left_out

    def bad(line: int, reason: str) -> None:
        row = BadRow(source.name, line, reason)
        if on_bad_row == "error":
            raise DataError(f"{row}. Mend or remove the row, or pass --on-bad-row skip")
        report.rows.append(row)

    has_document = False
    try:
        limit = max(UNPACKED_BYTES, UNPACKED_RATIO * source.path.stat().st_size)
        for document in summary.watch(documents_of(source, bad), source.name):
            has_document = True
            limit -= document.num_bytes
            if limit < 0:
                raise DataError(
                    f"{source.name}: unpacks to more than {UNPACKED_RATIO} times its size; "
                    "unpack it first if that is meant"
                )
            yield document
            del document
    except OSError as error:
        raise DataError(f"{source.name}: cannot be read ({error})") from error
    if not has_document:
        rows = BadRows(report.rows[before:])
        why = f", {rows.summary(5)}" if rows.count else ": it has no rows"
        raise DataError(f"{source.name}: no document in it{why}")


# -- which files


def _parts(spec: str) -> list[str]:
    """`spec` cut at +, except inside the longest names that exist as paths."""
    pieces = spec.split("+")
    parts = []
    while pieces:
        lengths = range(len(pieces), 0, -1)
        count = next((n for n in lengths if n == 1 or _is_path("+".join(pieces[:n]))), 1)
        parts.append("+".join(pieces[:count]).strip())
        pieces = pieces[count:]
    return parts


def _path(name: str) -> str:
    return os.path.expanduser(name.strip())


def _is_path(name: str) -> bool:
    """Whether `name` looks like a path and something is there."""
    path = _path(name)
    looks = os.sep in path or bool(Path(path).suffix) or path in (os.curdir, os.pardir)
    return looks and (os.path.lexists(path) or bool(_matches(path)))


def _matches(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []


def _resolve_part(part: str, hub_deadline: float) -> list[Source]:
    if part == "sample":
        return [_sample_source()]
    if _is_path(part):
        return _path_sources(Path(_path(part)))
    name, mark, choice = re.fullmatch(r"([^:@]*)([:@]?)(.*)", part, re.DOTALL).groups()
    hub_id = HUB_ID.fullmatch(HUB_NAMES.get(name, name) + mark + choice)
    if hub_id and (hub_id["file"] or mark or not data_kind(part)):
        repo, *chosen = hub_id.group("repo", "file", "subset", "split")
        selection = Selection(*chosen)
        paths = dataset_files(repo, selection, deadline=hub_deadline)
        left_out = files_left_out(known_files(repo, selection), paths, selection)
        sources = [_file_source(path, f"{repo}/{name}") for name, path in paths.items()]
        return _beside(sources, [f"{repo}/{name}" for name in left_out])
    raise DataError(_unknown(part))


def _unknown(part: str) -> str:
    near = nearest_name(part, ["sample", "guanaco"])
    hint = f" Did you mean {near}?" if near else ""
    if os.path.lexists(part) if "\0" not in part else False:
        hint = f" A path needs a slash or a suffix: ./{part}"
    return (
        f"no data called {part!r}: there is no such file.{hint} Give a path to a "
        f"{', '.join(KINDS)} file, sample, guanaco, or a hub dataset as owner/name"
    )


def _path_sources(path: Path) -> list[Source]:
    if matches := _matches(str(path)) if not os.path.lexists(path) else []:
        files = [Path(match) for match in matches if os.path.isfile(match) and data_kind(match)]
        if not files:
            raise DataError(f"{path}: no {', '.join(KINDS)} file among {len(matches)} matches")
        return [_file_source(file) for file in files]
    if not path.is_dir():
        return [_file_source(path)]
    names = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()]
    chosen = choose_files(names, of_one_kind=False)
    if not chosen:
        raise DataError(f"{path}: no {', '.join(KINDS)} file in this directory")
    left_out = [str(path / name) for name in files_left_out(names, chosen)]
    return _beside([_file_source(path / name) for name in chosen], left_out)


def _beside(sources: list[Source], left_out: list[str]) -> list[Source]:
    """The sources of one data set; the first names the files that are left out."""
    return [sources[0]._replace(left_out=tuple(left_out)), *sources[1:]]


def _file_source(path: Path, name: str | None = None) -> Source:
    """The source of one file; DataError when it cannot be one."""
    name = str(path) if name is None else name
    kind = data_kind(path.name)
    if not path.exists():
        raise DataError(f"{name}: the link leads to no file")
    if not path.is_file():
        raise DataError(f"{name}: is a pipe or a device; data are read more than once, from a file")
    if kind is None:
        raise DataError(
            f"{name}: unknown kind of file {path.suffix!r}; expected one of {', '.join(KINDS)}, "
            f"text also with {' or '.join(PACKED)}"
        )
    try:
        with open(path, "rb") as file:
            pointer = file.read(len(POINTER)) == POINTER
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from error
    if pointer:
        raise DataError(f"{name}: is a git-lfs pointer, not the data: fetch them with git lfs pull")
    return Source(name, path, kind)


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
