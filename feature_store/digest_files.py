"""The digests of a segment whose objects are files: read whole, or only looked at.

Shapes: R = rows of the segment.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import crc32c
import numpy as np
from numpy.typing import NDArray

from feature_store.checks import ChunkChecks
from feature_store.index import Look
from feature_store.layout import CHECKSUM_BYTES, DIGEST_BYTES
from feature_store.manifest import SegmentManifest, StoredObject
from feature_store.threads import each

_BLOCK_BYTES: Final = 2**20  # checked and looked at while they are in cache
_THREADS: Final = 2


class DigestFiles:
    """Reads the digest chunks of one segment; nothing leaves here that does not match.

    Args:
        manifest: Of the segment.
        checks: Of the same segment.
        opened: Opens the file of a chunk, which has the right size.
    """

    def __init__(
        self,
        manifest: SegmentManifest,
        checks: ChunkChecks,
        opened: Callable[[StoredObject], io.FileIO],
    ) -> None:
        self._chunks = manifest.digests
        self._rows = manifest.rows
        self._checks = checks
        self._opened = opened
        self._sizes = [stored.size - CHECKSUM_BYTES for stored in self._chunks]
        self._starts = np.cumsum([0, *self._sizes]).tolist()

    def read(self) -> NDArray[np.uint8]:
        """Return the digest of each row, (R, 32).

        Raises:
            CorruptChunkError: If a chunk is damaged.
        """
        flat = np.empty(self._starts[-1], np.uint8)

        def read(number: int) -> None:
            part = flat[self._starts[number] : self._starts[number + 1]].data
            blocks = (part[at : at + _BLOCK_BYTES] for at in range(0, len(part), _BLOCK_BYTES))
            for _ in self._filled(self._chunks[number], blocks):
                pass

        each(read, range(len(self._chunks)), _THREADS)
        return flat.reshape(-1, DIGEST_BYTES)[: self._rows]

    def show(self, look: Look, first: int) -> None:
        """Show all digests to a look while they are read and checked, without keeping them.

        What the look found counts only if this returns.

        Args:
            look: What is looked for.
            first: Number of this segment's first row in the look.

        Raises:
            CorruptChunkError: If a chunk is damaged.
        """
        if self._starts[-1] < self._rows * DIGEST_BYTES:
            raise self._checks.damaged("digests", f"{self._starts[-1] // DIGEST_BYTES} rows")

        def read(number: int) -> None:
            scratch = np.empty((_BLOCK_BYTES // DIGEST_BYTES, DIGEST_BYTES), np.uint8)
            view, length = scratch.reshape(-1).data, self._sizes[number]
            blocks = (
                view[: min(_BLOCK_BYTES, length - at)] for at in range(0, length, _BLOCK_BYTES)
            )
            row = self._starts[number] // DIGEST_BYTES
            for block in self._filled(self._chunks[number], blocks):
                digests = scratch[: len(block) // DIGEST_BYTES]
                look.at(first + row, digests[: max(0, self._rows - row)])
                row += len(digests)

        each(read, range(len(self._chunks)), _THREADS)

    def _filled(self, stored: StoredObject, blocks: Iterable[memoryview]) -> Iterator[memoryview]:
        """Fill blocks with the content of a chunk, and check it behind the last one."""
        with self._opened(stored) as file:
            checksum = 0
            for block in blocks:
                self._checks.fill(file, block, stored)
                checksum = crc32c.crc32c(block, checksum)
                yield block
            self._checks.match(stored, checksum, file.read(CHECKSUM_BYTES))
