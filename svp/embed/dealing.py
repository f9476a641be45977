"""Chunks dealt to the replicas of an encoder, and who knows when a segment has all of its own.

Chunks are dealt in the order of the plans to whoever asks next. A chunk is looked up again just
before it is dealt, so that what another process has stored meanwhile is skipped.

Shapes: N = pool.
"""

import collections
import dataclasses
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from feature_store import Chunk, SegmentPlan, SegmentWriter, Table

Int64Array = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Deal:
    """One chunk to embed.

    Attributes:
        writer: Of its segment.
        chunk: Which.
        rows: Of the pool, int64, one for each row of the chunk.
    """

    writer: SegmentWriter
    chunk: Chunk
    rows: Int64Array


class Dealer:
    """Deals the chunks that are missing; safe to use from several threads."""

    def __init__(self, table: Table, plans: Sequence[SegmentPlan], todo_N: Int64Array) -> None:
        self._lock = threading.Lock()
        self._writers = [table.writer(plan) for plan in plans]
        self._todo = todo_N
        self._out: collections.Counter[str] = collections.Counter()  # dealt and not written
        self._dealt: collections.deque[SegmentWriter] = collections.deque()  # whole, not sealed
        self._deals = self._all()

    def _all(self) -> Iterator[Deal]:
        for writer in self._writers:
            for chunk in writer.pending():
                yield Deal(writer, chunk, self._todo[writer.plan.positions[slice_of(chunk)]])
            self._dealt.append(writer)

    def rows_stored(self) -> int:
        """Return how many rows an earlier run left in segments that it did not publish."""
        stored = 0
        for writer in self._writers:
            found = writer.plan.rows - sum(map(len, writer.pending()))
            stored += found
            # Segments are worked off in order: behind one that was not begun there is nothing.
            if not found:
                break
        return stored

    def next(self) -> Deal | None:
        """Return another chunk, or None when all are dealt."""
        with self._lock:
            deal = next(self._deals, None)
            if deal is not None:
                self._out[deal.writer.segment_id] += 1
            return deal

    def written(self, deal: Deal) -> list[SegmentWriter]:
        """Note that a chunk is stored; return the segments that can be sealed now, each once."""
        with self._lock:
            self._out[deal.writer.segment_id] -= 1
            whole = [one for one in self._dealt if not self._out[one.segment_id]]
            for writer in whole:
                self._dealt.remove(writer)
            return whole

    def rest(self) -> list[SegmentWriter]:
        """Return the segments that remain to be sealed after the last chunk."""
        with self._lock:
            rest = list(self._dealt)
            self._dealt.clear()
            return rest


def slice_of(chunk: Chunk) -> slice:
    """Return the rows of a chunk in its segment."""
    return slice(chunk.start, chunk.stop)
