"""A table that names images: CSV or Parquet with the columns id, path, label, split, group."""

import collections
import csv
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from svp.data.item_name import canonical_split, examples, plain, unsafe_reason
from svp.data.listing import Entry, Listing, stat_entries
from svp.data.scanner import SingleSource
from svp.errors import InputError
from svp.progress import Progress

_REQUIRED: Final = ("id", "path")
_OPTIONAL: Final = ("label", "split", "group")
MANIFEST_SUFFIXES: Final = (".csv", ".parquet")


class ManifestSource(SingleSource):
    """The images that a manifest names.

    Args:
        path: The manifest.
        root: What its paths are relative to; default the manifest's folder. Nothing outside it
            is ever read.

    Raises:
        InputError: If the manifest is unusable, repeats an id, or names a path outside `root`.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        if not path.is_file():
            raise InputError(f"A manifest must exist. Got {path}. Check the path.")
        if root is not None and not root.is_dir():
            raise InputError(f"The root of a manifest must be a folder. Got {root}. Check it.")
        self._path = path.resolve()
        self._root = (root if root is not None else path.parent).resolve()
        self._inside: dict[str, bool] = {}
        self._columns = _read_manifest(path)
        self._check()

    @property
    def uri(self) -> str:
        """The absolute path of the manifest."""
        return str(self._path)

    def list_items(self, progress: Progress) -> Listing:
        """List the rows whose files exist, in the order of the manifest."""
        names = [plain(name) for name in self._columns["path"]]
        ids = self._columns["id"]
        with progress.task("listing", len(names), unit="files") as task:
            for name in names:
                self._refuse_escape(name)
            entries, failures = stat_entries(self._root, list(zip(ids, names, strict=True)))
            task.advance(len(names))
        position = {item_id: row for row, item_id in enumerate(ids)}
        label, split, group = (self._columns[name] for name in _OPTIONAL)
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
        return Listing(labelled, failures)

    def read(self, uri: str) -> bytes:
        """Return the bytes of the file at `uri`, relative to the root."""
        reason = unsafe_reason(uri)
        if reason is not None:
            raise self._outside(uri, reason)
        self._refuse_escape(uri)
        with open(f"{self._root}/{uri}", "rb", buffering=0) as file:  # noqa: PTH123 - 3x faster
            return file.read()

    def _check(self) -> None:
        ids, paths = self._columns["id"], self._columns["path"]
        if not ids:
            raise InputError(f"A manifest must name images. Got no row in {self._path}. Add some.")
        for row, (item_id, path) in enumerate(zip(ids, paths, strict=True), start=1):
            if not item_id or not path:
                raise InputError(
                    f"Every row of a manifest must have an id and a path. Got id {item_id!r} and "
                    f"path {path!r} in row {row} of {self._path}. Fill them or drop the row."
                )
            reason = unsafe_reason(path)
            if reason is not None:
                raise self._outside(path, reason)
        if len(set(ids)) < len(ids):
            counts = collections.Counter(ids)
            repeated = [item_id for item_id, count in counts.items() if count > 1]
            raise InputError(
                f"The ids of a manifest must be unique. Got {examples(repeated)} more than "
                f"once in {self._path}. Rename or drop the repeated rows."
            )

    def _refuse_escape(self, name: str) -> None:
        """Refuse a path that a symbolic link leads outside the root.

        Folders are resolved once each, so that a million files cost a million `lstat` calls.
        """
        folder, _, _ = name.rpartition("/")
        inside = self._inside.get(folder)
        if inside is None:
            inside = self._inside[folder] = self._contains(f"{self._root}/{folder}")
        full = f"{self._root}/{name}"
        if not inside or (os.path.islink(full) and not self._contains(full)):  # noqa: PTH114
            raise self._outside(name, "a symbolic link leads outside")

    def _contains(self, path: str) -> bool:
        return Path(path).resolve().is_relative_to(self._root)

    def _outside(self, name: str, reason: str) -> InputError:
        return InputError(
            f"The paths of a manifest must lie inside {self._root}. Got {name!r}: {reason}. "
            "Make it relative, or give the folder that holds all images as the root."
        )


def _read_manifest(path: Path) -> dict[str, list[str]]:
    rows = _parquet_columns(path) if path.suffix.lower() == ".parquet" else _csv_columns(path)
    missing = [name for name in _REQUIRED if name not in rows]
    if missing:
        raise InputError(
            f"A manifest must have the columns id and path. Got {', '.join(rows) or 'none'} in "
            f"{path}. Rename or add {' and '.join(missing)}."
        )
    n = len(rows["id"])
    return {name: rows.get(name) or [""] * n for name in (*_REQUIRED, *_OPTIONAL)}


def _csv_columns(path: Path) -> dict[str, list[str]]:
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
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


def _csv_rows(path: Path, reader: Iterator[list[str]]) -> dict[str, list[str]]:
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


def _parquet_columns(path: Path) -> dict[str, list[str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        _refuse_repeated_columns(path, names)
        wanted = [name for name in (*_REQUIRED, *_OPTIONAL) if name in names]
        table = pyarrow.parquet.read_table(path, columns=wanted)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"A Parquet manifest must be readable. Got {error} for {path}. Write it again."
        ) from error
    columns: dict[str, list[str]] = {name: [] for name in names}
    for name in wanted:
        columns[name] = [_text(value) for value in table.column(name).to_pylist()]
    return columns


def _refuse_repeated_columns(path: Path, names: Sequence[str]) -> None:
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
