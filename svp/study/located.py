"""Where embeddings lie in a store, and reading them there without the rest of the table.

The client resolves digests once; a worker is told segments and rows, opens only those segments,
and holds neither the pool nor the table's index.

Shapes: M = items, d = features.
"""

import dataclasses
import functools
from collections import OrderedDict
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from feature_store import layout, open_store
from feature_store.errors import CorruptChunkError, FeatureStoreError
from feature_store.manifest import SegmentManifest
from feature_store.reader import SegmentReader
from feature_store.runs import Runs
from feature_store.table import Table

Int64Array = npt.NDArray[np.int64]

_OPEN_SEGMENTS: Final = 64


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Located:
    """Item i is row `row_M[i]` of segment `segments[segment_M[i]]`.

    Attributes:
        segments: Ids of segments.
        segment_M: int32.
        row_M: int64.
    """

    segments: tuple[str, ...]
    segment_M: npt.NDArray[np.int32]
    row_M: Int64Array

    def __len__(self) -> int:
        return len(self.row_M)

    def take(self, chosen: Int64Array | slice) -> "Located":
        """Return the places of some items, with the segments they need and no others."""
        segment_K = self.segment_M[chosen]
        used, inner_K = np.unique(segment_K, return_inverse=True)
        return Located(
            segments=tuple(self.segments[number] for number in used.tolist()),
            segment_M=inner_K.astype(np.int32).reshape(-1),
            row_M=self.row_M[chosen],
        )


def locate(table: Table, digests_M32: npt.NDArray[np.uint8]) -> Located:
    """Return where the embeddings of some items lie.

    Raises:
        MissingRowsError: If any item has none.
    """
    rows = table.resolve(digests_M32)
    return Located(segments=rows.segments, segment_M=rows.segment.astype(np.int32), row_M=rows.row)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TableAddress:
    """A table as another process finds it.

    Attributes:
        store_url: The store.
        encoder_id: Of the table.
        view: Of the table.
        dim: d.
        dtype: Of the whole table.
    """

    store_url: str
    encoder_id: str
    view: str
    dim: int
    dtype: str


class RowReader:
    """Reads located rows; every chunk they touch is checked."""

    def __init__(self, address: TableAddress) -> None:
        self._address = address
        self._readers: OrderedDict[str, SegmentReader] = OrderedDict()

    @functools.cached_property
    def _storage(self) -> Any:
        return open_store(self._address.store_url).storage

    def read(self, located: Located) -> npt.NDArray[Any]:
        """Return the embeddings of some items, (M, d), in their order.

        Raises:
            CorruptChunkError: If stored bytes are damaged.
            FeatureStoreError: If a segment is gone or is not of this table.
        """
        address = self._address
        x_Md = np.empty((len(located), address.dim), address.dtype)
        order = np.argsort(located.segment_M, kind="stable")
        bounds = np.searchsorted(
            located.segment_M[order], np.arange(len(located.segments) + 1)
        ).tolist()
        for number, segment in enumerate(located.segments):
            positions = order[bounds[number] : bounds[number + 1]]
            rows = located.row_M[positions]
            if not len(rows):
                continue
            starts = np.flatnonzero(
                np.concatenate(([True], (np.diff(rows) != 1) | (np.diff(positions) != 1)))
            )
            lengths = np.diff(np.append(starts, len(rows)))
            reader = self._reader(segment)
            if reader.dtype == x_Md.dtype:
                reader.read(Runs(rows[starts], positions[starts], lengths), x_Md)
                continue
            stored = np.empty((len(rows), address.dim), reader.dtype)
            reader.read(Runs(rows[starts], starts, lengths), stored)
            x_Md[positions] = stored
        return x_Md

    def _reader(self, segment: str) -> SegmentReader:
        known = self._readers.get(segment)
        if known is None:
            known = self._readers[segment] = self._open(segment)
            if len(self._readers) > _OPEN_SEGMENTS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(segment)
        return known

    def _open(self, segment: str) -> SegmentReader:
        address = self._address
        prefix = f"{layout.table_prefix(address.encoder_id, address.view)}/segments"
        try:
            data = self._storage.get(f"{prefix}/{segment}.json")
        except FileNotFoundError as error:
            raise CorruptChunkError(
                f"Segment {segment} must stay in the store while it is read. Got none in "
                f"{address.store_url}: it was removed or merged. Run the same command again.",
                segment=segment,
                chunk="",
            ) from error
        manifest = SegmentManifest.from_bytes(data, segment)
        if (manifest.encoder_id, manifest.view, manifest.dim) != (
            address.encoder_id, address.view, address.dim,
        ):  # fmt: skip
            raise FeatureStoreError(
                f"Segment {segment} must be of encoder {address.encoder_id}, view {address.view}. "
                f"Got {manifest.encoder_id}, {manifest.view}. Verify the store."
            )
        return SegmentReader(self._storage, prefix, manifest)
