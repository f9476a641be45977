"""Gradient points as some published BADGE code pooled them.

Adaptive average pooling of an outer product q (x) x is the outer product of the pooled vectors,
so pooled gradients stay factored.

Source: BASE (Emam et al. 2021), code: "global average pooling to 512" is an adaptive pooling of
the C x h gradient to 16 x 32. It averages *adjacent class indices*, so it depends on the order of
the classes. With fewer than 16 classes the ASVP code (Wen et al. 2023) pools to C x (512 // C).
"""

from collections.abc import Iterator
from typing import Final

import torch

from svp.strategies.base import Int64Array
from svp.strategies.points import Factors, Points, join

_ENTRIES: Final = 512
_CLASSES: Final = 16


class PooledGradients(Points):
    """Factored gradients with both factors pooled.

    Args:
        inner: The gradients.
    """

    def __init__(self, inner: Points) -> None:
        self._inner = inner

    def __len__(self) -> int:
        return len(self._inner)

    def blocks(self) -> Iterator[tuple[slice, Factors]]:
        """Yield (positions, pooled points) in blocks of `BLOCK_ROWS`."""
        for part, block in self._inner.blocks():
            yield part, _pooled(block)

    def take(self, places_M: Int64Array) -> Factors:
        """Return the pooled points at these positions."""
        return _pooled(self._inner.take(places_M))


def pooled_gradients(inner: Points, cache_bytes: int) -> Points:
    """Return gradients pooled to 512 entries, kept in memory if they fit in `cache_bytes`."""
    pooled = PooledGradients(inner)
    if not len(inner) or 4 * (_CLASSES + _ENTRIES) * len(inner) > cache_bytes:
        return pooled
    return Points(join([factors for _, factors in pooled.blocks()]))


def _pooled(factors: Factors) -> Factors:
    assert factors.q_MC is not None, "gradients have two factors"
    classes = min(factors.q_MC.shape[1], _CLASSES)
    width = min(_ENTRIES // classes, factors.x_Mh.shape[1])
    pool = torch.nn.functional.adaptive_avg_pool1d
    return Factors(
        pool(factors.x_Mh[:, None], width)[:, 0], pool(factors.q_MC[:, None], classes)[:, 0]
    )
