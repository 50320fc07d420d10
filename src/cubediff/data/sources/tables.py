"""Tables of a Hugging Face dataset folder: metadata.jsonl, .csv and .parquet."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from cubediff.data.sources.captions import parse_lines
from cubediff.data.sources.parquet_files import open_parquet
from cubediff.data.sources.records import parse_object, read_text
from cubediff.utils.errors import DataError
from cubediff.utils.json_text import parse_json

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

Record = dict[str, object]


def read_table(path: Path) -> Iterator[tuple[int, Record | DataError]]:
    """The rows of a table by line or row number, from 1, or the reason why one cannot be read.

    Raises:
        DataError: If the file is not a table, or pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _read_csv(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    return parse_lines(read_text(path).split("\n"))


def _read_csv(path: Path) -> Iterator[tuple[int, Record | DataError]]:
    rows = csv.DictReader(read_text(path).splitlines(keepends=True), strict=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num, DataError(f"not a row of CSV: {error}")
            continue
        if None in row:
            yield rows.line_num, DataError("has more values than the header has columns: quote values with commas")
            continue
        record: Record = {key: value for key, value in row.items() if value not in (None, "")}
        if "faces" in record:
            try:
                record["faces"] = parse_json(str(record["faces"]))
            except ValueError as error:
                yield rows.line_num, DataError(f"its faces are not JSON: {error}")
                continue
        yield rows.line_num, record


def _read_parquet(path: Path) -> Iterator[tuple[int, Record | DataError]]:
    number = 0
    for batch in open_parquet(path).iter_batches():
        for row in batch.to_pylist():
            number += 1
            try:
                yield number, json_record(row)
            except DataError as error:
                yield number, error


def json_record(row: dict[str, object]) -> Record:
    """A row with values of JSON: dates and other types as text, and without missing values (null, NaN).

    Raises:
        DataError: If it cannot be written as UTF-8.
    """
    present = {key: value for key, value in row.items() if value is not None and value == value}
    return parse_object(json.dumps(present, default=str))
