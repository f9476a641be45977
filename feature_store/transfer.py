"""Copying a store to another: what is published here becomes published there, byte for byte.

A segment's objects are copied first and its manifest last, each created put-if-absent, so a copy
can be killed at any instant, run again, and run by several processes at once.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import crc32c

from feature_store import layout
from feature_store.errors import (
    CorruptChunkError,
    StoreConflictError,
    StoreInputError,
    ViewMismatchError,
)
from feature_store.layout import CHECKSUM_BYTES
from feature_store.manifest import SegmentManifest, StoredObject
from feature_store.storage import Storage
from feature_store.store import FeatureStore

Report = Callable[[int, int], object]
"""Called with the bytes just done and the bytes of the whole work."""

_THREADS: Final = 4  # objects on their way at once: 64 MiB of memory, enough to hide a network


@dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """What a copy did.

    Attributes:
        encoders: Identities that the destination holds and verified.
        pools: Pool snapshots that the destination holds and verified.
        segments: Segments that this run published.
        present: Segments that were published there before.
        objects: Objects that this run wrote, manifests left out.
        bytes: Their bytes.
    """

    encoders: int
    pools: int
    segments: int
    present: int
    objects: int
    bytes: int


def copy_store(
    source: FeatureStore,
    target: FeatureStore,
    *,
    encoders: Sequence[str] | None = None,
    report: Report | None = None,
) -> Copied:
    """Copy pools, identities and published segments that `target` lacks.

    Every object is checked against its manifest on the way, also one that an earlier run left.
    A segment that the destination published by itself stays as it is: the first wins.

    Args:
        source: Where from; only read.
        target: Where to; nothing published there changes.
        encoders: Encoder ids to copy the tables of. Default: all.
        report: Told about progress in bytes of segments.

    Raises:
        StoreNotFoundError: If an encoder is not in `source`.
        CorruptChunkError: If the source, or an earlier copy, is damaged.
        EncoderMismatchError: If an identity does not give its id, on either side.
        ViewMismatchError: If the destination makes the images of a view in another way.
        StoreConflictError: If unfinished segments at the destination hold other vectors; all
            others are copied first.
    """
    if source.url == target.url:
        raise StoreInputError(
            f"A store must be copied to another one. Got {source.url} twice. Name another."
        )
    chosen = list(dict.fromkeys(source.encoders() if encoders is None else encoders))
    for encoder_id in chosen:
        _copy_identity(source, target, encoder_id)
        _copy_records(source, target, encoder_id)
    pools = source.pools()
    for pool_id in pools:
        source.pool(pool_id)
        key = layout.pool_key(pool_id)
        target.storage.create(key, source.storage.get(key))
        target.pool(pool_id)
    work, present = [], 0
    for encoder_id in chosen:
        for view in source.views(encoder_id):
            published = {held.id for held in target.table(encoder_id, view).segments()}
            for manifest in source.table(encoder_id, view).segments():
                if manifest.id in published:
                    present += 1
                else:
                    work.append(manifest)
    total = sum(stored.size for manifest in work for stored in manifest.objects())
    written: list[int] = []
    conflicts: list[str] = []
    for manifest in work:
        try:
            written += _copy_segment(source.storage, target.storage, manifest, report, total)
        except StoreConflictError:
            conflicts.append(manifest.id)
    if conflicts:
        raise StoreConflictError(
            "Unfinished segments of the destination must hold the vectors that are copied. Got "
            f"others in {', '.join(conflicts[:5])} ({len(conflicts):,} in all), so another run "
            "is computing them. Let it finish, or remove them with `svp store gc --delete`, and "
            "copy again; everything else is copied."
        )
    return Copied(
        encoders=len(chosen),
        pools=len(pools),
        segments=len(work),
        present=present,
        objects=sum(size > 0 for size in written),
        bytes=sum(written),
    )


def _copy_identity(source: FeatureStore, target: FeatureStore, encoder_id: str) -> None:
    source.encoder_record(encoder_id)
    key = layout.encoder_key(encoder_id)
    target.storage.create(key, source.storage.get(key))
    target.encoder_record(encoder_id)


def _copy_records(source: FeatureStore, target: FeatureStore, encoder_id: str) -> None:
    """Copy how each view is made and what known images gave, before any vector."""
    golden = source.golden(encoder_id)
    if golden is not None:
        target.put_golden(encoder_id, golden)
    for view in source.views(encoder_id):
        made = source.view_record(encoder_id, view)
        if made is not None:
            target.put_view(encoder_id, view, made)
        elif target.view_record(encoder_id, view) is not None:
            raise ViewMismatchError(
                f"View {view!r} of encoder {encoder_id} must be made alike on both sides. Got no "
                "record of it in the source. Copy into another store."
            )


def _copy_segment(
    source: Storage, target: Storage, manifest: SegmentManifest, report: Report | None, total: int
) -> list[int]:
    """Copy one segment; return the bytes written of each object, 0 where it was there."""
    prefix = f"{layout.table_prefix(manifest.encoder_id, manifest.view)}/segments/{manifest.id}"

    def copy(stored: StoredObject) -> int:
        size = _copy_object(source, target, f"{prefix}/{stored.key}", stored, manifest.id)
        if report is not None:
            report(stored.size, total)
        return size

    with ThreadPoolExecutor(_THREADS) as threads:
        written = list(threads.map(copy, manifest.objects()))
    key = f"{prefix}.json"
    if not target.create(key, manifest.to_bytes()):
        SegmentManifest.from_bytes(target.get(key), manifest.id)
    for start in (key, f"{prefix}/", f"{prefix}/embeddings/", f"{prefix}/digests/"):
        target.tidy(start)
    return written


def _copy_object(
    source: Storage, target: Storage, key: str, stored: StoredObject, segment: str
) -> int:
    if target.size(key) is not None:
        found = target.get(key)
        if stored.is_content(found):
            return 0
        if _is_whole(stored, found):
            raise _conflict(key)
        # Neither a kill nor a race leaves a damaged object; a failing disk does. Not published.
        target.delete(key)
    try:
        data = source.get(key)
    except FileNotFoundError as error:
        raise _damaged(stored, segment, "no such object") from error
    if not stored.is_content(data):
        raise _damaged(stored, segment, "other bytes")
    if not target.create(key, data) and not stored.is_content(target.get(key)):
        raise _conflict(key)
    return len(data)


def _is_whole(stored: StoredObject, data: bytes) -> bool:
    """Return whether an object is what some writer meant to write."""
    if stored.crc32c is None:
        return True
    payload, trailer = memoryview(data)[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    checksum = crc32c.crc32c(payload).to_bytes(CHECKSUM_BYTES, "little")
    return len(data) == stored.size and trailer == checksum


def _conflict(key: str) -> StoreConflictError:
    return StoreConflictError(f"{key} of the destination must equal the source's. Got another.")


def _damaged(stored: StoredObject, segment: str, got: str) -> CorruptChunkError:
    return CorruptChunkError(
        f"Object {stored.key} of segment {segment} must be what was published. Got {got} in the "
        "source. Restore it from a copy, or delete the segment's manifest and embed again.",
        segment=segment,
        chunk=stored.key,
    )
