"""Containers: the rows that a file holds, streamed, for every kind but text.

.jsonl .ndjson   one JSON value a line; blank lines are no rows; CRLF is accepted. A JSON array of
                 rows, or one value over several lines, is read as .json.
.json            an array of rows, JSON values one after the other, or one object with the rows
                 under `data`, `rows`, `train`, `examples` or `instances`.
.csv             a header and a row a line, fields apart by the header's most frequent of comma,
                 semicolon and tab; quoted fields may hold line ends.
.parquet .arrow  the rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from reso_llm.data.data_file import Bad, Row, Source
from reso_llm.data.json_rows import json_rows
from reso_llm.data.tables import arrow_rows, csv_rows, parquet_rows

__all__ = ["rows_of"]

READERS: dict[str, Callable[[Source, Bad], Iterator[Row]]] = {
    "jsonl": json_rows,
    "ndjson": json_rows,
    "json": json_rows,
    "csv": csv_rows,
    "parquet": parquet_rows,
    "arrow": arrow_rows,
}


def rows_of(source: Source, bad: Bad) -> Iterator[Row]:
    """(line, value) of each row; `bad(line, reason)` is called for one that cannot be decoded."""
    return READERS[source.kind](source, bad)
