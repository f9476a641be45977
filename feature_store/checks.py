"""What the chunks of one published segment must be, and which of them were found to be it."""

from feature_store.errors import CorruptChunkError
from feature_store.layout import CHECKSUM_BYTES
from feature_store.manifest import SegmentManifest


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

    def damaged(self, key: str, got: str) -> CorruptChunkError:
        """Return the error for an object of the segment that is not what was published."""
        return CorruptChunkError(
            f"Object {key} of segment {self._manifest.id} must be what was published. Got {got}. "
            "Restore it from a copy, or delete the segment's manifest and embed again.",
            segment=self._manifest.id,
            chunk=key,
        )
