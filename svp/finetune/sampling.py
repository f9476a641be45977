"""Which images each step sees: endless reshuffled passes, without state.

A batch is a function of the seed and the step alone, so a resumed run needs nothing restored.
"""

import functools

import numpy as np
import numpy.typing as npt

from svp.seed import numpy_generator


class Passes:
    """Rows 0 to n-1 in endless passes, each in an order of its own."""

    def __init__(self, size: int, seed: int, *context: str | int) -> None:
        """Prepare passes over `size` rows; `context` tells streams of one seed apart."""
        self._size = size

        @functools.lru_cache(maxsize=2)
        def order(number: int) -> npt.NDArray[np.int64]:
            return numpy_generator(seed, *context, number).permutation(size).astype(np.int64)

        self._order = order

    def batch(self, step: int, count: int) -> npt.NDArray[np.int64]:
        """Return `count` rows: those at places step*count to (step+1)*count of the stream."""
        parts, place, end = [], step * count, (step + 1) * count
        while place < end:
            number, start = divmod(place, self._size)
            stop = min(start + end - place, self._size)
            parts.append(self._order(number)[start:stop])
            place += stop - start
        return np.concatenate(parts)
