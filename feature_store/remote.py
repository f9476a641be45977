"""Reading chunks that are not files: whole objects or ranges of them, many at a time.

Shapes: N = rows of the array that is filled, B = gathered rows, d = dim.
"""

from typing import Any, Final

import crc32c
import numpy as np
from numpy.typing import NDArray

from feature_store.checks import ChunkChecks
from feature_store.layout import CHECKSUM_BYTES
from feature_store.manifest import SegmentManifest
from feature_store.runs import Runs
from feature_store.storage import Storage
from feature_store.threads import each

_BLOCK_BYTES: Final = 2**20  # checked and copied together while still in cache
_WHOLE_SHARE: Final = 0.5  # of a chunk's rows above which one request for all is the better way


class RemoteChunks:
    """Reads rows of chunks that have exactly our codecs. Safe to use from several threads.

    Args:
        storage: Where the objects are.
        prefix: Of the segment.
        manifest: Of the segment.
        checks: Told which chunks are intact.
    """

    def __init__(
        self, storage: Storage, prefix: str, manifest: SegmentManifest, checks: ChunkChecks
    ) -> None:
        self._storage = storage
        self._prefix = prefix
        self._manifest = manifest
        self._checks = checks
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._payload_bytes = manifest.chunk_rows * manifest.row_bytes

    def read_into(self, index: int, lower: int, target: NDArray[Any], *, verify: bool) -> None:
        """Read rows [lower, lower + len(target)) of a chunk into a C-contiguous (B, d) array.

        Without `verify`, only these rows are asked for.

        Raises:
            CorruptChunkError: If the chunk is missing, short or differs from the manifest.
        """
        bytes_ = target.view(np.uint8).reshape(-1)
        first = lower * self._manifest.row_bytes
        if not verify:
            bytes_[...] = self._ranges(index, [(first, len(bytes_))])
            return
        self._check(index, self._whole(index), first, bytes_)

    def gather(
        self,
        rows: NDArray[np.int64],
        positions: NDArray[np.int64],
        out: NDArray[Any],
        *,
        verify: bool,
    ) -> None:
        """Copy scattered rows of the segment into rows `positions` of `out`, (N, d).

        A chunk that was not verified yet is fetched whole; later only the rows that are needed.

        Raises:
            CorruptChunkError: If a chunk is missing, short or differs from the manifest.
        """
        order = np.argsort(rows, kind="stable")
        rows, positions = rows[order], positions[order]
        touched, starts = np.unique(rows // self._manifest.chunk_rows, return_index=True)
        stops = np.append(starts[1:], len(rows))

        def copy(number: int) -> None:
            index, part = int(touched[number]), slice(starts[number], stops[number])
            local = rows[part] - index * self._manifest.chunk_rows
            out[positions[part]] = self._rows(index, local, verify=verify)

        each(copy, range(len(touched)), self._storage.parallel)

    def _rows(self, index: int, local: NDArray[np.int64], *, verify: bool) -> NDArray[Any]:
        """Return rows of a chunk, (B, d); `local` is ascending and may repeat."""
        distinct, inverse = np.unique(local, return_inverse=True)
        unchecked = verify and index not in self._checks.verified
        if unchecked or len(distinct) >= _WHOLE_SHARE * self._manifest.chunk_rows:
            whole = self._whole(index)
            if unchecked:
                self._check(index, whole, 0, whole[:0])
            return self._matrix(whole[: self._payload_bytes])[local]
        row_bytes, runs = self._manifest.row_bytes, Runs.of(distinct)
        ranges = [
            (row * row_bytes, length * row_bytes)
            for row, length in zip(runs.row.tolist(), runs.length.tolist(), strict=True)
        ]
        return self._matrix(self._ranges(index, ranges))[inverse]

    def _matrix(self, bytes_: NDArray[np.uint8]) -> NDArray[Any]:
        return bytes_.view(self._dtype).reshape(-1, self._manifest.dim)

    def _check(
        self, index: int, whole: NDArray[np.uint8], first: int, target: NDArray[np.uint8]
    ) -> None:
        """Check a chunk block by block, copying the bytes from `first` on that fit `target`."""
        checksum, last = 0, first + len(target)
        for start in range(0, self._payload_bytes, _BLOCK_BYTES):
            stop = min(start + _BLOCK_BYTES, self._payload_bytes)
            checksum = crc32c.crc32c(whole[start:stop].data, checksum)
            lower, upper = max(start, first), min(stop, last)
            if lower < upper:
                target[lower - first : upper - first] = whole[lower:upper]
        self._checks.confirm(index, checksum, whole[self._payload_bytes :].tobytes())

    def _whole(self, index: int) -> NDArray[np.uint8]:
        """Return a chunk's bytes with the stored checksum, of the right size."""
        stored = self._manifest.embeddings[index]
        key = f"{self._prefix}/{stored.key}"
        try:
            # One byte more than there should be: an object that is too long shows, too.
            data = self._storage.get_range(key, 0, stored.size + 1)
        except FileNotFoundError as error:
            raise self._checks.damaged(stored.key, "no such object") from error
        if len(data) != stored.size or stored.size != self._payload_bytes + CHECKSUM_BYTES:
            raise self._checks.damaged(stored.key, f"{len(data)} bytes")
        return np.frombuffer(data, np.uint8)

    def _ranges(self, index: int, ranges: list[tuple[int, int]]) -> NDArray[np.uint8]:
        """Return ranges (start, length) of a chunk, one after the other."""
        stored = self._manifest.embeddings[index]
        try:
            parts = self._storage.get_ranges(f"{self._prefix}/{stored.key}", ranges)
        except FileNotFoundError as error:
            raise self._checks.damaged(stored.key, "no such object") from error
        if [len(part) for part in parts] != [length for _, length in ranges]:
            raise self._checks.damaged(stored.key, "a short read")
        single = parts[0] if len(parts) == 1 else b"".join(parts)
        return np.frombuffer(single, np.uint8)
