"""What a manifest says, read from a CSV or Parquet file wherever its bytes are."""

import collections
import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Final

from svp.data.item_name import SPLITS, canonical_split, examples
from svp.data.listing import Entry
from svp.errors import InputError

_REQUIRED: Final = ("id", "path")
_OPTIONAL: Final = ("label", "split", "group")
MANIFEST_SUFFIXES: Final = (".csv", ".parquet")
Columns = dict[str, list[str]]


def read_manifest(data: BinaryIO, name: str) -> Columns:
    """Read a manifest.

    Args:
        data: Its bytes.
        name: Where they come from; its end says the form.

    Raises:
        InputError: If it is malformed, lacks a column, names nothing or another split than
            train, val and test, or repeats an id.
    """
    rows = _parquet_columns(data, name) if is_parquet(name) else _csv_columns(data, name)
    missing = [column for column in _REQUIRED if column not in rows]
    if missing:
        raise InputError(
            f"A manifest must have the columns id and path. Got {', '.join(rows) or 'none'} in "
            f"{name}. Rename or add {' and '.join(missing)}."
        )
    n = len(rows["id"])
    columns = {column: rows.get(column) or [""] * n for column in (*_REQUIRED, *_OPTIONAL)}
    _check(columns, name)
    return columns


def is_parquet(name: str) -> bool:
    """Return whether a file is Parquet, by the end of its name."""
    return name.lower().endswith(".parquet")


def with_manifest_labels(entries: Iterable[Entry], columns: Columns) -> list[Entry]:
    """Return `entries` with the labels, splits and groups that the manifest says."""
    position = {item_id: row for row, item_id in enumerate(columns["id"])}
    label, split, group = (columns[name] for name in _OPTIONAL)
    labelled = []
    for entry in entries:
        row = position[entry.id]
        labelled.append(
            Entry(
                entry.id,
                entry.uri,
                entry.key,
                entry.changed_ns,
                label[row] or None,
                canonical_split(split[row]) or None,
                group[row] or None,
            )
        )
    return labelled


def _check(columns: Columns, name: str) -> None:
    ids, paths = columns["id"], columns["path"]
    if not ids:
        raise InputError(f"A manifest must name images. Got no row in {name}. Add some.")
    for row, (item_id, path) in enumerate(zip(ids, paths, strict=True), start=1):
        if not item_id or not path:
            raise InputError(
                f"Every row of a manifest must have an id and a path. Got id {item_id!r} and "
                f"path {path!r} in row {row} of {name}. Fill them or drop the row."
            )
    # A mistyped `test` must not become images to train on.
    for row, split in enumerate(columns["split"], start=1):
        if split and canonical_split(split) not in SPLITS:
            raise InputError(
                f"A split must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}. Got {split!r} in row "
                f"{row} of {name}. Correct it, or leave it empty for images that may be chosen."
            )
    if len(set(ids)) < len(ids):
        counts = collections.Counter(ids)
        repeated = [item_id for item_id, count in counts.items() if count > 1]
        raise InputError(
            f"The ids of a manifest must be unique. Got {examples(repeated)} more than "
            f"once in {name}. Rename or drop the repeated rows."
        )


def _csv_columns(data: BinaryIO, path: str) -> dict[str, list[str]]:
    # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
    try:
        with io.TextIOWrapper(data, newline="", encoding="utf-8-sig") as file:
            return _csv_rows(path, csv.reader(file, strict=True))
    except UnicodeDecodeError as error:
        raise InputError(
            f"A CSV manifest must be UTF-8. Got {error.reason} at byte {error.start} in {path}. "
            "Save it again as UTF-8."
        ) from error
    except csv.Error as error:
        raise InputError(
            f"A CSV manifest must be well formed. Got {error} in {path}. Save it again."
        ) from error


def _csv_rows(path: str, reader: Iterator[list[str]]) -> dict[str, list[str]]:
    header = [name.strip() for name in next(reader, [])]
    _refuse_repeated_columns(path, header)
    wanted = [(at, name) for at, name in enumerate(header) if name in (*_REQUIRED, *_OPTIONAL)]
    columns: dict[str, list[str]] = {name: [] for name in header}
    for row, fields in enumerate(reader, start=1):
        if not fields:
            continue
        if len(fields) != len(header):
            raise InputError(
                f"Every row of a manifest must have as many fields as its header ({len(header)}). "
                f"Got {len(fields)} in row {row} of {path}. Quote fields that hold commas."
            )
        for at, name in wanted:
            columns[name].append(fields[at])
    return columns


def _parquet_columns(data: BinaryIO, path: str) -> dict[str, list[str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        opened = pyarrow.parquet.ParquetFile(data)
        names = opened.schema_arrow.names
        _refuse_repeated_columns(path, names)
        wanted = [name for name in (*_REQUIRED, *_OPTIONAL) if name in names]
        table = opened.read(columns=wanted)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"A Parquet manifest must be readable. Got {error} for {path}. Write it again."
        ) from error
    columns: dict[str, list[str]] = {name: [] for name in names}
    for name in wanted:
        columns[name] = [_text(value) for value in table.column(name).to_pylist()]
    return columns


def _refuse_repeated_columns(path: str, names: Sequence[str]) -> None:
    for name in (*_REQUIRED, *_OPTIONAL):
        if list(names).count(name) > 1:
            raise InputError(
                f"The columns of a manifest must have different names. Got {name} twice in "
                f"{path}. Rename one."
            )


def _text(value: Any) -> str:
    """Return a Parquet cell as the text that a CSV of the same table would hold."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # integers with gaps are written as floats by dataframes
    if isinstance(value, list):
        return "|".join(map(_text, value))
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)
