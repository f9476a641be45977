"""What a store no longer needs: unfinished segments, temporary files, superseded segments.

Everything must have been left alone for longer than an age the caller chooses, which has to exceed
any pause of a living writer and any single read. A superseded segment is one whose every row can
be read, and always is read, from other segments that were published longer ago than that.

Shapes: R = rows of all segments.
"""

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from feature_store import layout
from feature_store.audit import audit_segment
from feature_store.errors import CorruptChunkError
from feature_store.index import DigestIndex
from feature_store.manifest import SegmentManifest
from feature_store.reader import SegmentReader
from feature_store.storage import Found, Storage
from feature_store.store import FeatureStore

Kind = Literal["unfinished", "superseded", "debris"]
_NO_DIGESTS: Final = np.zeros((0, layout.DIGEST_BYTES), np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Something that may go.

    Attributes:
        kind: Why: a segment without manifest, one whose rows others hold, or a leftover file.
        name: Key of the segment or file.
        keys: Its objects, in the order in which they are deleted.
        bytes: Their bytes.
        age_s: Seconds since the youngest was written.
        held_by: Ids of the segments that hold the rows of a superseded one.
    """

    kind: Kind
    name: str
    keys: tuple[str, ...]
    bytes: int
    age_s: float
    held_by: tuple[str, ...] = ()


@dataclass(slots=True)
class _Segment:
    manifest: Found | None = None
    objects: list[Found] = field(default_factory=list)
    records: list[Found] = field(default_factory=list)


def find_garbage(
    store: FeatureStore, *, older_than_s: float, keep: Collection[str] = ()
) -> tuple[Garbage, ...]:
    """Return what may be deleted.

    Args:
        store: The store.
        older_than_s: Least age in seconds of everything that is named.
        keep: Encoder ids whose segments all stay, unfinished and superseded ones included.

    Raises:
        CorruptChunkError: If a manifest or a digest array is damaged: then nobody knows what it
            refers to.
    """
    now = time.time()
    cutoff = now - older_than_s
    tables: dict[tuple[str, str], dict[str, _Segment]] = defaultdict(lambda: defaultdict(_Segment))
    garbage: list[Garbage] = []
    for found in store.storage.walk(""):
        if found.unfinished:
            if found.modified_s <= cutoff and _is_ours(found.key):
                garbage.append(_garbage("debris", found.key, [found], now))
        else:
            _sort_in(found, tables)
    for (encoder_id, view), segments in sorted(tables.items()):
        prefix = f"{layout.table_prefix(encoder_id, view)}/segments"
        for segment_id, segment in sorted(segments.items()):
            parts = [*segment.objects, *segment.records]
            if segment.manifest is not None:
                # Their content is in the manifest; a killed writer did not get to deleting them.
                garbage += [
                    _garbage("debris", record.key, [record], now)
                    for record in segment.records
                    if record.modified_s <= cutoff
                ]
            elif encoder_id not in keep and all(part.modified_s <= cutoff for part in parts):
                garbage.append(_garbage("unfinished", f"{prefix}/{segment_id}", parts, now))
        if encoder_id not in keep:
            old = {
                segment_id: segment
                for segment_id, segment in segments.items()
                if segment.manifest is not None and segment.manifest.modified_s <= cutoff
            }
            for manifest, holders in superseded(_readers(store.storage, prefix, old)):
                segment = old[manifest.id]
                assert segment.manifest is not None
                # The manifest first: without it a rest is an unfinished segment, never damage.
                parts = [segment.manifest, *segment.objects]
                name = f"{prefix}/{manifest.id}"
                garbage.append(_garbage("superseded", name, parts, now, holders))
    return tuple(sorted(garbage, key=lambda item: (item.kind, item.name)))


def delete_garbage(
    store: FeatureStore, garbage: Iterable[Garbage], *, older_than_s: float
) -> tuple[Garbage, ...]:
    """Delete what `find_garbage` found; return what was deleted.

    An unfinished segment that somebody continued meanwhile stays. Segments that hold the rows of
    superseded ones are read and checked whole first.

    Raises:
        CorruptChunkError: If one of those is damaged; then no superseded segment is deleted.
    """
    garbage = tuple(garbage)
    _check_holders(store, garbage)
    deleted = []
    for item in garbage:
        if item.kind == "unfinished" and _is_alive(store.storage, item.name, older_than_s):
            continue
        for key in item.keys:
            store.storage.delete(key)
        deleted.append(item)
    return tuple(deleted)


def superseded(
    readers: Sequence[SegmentReader],
) -> list[tuple[SegmentManifest, tuple[str, ...]]]:
    """Return the segments that nobody would miss, each with the ids of those that hold its rows.

    Of each digest the reader uses the segment of lowest rank. A segment is superseded if it is
    that for none of its digests and if each of its failures is either overcome by an embedding or
    recorded, for the same attempt, in a segment of lower rank. The segment of lowest rank that
    holds a row or failure is thus never superseded, whatever else is deleted.
    """
    readers = sorted(readers, key=lambda reader: reader.manifest.rank)
    parts = [reader.digests() for reader in readers]
    index = DigestIndex(np.concatenate([_NO_DIGESTS, *parts]))
    offsets = np.cumsum([0, *map(len, parts)])
    seen: set[tuple[str, int]] = set()
    result = []
    for number, (reader, digests) in enumerate(zip(readers, parts, strict=True)):
        manifest = reader.manifest
        first = index.find(digests[digests.any(axis=1)])
        open_failures = {
            (entry.digest, manifest.attempt)
            for entry, row in zip(
                manifest.failures, index.find(_failed(manifest)).tolist(), strict=True
            )
            if row < 0
        }
        if (first < offsets[number]).all() and open_failures <= seen:
            holders = np.unique(np.searchsorted(offsets, first, side="right") - 1)
            result.append((manifest, tuple(readers[i].manifest.id for i in holders.tolist())))
        seen |= open_failures
    return result


def _failed(manifest: SegmentManifest) -> NDArray[np.uint8]:
    data = b"".join(bytes.fromhex(entry.digest) for entry in manifest.failures)
    return np.frombuffer(data, np.uint8).reshape(-1, layout.DIGEST_BYTES)


def _sort_in(found: Found, tables: dict[tuple[str, str], dict[str, _Segment]]) -> None:
    """Put an object where it belongs; what has no place in a table is nobody's garbage."""
    match found.key.split("/"):
        case [layout.ENCODERS, encoder_id, view, "segments", name] if name.endswith(".json"):
            tables[encoder_id, view][name.removesuffix(".json")].manifest = found
        case [layout.ENCODERS, encoder_id, view, "segments", segment_id, _, *_]:
            tables[encoder_id, view][segment_id].objects.append(found)
        case [layout.ENCODERS, encoder_id, view, "failures", name] if name.endswith(".json"):
            tables[encoder_id, view][name.partition(".")[0]].records.append(found)


def _is_ours(key: str) -> bool:
    return "/" not in key or key.startswith((f"{layout.ENCODERS}/", f"{layout.POOLS}/"))


def _garbage(
    kind: Kind, name: str, parts: Sequence[Found], now: float, held_by: tuple[str, ...] = ()
) -> Garbage:
    return Garbage(
        kind=kind,
        name=name,
        keys=tuple(part.key for part in parts),
        bytes=sum(part.size for part in parts),
        age_s=now - max(part.modified_s for part in parts),
        held_by=held_by,
    )


def _readers(storage: Storage, prefix: str, segment_ids: Iterable[str]) -> list[SegmentReader]:
    return [
        SegmentReader(
            storage,
            prefix,
            SegmentManifest.from_bytes(storage.get(f"{prefix}/{segment_id}.json"), segment_id),
        )
        for segment_id in sorted(segment_ids)
    ]


def _check_holders(store: FeatureStore, garbage: Iterable[Garbage]) -> None:
    holders: dict[str, set[str]] = defaultdict(set)
    for item in garbage:
        holders[item.name.rpartition("/")[0]].update(item.held_by)
    for prefix, segment_ids in holders.items():
        for reader in _readers(store.storage, prefix, segment_ids):
            problems = audit_segment(reader)
            if problems:
                raise CorruptChunkError(
                    f"Segment {reader.manifest.id} must be intact before others with the same "
                    f"rows are deleted. Got: {problems[0].what} Nothing was deleted.",
                    segment=reader.manifest.id,
                    chunk=problems[0].object,
                )


def _is_alive(storage: Storage, name: str, older_than_s: float) -> bool:
    """Return whether somebody published or continued a segment since it was found."""
    cutoff = time.time() - older_than_s
    return storage.size(f"{name}.json") is not None or any(
        found.modified_s > cutoff for found in storage.walk(name)
    )
