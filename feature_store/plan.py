"""Planning: which rows go into which segment, the same wherever and however often it is asked.

Shapes: M = planned digests.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_store import layout
from feature_store.digest import canonical_json, sha256_hex
from feature_store.index import check_digests, first_occurrences
from feature_store.layout import Chunk


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentPlan:
    """The rows of a segment before they are computed. Equal plans have equal ids anywhere."""

    encoder_id: str
    view: str
    digests: NDArray[np.uint8]
    """Digest of each row, (M, 32)."""
    positions: NDArray[np.int64]
    """Where each row stood in the digests given to `Table.plan`, (M,); no part of the id."""
    dim: int
    dtype: str
    chunk_rows: int
    attempt: int = 0
    """How often each of these items had failed when this was planned."""

    @property
    def rows(self) -> int:
        """Number of planned rows."""
        return len(self.digests)

    @functools.cached_property
    def planned(self) -> str:
        """SHA-256 over the digests in order."""
        return sha256_hex(np.ascontiguousarray(self.digests).data)

    @functools.cached_property
    def id(self) -> str:
        """First 16 hexadecimal characters of a SHA-256 over all that fixes the stored shape."""
        return sha256_hex(canonical_json(self.attributes()))[:16]

    def chunks(self) -> tuple[Chunk, ...]:
        """Return the chunks in order."""
        return tuple(layout.chunks(self.rows, self.chunk_rows))

    def attributes(self) -> dict[str, Any]:
        """Return what the id is made of; stored as attributes of the Zarr group."""
        return {
            "attempt": self.attempt,
            "chunk_rows": self.chunk_rows,
            "dim": self.dim,
            "dtype": self.dtype,
            "encoder": self.encoder_id,
            "format": layout.FORMAT,
            "planned": self.planned,
            "view": self.view,
        }

    def metadata(self) -> dict[str, bytes]:
        """Return the content of each zarr.json, by key inside the segment."""
        return {
            "zarr.json": layout.group_metadata({"feature_store": self.attributes()}),
            "embeddings/zarr.json": layout.embeddings_metadata(
                self.rows, self.dim, chunk_rows=self.chunk_rows, dtype=self.dtype
            ),
            "digests/zarr.json": layout.digests_metadata(self.rows),
        }


def plan_segments(
    digests: NDArray[np.uint8],
    attempts: NDArray[np.int64],
    *,
    encoder_id: str,
    view: str,
    dim: int,
    dtype: Any,
    chunk_rows: int | None,
    segment_rows: int | None,
) -> tuple[SegmentPlan, ...]:
    """Cut digests into segments, in order, those with more failed attempts later.

    Args:
        digests: (M, 32) uint8, distinct.
        attempts: How often each has failed, (M,). Segments do not mix attempts: what failed once
            more moves to a later group and leaves the cut of the others as it was.
        encoder_id: Of the table.
        view: Of the table.
        dim: Width of the embeddings.
        dtype: float16 or float32.
        chunk_rows: Rows per chunk. Default: 16 MiB of rows, less for small segments.
        segment_rows: Most rows of a segment. Default: 64 full chunks. It must not depend on M:
            once some segments are published, the rest has to be cut as before.

    Raises:
        ValueError: If digests repeat or are zero, or a number does not fit.
    """
    digests = _check(digests)
    name = np.dtype(dtype).name
    if name not in layout.DTYPES:
        raise ValueError(
            f"The dtype must be one of {', '.join(layout.DTYPES)}. Got {name}. "
            "Store 16-bit results as float16, others as float32."
        )
    sizes = {"dim": dim, "chunk_rows": chunk_rows, "segment_rows": segment_rows}
    for what, number in sizes.items():
        if number is not None and number < 1:
            raise ValueError(f"{what} must be at least 1. Got {number}. Choose a larger one.")
    row_bytes = dim * np.dtype(name).itemsize
    most = segment_rows or layout.SEGMENT_CHUNKS * (chunk_rows or layout.full_chunk_rows(row_bytes))
    plans = []
    # Mostly nothing failed before; sorting a million zeros takes longer than seeing that.
    groups = np.unique(attempts).tolist() if attempts.any() else [0]
    for attempt in groups:
        positions = np.flatnonzero(attempts == attempt)
        for start in range(0, len(positions), most):
            chosen = positions[start : start + most]
            plans.append(
                SegmentPlan(
                    encoder_id=encoder_id,
                    view=view,
                    digests=_copied(digests, chosen),
                    positions=chosen,
                    dim=dim,
                    dtype=name,
                    chunk_rows=chunk_rows or layout.fitting_chunk_rows(len(chosen), row_bytes),
                    attempt=attempt,
                )
            )
    return tuple(plans)


def _copied(digests: NDArray[np.uint8], chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return a copy of some rows; those that follow each other are copied at once."""
    first, last = int(chosen[0]), int(chosen[-1])
    if last - first + 1 == len(chosen):
        return digests[first : last + 1].copy()
    return digests[chosen]


def _check(digests: NDArray[np.uint8]) -> NDArray[np.uint8]:
    digests = check_digests(digests)
    if not digests.view(np.uint64)[:, 0].all() and not digests.any(axis=1).all():
        raise ValueError(
            "Digests of a plan must not be all zero. Got one that is. Pass real SHA-256 digests."
        )
    if len(first_occurrences(digests)) != len(digests):
        raise ValueError(
            "Digests of a plan must be distinct. Got repeated ones. Plan what missing() left."
        )
    return digests
