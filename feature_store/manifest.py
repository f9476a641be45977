"""The sealed manifest of a segment: what was stored, byte for byte. Its existence publishes it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from feature_store.digest import HASHES, Algorithm, canonical_json, sha256_hex
from feature_store.errors import CorruptChunkError, StoreFormatError
from feature_store.layout import DTYPES

# Format 1 named its objects' content by SHA-256. Such segments stay as they are, beside newer ones.
_ALGORITHMS: Final[dict[int, Algorithm]] = {1: "sha256", 2: "blake3"}
_FORMATS: Final = {algorithm: number for number, algorithm in _ALGORITHMS.items()}

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
    digest: str
    """Hash of all bytes of the object, in hexadecimal."""
    algorithm: Algorithm = "blake3"
    """What made the digest; its name in the manifest. One for all objects of a segment."""

    def is_content(self, data: bytes | memoryview) -> bool:
        """Return whether `data` is what was stored, to the last byte."""
        if len(data) != self.size:
            return False
        hasher = HASHES[self.algorithm]()
        hasher.update(data)
        return hasher.hexdigest() == self.digest

    def _entry(self) -> dict[str, Any]:
        return {
            "crc32c": self.crc32c,
            "key": self.key,
            "size": self.size,
            self.algorithm: self.digest,
        }


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

    @property
    def format(self) -> int:
        """Version of the manifest: which hash names the content of its objects."""
        (algorithm,) = {stored.algorithm for stored in self.objects()}
        return _FORMATS[algorithm]

    def objects(self) -> tuple[StoredObject, ...]:
        """Return every stored object of the segment."""
        return (*self.metadata, *self.embeddings, *self.digests)

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored: canonical JSON that carries its own digest."""
        objects = ("embeddings", "digests", "metadata")
        body: dict[str, Any] = {
            "format": self.format,
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            **{name: [stored._entry() for stored in getattr(self, name)] for name in objects},
            "failures": [asdict(entry) for entry in self.failures],
        }
        return canonical_json({**body, "sha256": sha256_hex(canonical_json(body))}) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, segment_id: str) -> "SegmentManifest":
        """Read a stored manifest.

        Raises:
            CorruptChunkError: If any byte differs from what was published.
            StoreFormatError: If a newer version of this program published it.
        """
        try:
            content = json.loads(data)
            number = content["format"]
            if number not in _ALGORITHMS and _is_sound(content, data):
                raise StoreFormatError(
                    f"The manifest of segment {segment_id} must have format "
                    f"{' or '.join(map(str, _ALGORITHMS))}. Got {number!r}. Install a newer svp."
                )
            algorithm = _ALGORITHMS[number]
            body = {key: value for key, value in content.items() if key != "sha256"}
            manifest = cls(
                **{
                    **{key: value for key, value in body.items() if key != "format"},
                    **{
                        name: tuple(_stored(entry, algorithm) for entry in body[name])
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
        except StoreFormatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(segment_id) from error
        if not intact or manifest.id != segment_id:
            raise _damaged(segment_id)
        return manifest


def _stored(entry: Mapping[str, Any], algorithm: Algorithm) -> StoredObject:
    return StoredObject(entry["key"], entry["size"], entry["crc32c"], entry[algorithm], algorithm)


def _is_sound(content: Mapping[str, Any], data: bytes) -> bool:
    """Return whether a manifest of whatever format carries its own digest."""
    body = {key: value for key, value in content.items() if key != "sha256"}
    again = {**body, "sha256": sha256_hex(canonical_json(body))}
    return canonical_json(again) + b"\n" == data


def _damaged(segment_id: str) -> CorruptChunkError:
    return CorruptChunkError(
        f"The manifest of segment {segment_id} must match its own digest. Got other bytes. "
        "Restore it from a copy, or delete it and run the embedding again.",
        segment=segment_id,
        chunk=f"{segment_id}.json",
    )
