"""From digests to rows: a sorted index over 32-byte digests.

Shapes: R = indexed rows, N = asked digests. The first eight bytes of a SHA-256 order the index;
the full 32 bytes decide, so equal prefixes are never confused.
"""

import numpy as np
from numpy.typing import NDArray

from feature_store.layout import DIGEST_BYTES


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
    order = np.argsort(words_N4[:, 0], kind="stable")
    sorted_N4 = words_N4[order]
    prefix_repeats = sorted_N4[1:, 0] == sorted_N4[:-1, 0]
    repeats = prefix_repeats & (sorted_N4[1:] == sorted_N4[:-1]).all(axis=1)
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
        rows = np.flatnonzero(self._words_R4.any(axis=1))
        prefixes = self._words_R4[rows, 0]
        order = np.argsort(prefixes, kind="stable")
        self._rows = rows[order]
        self._prefixes = prefixes[order]

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the row (N,) of each digest, -1 where there is none."""
        words_N4 = check_digests(digests).view(np.uint64)
        found = np.full(len(words_N4), -1, np.int64)
        # Sorted questions make the binary searches walk through memory instead of jumping.
        asked = np.argsort(words_N4[:, 0])
        at = np.searchsorted(self._prefixes, words_N4[asked, 0])
        while len(asked):
            inside = at < len(self._prefixes)
            asked, at = asked[inside], at[inside]
            same = self._prefixes[at] == words_N4[asked, 0]
            asked, at = asked[same], at[same]
            rows = self._rows[at]
            hit = (self._words_R4[rows] == words_N4[asked]).all(axis=1)
            found[asked[hit]] = rows[hit]
            asked, at = asked[~hit], at[~hit] + 1
        return found
