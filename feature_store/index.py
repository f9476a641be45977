"""From digests to rows: a sorted index over 32-byte digests.

Shapes: R = indexed rows, N = asked digests. The first eight bytes of a SHA-256 order the index;
the full 32 bytes decide, so equal prefixes are never confused.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_store.layout import DIGEST_BYTES
from feature_store.runs import Runs

_BLOCK_ROWS: Final = 2**13  # compared together: a quarter of a megabyte a side stays in cache
_SHORT_RUN: Final = 1024  # mean length below which searching beats comparing
_TRIED_RUNS: Final = 3  # before that mean is looked at


def check_digests(digests: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return digests as one contiguous (N, 32) uint8 array, or raise ValueError."""
    if digests.ndim != 2 or digests.shape[1] != DIGEST_BYTES or digests.dtype != np.uint8:
        raise ValueError(
            f"Digests must be an (N, {DIGEST_BYTES}) uint8 array. "
            f"Got {digests.shape} {digests.dtype}. Pass Pool.digests."
        )
    return np.ascontiguousarray(digests)


def first_occurrences(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the positions (K,) of the first occurrence of each distinct digest, ascending."""
    digests = check_digests(digests)
    if len(digests) == 0:
        return np.zeros(0, np.int64)
    words_N4 = digests.view(np.uint64)
    sorted_N = np.sort(words_N4[:, 0])
    if not (sorted_N[1:] == sorted_N[:-1]).any():
        return np.arange(len(digests))
    order = np.argsort(words_N4[:, 0], kind="stable")
    sorted_N4 = words_N4[order]
    prefix_repeats = sorted_N4[1:, 0] == sorted_N4[:-1, 0]
    repeats = prefix_repeats & _equal_rows(sorted_N4[1:], sorted_N4[:-1])
    if np.array_equal(repeats, prefix_repeats):
        firsts = order[np.concatenate(([True], ~repeats))]
    else:
        # Different digests share eight bytes: only then is the order above not enough.
        _, firsts = np.unique(digests.view(f"V{DIGEST_BYTES}")[:, 0], return_index=True)
    return np.sort(firsts).astype(np.int64, copy=False)


class DigestIndex:
    """Finds the row of a digest.

    Args:
        digests: (R, 32) uint8. All-zero rows stand for failed items and are never found; of equal
            digests the first row is found.
    """

    def __init__(self, digests: NDArray[np.uint8]) -> None:
        self._words_R4 = check_digests(digests).view(np.uint64)
        prefixes = self._words_R4[:, 0]
        rows = np.flatnonzero(prefixes)
        if len(rows) < len(prefixes):
            rows = np.flatnonzero(self._words_R4.any(axis=1))
            prefixes = prefixes[rows]
        order = np.argsort(prefixes)
        self._prefixes = prefixes[order]
        self._distinct = not (self._prefixes[1:] == self._prefixes[:-1]).any()
        if not self._distinct:
            # Only now the order among equal ones matters, and the slower stable sort is needed.
            order = np.argsort(prefixes, kind="stable")
            self._prefixes = prefixes[order]
        self._rows = rows[order]

    def __len__(self) -> int:
        return len(self._rows)

    def runs(self, digests: NDArray[np.uint8]) -> Runs | None:
        """Return the same rows as `find` as runs, None if any digest has none."""
        runs = self._long_runs(digests)
        if runs is not None:
            return runs
        found = self.find(digests)
        return None if (found < 0).any() else Runs.of(found)

    def _long_runs(self, digests: NDArray[np.uint8]) -> Runs | None:
        """Find rows by comparing stretches; None where searching each row is the better way.

        Reading all in stored order is the most frequent question, and comparing 32 bytes a row is
        10 times faster than a million binary searches.
        """
        words_N4 = check_digests(digests).view(np.uint64)
        # Of equal digests the first row counts, and zero rows never do: left to the search.
        if not self._distinct or not words_N4[:, 0].all():
            return None
        starts: list[tuple[int, int, int]] = []
        position = 0
        while position < len(words_N4):
            if position < _SHORT_RUN * (len(starts) - _TRIED_RUNS):
                return None
            row = int(self.find(digests[position : position + 1])[0])
            if row < 0:
                return None
            length = _common_length(self._words_R4[row:], words_N4[position:])
            starts.append((row, position, length))
            position += length
        columns = np.asarray(starts, np.int64).reshape(-1, 3).T
        return Runs(columns[0], columns[1], columns[2])

    def find(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the row (N,) of each digest, -1 where there is none."""
        words_N4 = check_digests(digests).view(np.uint64)
        found = np.full(len(words_N4), -1, np.int64)
        # Sorted questions make the binary searches walk through memory instead of jumping.
        asked = np.argsort(words_N4[:, 0])
        sorted_N4 = words_N4[asked]
        at = np.searchsorted(self._prefixes, sorted_N4[:, 0])
        if len(self):
            # Nearly always every digest is there, and the first candidate is it.
            rows = self._rows[np.minimum(at, len(self) - 1)]
            if _equal_rows(self._words_R4[rows], sorted_N4).all():
                found[asked] = rows
                return found
        while len(asked):
            inside = at < len(self._prefixes)
            asked, at = asked[inside], at[inside]
            same = self._prefixes[at] == words_N4[asked, 0]
            asked, at = asked[same], at[same]
            rows = self._rows[at]
            hit = _equal_rows(self._words_R4[rows], words_N4[asked])
            found[asked[hit]] = rows[hit]
            asked, at = asked[~hit], at[~hit] + 1
        return found


def _equal_rows(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return where two (., 4) arrays have equal rows."""
    # Four truth values looked at as one number: several times faster than all(axis=1).
    equal: NDArray[np.bool_] = (one == other).view(np.uint32)[:, 0] == 0x01010101
    return equal


def _common_length(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> int:
    """Return how many rows two (., 4) arrays have in common at their start."""
    most = min(len(one), len(other))
    start, step = 0, 8
    while start < most:
        stop = min(start + step, most)
        equal = one[start:stop] == other[start:stop]
        if not equal.all():
            return start + int(np.argmin(_equal_rows(one[start:stop], other[start:stop])))
        # Most tries end at once, the others go on for long.
        start, step = stop, min(4 * step, _BLOCK_ROWS)
    return most
