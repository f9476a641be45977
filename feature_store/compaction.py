"""Merging small segments: many short jobs leave a table in pieces, readers prefer few.

The merged segment holds, for every item of its sources, exactly the row that readers use at that
moment, and has more rows than each of them, so readers turn to it when it is published and read
the same bits. The sources stay until `find_garbage` names them.

Shapes: M = rows of a merged segment, B = rows of a chunk, d = dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import crc32c
import numpy as np
from numpy.typing import NDArray

from feature_store import layout
from feature_store.errors import StoreConflictError
from feature_store.garbage import superseded
from feature_store.index import first_occurrences
from feature_store.layout import CHECKSUM_BYTES, Chunk
from feature_store.manifest import Failure, SegmentManifest
from feature_store.plan import SegmentPlan, plan_segments
from feature_store.reader import SegmentReader
from feature_store.storage import Storage
from feature_store.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """What a compaction did.

    Attributes:
        merged: Ids of the segments that it published.
        sources: Ids of the segments they were merged from; readable until gc deletes them.
        rows: Rows written.
        bytes: Their bytes.
    """

    merged: tuple[str, ...]
    sources: tuple[str, ...]
    rows: int
    bytes: int


def compact_table(
    storage: Storage,
    table: Table,
    *,
    segment_rows: int | None = None,
    report: Callable[[int, int], object] | None = None,
) -> Compacted:
    """Merge segments of less than half the full size.

    The same table gives the same plan, so a killed compaction continues at the next chunk.

    Args:
        storage: Where the table lives.
        table: The table.
        segment_rows: Rows of a full segment. Default: 64 chunks of 16 MiB.
        report: Told about the bytes of rows just written and of the whole.

    Raises:
        CorruptChunkError: If stored bytes are damaged; then nothing of that segment is published.
        StoreConflictError: If the table mixes dtypes, so that rows cannot move unchanged, or an
            embedding job is at work on the same segment.
    """
    manifests = table.segments()
    if len({manifest.dtype for manifest in manifests}) > 1:
        raise StoreConflictError(
            f"Segments of encoder {table.encoder_id}, view {table.view} must have one dtype to be "
            "merged. Got float16 and float32. Leave the table as it is."
        )
    groups = _groups(storage, table, manifests, segment_rows)
    merges = [(_plan(storage, table, group), group) for group in groups]
    total = sum(plan.rows * group[0].row_bytes for plan, group in merges)
    for plan, group in merges:
        _merge(storage, table, plan, group, lambda size: report and report(size, total))
    return Compacted(
        merged=tuple(plan.id for plan, _ in merges),
        sources=tuple(manifest.id for group in groups for manifest in group),
        rows=sum(plan.rows for plan, _ in merges),
        bytes=total,
    )


def _prefix(table: Table) -> str:
    return f"{layout.table_prefix(table.encoder_id, table.view)}/segments"


def _groups(
    storage: Storage,
    table: Table,
    manifests: Sequence[SegmentManifest],
    segment_rows: int | None,
) -> list[list[SegmentManifest]]:
    """Choose what to merge: whole segments, in the order of their creation.

    Only those below half the full size: a nearly full one would be written again with every
    small one that arrives, while so a row moves a few times at most.
    """
    readers = [SegmentReader(storage, _prefix(table), manifest) for manifest in manifests]
    unneeded = {manifest.id for manifest, _ in superseded(readers)}
    groups: list[list[SegmentManifest]] = []
    # Failures of different attempts stay apart, for what is planned next depends on the attempt.
    for attempt in sorted({manifest.attempt for manifest in manifests}):
        small = [
            manifest
            for manifest in manifests
            if manifest.attempt == attempt
            and manifest.id not in unneeded
            and 2 * manifest.rows < _full_rows(manifest, segment_rows)
        ]
        rows = 0
        for number, manifest in enumerate(sorted(small, key=_creation)):
            if number == 0 or rows + manifest.rows > _full_rows(manifest, segment_rows):
                groups.append([])
                rows = 0
            groups[-1].append(manifest)
            rows += manifest.rows
    return [group for group in groups if len(group) > 1]


def _full_rows(manifest: SegmentManifest, segment_rows: int | None) -> int:
    return segment_rows or layout.SEGMENT_CHUNKS * layout.full_chunk_rows(manifest.row_bytes)


def _creation(manifest: SegmentManifest) -> tuple[str, str]:
    return str(manifest.provenance.get("created", "")), manifest.id


def _plan(storage: Storage, table: Table, group: Sequence[SegmentManifest]) -> SegmentPlan:
    parts = []
    for manifest in group:
        digests = SegmentReader(storage, _prefix(table), manifest).digests().copy()
        for entry in manifest.failures:
            digests[entry.row] = np.frombuffer(bytes.fromhex(entry.digest), np.uint8)
        parts.append(digests)
    joined = np.concatenate(parts)
    digests = joined[first_occurrences(joined)]
    (plan,) = plan_segments(
        digests,
        np.full(len(digests), group[0].attempt),
        encoder_id=table.encoder_id,
        view=table.view,
        dim=group[0].dim,
        dtype=group[0].dtype,
        chunk_rows=None,
        segment_rows=len(digests),
    )
    return plan


def _merge(
    storage: Storage,
    table: Table,
    plan: SegmentPlan,
    group: Sequence[SegmentManifest],
    report: Callable[[int], object],
) -> None:
    writer = table.writer(plan)
    reasons = {
        bytes.fromhex(entry.digest): entry.failure
        for manifest in group
        for entry in manifest.failures
    }
    if not writer.is_sealed:
        for chunk in plan.chunks():
            x_Bd, failures = _rows(table, plan, chunk, reasons)
            _check_left(storage, table, plan, chunk, x_Bd)
            writer.write(chunk, x_Bd, failures)
            report(x_Bd.nbytes)
    writer.seal({"merged": {manifest.id: dict(manifest.provenance) for manifest in group}})


def _rows(
    table: Table, plan: SegmentPlan, chunk: Chunk, reasons: dict[bytes, Failure]
) -> tuple[NDArray[Any], dict[int, Failure]]:
    """Return what readers see of a chunk's items, (B, d), NaN where all tries failed."""
    digests = plan.digests[chunk.start : chunk.stop]
    x_Bd = np.full((len(chunk), plan.dim), np.nan, plan.dtype)
    absent = np.zeros(len(chunk), bool)
    absent[table.missing(digests, retry=True)] = True
    x_Bd[~absent] = table.read(digests[~absent], dtype=plan.dtype)
    failures = {
        offset: reasons[digests[offset].tobytes()] for offset in np.flatnonzero(absent).tolist()
    }
    return x_Bd, failures


def _check_left(
    storage: Storage, table: Table, plan: SegmentPlan, chunk: Chunk, x_Bd: NDArray[Any]
) -> None:
    """Compare the chunk that an earlier run left, if any, with what is to be stored."""
    key = f"{_prefix(table)}/{plan.id}/embeddings/{layout.chunk_key(chunk.index)}"
    if storage.size(key) is None:
        return
    data = storage.get(key)
    payload, trailer = memoryview(data)[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if trailer != crc32c.crc32c(payload).to_bytes(CHECKSUM_BYTES, "little"):
        # Neither a kill nor a race leaves a damaged object; a failing disk does. Not published.
        storage.delete(key)
        return
    # As bytes, because NaN equals nothing; all rows of failed items are written alike.
    if payload[: x_Bd.nbytes] != x_Bd.astype(x_Bd.dtype.newbyteorder("<")).tobytes():
        raise StoreConflictError(
            f"Unfinished segment {plan.id} must hold the rows that are merged. Got others, so an "
            "embedding job is computing the same rows. Let it finish, or remove them with "
            "`svp store gc --delete`, and compact again."
        )
