"""Taking in vectors that somebody has already: a table under an identity that says so.

The identity holds the SHA-256 of the files, so imported vectors never share a table with computed
ones, nor with those of other files.

Shapes: N = rows of a file, M = rows of all files, d = width.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from feature_store.errors import StoreInputError
from feature_store.index import check_digests, first_occurrences
from feature_store.layout import DTYPES
from feature_store.store import FeatureStore
from feature_store.table import Table

FAMILY: Final = "imported"
_BLOCK_BYTES: Final = 2**20


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class VectorFile:
    """Vectors of one file and what they belong to.

    Attributes:
        path: The file; its SHA-256 becomes part of the identity. It must not change meanwhile.
        x_Nd: What it holds, (N, d) floating point; may be mapped into memory.
        digests: SHA-256 of the item that each row belongs to, (N, 32) uint8.
    """

    path: Path
    x_Nd: NDArray[Any]
    digests: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an import did.

    Attributes:
        encoder_id: Under which the vectors can be read, view eval.
        rows: Distinct items of the file.
        written: Those that this run wrote; the others were there.
        dim: Width of the vectors.
        dtype: As stored.
    """

    encoder_id: str
    rows: int
    written: int
    dim: int
    dtype: str


def imported_identity(
    path: str | Path | Sequence[str | Path],
    description: Mapping[str, Any],
    *,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Return the identity of imported vectors: the files' SHA-256 and what their owner says.

    Args:
        path: The vectors file, or several that become one table; their order does not count.
        description: JSON values.
        dtype: What the vectors were converted to, if they were.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    digests = sorted(_file_sha256(one) for one in paths)
    identity: dict[str, Any] = {
        "architecture": {"family": FAMILY},
        "description": dict(description),
        "family": FAMILY,
        "vectors_sha256": digests[0] if len(digests) == 1 else digests,
    }
    return identity if dtype is None else {**identity, "converted": dtype}


def _file_sha256(path: str | Path) -> str:
    hasher = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


def open_vectors(path: str | Path) -> NDArray[Any]:
    """Return the (N, d) array of an npy file, mapped into memory and read-only.

    Raises:
        StoreInputError: If it is no npy file of a two-dimensional array of floating point.
    """
    try:
        x_Nd = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise StoreInputError(
            f"Vectors must be an npy file of numbers. Got {path}: {error}. Use np.save."
        ) from error
    return check_vectors(x_Nd, path)


def check_vectors(x_Nd: Any, path: str | Path) -> NDArray[Any]:
    """Return `x_Nd` if it is an (N, d) array of floating point, else raise StoreInputError."""
    fits = isinstance(x_Nd, np.ndarray) and x_Nd.ndim == 2 and x_Nd.shape[1] > 0
    if not fits or x_Nd.dtype.kind != "f":
        got = f"{x_Nd.shape} {x_Nd.dtype}" if isinstance(x_Nd, np.ndarray) else "several arrays"
        raise StoreInputError(
            f"Vectors must be an (N, d) array of floating point. Got {got} in {path}. "
            "Convert it with x.astype(np.float32) and np.save."
        )
    vectors: NDArray[Any] = x_Nd
    return vectors


def import_vectors(
    store: FeatureStore,
    path: str | Path,
    digests: NDArray[np.uint8],
    description: Mapping[str, Any],
    *,
    dtype: str | None = None,
    report: Callable[[int, int], object] | None = None,
) -> Imported:
    """Store the vectors of an npy file as a table of their own; see `import_files`.

    Args:
        store: Where to.
        path: The npy file; it must not change meanwhile.
        digests: SHA-256 of the item that each row belongs to, (N, 32) uint8.
        description: What the owner says of the vectors; part of the identity.
        dtype: float16 or float32. Default: as the file.
        report: Told about the rows just written and those of the whole.
    """
    file = VectorFile(path=Path(path), x_Nd=open_vectors(path), digests=digests)
    return import_files(store, [file], description, dtype=dtype, report=report)


def import_files(
    store: FeatureStore,
    files: Sequence[VectorFile],
    description: Mapping[str, Any],
    *,
    dtype: str | None = None,
    report: Callable[[int, int], object] | None = None,
) -> Imported:
    """Store the vectors of files as one table of their own; a killed import continues.

    Args:
        store: Where to.
        files: At least one, of one width.
        description: What the owner says of the vectors; part of the identity.
        dtype: float16 or float32, to which values are rounded. Default: as the files, which must
            then all hold the same one of these.
        report: Told about the rows just written and those of the whole.

    Raises:
        StoreInputError: If the files do not fit, hold NaN or infinity (also after rounding), or
            have different vectors for one item.
    """
    wanted = _dtype([file.x_Nd.dtype for file in files], dtype)
    for file in files:
        if len(check_digests(file.digests)) != len(file.x_Nd):
            raise StoreInputError(
                f"Vectors must have one item per row. Got {len(file.x_Nd):,} rows and "
                f"{len(file.digests):,} items for {file.path}. Compare the two files."
            )
    widths = sorted({file.x_Nd.shape[1] for file in files})
    if len(widths) > 1:
        raise StoreInputError(
            f"Vectors of one table must have one width. Got {widths}. Import them one by one."
        )
    rows = _Stacked(files)
    digests = np.concatenate([file.digests for file in files])
    _check_repeats(rows, digests)
    paths = [file.path for file in files]
    encoder_id = store.put_encoder(
        imported_identity(paths, description, dtype=dtype),
        about={"vectors": ", ".join(path.name for path in paths)},
    )
    table = store.table(encoder_id)
    written = _write(table, rows, digests, widths[0], wanted, report)
    return Imported(
        encoder_id=encoder_id,
        rows=len(first_occurrences(digests)),
        written=written,
        dim=widths[0],
        dtype=wanted.name,
    )


def _dtype(found: Sequence[np.dtype[Any]], asked: str | None) -> np.dtype[Any]:
    """Return what to store."""
    kinds = {dtype.newbyteorder("=") for dtype in found}
    if asked is not None:
        return np.dtype(asked)
    if len(kinds) == 1 and (only := kinds.pop()).name in DTYPES:
        return only
    names = sorted({dtype.name for dtype in found})
    raise StoreInputError(
        f"Stored vectors must be {' or '.join(DTYPES)}. Got {', '.join(names)}. Say which with "
        "dtype (--dtype); float16 loses nothing of what a model computed in float16."
    )


class _Stacked:
    """The rows of several files, one below the other, read when they are asked for."""

    def __init__(self, files: Sequence[VectorFile]) -> None:
        self._arrays = [file.x_Nd for file in files]
        self._starts = np.cumsum([0, *(len(x_Nd) for x_Nd in self._arrays)])

    def take(self, rows: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return rows as a new array of a dtype; values that do not fit become infinite."""
        out = np.empty((len(rows), self._arrays[0].shape[1]), dtype)
        number = np.searchsorted(self._starts, rows, side="right") - 1
        for index in np.unique(number).tolist():
            part = number == index
            with np.errstate(over="ignore", invalid="ignore"):
                out[part] = self._arrays[index][rows[part] - self._starts[index]]
        return out

    def row(self, row: int) -> bytes:
        """Return the bytes of one row as stored in its file."""
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        return bytes(self._arrays[index][row - self._starts[index]].tobytes())


def _check_repeats(rows: _Stacked, digests: NDArray[np.uint8]) -> None:
    """Refuse files in which the same item has different vectors."""
    firsts = first_occurrences(digests)
    if len(firsts) == len(digests):
        return
    first_of = {digests[row].tobytes(): row for row in firsts.tolist()}
    for row in np.setdiff1d(np.arange(len(digests)), firsts).tolist():
        first = first_of[digests[row].tobytes()]
        if rows.row(row) != rows.row(first):
            raise StoreInputError(
                f"An item must have one vector. Got different ones in rows {first} and {row}, "
                "which belong to files of the same content. Remove one."
            )


def _write(
    table: Table,
    rows: _Stacked,
    digests: NDArray[np.uint8],
    dim: int,
    dtype: np.dtype[Any],
    report: Callable[[int, int], object] | None,
) -> int:
    todo = table.missing(digests, retry=True)
    for plan in table.plan(digests[todo], dim=dim, dtype=dtype):
        writer = table.writer(plan)
        for chunk in writer.pending():
            writer.write(chunk, rows.take(todo[plan.positions[chunk.start : chunk.stop]], dtype))
            if report is not None:
                report(len(chunk), len(todo))
        writer.seal({"imported": True})
    return len(todo)
