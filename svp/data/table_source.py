"""Images in tables: what `datasets` saved to disk, and Parquet files with an image column.

Rows are items `SPLIT/000000017`, numbered within their split as the files are in order, so rows
appended later change no id; the name that an image brings follows behind a slash. Ids are in the
order of rows, so that Parquet row groups are read once each and not once an image.
"""

import dataclasses
import errno
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from svp.data.image_columns import Features, checked_features, has_images
from svp.data.item_name import canonical_split, unsafe_reason
from svp.data.listing import Entry, Listing, entry_key
from svp.data.random_file import stamp_of
from svp.data.recent import Recent
from svp.data.remote_file import RemoteFile
from svp.data.scanner import SingleSource
from svp.data.table_file import ArrowFile, ParquetFile, TableFile
from svp.errors import InputError
from svp.progress import Progress

DATASETS_FILES: Final = ("dataset_dict.json", "state.json")
_DIGITS: Final = 9
_OPEN_FILES: Final = 64
_REMOTE_READS: Final = 4  # neighbours share a row group, and few of those are kept
_SPLIT: Final = re.compile(r"(train|val|valid|validation|test)(?:[-_.].*)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TablePart:
    """One file of a source.

    Attributes:
        path: The file, or an object in a bucket.
        name: As uris name it.
        split: What its place says, or None.
        features: What `datasets` says of its columns, or None.
    """

    path: Path | RemoteFile
    name: str
    split: str | None
    features: Features | None = None


class TableSource(SingleSource):
    """The rows of tables.

    Args:
        parts: Files in the order of their rows.
        uri: Where they are, for people and records.

    Raises:
        InputError: If a file is damaged or has no image column.
    """

    def __init__(self, parts: Sequence[TablePart], uri: str) -> None:
        self._parts, self._uri = tuple(parts), uri
        self._by_name = {part.name: part for part in parts}
        # An open Parquet file holds row groups; neighbours in the pool are neighbours in a file.
        if any(isinstance(part.path, RemoteFile) for part in parts):
            self.read_threads = _REMOTE_READS
        self._parquet: Recent[str, TableFile] = Recent(self._open, 2)
        self._arrow: Recent[str, TableFile] = Recent(self._open, _OPEN_FILES)
        self._file(self._parts[0])

    def __reduce__(self) -> tuple[type["TableSource"], tuple[tuple[TablePart, ...], str]]:
        return type(self), (self._parts, self._uri)

    @property
    def uri(self) -> str:
        """Where the tables are."""
        return self._uri

    def list_items(self, progress: Progress) -> Listing:
        """List the rows of every file; images are not read."""
        entries: list[Entry] = []
        counts: dict[str | None, int] = {}
        others: set[str] = set()
        with progress.task("listing", len(self._parts), unit="files") as task:
            for part in self._parts:
                file = self._file(part)
                others.update(file.columns.other_labels)
                stamp, changed_ns = _stamp(part.path)
                first = counts.get(part.split, 0)
                row = -1
                for row, said in enumerate(file.rows()):
                    item_id = _id(part.split, first + row, said.path)
                    entries.append(
                        Entry(
                            item_id,
                            f"{part.name}#{row}",
                            entry_key(part.name, *stamp, row),
                            changed_ns,
                            said.label,
                            None if part.split is None else canonical_split(part.split),
                            said.group,
                        )
                    )
                counts[part.split] = first + row + 1
                task.advance()
        if not entries:
            raise InputError(
                f"Tables must hold images. Got no row in {self.uri}. Give other files."
            )
        if others:
            label = self._file(self._parts[0]).columns.label
            progress.say(
                f"Labels are the column {label}; {', '.join(sorted(others))} are classes, too, "
                "and are not read."
            )
        return Listing(entries, [])

    def read(self, uri: str) -> bytes:
        """Return the image of the row `FILE#ROW`."""
        name, mark, row = uri.rpartition("#")
        part = self._by_name.get(name)
        if part is None or not mark or not row.isdecimal():
            raise FileNotFoundError(errno.ENOENT, f"no such row of {self.uri}", uri)
        try:
            file = self._file(part)
        except InputError as error:
            raise OSError(errno.EIO, str(error)) from error
        return file.image(int(row))

    def _file(self, part: TablePart) -> TableFile:
        kept = self._parquet if _is_parquet(part.path) else self._arrow
        return kept.get(part.name)

    def _open(self, name: str) -> TableFile:
        part = self._by_name[name]
        if not isinstance(part.path, RemoteFile) and not _is_parquet(part.path):
            return ArrowFile(part.path, part.features)
        return ParquetFile(part.path, part.features)


def is_saved_dataset(path: Path) -> bool:
    """Return whether `datasets` saved a data set into this folder."""
    return any((path / name).is_file() for name in DATASETS_FILES)


def saved_dataset(path: Path) -> TableSource:
    """Open a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        InputError: If files are missing, or rows are selected by an indices table.
    """
    root = path.resolve()
    if not (root / "dataset_dict.json").is_file():
        return TableSource(_saved_parts(root, root, None), str(root))
    splits = _json(root / "dataset_dict.json").get("splits")
    if not isinstance(splits, list) or not splits or not all(map(_is_name, splits)):
        raise InputError(
            f"A saved data set must list its splits. Got {splits!r} in "
            f"{root / 'dataset_dict.json'}. Save it again."
        )
    parts = [part for split in splits for part in _saved_parts(root, root / split, split)]
    return TableSource(parts, str(root))


def parquet_files(files: Sequence[Path | RemoteFile], root: Path | str, uri: str) -> TableSource:
    """Open Parquet files with an image column; splits are told by folder or file name.

    Args:
        files: The files, or objects in a bucket.
        root: What their names are relative to.
        uri: Where they are, for people and records.

    Raises:
        InputError: If a file is damaged or has no image column.
    """
    parts = []
    for path in sorted(files, key=lambda path: str(getattr(path, "path", path))):
        if isinstance(path, RemoteFile):
            name = path.path.removeprefix(f"{root}/")
        else:
            path = path.resolve()
            name = path.relative_to(Path(root).resolve()).as_posix()
        match = next(filter(None, map(_SPLIT.fullmatch, name.split("/"))), None)
        parts.append(TablePart(path=path, name=name, split=match and match[1].lower()))
    return TableSource(parts, uri)


def holds_images(file: Path | RemoteFile) -> bool:
    """Return whether a Parquet file is a table of images rather than a manifest."""
    import pyarrow
    import pyarrow.parquet

    opened = file.walk() if isinstance(file, RemoteFile) else file
    try:
        schema = pyarrow.parquet.read_schema(opened)
    except (pyarrow.ArrowException, OSError):
        return False  # reading it will say what is wrong
    return not {"id", "path"} <= set(schema.names) and has_images(schema)


def _saved_parts(root: Path, folder: Path, split: str | None) -> list[TablePart]:
    state = _json(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(
            "A saved data set must hold its rows in order. Got one whose rows are selected by "
            f"an indices table in {folder}. Save dataset.flatten_indices() instead."
        )
    listed = state.get("_data_files")
    names = [one.get("filename") for one in listed] if isinstance(listed, list) else []
    if not names or not all(map(_is_name, names)):
        raise InputError(
            f"A saved data set must list its files. Got {names!r} in {folder / 'state.json'}. "
            "Save it again."
        )
    split = split if split is not None else state.get("_split")
    if split is not None and not _is_name(split):
        split = None  # such as "train[:10%]", which names no split
    described = _json(folder / "dataset_info.json", missing={})
    features = checked_features(described.get("features"))
    return [
        TablePart(
            path=folder / name,
            name=(folder / name).relative_to(root).as_posix(),
            split=split,
            features=features,
        )
        for name in names
    ]


def _json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        held = missing
    except (OSError, ValueError) as error:
        raise InputError(
            f"A saved data set must be complete. Got {error} for {path}. Save it again."
        ) from error
    if not isinstance(held, dict):
        raise InputError(f"A saved data set must have a {path.name}. Got none in {path.parent}.")
    return held


def _is_name(text: Any) -> bool:
    """Return whether text is the name of one file or folder, and leads nowhere else."""
    return (
        isinstance(text, str)
        and text not in ("", ".")
        and not re.search(r"[/\\\[\]:]", text)
        and unsafe_reason(text) is None
    )


def _is_parquet(path: Path | RemoteFile) -> bool:
    return isinstance(path, RemoteFile) or path.suffix.lower() == ".parquet"


def _stamp(path: Path | RemoteFile) -> tuple[tuple[int, ...], int]:
    if isinstance(path, RemoteFile):
        return path.stamp, path.changed_ns
    return stamp_of(path.stat())


def _id(split: str | None, row: int, path: str | None) -> str:
    parts = [] if split is None else [split]
    parts.append(f"{row:0{_DIGITS}}")
    name = (path or "").replace("\\", "/").rpartition("/")[2]
    if name and unsafe_reason(name) is None and name != "." and name.isprintable():
        parts.append(name)
    return "/".join(parts)
