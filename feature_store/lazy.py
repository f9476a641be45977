"""Pools larger than memory: block after block, or as one lazy Dask array.

Blocks end where chunks end as long as the pool is in stored order, so that each chunk is read and
checked once; elsewhere they are as long as allowed.

Shapes: N = asked digests, B = rows of a block, K = places where a block should end, d = dim.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from feature_store import layout
from feature_store.errors import FeatureStoreError, MissingRowsError
from feature_store.manifest import SegmentManifest
from feature_store.reader import SegmentReader
from feature_store.runs import Runs
from feature_store.storage import open_storage
from feature_store.table import Rows, Table, read_segment

BLOCK_BYTES: Final = 64 * 2**20  # a few chunks, so that threads have something to share


def read_blocks(
    table: Table,
    digests: NDArray[np.uint8],
    *,
    rows: int | None = None,
    dtype: Any = None,
    verify: bool = True,
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield embeddings in the asked order, a block at a time.

    Args:
        table: The table.
        digests: (N, 32) uint8; may repeat.
        rows: Most rows of a block. Default: 64 MiB of them.
        dtype: Dtype of the blocks. Default: the stored one.
        verify: Check each chunk before its rows are used.

    Yields:
        The positions in `digests`, and a new (B, d) array of their embeddings.

    Raises:
        MissingRowsError: If any item has no embedding; before the first block.
        CorruptChunkError: If stored bytes are damaged.
        ValueError: If `rows` is less than 1.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be at least 1. Got {rows}. Choose a larger number.")
    where = table.resolve(digests)
    dtype = table.dtype if dtype is None else np.dtype(dtype)
    width = table.dim or 1
    most = rows or max(1, BLOCK_BYTES // (width * (dtype or np.dtype(np.float32)).itemsize))
    for start, stop in _blocks(table, where, most):
        part = slice(start, stop)
        yield part, table.read(digests[part], dtype=dtype, verify=verify)


def dask_array(table: Table, digests: NDArray[np.uint8], *, verify: bool = True) -> Any:
    """Return the embeddings of a pool as a lazy Dask array.

    A task reads the rows of one chunk, on whichever worker: the store's path or URL must lead to
    it from there. Tasks name rows, not digests, so a graph of many stays small; the segments they
    name must not be deleted before they ran.

    Args:
        table: The table.
        digests: (N, 32) uint8; may repeat. At least one.
        verify: Check each chunk before its rows are used.

    Returns:
        `dask.array.Array`, (N, d), of the stored dtype, one block along d.

    Raises:
        MissingRowsError: If any item has no embedding, or none is asked for.
        FeatureStoreError: If Dask is not installed.
    """
    dask = _dask()
    where = table.resolve(digests)
    manifests = {manifest.id: manifest for manifest in table.segments()}
    dtype, width = table.dtype, table.dim
    if dtype is None or width is None or len(where) == 0:
        raise MissingRowsError(
            "A lazy array must have rows. Got none. Pass the digests of a pool that is embedded.",
            missing=0,
            total=0,
        )
    offsets = np.cumsum([0, *(manifests[name].rows for name in where.segments)])[:-1]
    found = where.row + offsets[where.segment]
    most = max(manifests[name].chunk_rows for name in where.segments)
    read = dask.delayed(_read_parts, pure=True)
    blocks = []
    for start, stop in _blocks(table, where, most):
        pieces, segment = Runs.of(found[start:stop]).cut(offsets)
        parts = [
            (
                where.segments[number],
                (
                    pieces.row[segment == number] - offsets[number],
                    pieces.position[segment == number],
                    pieces.length[segment == number],
                ),
            )
            for number in np.unique(segment).tolist()
        ]
        shape = (stop - start, width)
        task = read(table.url, table.encoder_id, table.view, parts, shape, dtype.name, verify)
        blocks.append(dask.array.from_delayed(task, shape, dtype))
    return dask.array.concatenate(blocks)


def _read_parts(
    url: str,
    encoder_id: str,
    view: str,
    parts: Sequence[tuple[str, tuple[NDArray[np.int64], ...]]],
    shape: tuple[int, int],
    dtype: str,
    verify: bool,
) -> NDArray[Any]:
    """Read rows of segments into a new array; runs on a worker."""
    storage = open_storage(url)
    prefix = f"{layout.table_prefix(encoder_id, view)}/segments"
    out = np.empty(shape, dtype)
    for segment_id, columns in parts:
        # Not kept from task to task: a segment that is recomputed may have other bytes.
        manifest = SegmentManifest.from_bytes(
            storage.get(f"{prefix}/{segment_id}.json"), segment_id
        )
        reader = SegmentReader(storage, prefix, manifest)
        read_segment(reader, Runs(*columns), out, verify=verify)
    return out


def _blocks(table: Table, where: Rows, most: int) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of blocks of at most `most` items."""
    ends_K = _chunk_ends(table, where)
    start = 0
    while start < len(where):
        last = int(np.searchsorted(ends_K, start + most, side="right")) - 1
        stop = int(ends_K[last]) if last >= 0 else 0
        if stop <= start:
            stop = min(start + most, len(where))
        yield start, stop
        start = stop


def _chunk_ends(table: Table, where: Rows) -> NDArray[np.int64]:
    """Return where runs through at least half a chunk begin and end, ascending, and N."""
    manifests = {manifest.id: manifest for manifest in table.segments()}
    sizes = np.asarray([manifests[name].chunk_rows for name in where.segments], np.int64)
    if len(where) == 0:
        return np.zeros(1, np.int64)
    chunk_rows = sizes[where.segment]
    new = (
        (np.diff(where.segment) != 0)
        | (np.diff(where.row) != 1)
        | (np.diff(where.row // chunk_rows) != 0)
    )
    starts = np.concatenate([[0], np.flatnonzero(new) + 1])
    stops = np.append(starts[1:], len(where))
    whole = 2 * (stops - starts) >= chunk_rows[starts]
    return np.unique(np.concatenate([starts[whole], stops[whole], [len(where)]]))


def _dask() -> Any:
    try:
        import dask
        import dask.array
    except ImportError as error:
        raise FeatureStoreError(
            "Dask must be installed for lazy arrays. Got no such package. "
            "Install the extra: pip install 'svp[dask]'."
        ) from error
    return dask
