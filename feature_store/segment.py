"""Writing a segment: plan, chunks in any order by any number of writers, seal.

The stored embedding chunks alone decide what a segment holds: a row is either finite or NaN
throughout, and NaN means that the item failed. The digest array is derived from them when the
segment is sealed, so writers that race with different failures cannot disagree with themselves.

Shapes: M = planned rows, B = rows of a chunk, d = dim.
"""

import datetime
import json
import os
import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn

import crc32c
import numpy as np
from numpy.typing import NDArray

from feature_store import layout
from feature_store.checks import finite_and_checksum
from feature_store.digest import HASHES, canonical_json, content_digest, sha256_hex
from feature_store.errors import (
    CorruptChunkError,
    FeatureStoreError,
    StoreConflictError,
    StoreInputError,
)
from feature_store.layout import CHECKSUM_BYTES, Chunk
from feature_store.manifest import FailedRow, Failure, SegmentManifest, StoredObject
from feature_store.plan import SegmentPlan
from feature_store.storage import Storage
from feature_store.threads import mapped

_SEAL_THREADS: Final = min(8, os.cpu_count() or 1)  # they hash chunks of earlier processes
_BLOCK_BYTES: Final = 2**20  # read back together: checked while in cache, and few calls
_UNRECORDED: Final = Failure("transient", "no reason was recorded")


class SegmentWriter:
    """Writes the chunks of one plan and publishes them. Safe to use from several threads.

    Any number of writers, in any process or machine, may write the same plan: each object is
    created by the first and left alone by the others.
    """

    def __init__(self, storage: Storage, plan: SegmentPlan) -> None:
        self._storage = storage
        table = layout.table_prefix(plan.encoder_id, plan.view)
        self._prefix = f"{table}/segments/{plan.id}"
        self._manifest_key = f"{self._prefix}.json"
        self._failures_prefix = f"{table}/failures"
        self._dtype = np.dtype(plan.dtype).newbyteorder("<")
        self._row_bytes = plan.dim * self._dtype.itemsize
        self._payload_bytes = plan.chunk_rows * self._row_bytes
        self._prepared = False
        self._hashed: dict[int, tuple[int, str]] = {}
        """CRC-32C of the rows and digest of the whole of chunks that this writer created."""
        self.plan = plan
        self.segment_id = plan.id

    @property
    def is_sealed(self) -> bool:
        """Whether the segment is published, by whomever."""
        return self._storage.size(self._manifest_key) is not None

    def pending(self) -> Iterator[Chunk]:
        """Yield the chunks that are not stored yet, in order; none of a sealed segment.

        Each is looked up again just before it is yielded, so that racing writers skip what the
        other has finished meanwhile.
        """
        if self.is_sealed:
            return
        stored = self._stored_chunks()
        for chunk in self.plan.chunks():
            if chunk.index not in stored and not self._is_stored(chunk):
                yield chunk

    def write(
        self, chunk: Chunk, x_Bd: NDArray[Any], failures: Mapping[int, Failure] | None = None
    ) -> None:
        """Store one chunk unless it is stored.

        Args:
            chunk: One of the plan's chunks.
            x_Bd: Embeddings of its rows, (B, d), finite; cast to the plan's dtype. Rows of failed
                items may hold anything.
            failures: Reason by row offset in the chunk. Recorded durably before the chunk exists.

        Raises:
            FeatureStoreError: If a row that did not fail holds NaN or infinity.
            ValueError: If shape, chunk or offsets do not fit the plan.
        """
        failures = failures or {}
        self._check(chunk, x_Bd, failures)
        if self.is_sealed:
            return
        payload, crc = self._payload(chunk, x_Bd, failures)
        self._prepare()
        if failures:
            self._record(chunk, failures)
        checksum = crc.to_bytes(CHECKSUM_BYTES, "little")
        if not self._storage.waits:
            self._create(chunk, payload, checksum)
            return
        # The processor is idle while a disk or a service takes the chunk.
        with ThreadPoolExecutor(1) as thread:
            hashed = thread.submit(content_digest, payload, checksum)
            if self._create(chunk, payload, checksum):
                self._hashed[chunk.index] = crc, hashed.result()

    def _create(self, chunk: Chunk, payload: memoryview, checksum: bytes) -> bool:
        """Create a chunk unless it is there; return whether this call did."""
        key = self._chunk_key(chunk.index)
        created = self._storage.create(key, payload, checksum)
        if not created and not self._is_stored(chunk):
            # Neither a kill nor a race leaves a short object; a failing disk does.
            self._storage.delete(key)
            created = self._storage.create(key, payload, checksum)
        return created

    def seal(self, provenance: Mapping[str, Any] | None = None) -> SegmentManifest:
        """Publish the segment: check every stored chunk, then create the manifest from them.

        Every chunk is read back, whoever wrote it. The digest of one that this writer created is
        the one it took of the bytes it stored, if what is read back has their CRC-32C; that of any
        other is taken of what is read back.

        Args:
            provenance: JSON values to keep with the segment, such as versions and hardware.

        Returns:
            The published manifest; that of the first if several writers sealed.

        Raises:
            FeatureStoreError: If chunks are missing.
            CorruptChunkError: If a chunk was damaged before publication; it is deleted, so that
                running the same work again computes it again.
        """
        if self.is_sealed:
            return self._published()
        missing = len(self.plan.chunks()) - len(self._stored_chunks())
        if missing:
            raise FeatureStoreError(
                f"Segment {self.segment_id} must have all its {len(self.plan.chunks())} chunks "
                f"before it is sealed. Got {missing} missing. Write the pending ones."
            )
        self._prepare()
        inspected = mapped(self._inspect, self.plan.chunks(), _SEAL_THREADS)
        failed_rows = np.concatenate([rows for _, rows in inspected])
        manifest = SegmentManifest(
            id=self.segment_id,
            encoder_id=self.plan.encoder_id,
            view=self.plan.view,
            rows=self.plan.rows,
            dim=self.plan.dim,
            dtype=self.plan.dtype,
            chunk_rows=self.plan.chunk_rows,
            attempt=self.plan.attempt,
            planned=self.plan.planned,
            embeddings=tuple(stored for stored, _ in inspected),
            digests=self._store_digests(failed_rows),
            metadata=tuple(
                StoredObject(key, len(data), None, content_digest(data))
                for key, data in self.plan.metadata().items()
            ),
            failures=self._failed(failed_rows),
            provenance={**_made_by(), **(provenance or {})},
        )
        self._storage.create(self._manifest_key, manifest.to_bytes())
        published = self._published()
        self._clean_up()
        return published

    def _check(self, chunk: Chunk, x_Bd: NDArray[Any], failures: Mapping[int, Failure]) -> None:
        plan = self.plan
        start = chunk.index * plan.chunk_rows
        if chunk != Chunk(chunk.index, start, min(start + plan.chunk_rows, plan.rows)):
            raise ValueError(
                f"A chunk must be one of segment {self.segment_id}. Got {chunk}. Use pending()."
            )
        if x_Bd.shape != (len(chunk), plan.dim):
            raise ValueError(
                f"Embeddings of chunk {chunk.index} must be ({len(chunk)}, {plan.dim}). "
                f"Got {x_Bd.shape}. Pass one row per item of the chunk."
            )
        if any(not 0 <= offset < len(chunk) for offset in failures):
            raise ValueError(
                f"Failures must be keyed by row offsets in [0, {len(chunk)}). "
                f"Got {sorted(failures)}. Subtract the chunk's start."
            )

    def _payload(
        self, chunk: Chunk, x_Bd: NDArray[Any], failures: Mapping[int, Failure]
    ) -> tuple[memoryview, int]:
        """Return the bytes to store and their CRC-32C."""
        plan = self.plan
        ready = x_Bd.dtype == self._dtype and x_Bd.flags.c_contiguous
        if failures or not ready or len(chunk) < plan.chunk_rows:
            # Readers other than ours fetch whole chunks, so the last one is filled up, too.
            padded = np.full((plan.chunk_rows, plan.dim), np.nan, self._dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                padded[: len(chunk)] = x_Bd
            padded[list(failures)] = np.nan
            x_Bd = padded
        allowed = len(failures) + plan.chunk_rows - len(chunk)
        finite, checksum = finite_and_checksum(x_Bd)
        if not finite:
            broken = int((~np.isfinite(x_Bd).all(axis=1)).sum()) - allowed
            if broken:
                raise StoreInputError(
                    f"Embeddings must be finite in {plan.dtype}. Got NaN or infinity in {broken} "
                    f"rows of chunk {chunk.index} of segment {self.segment_id}. "
                    "Use float32, or report these items as failed."
                )
        return x_Bd.view(np.uint8).reshape(-1).data, checksum

    def _prepare(self) -> None:
        if self._prepared:
            return
        for key, data in self.plan.metadata().items():
            full_key = f"{self._prefix}/{key}"
            if not self._storage.create(full_key, data) and self._storage.get(full_key) != data:
                raise StoreConflictError(
                    f"{key} of segment {self.segment_id} must describe this plan. Got another "
                    f"description. Delete the unpublished directory {self._prefix}."
                )
        self._prepared = True

    def _record(self, chunk: Chunk, failures: Mapping[int, Failure]) -> None:
        # Named by content: a racing writer with other failures adds its own record beside it.
        data = canonical_json(
            {
                str(chunk.start + offset): [failure.kind, failure.reason]
                for offset, failure in failures.items()
            }
        )
        name = f"{self.segment_id}.{chunk.index}.{sha256_hex(data)[:16]}.json"
        self._storage.create(f"{self._failures_prefix}/{name}", data)

    def _records(self) -> list[str]:
        return [
            f"{self._failures_prefix}/{entry.name}"
            for entry in self._storage.list(self._failures_prefix)
            if entry.name.startswith(f"{self.segment_id}.")
        ]

    def _failed(self, failed_rows: NDArray[np.int64]) -> tuple[FailedRow, ...]:
        reasons: dict[int, Failure] = {}
        if len(failed_rows):
            for key in self._records():
                for row, (kind, reason) in json.loads(self._storage.get(key)).items():
                    reasons.setdefault(int(row), Failure(kind, reason))
        return tuple(
            FailedRow(row, self.plan.digests[row].tobytes().hex(), reasons.get(row, _UNRECORDED))
            for row in failed_rows.tolist()
        )

    def _inspect(self, chunk: Chunk) -> tuple[StoredObject, NDArray[np.int64]]:
        """Describe a stored chunk and find its failed rows."""
        key = self._chunk_key(chunk.index)
        known_checksum, known_digest = self._hashed.get(chunk.index, (None, ""))
        hasher = None if known_digest else HASHES["blake3"]()
        checksum, size, trailer, failed = 0, 0, b"", []
        for block in self._blocks(key):
            if hasher is not None:
                hasher.update(block)
            if size == self._payload_bytes:
                trailer = bytes(block)
                break
            checksum = crc32c.crc32c(block, checksum)
            whole = len(block) // self._row_bytes * self._row_bytes
            x_Bd = np.frombuffer(block[:whole], self._dtype).reshape(-1, self.plan.dim)
            failed.append(np.flatnonzero(np.isnan(x_Bd[:, 0])) + size // self._row_bytes)
            size += len(block)
        if trailer != checksum.to_bytes(CHECKSUM_BYTES, "little"):
            self._discard(key)
        if hasher is None and checksum != known_checksum:
            self._discard(key)  # consistent in itself, but not what was written
        digest = known_digest if hasher is None else hasher.hexdigest()
        rows = np.concatenate(failed)
        name = key.removeprefix(f"{self._prefix}/")
        stored = StoredObject(name, size + len(trailer), checksum, digest)
        return stored, rows[rows < len(chunk)] + chunk.start

    def _blocks(self, key: str) -> Iterator[memoryview]:
        """Yield the rows of a stored chunk in pieces, and what is stored behind them.

        Each piece overwrites the one before.
        """
        step = max(1, _BLOCK_BYTES // self._row_bytes) * self._row_bytes
        path = self._storage.local_path(key)
        if path is None:
            data = memoryview(self._storage.get(key))
            for start in range(0, self._payload_bytes, step):
                yield data[start : min(start + step, self._payload_bytes)]
            yield data[self._payload_bytes :]
            return
        scratch = memoryview(bytearray(step))
        with path.open("rb", buffering=0) as file:
            for start in range(0, self._payload_bytes, step):
                filled, wanted = 0, min(step, self._payload_bytes - start)
                while filled < wanted and (count := file.readinto(scratch[filled:wanted])):
                    filled += count
                yield scratch[:filled]
            yield memoryview(file.read(CHECKSUM_BYTES + 1))  # one more shows a file too long

    def _discard(self, key: str) -> NoReturn:
        self._storage.delete(key)
        raise CorruptChunkError(
            f"Chunk {key} of segment {self.segment_id} must match its checksum. Got damaged "
            "bytes, which were never published and are deleted now. Run the same work again.",
            segment=self.segment_id,
            chunk=key,
        )

    def _store_digests(self, failed_rows: NDArray[np.int64]) -> tuple[StoredObject, ...]:
        digests = self.plan.digests
        if len(failed_rows):
            digests = digests.copy()
            digests[failed_rows] = 0
        chunk_rows = layout.digest_chunk_rows(self.plan.rows)

        def store(chunk: Chunk) -> StoredObject:
            rows = digests[chunk.start : chunk.stop]
            if len(rows) < chunk_rows:
                padded = np.zeros((chunk_rows, layout.DIGEST_BYTES), np.uint8)
                padded[: len(rows)] = rows
                rows = padded
            payload = rows.reshape(-1).data
            checksum = crc32c.crc32c(payload)
            parts = payload, checksum.to_bytes(CHECKSUM_BYTES, "little")
            name = f"digests/{layout.chunk_key(chunk.index)}"
            key = f"{self._prefix}/{name}"
            if not self._storage.create(key, *parts) and self._storage.get(key) != b"".join(parts):
                # From a seal before a damaged embedding chunk was replaced; not published.
                self._storage.delete(key)
                self._storage.create(key, *parts)
            size = len(payload) + CHECKSUM_BYTES
            return StoredObject(name, size, checksum, content_digest(*parts))

        return tuple(mapped(store, tuple(layout.chunks(self.plan.rows, chunk_rows)), _SEAL_THREADS))

    def _published(self) -> SegmentManifest:
        return SegmentManifest.from_bytes(self._storage.get(self._manifest_key), self.segment_id)

    def _clean_up(self) -> None:
        for key in self._records():
            self._storage.delete(key)
        for prefix in (
            self._manifest_key,
            f"{self._prefix}/",
            f"{self._prefix}/embeddings/",
            f"{self._prefix}/digests/",
            f"{self._failures_prefix}/{self.segment_id}.",
        ):
            self._storage.tidy(prefix)

    def _chunk_key(self, index: int) -> str:
        return f"{self._prefix}/embeddings/{layout.chunk_key(index)}"

    def _stored_chunks(self) -> set[int]:
        sizes = {
            entry.name: entry.size for entry in self._storage.list(f"{self._prefix}/embeddings")
        }
        size = self._payload_bytes + CHECKSUM_BYTES
        return {
            chunk.index
            for chunk in self.plan.chunks()
            if sizes.get(layout.chunk_key(chunk.index)) == size
        }

    def _is_stored(self, chunk: Chunk) -> bool:
        size = self._storage.size(self._chunk_key(chunk.index))
        return size == self._payload_bytes + CHECKSUM_BYTES


def _made_by() -> dict[str, Any]:
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }
