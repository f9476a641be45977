"""A table: all embeddings of one encoder and view, as published segments.

Shapes: N = asked digests, M = planned digests, R = rows of all segments, d = dim.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from feature_store import layout
from feature_store.audit import Problem, audit_segment
from feature_store.errors import (
    CorruptChunkError,
    EncoderMismatchError,
    MissingRowsError,
    StoreConflictError,
)
from feature_store.index import DigestIndex, Look, check_digests, first_occurrences
from feature_store.manifest import Failure, SegmentManifest
from feature_store.mapping import Maps
from feature_store.plan import SegmentPlan, plan_segments
from feature_store.published import Published, count_failures, row_offsets
from feature_store.reader import SegmentReader
from feature_store.runs import Runs
from feature_store.segment import SegmentWriter
from feature_store.storage import Storage
from feature_store.threads import mapped

_CAST_BYTES: Final = 64 * 2**20  # read at once when the caller wants another dtype


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """Where embeddings are: row `row[i]` of segment `segments[segment[i]]` belongs to item i."""

    segments: tuple[str, ...]
    segment: NDArray[np.int64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)


class Table:
    """Reads and plans segments. Always sees what is published now; safe across threads."""

    def __init__(self, storage: Storage, encoder_id: str, view: str) -> None:
        self.encoder_id = encoder_id
        self.view = view
        self.url = storage.url
        self._storage = storage
        self._prefix = f"{layout.table_prefix(encoder_id, view)}/segments"
        self._maps = Maps()
        self._lock = threading.Lock()
        self._readers: dict[str, SegmentReader] = {}
        self._state = Published()
        self._looked = False

    @property
    def dim(self) -> int | None:
        """Width of the embeddings, None while nothing is published."""
        readers = self._open()
        return readers[0].manifest.dim if readers else None

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """Dtype that holds every segment's values exactly, None while nothing is published."""
        readers = self._open()
        return np.result_type(*(reader.dtype for reader in readers)) if readers else None

    @property
    def rows(self) -> int:
        """Number of distinct items that have an embedding."""
        return len(self.digests())

    def digests(self) -> NDArray[np.uint8]:
        """Return the digests of all items that have an embedding, (rows, 32), in stored order."""
        stored = self._published().digests
        stored = stored[stored.any(axis=1)]
        return stored[first_occurrences(stored)]

    def segments(self) -> tuple[SegmentManifest, ...]:
        """Return the manifests of the published segments, ordered by id.

        Raises:
            CorruptChunkError: If a manifest is damaged.
            EncoderMismatchError: If a manifest belongs to another encoder or view.
        """
        return tuple(reader.manifest for reader in self._open())

    def failures(self) -> Mapping[bytes, Failure]:
        """Return why items have no embedding, by digest; items that have one are left out."""
        return dict(self._published().failures)

    def missing(self, digests: NDArray[np.uint8], *, retry: bool = False) -> NDArray[np.int64]:
        """Return what is left to compute.

        Args:
            digests: (N, 32) uint8.
            retry: Also return items whose failure is recorded.

        Returns:
            Positions of the first occurrence of each distinct digest that has neither a row nor
            (unless `retry`) a recorded failure, ascending.
        """
        published = self._published()
        firsts = first_occurrences(digests)
        left = published.index.find(digests[firsts]) < 0
        if not retry:
            left &= published.failed.find(digests[firsts]) < 0
        return firsts[left]

    def plan(
        self,
        digests: NDArray[np.uint8],
        *,
        dim: int,
        dtype: Any,
        chunk_rows: int | None = None,
        segment_rows: int | None = None,
    ) -> tuple[SegmentPlan, ...]:
        """Cut digests into segments; the same digests give the same plan anywhere.

        When some of the segments are published and the rest is planned again, the rest is cut as
        before. Items that failed before come last, those with most failures at the end, in
        segments of their own: otherwise trying them again would find the old segment sealed. So
        use `SegmentPlan.positions` to find the items of a row.

        Args:
            digests: (M, 32) uint8, distinct: what `missing` left.
            dim: Width of the embeddings.
            dtype: float16 or float32.
            chunk_rows: Rows per chunk. Default: 16 MiB of rows, less for small segments.
            segment_rows: Most rows of a segment. Default: 64 full chunks.

        Raises:
            StoreConflictError: If the table holds embeddings of another width.
            ValueError: If digests repeat or a number does not fit.
        """
        if self.dim not in {None, dim}:
            raise StoreConflictError(
                f"Embeddings of encoder {self.encoder_id} must have width {self.dim}, as those "
                f"published. Got {dim}. Give the changed encoder another identity."
            )
        digests = check_digests(digests)
        return plan_segments(
            digests,
            self._attempts(digests),
            encoder_id=self.encoder_id,
            view=self.view,
            dim=dim,
            dtype=dtype,
            chunk_rows=chunk_rows,
            segment_rows=segment_rows,
        )

    def writer(self, plan: SegmentPlan) -> SegmentWriter:
        """Return a writer that continues the segment of `plan`.

        Raises:
            EncoderMismatchError: If the plan was made for another table.
        """
        if (plan.encoder_id, plan.view) != (self.encoder_id, self.view):
            raise EncoderMismatchError(
                f"The plan must be of encoder {self.encoder_id}, view {self.view}. Got "
                f"{plan.encoder_id}, {plan.view}. Ask the table that planned it."
            )
        return SegmentWriter(self._storage, plan)

    def resolve(self, digests: NDArray[np.uint8]) -> Rows:
        """Return where each item's embedding is.

        Raises:
            MissingRowsError: If any item has none.
        """
        readers, offsets, runs = self._locate(check_digests(digests))
        found = runs.rows()
        segment = np.searchsorted(offsets, found, side="right") - 1
        return Rows(
            segments=tuple(reader.manifest.id for reader in readers),
            segment=segment,
            row=found - offsets[segment],
        )

    def read(
        self,
        digests: NDArray[np.uint8],
        *,
        out: NDArray[Any] | None = None,
        dtype: Any = None,
        verify: bool = True,
    ) -> NDArray[Any]:
        """Return embeddings in the asked order.

        Args:
            digests: (N, 32) uint8; may repeat.
            out: C-contiguous (N, d) array to fill, pinned memory for example. Default: a new one.
            dtype: Dtype of a new array. Default: the stored one.
            verify: Check each chunk before its rows are used. Scattered rows check a chunk once
                per opened table; False trusts the disk.

        Returns:
            (N, d) array, `out` if given.

        Raises:
            MissingRowsError: If any item has no embedding.
            CorruptChunkError: If stored bytes are damaged; the message names segment and chunk.
            ValueError: If `out` does not fit.
        """
        digests = check_digests(digests)
        readers, offsets, runs = self._locate(digests)
        width = readers[0].manifest.dim if readers else 0
        if out is None:
            stored = np.result_type(*(reader.dtype for reader in readers)) if readers else "f4"
            out = np.empty((len(digests), width), stored if dtype is None else dtype)
        elif not (
            out.shape == (len(digests), width) and out.flags.c_contiguous and out.flags.writeable
        ):
            raise ValueError(
                f"out must be a writable C-contiguous ({len(digests)}, {width}) array. "
                f"Got {out.shape}. Pass another one or none."
            )
        pieces, segment = runs.cut(offsets)
        # One stable sort instead of one search per segment: a large table has many.
        order = np.argsort(segment, kind="stable")
        bounds = np.searchsorted(segment[order], np.arange(len(readers) + 1))
        for number, reader in enumerate(readers):
            asked = pieces[order[bounds[number] : bounds[number + 1]]]
            local = Runs(asked.row - offsets[number], asked.position, asked.length)
            read_segment(reader, local, out, verify=verify)
        return out

    def verify(self) -> list[Problem]:
        """Check every stored byte of the table and return what is wrong; nothing if all is well."""
        problems = []
        for segment_id in self._published_ids():
            try:
                manifest = self._manifest(segment_id)
            except (CorruptChunkError, EncoderMismatchError) as error:
                problems.append(Problem(segment_id, f"{segment_id}.json", str(error)))
                continue
            problems += audit_segment(SegmentReader(self._storage, self._prefix, manifest))
        return problems

    def _missing(
        self, published: Published, absent: NDArray[np.uint8], total: int
    ) -> MissingRowsError:
        failed = int((published.failed.find(absent) >= 0).sum())
        note = f", {failed:,} of which failed before" if failed else ""
        return MissingRowsError(
            f"All {total:,} items must have an embedding of encoder {self.encoder_id}, view "
            f"{self.view}. Got {len(absent):,} without{note}. Run `svp embed` to compute them"
            f"{' (--retry for the failed ones)' if failed else ''}.",
            missing=len(absent),
            total=total,
        )

    def _attempts(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        published = count_failures(self._open())
        counts = np.zeros(len(digests), np.int64)
        if published:
            failed = np.frombuffer(b"".join(published), np.uint8).reshape(-1, layout.DIGEST_BYTES)
            known = np.asarray([count for _, count in published.values()], np.int64)
            found = DigestIndex(failed).find(digests)
            counts[found >= 0] = known[found[found >= 0]]
        return counts

    def _published_ids(self) -> list[str]:
        return [
            entry.name.removesuffix(".json")
            for entry in self._storage.list(self._prefix)
            if entry.size is not None and entry.name.endswith(".json")
        ]

    def _manifest(self, segment_id: str) -> SegmentManifest:
        data = self._storage.get(f"{self._prefix}/{segment_id}.json")
        manifest = SegmentManifest.from_bytes(data, segment_id)
        if (manifest.encoder_id, manifest.view) != (self.encoder_id, self.view):
            raise EncoderMismatchError(
                f"Segment {segment_id} must belong to encoder {self.encoder_id}, view "
                f"{self.view}. Got {manifest.encoder_id}, {manifest.view}. "
                "It was copied to a wrong place: delete it there."
            )
        return manifest

    def _open(self) -> tuple[SegmentReader, ...]:
        with self._lock:
            # A segment that is gone is forgotten: recomputed, it may come back with other bytes.
            ids = self._published_ids()
            fresh = [segment_id for segment_id in ids if segment_id not in self._readers]
            manifests = mapped(self._manifest, fresh, self._storage.parallel)
            opened = {
                manifest.id: SegmentReader(self._storage, self._prefix, manifest, self._maps)
                for manifest in manifests
            }
            known = self._readers | opened
            self._readers = {segment_id: known[segment_id] for segment_id in ids}
            readers = tuple(self._readers.values())
        widths = {reader.manifest.dim for reader in readers}
        if len(widths) > 1:
            raise StoreConflictError(
                f"Segments of encoder {self.encoder_id}, view {self.view} must have one width. "
                f"Got {sorted(widths)}. Delete the segments of the wrong one."
            )
        return readers

    def _published(self) -> Published:
        readers, state = self._ranked(), self._state
        if state.readers != readers:
            state = self._state = state.renewed(readers, self._storage.parallel)
        return state

    def _ranked(self) -> tuple[SegmentReader, ...]:
        return tuple(sorted(self._open(), key=lambda reader: reader.manifest.rank))

    def _locate(
        self, digests: NDArray[np.uint8]
    ) -> tuple[tuple[SegmentReader, ...], NDArray[np.int64], Runs]:
        """Return the segments, the first row of each among those of all, and the digests' rows."""
        looked = self._look(digests)
        if looked is not None:
            return looked
        published = self._published()
        runs = published.index.runs(digests)
        if runs is None:
            absent = digests[published.index.find(digests) < 0]
            raise self._missing(published, absent, len(digests))
        return published.readers, published.offsets, runs

    def _look(
        self, digests: NDArray[np.uint8]
    ) -> tuple[tuple[SegmentReader, ...], NDArray[np.int64], Runs] | None:
        """Find few digests while all are read; None if that is not the way, or any is missing.

        Only for the first question of an opened table, which is often the last one. For a second
        one all digests are kept in memory.
        """
        if self._looked or self._state.readers:
            return None
        self._looked = True
        readers = self._ranked()
        rows = sum(reader.manifest.rows for reader in readers)
        if not Look.pays(len(digests), rows) or not all(reader.can_show for reader in readers):
            return None
        look, offsets = Look(digests), row_offsets(readers)
        for reader, first in zip(readers, offsets.tolist(), strict=True):
            reader.show(look, first)
        found = look.rows()
        if found is None or (found < 0).any():
            return None
        return readers, offsets, Runs.of(found)


def read_segment(reader: SegmentReader, runs: Runs, out: NDArray[Any], *, verify: bool) -> None:
    """Read rows of one segment as `SegmentReader.read`, into an array of any dtype."""
    if out.dtype == reader.dtype:
        reader.read(runs, out, verify=verify)
        return
    rows, positions = runs.rows(), runs.positions()
    # Whole chunks at a time where rows are in order, so that none is checked twice.
    chunk_rows = reader.manifest.chunk_rows
    batch = chunk_rows * max(1, _CAST_BYTES // (chunk_rows * reader.manifest.row_bytes))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        stored = np.empty((len(part), reader.manifest.dim), reader.dtype)
        reader.read(Runs.of(part), stored, verify=verify)
        out[positions[start : start + batch]] = stored
