"""The sealed manifest of a segment: what was stored, byte for byte. Its existence publishes it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from feature_store.digest import canonical_json, sha256_hex
from feature_store.errors import CorruptChunkError
from feature_store.layout import DTYPES, FORMAT

FailureKind = Literal["corrupt", "missing", "too_large", "transient"]
FAILURE_KINDS: Final[tuple[str, ...]] = get_args(FailureKind)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item has no embedding."""

    kind: FailureKind
    reason: str

    def __post_init__(self) -> None:
        if self.kind not in FAILURE_KINDS:
            raise ValueError(
                f"The kind of a failure must be one of {', '.join(FAILURE_KINDS)}. "
                f"Got {self.kind!r}. Choose the nearest."
            )


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One immutable object of a segment."""

    key: str
    """Relative to the segment."""
    size: int
    """Bytes, checksum included."""
    crc32c: int | None
    """Checksum of a chunk's bytes in front of the stored checksum; None for metadata."""
    sha256: str
    """Over all bytes of the object."""


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A planned row that holds no embedding."""

    row: int
    digest: str
    """Hexadecimal digest of the item."""
    failure: Failure


@dataclass(frozen=True, kw_only=True)
class SegmentManifest:
    """A published segment."""

    id: str
    encoder_id: str
    view: str
    rows: int
    """Planned rows; `failures` of them hold no embedding."""
    dim: int
    dtype: str
    chunk_rows: int
    attempt: int
    """How often each item had failed before this segment was planned."""
    planned: str
    """SHA-256 over the planned digests in order."""
    embeddings: tuple[StoredObject, ...]
    """Chunks in order."""
    digests: tuple[StoredObject, ...]
    """Chunks of the digest array in order."""
    metadata: tuple[StoredObject, ...]
    """The group's and the arrays' zarr.json."""
    failures: tuple[FailedRow, ...]
    provenance: Mapping[str, Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one embedding."""
        return self.dim * np.dtype(self.dtype).itemsize

    @property
    def rank(self) -> tuple[int, int, str]:
        """Order of preference: of equal digests, the row in the segment of lowest rank is read.

        Segments with more embeddings come first, so what is merged from others precedes them, and
        deleting them changes nothing for a reader.
        """
        return (len(self.failures) - self.rows, -self.rows, self.id)

    def objects(self) -> tuple[StoredObject, ...]:
        """Return every stored object of the segment."""
        return (*self.metadata, *self.embeddings, *self.digests)

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored: canonical JSON that carries its own digest."""
        body: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        return canonical_json({**body, "sha256": sha256_hex(canonical_json(body))}) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, segment_id: str) -> "SegmentManifest":
        """Read a stored manifest.

        Raises:
            CorruptChunkError: If any byte differs from what was published.
        """
        try:
            content = json.loads(data)
            body = {key: value for key, value in content.items() if key != "sha256"}
            manifest = cls(
                **{
                    **{key: value for key, value in body.items() if key != "format"},
                    **{
                        name: tuple(StoredObject(**entry) for entry in body[name])
                        for name in ("embeddings", "digests", "metadata")
                    },
                    "failures": tuple(
                        FailedRow(entry["row"], entry["digest"], Failure(**entry["failure"]))
                        for entry in body["failures"]
                    ),
                }
            )
            # The bytes themselves, not only their meaning: a flipped blank is damage, too.
            intact = manifest.to_bytes() == data and manifest.dtype in DTYPES
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(segment_id) from error
        if not intact or manifest.id != segment_id:
            raise _damaged(segment_id)
        return manifest


def _damaged(segment_id: str) -> CorruptChunkError:
    return CorruptChunkError(
        f"The manifest of segment {segment_id} must match its own digest. Got other bytes. "
        "Restore it from a copy, or delete it and run the embedding again.",
        segment=segment_id,
        chunk=f"{segment_id}.json",
    )
