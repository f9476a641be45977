"""Points: pool rows in the representation a strategy measures in, readable again and again.

A point is a vector x, or the outer product q (x) x of two vectors, kept as its factors: inner
products and norms of outer products are products of those of the factors, so the C * h numbers
are never formed.

Shapes: n = points, T = rows of one block, M = rows asked for, h = width of x, C = width of q.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from svp.strategies.base import Budget, Int64Array, PoolView, Space
from svp.strategies.block import BLOCK_ROWS, on_whole_block
from svp.strategies.softmax import residual

Norm = Literal["none", "l2", "zscore"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Rows of points.

    Attributes:
        x_Mh: Vectors, float32 or float64.
        q_MC: Second factors, or None where the points are the x themselves.
    """

    x_Mh: torch.Tensor
    q_MC: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.x_Mh)

    def __getitem__(self, rows: slice | torch.Tensor) -> "Factors":
        return Factors(self.x_Mh[rows], None if self.q_MC is None else self.q_MC[rows])

    @property
    def width(self) -> int:
        """Terms in an inner product, which bound its rounding error."""
        return self.x_Mh.shape[1] + (0 if self.q_MC is None else self.q_MC.shape[1])

    def double(self) -> "Factors":
        """Return them in float64."""
        return Factors(self.x_Mh.double(), None if self.q_MC is None else self.q_MC.double())

    def shifted(self, origin_h: torch.Tensor) -> "Factors":
        """Return x - origin; only for points without a second factor."""
        return Factors(self.x_Mh - origin_h)

    def square_norms(self) -> torch.Tensor:
        """Return the squared norm of every point, (M,)."""
        norms_M = self.x_Mh.square().sum(dim=1)
        return norms_M if self.q_MC is None else norms_M * self.q_MC.square().sum(dim=1)

    def inner(self, other: "Factors") -> torch.Tensor:
        """Return the inner products of all points with all of `other`, (M, len(other))."""
        product = self.x_Mh @ other.x_Mh.T
        if self.q_MC is not None and other.q_MC is not None:
            product *= self.q_MC @ other.q_MC.T
        return product


def join(parts: list[Factors]) -> Factors:
    """Return the rows of all parts, in order."""
    second = [part.q_MC for part in parts if part.q_MC is not None]
    return Factors(torch.cat([part.x_Mh for part in parts]), torch.cat(second) if second else None)


class Points:
    """Points held in memory.

    Args:
        factors: All n of them, in the order that decides ties.
    """

    def __init__(self, factors: Factors) -> None:
        self._factors = factors

    def __len__(self) -> int:
        return len(self._factors)

    def blocks(self) -> Iterator[tuple[slice, Factors]]:
        """Yield (positions, points) in blocks of `BLOCK_ROWS`."""
        for start in range(0, len(self), BLOCK_ROWS):
            part = slice(start, min(start + BLOCK_ROWS, len(self)))
            yield part, self._factors[part]

    def take(self, places_M: Int64Array) -> Factors:
        """Return the points at these positions."""
        index = torch.from_numpy(places_M).to(self._factors.x_Mh.device)
        return self._factors[index]


class _Streamed(Points):
    """Points computed anew from the pool's embeddings at every reading."""

    def __init__(
        self,
        view: PoolView,
        rows: Int64Array,
        budget: Budget,
        space: Space,
        scale: "_Scale",
        gradients: bool,
    ) -> None:
        self._view, self._rows, self._budget = view, rows, budget
        self._space, self._scale, self._gradients = space, scale, gradients

    def __len__(self) -> int:
        return len(self._rows)

    def blocks(self) -> Iterator[tuple[slice, Factors]]:
        yield from self._read(self._rows)

    def take(self, places_M: Int64Array) -> Factors:
        return join([factors for _, factors in self._read(self._rows[places_M])])

    def _read(self, rows: Int64Array) -> Iterator[tuple[slice, Factors]]:
        if not self._gradients:
            for part, x_Th in self._view.space_tiles(rows, self._budget, self._space):
                yield part, Factors(self._scale(x_Th))
            return
        proxy = self._view.required_proxy()
        weight_Ch, bias_C = proxy.head.weight_Cd, proxy.head.bias_C
        for part, h_Th in self._view.space_tiles(rows, self._budget, "hidden"):
            q_TC = on_whole_block(
                lambda h: residual(torch.nn.functional.linear(h, weight_Ch, bias_C)), h_Th
            )
            yield part, Factors(h_Th, q_TC)


class _Scale:
    """Turns a representation into the one distances are taken in."""

    def __init__(self, norm: Norm, mean_h: torch.Tensor | None, std_h: torch.Tensor | None) -> None:
        self._norm, self._mean_h, self._std_h = norm, mean_h, std_h

    def __call__(self, x_Th: torch.Tensor) -> torch.Tensor:
        if self._norm == "l2":
            norm_T1 = torch.linalg.vector_norm(x_Th, dim=1, keepdim=True)
            return x_Th / torch.where(norm_T1 > 0, norm_T1, 1.0)
        if self._mean_h is not None and self._std_h is not None:
            return (x_Th - self._mean_h) / self._std_h
        return x_Th


def pool_points(
    view: PoolView,
    rows: Int64Array,
    seed: int,
    budget: Budget,
    *,
    space: Space = "hidden",
    norm: Norm = "none",
    gradients: bool = False,
) -> Points:
    """Return pool rows as points, kept in memory if they fit the budget's cache.

    Args:
        view: The pool.
        rows: Pool rows, in the order that decides ties.
        seed: Of the order in which z-scores are accumulated.
        budget: Device, tile and cache size.
        space: `input` for the embeddings, `hidden` for the input of the proxy's last layer;
            without a proxy both are the embeddings.
        norm: `none`, `l2` for unit vectors, or `zscore` by the mean and deviation of candidates
            and labelled rows.
        gradients: Points are q (x) x with x the proxy's hidden representation and
            q = softmax - onehot(prediction): the loss gradient of the last layer, had the
            prediction been the label. `space` and `norm` do not apply then.
    """
    scale = _Scale(norm, None, None)
    if norm == "zscore" and not gradients:
        scale = _zscore(view, seed, budget, space)
    streamed = _Streamed(view, rows, budget, space, scale, gradients)
    if not len(rows):
        return streamed
    row_bytes = 4 * streamed.take(np.zeros(1, dtype=np.int64)).width
    if row_bytes * len(rows) > budget.cache_bytes:
        return streamed
    return Points(join([factors for _, factors in streamed.blocks()]))


def _zscore(view: PoolView, seed: int, budget: Budget, space: Space) -> _Scale:
    total, count = None, 0
    for order in (view.candidates(seed), view.centres(seed)):
        for _, x_Th in view.space_tiles(order, budget, space):
            sums = torch.stack([x_Th.double().sum(dim=0), x_Th.double().square().sum(dim=0)])
            total = sums if total is None else total + sums
            count += len(x_Th)
    assert total is not None, "a view has candidates"
    mean_h = total[0] / count
    std_h = (total[1] / count - mean_h.square()).clamp_min(0.0).sqrt()
    constant_h = std_h <= 1e-6 * mean_h.abs()
    std_h = torch.where(constant_h, torch.ones_like(std_h), std_h)
    return _Scale("zscore", mean_h.float(), std_h.float())
