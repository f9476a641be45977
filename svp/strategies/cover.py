"""Greedy k-center: again and again the point farthest from everything covered so far.

Source: Gonzalez 1985, "Clustering to minimize the maximum intercluster distance" (a
2-approximation); Sener and Savarese 2018, algorithm 1.

The plain algorithm reads all n points at every pick. Here a *frontier* of the farthest points is
kept with minima that are exact in float64; the others keep stale minima, which can only be too
large. While the best of the frontier beats the bound on the rest, a pick costs one product with
the frontier; when it no longer does, all picks since the last refresh are folded into all n
points by one matrix product. The picks are those of the plain algorithm carried out in float64.

Shapes: n = points, F = frontier, K = centres, b = picks.
"""

import dataclasses
from typing import Final

import numpy as np
import torch

from svp.strategies.base import Float64Array, Int64Array
from svp.strategies.distance import exact_pairs, relative_error, square_distances
from svp.strategies.points import Factors, Points, join

FRONTIER: Final = 4096
_CENTRE_ROWS: Final = 2048
_PAIRS: Final = 16_384


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cover:
    """What the greedy algorithm chose.

    Attributes:
        places_b: Positions of the picks, in order.
        radius_b: Distance of each pick to the nearest centre when it was picked; for a first
            pick without centres, the largest distance of any point to it.
        counters: `refreshes` of all n points, `frontier` (largest), `exact_pairs` decided in
            float64.
    """

    places_b: Int64Array
    radius_b: Float64Array
    counters: dict[str, int]


def one_center(points: Points) -> int:
    """Return the point whose farthest other point is nearest, the first of equals.

    Takes all pairs in float64. Points whose distance to the farthest one found so far already
    exceeds the best radius are never looked at again, so it usually takes far fewer.
    """
    n = len(points)
    lower_n = np.zeros(n)
    best, best_square = 0, np.inf
    anchor = 0
    tried: set[int] = set()
    while True:
        squares_n = _squares_to(points, anchor)
        far = float(squares_n.max())
        tried.add(anchor)
        if far < best_square * (1.0 - 1e-12) or (
            far <= best_square * (1.0 + 1e-12) and anchor < best
        ):
            best, best_square = anchor, min(far, best_square)
        # Every point is at least this far from its farthest: the anchor itself is one to reach.
        np.maximum(lower_n, squares_n, out=lower_n)
        farthest = int(squares_n.argmax())
        if farthest not in tried:
            anchor = farthest
            continue
        lower_n[list(tried)] = np.inf
        anchor = int(lower_n.argmin())
        if not lower_n[anchor] <= best_square * (1.0 + 1e-12):
            return best


def _squares_to(points: Points, place: int) -> Float64Array:
    y_h = points.take(np.array([place], dtype=np.int64)).x_Mh[0].double()
    squares_n = np.empty(len(points))
    for part, block in points.blocks():
        squares_n[part] = (block.x_Mh.double() - y_h).square_().sum(dim=1).cpu().numpy()
    return squares_n


def k_center(
    points: Points,
    centres: Points,
    b: int,
    *,
    first: int | None = None,
    frontier: int = FRONTIER,
) -> Cover:
    """Choose `b` points by greedy k-center.

    Args:
        points: The candidates; the first of equally far ones is taken.
        centres: What is covered already. If empty, the first pick is the point nearest the mean
            of all points: an inexpensive stand-in for the 1-center.
        b: How many, in [1, n].
        first: The first pick where there are no centres; None: as above.
        frontier: Points kept exact at first. Never changes what is chosen.
    """
    return _KCenter(points, centres).run(b, frontier, first)


class _KCenter:
    def __init__(self, points: Points, centres: Points) -> None:
        self._points = points
        _, first = next(points.blocks())
        # Distances do not depend on the origin, but their rounding errors do.
        self._origin_h = first.x_Mh.mean(dim=0)
        self._error = relative_error(first)
        device = first.x_Mh.device
        self._norms_n = torch.zeros(len(points), device=device)
        for part, block in points.blocks():
            self._norms_n[part] = block.shifted(self._origin_h).square_norms()
        self._stale_n = torch.full((len(points),), torch.inf, device=device)
        self._open_n = torch.ones(len(points), dtype=torch.bool, device=device)
        self._centres: list[Factors] = []
        self._pending: list[Factors] = []
        self._largest_norm = 0.0
        self._counters = {"refreshes": 0, "frontier": 0, "exact_pairs": 0}
        for _, block in centres.blocks() if len(centres) else ():
            self._add_centre(block)

    def run(self, b: int, size: int, first: int | None) -> Cover:
        places: list[int] = []
        radii: list[float] = []
        if not self._centres:
            place, radius = self._start(first)
            self._take(place)
            places.append(place)
            radii.append(radius)
        while len(places) < b:
            frontier = self._refresh(size)
            taken = 0
            while len(places) < b:
                place, square = frontier.best()
                if not (square > frontier.bound):
                    break
                if square == 0.0:
                    # Only copies of covered points are left: any order is as good.
                    rest = torch.nonzero(self._open_n).flatten()[: b - len(places)].tolist()
                    places.extend(rest)
                    radii.extend([0.0] * len(rest))
                    break
                places.append(place)
                radii.append(square**0.5)
                taken += 1
                self._counters["exact_pairs"] += frontier.cover(self._take(place), self._error)
            # Nothing was certain right after a refresh: too many points are nearly equally far.
            size = size if taken else 4 * size
        return Cover(
            places_b=np.asarray(places, dtype=np.int64),
            radius_b=np.asarray(radii, dtype=np.float64),
            counters=self._counters,
        )

    def _start(self, first: int | None) -> tuple[int, float]:
        if first is None:
            total_h = torch.zeros_like(self._origin_h, dtype=torch.float64)
            for _, block in self._points.blocks():
                total_h += block.x_Mh.double().sum(dim=0)
            first = int(self._squares_to(total_h / len(self._points)).argmin())
        place = first
        chosen = self._points.take(np.array([place], dtype=np.int64))
        return place, float(self._squares_to(chosen.x_Mh[0].double()).max()) ** 0.5

    def _squares_to(self, y_h: torch.Tensor) -> torch.Tensor:
        squares_n = torch.empty(len(self._points), dtype=torch.float64, device=y_h.device)
        for part, block in self._points.blocks():
            squares_n[part] = (block.x_Mh.double() - y_h).square_().sum(dim=1)
        return squares_n

    def _take(self, place: int) -> Factors:
        self._open_n[place] = False
        chosen = self._points.take(np.array([place], dtype=np.int64))
        self._add_centre(chosen)
        return chosen.shifted(self._origin_h)

    def _add_centre(self, factors: Factors) -> None:
        self._centres.append(factors)
        self._pending.append(factors)

    def _refresh(self, size: int) -> "_Frontier":
        """Fold what is pending into all points, and start a frontier of `size` points."""
        self._counters["refreshes"] += 1
        if self._pending:
            pending = join(self._pending).shifted(self._origin_h)
            self._pending = []
            norms_K = pending.square_norms()
            self._largest_norm = max(self._largest_norm, float(norms_K.max()))
            for part, block in self._points.blocks():
                shifted = block.shifted(self._origin_h)
                for start in range(0, len(pending), _CENTRE_ROWS):
                    some = slice(start, start + _CENTRE_ROWS)
                    square_TK = square_distances(
                        shifted, self._norms_n[part], pending[some], norms_K[some]
                    )
                    self._stale_n[part] = torch.minimum(self._stale_n[part], square_TK.amin(dim=1))
        slack_n = self._error * (self._norms_n + self._largest_norm)
        upper_n = torch.where(self._open_n, self._stale_n + slack_n, -torch.inf)
        left = int(self._open_n.sum())
        if left <= size:
            bound = -torch.inf
            places_F = torch.nonzero(self._open_n).flatten()
        else:
            top = upper_n.topk(size + 1, sorted=True)
            bound = float(top.values[-1])
            # In the order of positions, so that the first of equals is the one that wins ties.
            places_F = top.indices[:-1].sort().values
        self._counters["frontier"] = max(self._counters["frontier"], len(places_F))
        return self._exact_frontier(places_F, bound, slack_n)

    def _exact_frontier(
        self, places_F: torch.Tensor, bound: float, slack_n: torch.Tensor
    ) -> "_Frontier":
        members = self._points.take(places_F.cpu().numpy())
        shifted = members.shifted(self._origin_h)
        slack_F = slack_n[places_F]
        norms_F = self._norms_n[places_F]
        # The nearest centre's float32 distance lies within two slacks of the stale minimum.
        reach_F = self._stale_n[places_F] + 2.0 * slack_F
        exact_F = torch.full_like(reach_F, torch.inf, dtype=torch.float64)
        centres = join(self._centres)
        for start in range(0, len(centres), _CENTRE_ROWS):
            some = centres[start : start + _CENTRE_ROWS]
            moved = some.shifted(self._origin_h)
            square_FK = square_distances(shifted, norms_F, moved, moved.square_norms())
            near = torch.nonzero(square_FK <= reach_F[:, None])
            for first in range(0, len(near), _PAIRS):
                pairs = near[first : first + _PAIRS]
                squares = exact_pairs(members[pairs[:, 0]], some[pairs[:, 1]])
                exact_F.scatter_reduce_(0, pairs[:, 0], squares, "amin")
            self._counters["exact_pairs"] += len(near)
        return _Frontier(places_F, members, shifted, norms_F, exact_F, bound)


class _Frontier:
    """The farthest points, their float64 minima, and a bound on all others."""

    def __init__(
        self,
        places_F: torch.Tensor,
        members: Factors,
        shifted: Factors,
        norms_F: torch.Tensor,
        exact_F: torch.Tensor,
        bound: float,
    ) -> None:
        self._places_F, self._members, self._shifted = places_F, members, shifted
        self._norms_F, self._exact_F = norms_F, exact_F
        self.bound = bound

    def best(self) -> tuple[int, float]:
        """Return position and squared distance of the farthest point, the first of equals."""
        if not len(self._exact_F):
            return -1, -torch.inf
        self._index = int(torch.argmax(self._exact_F))
        return int(self._places_F[self._index]), float(self._exact_F[self._index])

    def cover(self, chosen: Factors, error: float) -> int:
        """Add the point that `best` returned as a centre; return how many pairs were decided."""
        norm = self._norms_F[self._index]
        square_F = torch.mv(self._shifted.x_Mh, chosen.x_Mh[0])
        square_F = square_F.mul_(-2.0).add_(self._norms_F).add_(norm)
        slack_F = error * (self._norms_F + norm)
        near = torch.nonzero(square_F <= self._exact_F + slack_F).flatten()
        new = self._members.x_Mh[self._index].expand(len(near), -1)
        squares = exact_pairs(self._members[near], Factors(new))
        self._exact_F[near] = torch.minimum(self._exact_F[near], squares)
        self._exact_F[self._index] = -torch.inf
        return len(near)
