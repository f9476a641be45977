"""What the chunks of one published segment must be, and which of them were found to be it."""

import io
from typing import Any, Final

import crc32c
import numpy as np
from numpy.typing import NDArray

from feature_store.errors import CorruptChunkError
from feature_store.layout import CHECKSUM_BYTES
from feature_store.manifest import SegmentManifest, StoredObject

BLOCK_BYTES: Final = 2**18  # looked at together: they stay in cache from one check to the next


class ChunkChecks:
    """Compares chunks of embeddings with the manifest. Safe to use from several threads.

    Attributes:
        verified: Chunks that matched once.
    """

    def __init__(self, manifest: SegmentManifest) -> None:
        self._manifest = manifest
        self.verified: set[int] = set()

    def confirm(self, index: int, checksum: int, trailer: bytes) -> None:
        """Note that a chunk is intact.

        Args:
            index: Number of the chunk.
            checksum: CRC-32C of its rows as they were read.
            trailer: The checksum stored behind them.

        Raises:
            CorruptChunkError: If either differs from what was published.
        """
        # The manifest's checksum, not only the chunk's own: a chunk that was swapped with
        # another one is consistent in itself.
        stored = self._manifest.embeddings[index]
        expected = (checksum & 0xFFFFFFFF).to_bytes(CHECKSUM_BYTES, "little")
        if checksum != stored.crc32c or trailer != expected:
            raise self.damaged(stored.key, "another checksum")
        self.verified.add(index)

    def match(self, stored: StoredObject, checksum: int, trailer: bytes) -> None:
        """Raise CorruptChunkError if a chunk is not what was published."""
        if checksum != stored.crc32c or trailer != checksum.to_bytes(CHECKSUM_BYTES, "little"):
            raise self.damaged(stored.key, "another checksum")

    def fill(self, file: io.FileIO, view: memoryview, stored: StoredObject) -> None:
        """Fill a view with the next bytes of a file; CorruptChunkError if it ends before."""
        while view:
            count = file.readinto(view)
            if not count:
                raise self.damaged(stored.key, "a short read")
            view = view[count:]

    def damaged(self, key: str, got: str) -> CorruptChunkError:
        """Return the error for an object of the segment that is not what was published."""
        return CorruptChunkError(
            f"Object {key} of segment {self._manifest.id} must be what was published. Got {got}. "
            "Restore it from a copy, or delete the segment's manifest and embed again.",
            segment=self._manifest.id,
            chunk=key,
        )


def finite_and_checksum(x_Bd: NDArray[Any]) -> tuple[bool, int]:
    """Return whether all values are finite, and the CRC-32C of their bytes.

    Both are taken of one block after the other, so that memory is read once.

    Args:
        x_Bd: C-contiguous (B, d) float16 or float32.
    """
    # In NaN and infinity all bits of the exponent are set. Without a sign these are the greatest of
    # all signed integers, with one the greatest unsigned ones: two maxima and no temporary array.
    words: tuple[type[Any], type[Any]]
    if x_Bd.dtype.itemsize == 2:
        words, infinity, sign = (np.int16, np.uint16), 0x7C00, 0x8000
    else:
        words, infinity, sign = (np.int32, np.uint32), 0x7F800000, 0x80000000
    signed, unsigned = (x_Bd.reshape(-1).view(word) for word in words)
    step = BLOCK_BYTES // x_Bd.dtype.itemsize
    finite, checksum = True, 0
    for start in range(0, len(signed), step):
        block = unsigned[start : start + step]
        finite = (
            finite
            and int(signed[start : start + step].max()) < infinity
            and int(block.max()) < infinity + sign
        )
        checksum = crc32c.crc32c(block.view(np.uint8).data, checksum)
    return finite, checksum
