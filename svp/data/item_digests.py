"""Which content each line of a user's list of items means.

Shapes: N = lines.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_store.pool import Pool
from svp.data.digest_cache import DigestCache
from svp.data.opening import open_source
from svp.errors import InputError
from svp.progress import Progress, Silent

COLUMNS: Final = ("digest", "path", "id")  # the first that a list has is used
_DIGEST_BYTES: Final = 32


def read_item_digests(
    listing: str | Path,
    *,
    source: str | Path | None = None,
    cache: DigestCache | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.uint8], Pool | None]:
    """Read a CSV file that names one item per line.

    Args:
        listing: CSV with a column `digest` (SHA-256 of the file's bytes, hexadecimal), `path` or
            `id` (as `source` names its items); of several the first in this order counts.
        source: Folder, manifest or archive with the items; needed for `path` and `id`.
        cache: Remembers digests of unchanged files.
        progress: Where to report.

    Returns:
        SHA-256 of each line's item, (N, 32) uint8, and the pool of the items where a source was
        needed.

    Raises:
        InputError: If the list cannot be read, or names what the source does not have.
    """
    listing = Path(listing)
    column, values = _read(listing)
    if column == "digest":
        return _parsed(listing, values), None
    if source is None:
        raise InputError(
            f"A list with the column {column} must come with a source. Got none for {listing}. "
            "Add --source with the folder that holds the items, or a column digest."
        )
    scan = open_source(source).scan(cache=cache, progress=progress or Silent())
    pool = scan.pool
    names = pool.ids if column == "id" else pool.uris
    rows = _rows(listing, values, {name: row for row, name in enumerate(names)}, column)
    return pool.digests[rows], pool.subset(np.unique(rows))


def _read(listing: Path) -> tuple[str, list[str]]:
    try:
        with listing.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            header = lines.fieldnames or ()
            column = next((name for name in COLUMNS if name in header), None)
            values = [] if column is None else [line[column] or "" for line in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"A list of items must be a CSV file in UTF-8. Got {listing}: {error}. Check the path."
        ) from error
    if column is None:
        raise InputError(
            f"A list of items must have a column digest, path or id. Got {', '.join(header)} in "
            f"{listing}. Name the columns in its first line."
        )
    return column, values


def _parsed(listing: Path, values: list[str]) -> NDArray[np.uint8]:
    parts = []
    for number, value in enumerate(values, start=2):
        try:
            digest = bytes.fromhex(value)
        except ValueError:
            digest = b""
        if len(digest) != _DIGEST_BYTES or not any(digest):
            raise InputError(
                "A digest must be a SHA-256 as 64 hexadecimal characters. "
                f"Got {value!r} in line {number} of {listing}. Correct it."
            )
        parts.append(digest)
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, _DIGEST_BYTES)


def _rows(
    listing: Path, values: list[str], known: Mapping[str, int], column: str
) -> NDArray[np.int64]:
    rows = np.asarray([known.get(value, -1) for value in values], np.int64)
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        named = ", ".join(repr(values[row]) for row in unknown[:5].tolist())
        raise InputError(
            f"Every {column} of {listing} must be a readable item of the source. Got {named} "
            f"({len(unknown):,} in all). Compare them with the source's names."
        )
    return rows
