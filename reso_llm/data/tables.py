"""Rows of tables: .csv, .parquet and .arrow, by batches.

A table with a column that unpacks to far more than it is would fill the memory, and is refused.
"""

from __future__ import annotations

import csv
import importlib
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from reso_llm.data.data_file import PIECE_BYTES, ROW_BYTES, Bad, Row, Source, open_data, pyarrow_for
from reso_llm.data.errors import DataError

__all__ = ["arrow_rows", "csv_rows", "parquet_rows"]

TABLE_ROWS = 64
COLUMN_RATIO = 200  # a column of a table that unpacks to more than ROW_BYTES and so many times
ARROW_FILE = b"ARROW1"


def csv_rows(source: Source, bad: Bad) -> Iterator[Row]:
    """(line, {column: text}) of each row below the header."""
    csv.field_size_limit(ROW_BYTES)
    line = 0
    with open_data(source.path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        try:
            header = text.readline()
            delimiter = max(",;\t", key=header.count)
            reader = csv.DictReader(itertools.chain([header], text), delimiter=delimiter)
            for row in reader:
                line = reader.line_num
                if None in row:
                    bad(line, f"more fields than the {len(row) - 1} of the header")
                else:
                    yield line, row
        except csv.Error as error:
            raise DataError(f"{source.name}: broken csv after line {line}: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{source.name}: invalid UTF-8 after line {line}; convert the file to UTF-8"
            ) from error


def parquet_rows(source: Source, bad: Bad) -> Iterator[Row]:
    """(number, row) of a parquet file."""
    pyarrow_for(source.path.name)
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(source.path, buffer_size=PIECE_BYTES) as file:
            _refuse_bomb(file.metadata, source.name)
            yield from file.iter_batches(batch_size=TABLE_ROWS)

    yield from _table_rows(batches(), source, bad)


def _refuse_bomb(metadata: Any, name: str) -> None:
    """DataError for a table with a column that unpacks to far more than it is."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            size, packed = column.total_uncompressed_size, max(1, column.total_compressed_size)
            if size > ROW_BYTES and size > COLUMN_RATIO * packed:
                raise DataError(
                    f"{name}: the column {column.path_in_schema!r} unpacks from {packed:,} to "
                    f"{size:,} bytes at once; write the table with smaller row groups"
                )


def arrow_rows(source: Source, bad: Bad) -> Iterator[Row]:
    """(number, row) of an Arrow stream or file."""
    pyarrow = pyarrow_for(source.path.name)
    ipc = importlib.import_module("pyarrow.ipc")

    def batches() -> Iterator[Any]:
        with pyarrow.memory_map(str(source.path)) as file:
            # The library `datasets` writes streams, others write files with a footer.
            if file.read(len(ARROW_FILE)) == ARROW_FILE:
                table = ipc.open_file(file)
                yield from map(table.get_batch, range(table.num_record_batches))
            else:
                file.seek(0)
                yield from ipc.open_stream(file)

    yield from _table_rows(batches(), source, bad)


def _table_rows(batches: Iterable[Any], source: Source, bad: Bad) -> Iterator[Row]:
    import pyarrow

    number = 0
    try:
        for batch in batches:
            for index in range(batch.num_rows):
                number += 1
                try:
                    row = batch.slice(index, 1).to_pylist()[0]
                except UnicodeDecodeError as error:
                    bad(number, f"invalid UTF-8 at byte {error.start} of the value")
                else:
                    yield number, row
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{source.name}: broken {source.kind} file near row {number + 1}: {error}"
        ) from error
