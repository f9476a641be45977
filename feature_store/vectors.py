"""Taking in vectors that somebody has already: a table under an identity that says so.

The identity holds the SHA-256 of the vectors file, so imported vectors never share a table with
computed ones, nor with those of another file.

Shapes: N = rows of the file, d = width.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from feature_store.errors import FeatureStoreError
from feature_store.index import check_digests, first_occurrences
from feature_store.store import FeatureStore
from feature_store.table import Table

FAMILY: Final = "imported"
_BLOCK_BYTES: Final = 2**20


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


def imported_identity(path: str | Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of imported vectors: the file's SHA-256 and what its owner says of it.

    Args:
        path: The vectors file.
        description: JSON values.
    """
    hasher = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
    return {
        "architecture": {"family": FAMILY},
        "description": dict(description),
        "family": FAMILY,
        "vectors_sha256": hasher.hexdigest(),
    }


def open_vectors(path: str | Path) -> NDArray[Any]:
    """Return the (N, d) array of an npy file, mapped into memory and read-only.

    Raises:
        FeatureStoreError: If it is no npy file of a two-dimensional array of numbers that float16
            or float32 hold.
    """
    try:
        x_Nd = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise FeatureStoreError(
            f"Vectors must be an npy file of numbers. Got {path}: {error}. Use np.save."
        ) from error
    fits = isinstance(x_Nd, np.ndarray) and x_Nd.ndim == 2 and x_Nd.shape[1] > 0
    if not fits or x_Nd.dtype.kind != "f" or x_Nd.dtype.itemsize > 4:
        got = f"{x_Nd.shape} {x_Nd.dtype}" if isinstance(x_Nd, np.ndarray) else "several arrays"
        raise FeatureStoreError(
            f"Vectors must be an (N, d) array of float16 or float32. Got {got} in {path}. "
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
    report: Callable[[int, int], object] | None = None,
) -> Imported:
    """Store the vectors of an npy file as a table of their own; a killed import continues.

    Args:
        store: Where to.
        path: The npy file; it must not change meanwhile.
        digests: SHA-256 of the item that each row belongs to, (N, 32) uint8.
        description: What the owner says of the vectors; part of the identity.
        report: Told about the rows just written and those of the whole.

    Raises:
        FeatureStoreError: If the file does not fit, holds NaN or infinity, or has different
            vectors for one item.
    """
    x_Nd = open_vectors(path)
    digests = check_digests(digests)
    if len(digests) != len(x_Nd):
        raise FeatureStoreError(
            f"Vectors must have one item per row. Got {len(x_Nd):,} rows and {len(digests):,} "
            "items. Compare the two files."
        )
    _check_repeats(x_Nd, digests)
    encoder_id = store.put_encoder(
        imported_identity(path, description), about={"vectors": Path(path).name}
    )
    table = store.table(encoder_id)
    written = _write(table, x_Nd, digests, report)
    return Imported(
        encoder_id=encoder_id,
        rows=len(first_occurrences(digests)),
        written=written,
        dim=x_Nd.shape[1],
        dtype=x_Nd.dtype.newbyteorder("=").name,
    )


def _check_repeats(x_Nd: NDArray[Any], digests: NDArray[np.uint8]) -> None:
    """Refuse a file in which the same item has different vectors."""
    firsts = first_occurrences(digests)
    if len(firsts) == len(digests):
        return
    first_of = {digests[row].tobytes(): row for row in firsts.tolist()}
    for row in np.setdiff1d(np.arange(len(digests)), firsts).tolist():
        first = first_of[digests[row].tobytes()]
        if x_Nd[row].tobytes() != x_Nd[first].tobytes():
            raise FeatureStoreError(
                f"An item must have one vector. Got different ones in rows {first} and {row}, "
                "which belong to files of the same content. Remove one."
            )


def _write(
    table: Table,
    x_Nd: NDArray[Any],
    digests: NDArray[np.uint8],
    report: Callable[[int, int], object] | None,
) -> int:
    todo = table.missing(digests, retry=True)
    dtype = x_Nd.dtype.newbyteorder("=")
    for plan in table.plan(digests[todo], dim=x_Nd.shape[1], dtype=dtype):
        writer = table.writer(plan)
        for chunk in writer.pending():
            rows = todo[plan.positions[chunk.start : chunk.stop]]
            writer.write(chunk, np.asarray(x_Nd[rows], dtype))
            if report is not None:
                report(len(chunk), len(todo))
        writer.seal({"imported": True})
    return len(todo)
