"""The files of `labels/`: imports, journals of the labelling page, and votes.

```
labels/NNNN-name-digest.csv        an import, never edited
labels/NNNN-page-id.journal.csv    answers given on the page of `svp label`, one line each, appended
labels/votes/NNNN-name-digest.csv  who said what, where answers have an annotator
```
Imports and journals together are the labels. An empty label, which only a journal holds, takes an
earlier answer back. Votes are evidence beside them, with the weight of the vote: they decide what a
later import of further votes means. Receipts name a journal with the number of its lines, such as
`0003-page-1f2e3d4c.journal.csv#57`: lines are only ever added, so that means the same for ever.
"""

import csv
import io
import os
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from feature_store.atomic import create_bytes, make_directory, sync_directory
from feature_store.digest import canonical_json, sha256_hex
from svp.errors import InputError
from svp.label.answer import COLUMNS, Label, moment, older
from svp.study.study import Study

_JOURNAL: Final = ".journal.csv"
_VOTES: Final = "votes"


def cells_of(row: Label) -> tuple[str, ...]:
    """Return a row in the order of `COLUMNS`."""
    return (row.id, row.label, row.annotator, row.weight, row.labeled_at)


def csv_bytes(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> bytes:
    """Return rows as CSV in UTF-8."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue().encode()


def rows_digest(rows: Iterable[Label]) -> str:
    """Return the digest of rows in a file's name; their order is no part of it."""
    return sha256_hex(canonical_json(sorted(cells_of(row) for row in rows)))[:12]


def _number(name: str) -> tuple[float, str]:
    head = name.partition("-")[0]
    return (int(head) if head.isdecimal() else float("inf"), name)


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted((path.name for path in folder.glob("*.csv")), key=_number)


def label_files(study: Study) -> list[str]:
    """Return the names of the study's imports and journals, oldest first."""
    folder = study.labels_dir
    return [
        f"{name}#{len(_lines(folder / name)) - 1}" if name.endswith(_JOURNAL) else name
        for name in _names(folder)
    ]


def current_labels(study: Study, files: Collection[str] | None = None) -> dict[str, Label]:
    """Return the row that counts for every labelled item.

    Args:
        study: The study.
        files: What to read, as `label_files` named it; default: all.

    Raises:
        InputError: A file is gone, or is not as svp wrote it.
    """
    present = set(_names(study.labels_dir))
    listed = label_files(study) if files is None else sorted(files, key=_number)
    current: dict[str, Label] = {}
    for listing in listed:
        name, _, count = listing.partition("#")
        if name not in present:
            raise InputError(
                f"{study.labels_dir} must hold every import. Got none named {name}. Restore it."
            )
        rows = _read(study.labels_dir / name)
        if count:
            if len(rows) < int(count):
                raise InputError(
                    f"{study.labels_dir / name} must have {count} answers. Got {len(rows)}. "
                    "Restore it."
                )
            rows = rows[: int(count)]
        for row in rows:
            if row.id not in current or not older(row, current[row.id]):
                current[row.id] = row
    return {identifier: row for identifier, row in current.items() if row.label}


def append_labels(study: Study, rows: list[Label], origin: str, digest: str) -> str:
    """Write an import; return its name."""
    return _append(study.labels_dir, rows, origin, digest)


def append_votes(study: Study, rows: list[Label], origin: str) -> str:
    """Write votes; return the name of their file."""
    return _append(study.labels_dir / _VOTES, rows, origin, rows_digest(rows))


def votes_of(study: Study) -> dict[str, list[Label]]:
    """Return every vote by item, in the order in which they came."""
    folder = study.labels_dir / _VOTES
    found: dict[str, list[Label]] = {}
    journals = [name for name in _names(study.labels_dir) if name.endswith(_JOURNAL)]
    paths = [folder / name for name in _names(folder)]
    for path in [*paths, *(study.labels_dir / name for name in journals)]:
        for row in _read(path):
            if row.annotator:
                found.setdefault(row.id, []).append(row)
    return found


class Journal:
    """Answers one at a time, each on the disk before `add` returns.

    A kill at any moment loses at most the answer that was not acknowledged: a line without its end
    does not count, and the next journal is another file.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self._folder = study.labels_dir
        self._path: Path | None = None

    @property
    def path(self) -> Path | None:
        """The file, None before the first answer."""
        return self._path

    def add(self, row: Label) -> None:
        """Append one answer; an empty label takes an earlier one back.

        Raises:
            OSError: It could not be written; it does not count then.
        """
        path = self._open()
        line = csv_bytes(COLUMNS, [cells_of(row)]).partition(b"\n")[2]
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            size = os.fstat(handle).st_size
            if os.write(handle, line) != len(line):
                os.ftruncate(handle, size)
                raise OSError(f"{path} took only a part of an answer")
            os.fsync(handle)
        finally:
            os.close(handle)

    def _open(self) -> Path:
        names = _names(self._folder)
        imports = [name for name in names if not name.endswith(_JOURNAL)]
        # An import since then is older than what comes now, so this needs a later number.
        passed = imports and self._path is not None and _number(imports[-1]) > _number(
            self._path.name
        )  # fmt: skip
        if self._path is None or passed or not self._path.is_file():
            make_directory(self._folder)
            while True:
                number = _next(_names(self._folder))
                path = self._folder / f"{number:04d}-page-{secrets.token_hex(4)}{_JOURNAL}"
                if create_bytes(path, csv_bytes(COLUMNS, ())):
                    self._path = path
                    break
            sync_directory(self._folder)
        return self._path


def _next(names: list[str]) -> int:
    return 1 + max((int(n) for name in names if (n := name.split("-")[0]).isdecimal()), default=-1)


def _append(folder: Path, rows: list[Label], origin: str, digest: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^A-Za-z0-9_.]+", "_", origin)[:40] or "labels"
    content = csv_bytes(COLUMNS, map(cells_of, rows))
    number = _next(_names(folder))
    while True:
        name = f"{number:04d}-{stem}-{digest}.csv"
        taken = any(folder.glob(f"{number:04d}-*.csv"))
        if not taken and create_bytes(folder / name, content):
            return name
        number += 1


def _lines(journal: Path) -> list[list[str]]:
    """Return a journal's records; text behind the last whole line is of a killed writer."""
    whole, end, _ = journal.read_bytes().rpartition(b"\n")
    return [row for row in csv.reader(io.StringIO((whole + end).decode(), newline="")) if row]


def _read(path: Path) -> list[Label]:
    try:
        if not path.name.partition("-")[0].isdecimal():
            raise ValueError("its name has no number")
        if path.name.endswith(_JOURNAL):
            header, *lines = _lines(path)
            records: list[Mapping[str, str]] = [
                dict(zip(header, cells, strict=True)) for cells in lines
            ]
        else:
            with path.open(encoding="utf-8", newline="") as stream:
                records = list(csv.DictReader(stream))
        rows = [Label(**{column: cells[column] for column in COLUMNS}) for cells in records]
        for row in rows:
            moment(row.labeled_at)
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(
            f"The files of {path.parent} must be those that svp wrote. Got {path.name} "
            f"({type(error).__name__}: {error}). Move it away, then: svp labels import STUDY FILE"
        ) from error
    return rows
