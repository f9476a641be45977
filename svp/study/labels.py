"""A study's labels: imported from files, kept append-only, read back as one answer per item.

Every import that says something new becomes one more CSV in `labels/`; nothing is ever edited.
For an item with several labels the newest wins: by `labeled_at` where both have one, else by the
order of import. Importing the same content again changes nothing, so a retried job is harmless.
"""

import csv
import dataclasses
import datetime
import io
import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from feature_store.atomic import create_bytes, write_bytes
from feature_store.digest import canonical_json, sha256_hex
from svp.errors import InputError
from svp.progress import Progress
from svp.study.study import Study

COLUMNS: Final = ("id", "label", "annotator", "weight", "labeled_at")
_NAMED: Final = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One answer for one item; optional columns are empty text where nothing was given."""

    id: str
    label: str
    annotator: str = ""
    weight: str = ""
    labeled_at: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """Two answers for one item; `kept` is the one that counts from now on."""

    id: str
    old: str
    new: str
    kept: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImportResult:
    """What an import did.

    Attributes:
        file: The file it added to `labels/`, or None when it said nothing new.
        new: Items that had no label.
        unchanged: Items that had this label.
        changed: Items whose label it replaced.
        outdated: Items whose present label is newer than the imported one, by `labeled_at`.
        blank: Rows without a label.
        conflicts: Every item with two different answers, old and new.
        labelled: Labels of the study now.
    """

    file: str | None
    new: int
    unchanged: int
    changed: int
    outdated: int
    blank: int
    conflicts: tuple[Conflict, ...]
    labelled: int


def import_labels(study: Study, file: str | Path, progress: Progress | None = None) -> ImportResult:
    """Import a CSV or Parquet file with columns id and label.

    Optional columns: annotator, weight, labeled_at (ISO 8601). Other columns are ignored, so that
    a `selection.csv` with a label column added can be imported as it is.

    Raises:
        InputError: A column is missing, an id is unknown, or a value is malformed; nothing was
            written then.
    """
    path = Path(file)
    rows, blank = _read_file(path)
    scan = study.scan(progress=progress)
    known = {*scan.pool.ids, *(failure.id for failure in scan.failures)}
    return _import(study, rows, blank=blank, known=known, origin=path.stem, where=str(path))


def import_source_labels(study: Study, progress: Progress | None = None) -> ImportResult:
    """Import the labels that the source itself has (class folders, a manifest's column).

    Items of the test split are left out: their labels are for evaluation only.

    Raises:
        InputError: The source has no labels.
    """
    pool = study.scan(progress=progress).pool
    labels = pool.labels or (None,) * len(pool)
    splits = pool.splits or (None,) * len(pool)
    rows = [
        Label(id=identifier, label=label)
        for identifier, label, split in zip(pool.ids, labels, splits, strict=True)
        if label is not None and split != "test"
    ]
    if not rows:
        raise InputError(
            "The source must have labels: class folders, or a label column in its manifest. "
            "Got none outside the test split. Import a file: svp labels import STUDY FILE"
        )
    return _import(study, rows, blank=0, known=set(pool.ids), origin="source", where="the source")


def read_labels(study: Study, files: Collection[str] | None = None) -> dict[str, str]:
    """Return the label of every labelled item, by id.

    Args:
        study: The study.
        files: Names of the imports to read, as a round's receipt lists them; default: all.
    """
    return {identifier: row.label for identifier, row in _current(study, files).items()}


def label_files(study: Study) -> list[str]:
    """Return the names of the study's imports, oldest first."""
    if not study.labels_dir.is_dir():
        return []
    return sorted(path.name for path in study.labels_dir.glob("*.csv"))


def labels_digest(labels: Mapping[str, str]) -> str:
    """Return a digest of labels that does not depend on when or in which order they came."""
    return sha256_hex(canonical_json(sorted(labels.items())))


def export_labels(study: Study, output: str | Path) -> int:
    """Write the current labels as CSV; return their number."""
    rows = _current(study, None)
    write_bytes(Path(output), _csv(COLUMNS, (_cells(rows[key]) for key in sorted(rows))))
    return len(rows)


def export_items(study: Study, output: str | Path) -> int:
    """Write the selected items that still wait for a label as CSV; return their number.

    The columns are id, uri, label (empty, to be filled in) and what the selection says. The file
    can be imported again when it is filled.

    Raises:
        InputError: No round has been selected.
    """
    from svp.study.record import round_folders

    folders = round_folders(study)
    if not folders:
        raise InputError(
            f"A round must be selected first. Got none. Run: svp select {study.path} --budget N"
        )
    labels = read_labels(study)
    columns = ("id", "uri", "label", "round", "rank", "utility", "predicted", "confidence")
    waiting: list[tuple[str, ...]] = []
    for folder in folders:
        with (folder / "selection.csv").open(encoding="utf-8", newline="") as stream:
            waiting += [
                tuple("" if column == "label" else row[column] for column in columns)
                for row in csv.DictReader(stream)
                if row["id"] not in labels
            ]
    write_bytes(Path(output), _csv(columns, waiting))
    return len(waiting)


def _csv(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue().encode()


def _cells(row: Label) -> tuple[str, ...]:
    return (row.id, row.label, row.annotator, row.weight, row.labeled_at)


def _current(study: Study, files: Collection[str] | None) -> dict[str, Label]:
    present = label_files(study)
    missing = sorted(set(files or ()) - set(present))
    if missing:
        raise InputError(
            f"{study.labels_dir} must hold every import. Got none named {missing[0]}. Restore it."
        )
    current: dict[str, Label] = {}
    for name in present if files is None else sorted(files):
        for row in _read_import(study.labels_dir / name):
            if row.id not in current or not _older(row, current[row.id]):
                current[row.id] = row
    return current


def _read_import(path: Path) -> list[Label]:
    try:
        if not path.name.partition("-")[0].isdecimal():
            raise ValueError("its name has no number")
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [
                Label(**{column: cells[column] for column in COLUMNS})
                for cells in csv.DictReader(stream)
            ]
        for row in rows:
            _moment(row.labeled_at or "2000-01-01")
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(
            f"The files of {path.parent} must be those that svp wrote. Got {path.name} "
            f"({type(error).__name__}: {error}). Move it away, then: svp labels import STUDY FILE"
        ) from error
    return rows


def _older(row: Label, than: Label) -> bool:
    if not (row.labeled_at and than.labeled_at):
        return False
    return _moment(row.labeled_at) < _moment(than.labeled_at)


def _moment(text: str) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)


def _import(
    study: Study, rows: list[Label], *, blank: int, known: set[str], origin: str, where: str
) -> ImportResult:
    unknown = sorted({row.id for row in rows} - known)
    if unknown:
        named = ", ".join(unknown[:_NAMED]) + (", …" if len(unknown) > _NAMED else "")
        raise InputError(
            f"Every id must be an item of the study. Got {len(unknown)} unknown in {where}: "
            f"{named}. Use the id column of selection.csv; nothing was imported."
        )
    conflicts: list[Conflict] = []
    incoming: dict[str, Label] = {}
    for row in rows:
        old = incoming.get(row.id)
        keep = row if old is None or not _older(row, old) else old
        if old is not None and old.label != row.label:
            conflicts.append(Conflict(id=row.id, old=old.label, new=row.label, kept=keep.label))
        incoming[row.id] = keep
    current = _current(study, None)
    digest = sha256_hex(canonical_json(sorted(_cells(row) for row in incoming.values())))[:12]
    # The same content again, perhaps by a retried job after a newer import: old news.
    again = any(name.endswith(f"-{digest}.csv") for name in label_files(study))
    counts = dict.fromkeys(("new", "unchanged", "changed", "outdated"), 0)
    added: list[Label] = []
    for row in incoming.values():
        old = current.get(row.id)
        if old is None:
            counts["new"] += 1
            added.append(row)
        elif old.label == row.label:
            counts["unchanged"] += 1
            if _older(old, row):
                added.append(row)  # the same answer, confirmed later: it outlives older changes
        elif again or _older(row, old):
            counts["outdated"] += 1
            conflicts.append(Conflict(id=row.id, old=old.label, new=row.label, kept=old.label))
        else:
            counts["changed"] += 1
            conflicts.append(Conflict(id=row.id, old=old.label, new=row.label, kept=row.label))
            added.append(row)
    file = _append(study, added, origin, digest) if added else None
    return ImportResult(
        file=file,
        blank=blank,
        conflicts=tuple(conflicts),
        labelled=len(current) + counts["new"],
        **counts,
    )


def _append(study: Study, rows: list[Label], origin: str, digest: str) -> str:
    study.labels_dir.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^A-Za-z0-9_.]+", "_", origin)[:40] or "labels"
    content = _csv(COLUMNS, (_cells(row) for row in rows))
    number = 1 + max((int(name.split("-")[0]) for name in label_files(study)), default=-1)
    while True:
        name = f"{number:04d}-{stem}-{digest}.csv"
        taken = any(study.labels_dir.glob(f"{number:04d}-*.csv"))
        if not taken and create_bytes(study.labels_dir / name, content):
            return name
        number += 1


def _read_file(path: Path) -> tuple[list[Label], int]:
    """Return the labelled rows of a file and the number of blank ones."""
    if not path.is_file():
        raise InputError(f"A label file must exist. Got {path}. Correct the path.")
    columns = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    missing = [name for name in ("id", "label") if name not in columns]
    if missing:
        found = ", ".join(columns) or "none"
        raise InputError(
            f"A label file must have columns id and label. Got {found} in {path}. "
            f"Rename or add {' and '.join(missing)}."
        )
    length = len(columns["id"])
    empty = [""] * length
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
    return rows, blank


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
        _moment(row.labeled_at or "2000-01-01")
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
        name: [row[column] if name == "id" else row[column].strip() for row in lines[1:]]
        for column, name in enumerate(header)
    }


def _read_parquet(path: Path) -> dict[str, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        present = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in present if name in COLUMNS])
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
    return str(value) if name == "id" else str(value).strip()
