"""Answers in CSV or Parquet, one row each."""

import csv
import datetime
import io
import math
from pathlib import Path
from typing import Any

from svp.errors import InputError
from svp.label.answer import COLUMNS, Answers, Label, moment

# What Label Studio's own CSV calls these columns.
_OTHER_NAMES = {"id": "svp_id", "labeled_at": "updated_at"}


def read_table(path: Path) -> Answers:
    """Read a file with columns id and label; annotator, weight and labeled_at are optional.

    Other columns are ignored. Where there is a column svp_id, it is the id.

    Raises:
        InputError: A column is missing or a value is malformed.
    """
    columns = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    if _OTHER_NAMES["id"] in columns:
        columns |= {ours: columns[its] for ours, its in _OTHER_NAMES.items() if its in columns}
    missing = [name for name in ("id", "label") if name not in columns]
    if missing:
        found = ", ".join(columns) or "none"
        raise InputError(
            f"A label file must have columns id and label. Got {found} in {path}. "
            f"Rename or add {' and '.join(missing)}."
        )
    empty = [""] * len(columns["id"])
    rows: list[Label] = []
    blank = 0
    values = [columns.get(name, empty) for name in COLUMNS]
    for line, cells in enumerate(zip(*values, strict=True), start=2):
        row = Label(**dict(zip(COLUMNS, cells, strict=True)))
        if not row.label:
            blank += 1
            continue
        if not row.id:
            raise InputError(f"Every label must have an id. Got none in row {line} of {path}.")
        _check(row, line, path)
        rows.append(row)
    return Answers(labels=tuple(rows), blank=blank)


def _check(row: Label, line: int, path: Path) -> None:
    try:
        weight = float(row.weight) if row.weight else 1.0
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise InputError(
            f"weight must be a number of at least 0. Got {row.weight!r} in row {line} of {path}."
        )
    try:
        moment(row.labeled_at)
    except ValueError as error:
        raise InputError(
            f"labeled_at must be a time in ISO 8601. Got {row.labeled_at!r} in row {line} of "
            f"{path}. Write it like 2026-01-31T12:00:00Z."
        ) from error


def _read_csv(path: Path) -> dict[str, list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"A label file must be CSV in UTF-8, or Parquet. Got {path}: {error}. Export it again."
        ) from error
    if not lines:
        return {}
    header = [name.strip() for name in lines[0]]
    for number, row in enumerate(lines[1:], start=2):
        if len(row) != len(header):
            raise InputError(
                f"Every row must have {len(header)} cells, as the header. Got {len(row)} in row "
                f"{number} of {path}. Quote values that hold commas."
            )
    return {
        name: [
            row[column] if name in ("id", "svp_id") else row[column].strip() for row in lines[1:]
        ]
        for column, name in enumerate(header)
    }


def _read_parquet(path: Path) -> dict[str, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = (*COLUMNS, *_OTHER_NAMES.values())
    try:
        present = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in present if name in wanted])
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"A label file must be CSV or Parquet. Got {path}: {error}.") from error
    columns: dict[str, list[str]] = {name: [] for name in present}
    for name in table.column_names:
        columns[name] = [_plain(value, name, path) for value in table.column(name).to_pylist()]
    return columns


def _plain(value: Any, name: str, path: Path) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, list | dict):
        raise InputError(
            f"{name} must hold one value per row. Got {value!r} in {path}. "
            "svp learns one class per image."
        )
    if isinstance(value, float) and value.is_integer() and name == "label":
        return str(int(value))  # pandas turns whole numbers beside a blank into floats
    return str(value) if name in ("id", "svp_id") else str(value).strip()
