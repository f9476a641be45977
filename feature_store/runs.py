"""Runs: rows that follow each other both where they are and where they go.

A pool that is read in the order it was embedded is a handful of runs, whatever its size; rows in
random order are runs of one row. Both are cut at segments and chunks by the same arithmetic.

Shapes: K = runs, B = pieces the rows are cut into.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, slots=True)
class Runs:
    """Rows [row, row + length) belong at positions [position, position + length)."""

    row: NDArray[np.int64]
    position: NDArray[np.int64]
    length: NDArray[np.int64]

    @classmethod
    def of(cls, rows: NDArray[np.int64]) -> "Runs":
        """Return the runs of `rows`, whose positions are 0, 1, 2, ..."""
        if len(rows) == 0:
            return cls(*(np.zeros(0, np.int64),) * 3)
        starts = np.flatnonzero(np.concatenate(([True], np.diff(rows) != 1)))
        return cls(rows[starts], starts, np.diff(np.append(starts, len(rows))))

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.int64] | slice) -> "Runs":
        return Runs(self.row[chosen], self.position[chosen], self.length[chosen])

    def cut(self, bounds: NDArray[np.int64]) -> tuple["Runs", NDArray[np.int64]]:
        """Cut runs where pieces begin.

        Args:
            bounds: First row of each piece, ascending, (B,); the first is 0.

        Returns:
            Runs that lie in one piece each, in the order they had, and the piece of each run.
        """
        first = np.searchsorted(bounds, self.row, side="right") - 1
        if (self.length == 1).all():
            return self, first
        last = np.searchsorted(bounds, self.row + self.length - 1, side="right") - 1
        counts = last - first + 1
        parent = np.repeat(np.arange(len(self)), counts)
        piece = (
            first[parent] + np.arange(len(parent)) - np.repeat(np.cumsum(counts) - counts, counts)
        )
        start = np.maximum(self.row[parent], bounds[piece])
        ends = np.append(bounds[1:], np.iinfo(np.int64).max)
        stop = np.minimum((self.row + self.length)[parent], ends[piece])
        return Runs(start, self.position[parent] + start - self.row[parent], stop - start), piece

    def rows(self) -> NDArray[np.int64]:
        """Return every row."""
        return self._spread(self.row)

    def positions(self) -> NDArray[np.int64]:
        """Return every position, in the order of `rows`."""
        return self._spread(self.position)

    def _spread(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        if (self.length == 1).all():
            return starts
        before = np.cumsum(self.length) - self.length
        return np.repeat(starts - before, self.length) + np.arange(int(self.length.sum()))
