"""Greedy cover by balls: again and again the point whose ball holds most uncovered points.

Degrees (uncovered points in each ball) are counted once over all pairs, a tile at a time. When a
pick covers points, what they contributed is counted again and taken off, once per point. So any
budget costs at most twice all pairs, and no graph is stored.

Source: Yehuda et al. 2022, "Active learning through a covering lens", algorithm 1 (ProbCover).
Shapes: n = points, M, K = rows of a tile, D = points newly covered.
"""

import dataclasses

import numpy as np
import torch

from svp.strategies.base import Int64Array
from svp.strategies.block import BLOCK_ROWS
from svp.strategies.distance import relative_error, square_distances
from svp.strategies.points import Factors, Points

_PAIRS = 2048
# Squared distances within this share of the squared radius are on the sphere, which is outside.
_SPHERE = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BallCover:
    """What the greedy algorithm chose.

    Attributes:
        places_b: Positions of the picks, in order; fewer than asked for once all is covered.
        gains_b: Points that each pick covered first.
        covered: Points covered in the end, those covered at the start included.
        exact_pairs: Pairs too close to the radius for float32, decided in float64.
    """

    places_b: Int64Array
    gains_b: Int64Array
    covered: int
    exact_pairs: int


def ball_cover(points: Points, centres: Points, b: int, radius: float) -> BallCover:
    """Choose up to `b` points by greedy cover with open balls.

    Args:
        points: What to cover, and to choose from; the first of equal ones is chosen.
        centres: Points whose balls count as chosen already.
        b: Most picks.
        radius: Of all balls; a point at exactly this distance is outside.
    """
    return _Balls(points, radius).run(centres, b)


class _Balls:
    def __init__(self, points: Points, radius: float) -> None:
        self._points, self._square = points, radius * radius
        _, first = next(points.blocks())
        self._error = relative_error(first)
        device = first.x_Mh.device
        self._left_n = torch.ones(len(points), dtype=torch.bool, device=device)
        self._degree_n = torch.zeros(len(points), dtype=torch.int64, device=device)
        self._exact_pairs = 0

    def run(self, centres: Points, b: int) -> BallCover:
        for _, some in centres.blocks() if len(centres) else ():
            for part, block in self._points.blocks():
                self._left_n[part] &= ~self._inside(block, some).any(dim=1)
        self._count()
        places: list[int] = []
        gains: list[int] = []
        while len(places) < b:
            most = int(self._degree_n.max())
            if most <= 0:
                break
            place = int(torch.nonzero(self._degree_n == most)[0, 0])
            places.append(place)
            gains.append(most)
            self._take(place)
        return BallCover(
            places_b=np.asarray(places, dtype=np.int64),
            gains_b=np.asarray(gains, dtype=np.int64),
            covered=int((~self._left_n).sum()),
            exact_pairs=self._exact_pairs,
        )

    def _count(self) -> None:
        """Count the uncovered points in every ball; distances are symmetric, so half the pairs."""
        for row, block in self._points.blocks():
            for column, other in self._points.blocks():
                if column.start < row.start:
                    continue
                inside_MK = self._inside(block, other)
                self._degree_n[row] += (inside_MK & self._left_n[column]).sum(dim=1)
                if column.start > row.start:
                    self._degree_n[column] += (inside_MK & self._left_n[row][:, None]).sum(dim=0)

    def _take(self, place: int) -> None:
        chosen = self._points.take(np.array([place], dtype=np.int64))
        found = [
            torch.nonzero(self._inside(block, chosen).flatten() & self._left_n[part]).flatten()
            + part.start
            for part, block in self._points.blocks()
        ]
        rows_D = torch.cat(found)
        self._left_n[rows_D] = False
        for start in range(0, len(rows_D), BLOCK_ROWS):
            some = self._points.take(rows_D[start : start + BLOCK_ROWS].cpu().numpy())
            for part, block in self._points.blocks():
                self._degree_n[part] -= self._inside(block, some).sum(dim=1)
        self._degree_n[place] = -1

    def _inside(self, a: Factors, b: Factors) -> torch.Tensor:
        """Return whether each a is in the open ball around each b, (M, K)."""
        norms_M, norms_K = a.square_norms(), b.square_norms()
        off_MK = square_distances(a, norms_M, b, norms_K).sub_(self._square)
        slack = self._error * float(norms_M.max() + norms_K.max())
        inside_MK = off_MK < 0
        doubtful = torch.nonzero(off_MK.abs_() <= slack)
        self._exact_pairs += len(doubtful)
        for start in range(0, len(doubtful), _PAIRS):
            i, j = doubtful[start : start + _PAIRS].unbind(dim=1)
            square = (a.x_Mh[i].double() - b.x_Mh[j].double()).square_().sum(dim=1)
            inside_MK[i, j] = square < self._square * (1.0 - _SPHERE)
        return inside_MK


def purity_radius(points: Points, labels_n: Int64Array, purity: float, most: int) -> float:
    """Return the largest radius at which a share `purity` of balls hold one label only.

    A ball is pure exactly up to the distance of the nearest point of another label, so the
    radius is a quantile of those distances and needs no search.

    Args:
        points: All points, in random order.
        labels_n: Label of each.
        purity: In [0, 1].
        most: Balls looked at: the first ones.
    """
    centres = points.take(np.arange(min(most, len(points)), dtype=np.int64))
    norms_M = centres.square_norms()
    labels = torch.from_numpy(labels_n).to(norms_M.device)
    nearest_M = torch.full_like(norms_M, torch.inf)
    for part, block in points.blocks():
        norms_T = block.square_norms()
        square_MT = square_distances(centres, norms_M, block, norms_T)
        square_MT[labels[: len(centres)][:, None] == labels[part]] = torch.inf
        nearest_M = torch.minimum(nearest_M, square_MT.amin(dim=1))
    distance = nearest_M.double().clamp_min(0.0).sqrt().sort().values.cpu().numpy()
    radius = float(distance[int((1.0 - purity) * len(distance))])
    if np.isfinite(radius) and radius > 0:
        return radius
    useful = distance[np.isfinite(distance) & (distance > 0)]
    # One label only: any ball is pure. All points of two labels in one spot: none is.
    widest = 2.0 * float(norms_M.max()) ** 0.5 + 1.0
    return float(useful[0]) if radius == 0 and len(useful) else widest
