"""Lloyd's k-means, seeded, and the same for every order of the points.

Centroid sums are kept in 64-bit integers (fixed point), so they are exact, independent of the
order of addition on any device, and can follow the points that change cluster instead of being
taken anew.

Source: Lloyd 1982, "Least squares quantization in PCM"; initial centroids by D-squared seeding.
Shapes: n = points, k = clusters, h = width, T = rows of one block.
"""

import dataclasses
import math
from typing import Final

import numpy as np
import torch

from svp.strategies.base import Float64Array, Int64Array
from svp.strategies.points import Factors, Points
from svp.strategies.seeding import d2_seeding

_BLOCK_ENTRIES: Final = 4_194_304
_GAIN: Final = 1e-4
_MASS: Final = 2.0**40


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clusters:
    """A local optimum of k-means.

    Attributes:
        centroids_kh: Float32, relative to `origin_h`.
        origin_h: What was subtracted from the points.
        sizes_k: Points per cluster.
        inertia: Sum of squared distances to the nearest centroid at the last assignment.
        iterations: Assignments made.
    """

    centroids_kh: torch.Tensor
    origin_h: torch.Tensor
    sizes_k: Int64Array
    inertia: float
    iterations: int


def lloyd(
    points: Points,
    k: int,
    generator: np.random.Generator,
    iterations: int,
    *,
    share_n: Float64Array | None = None,
) -> Clusters:
    """Cluster the points.

    Empty clusters are refilled with the points that are served worst.

    Args:
        points: What to cluster, n of them.
        k: Number of clusters, in [1, n].
        generator: Of the initial centroids.
        iterations: At most this many assignments; fewer when nothing changes, or the inertia
            falls by less than one part in ten thousand.
        share_n: Weight of each point in (0, 1], in the centroids and in the inertia; None: 1
            for all.
    """
    return _Lloyd(points, k, generator, share_n).run(iterations)


def assign(points: Points, clusters: Clusters) -> Int64Array:
    """Return the cluster of the nearest centroid for every point, (n,)."""
    norms_k = clusters.centroids_kh.square().sum(dim=1)
    labels_n = np.empty(len(points), dtype=np.int64)
    for part, block in points.blocks():
        shifted = block.shifted(clusters.origin_h)
        labels_n[part] = _nearest(shifted, clusters.centroids_kh, norms_k).indices.cpu().numpy()
    return labels_n


class _Lloyd:
    def __init__(
        self,
        points: Points,
        k: int,
        generator: np.random.Generator,
        share_n: Float64Array | None,
    ) -> None:
        self._points, self._k = points, k
        _, first = next(points.blocks())
        self._origin_h = first.x_Mh.mean(dim=0)
        seeds = d2_seeding(points, k, generator, share_n=share_n)
        self._centroids_kh = points.take(seeds.places_b).shifted(self._origin_h).x_Mh
        device = self._centroids_kh.device
        largest = max(
            float(block.shifted(self._origin_h).x_Mh.abs().max()) for _, block in points.blocks()
        )
        # A power of two, so that scaling is exact; sums of n values stay below 2**62.
        self._scale = 2.0 ** (61 - math.frexp(largest)[1] - math.ceil(math.log2(len(points) + 1)))
        self._sums_kh = torch.zeros(self._centroids_kh.shape, dtype=torch.int64, device=device)
        self._share_n = None if share_n is None else torch.from_numpy(share_n).to(device)
        self._labels_n = torch.full((len(points),), -1, dtype=torch.int64, device=device)
        self._squares_n = torch.zeros(len(points), device=device)

    def run(self, iterations: int) -> Clusters:
        inertia = math.inf
        done = 0
        for _ in range(iterations):
            changed = self._assign()
            done += 1
            changed |= self._refill()
            squares_n = self._squares_n.double()
            if self._share_n is not None:
                squares_n = squares_n * self._share_n
            previous, inertia = inertia, float(squares_n.sum())
            sizes_k = torch.bincount(self._labels_n, minlength=self._k)
            filled_k = sizes_k > 0
            means_kh = self._sums_kh.double() / (self._scale * self._masses(sizes_k)[:, None])
            self._centroids_kh = torch.where(
                filled_k[:, None], means_kh.float(), self._centroids_kh
            )
            if not changed or inertia >= previous * (1.0 - _GAIN):
                break
        return Clusters(
            centroids_kh=self._centroids_kh,
            origin_h=self._origin_h,
            sizes_k=torch.bincount(self._labels_n, minlength=self._k).cpu().numpy(),
            inertia=inertia,
            iterations=done,
        )

    def _assign(self) -> bool:
        changed = False
        norms_k = self._centroids_kh.square().sum(dim=1)
        for part, block in self._points.blocks():
            shifted = block.shifted(self._origin_h)
            least = _nearest(shifted, self._centroids_kh, norms_k)
            self._squares_n[part] = (least.values + shifted.square_norms()).clamp_min_(0.0)
            old_T = self._labels_n[part]
            moved = torch.nonzero(least.indices != old_T).flatten()
            if len(moved):
                changed = True
                self._move(shifted[moved], old_T[moved], least.indices[moved], moved + part.start)
                self._labels_n[part] = least.indices
        return changed

    def _masses(self, sizes_k: torch.Tensor) -> torch.Tensor:
        if self._share_n is None:
            return sizes_k.clamp_min(1)
        fixed_n = (self._share_n * _MASS).to(torch.int64)
        masses_k = torch.zeros_like(sizes_k).index_add_(0, self._labels_n, fixed_n)
        return torch.where(masses_k > 0, masses_k.double() / _MASS, 1.0)

    def _move(
        self, factors: Factors, old_M: torch.Tensor, new_M: torch.Tensor, places_M: torch.Tensor
    ) -> None:
        precise_Mh = factors.x_Mh.double()
        if self._share_n is not None:
            precise_Mh = precise_Mh * self._share_n[places_M][:, None]
        fixed_Mh = (precise_Mh * self._scale).to(torch.int64)
        self._sums_kh.index_add_(0, new_M, fixed_Mh)
        had = old_M >= 0
        self._sums_kh.index_add_(0, old_M[had], -fixed_Mh[had])

    def _refill(self) -> bool:
        sizes_k = torch.bincount(self._labels_n, minlength=self._k)
        empty_e = torch.nonzero(sizes_k == 0).flatten()
        if not len(empty_e):
            return False
        # Worst served first; of equals the first in order.
        order = torch.argsort(self._squares_n, descending=True, stable=True)
        places_e = order[: len(empty_e)]
        places_e = places_e[self._squares_n[places_e] > 0]
        empty_e = empty_e[: len(places_e)]
        if not len(places_e):
            return False
        shifted = self._points.take(places_e.cpu().numpy()).shifted(self._origin_h)
        self._move(shifted, self._labels_n[places_e], empty_e, places_e)
        self._labels_n[places_e] = empty_e
        self._squares_n[places_e] = 0.0
        return True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Least:
    values: torch.Tensor
    indices: torch.Tensor


def _nearest(points: Factors, centroids_kh: torch.Tensor, norms_k: torch.Tensor) -> _Least:
    """Return min and argmin over centroids of |c|^2 - 2 x.c, few centroids at a time."""
    values = torch.full((len(points),), torch.inf, device=centroids_kh.device)
    indices = torch.zeros(len(points), dtype=torch.int64, device=centroids_kh.device)
    step = max(1, _BLOCK_ENTRIES // max(1, len(points)))
    for start in range(0, len(centroids_kh), step):
        some_kh = centroids_kh[start : start + step]
        square_Tk = torch.addmm(norms_k[start : start + step], points.x_Mh, some_kh.T, alpha=-2.0)
        least = square_Tk.min(dim=1)
        nearer = least.values < values
        values = torch.where(nearer, least.values, values)
        indices = torch.where(nearer, least.indices + start, indices)
    return _Least(values=values, indices=indices)


def representatives(points: Points, clusters: Clusters) -> Int64Array:
    """Return the position of a nearest point per cluster, largest cluster first, all distinct.

    Clusters choose in rounds, by size. In a round, one reading finds the nearest few unused
    points of every cluster still without one; a cluster takes the first that is free, and waits
    for the next round, which looks eight times deeper, if others were faster.
    """
    k = len(clusters.sizes_k)
    order_k = np.argsort(-clusters.sizes_k, kind="stable")
    places_k = np.full(k, -1, dtype=np.int64)
    used_n = torch.zeros(len(points), dtype=torch.bool, device=clusters.centroids_kh.device)
    waiting, depth = order_k, 1
    while len(waiting):
        index = torch.from_numpy(waiting).to(clusters.centroids_kh.device)
        nearest = _nearest_unused(
            points, clusters.centroids_kh[index], clusters.origin_h, used_n, depth
        )
        left = []
        taken: set[int] = set()
        for cluster, found in zip(waiting.tolist(), nearest.T.tolist(), strict=True):
            free = next((place for place in found if place not in taken), None)
            if free is None:
                left.append(cluster)
            else:
                taken.add(free)
                places_k[cluster] = free
        if taken:
            used_n[torch.tensor(sorted(taken), device=used_n.device)] = True
        waiting, depth = np.asarray(left, dtype=np.int64), min(8 * depth, len(points))
    return places_k[order_k]


def _nearest_unused(
    points: Points,
    centroids_wh: torch.Tensor,
    origin_h: torch.Tensor,
    used_n: torch.Tensor,
    depth: int,
) -> Int64Array:
    """Return positions of the `depth` nearest unused points per centroid, (<= depth, w)."""
    device = centroids_wh.device
    width = len(centroids_wh)
    square_Dw = torch.zeros(0, width, device=device)
    place_Dw = torch.zeros(0, width, dtype=torch.int64, device=device)
    for part, block in points.blocks():
        free = torch.nonzero(~used_n[part]).flatten()
        if not len(free):
            continue
        shifted = block.shifted(origin_h)[free]
        square_Tw = torch.addmm(
            shifted.square_norms()[:, None], shifted.x_Mh, centroids_wh.T, alpha=-2.0
        )
        place_Tw = (free + part.start)[:, None].expand(-1, width)
        square_Dw = torch.cat([square_Dw, square_Tw])
        place_Dw = torch.cat([place_Dw, place_Tw])
        if depth == 1:
            best = square_Dw.min(dim=0, keepdim=True)
            square_Dw, place_Dw = best.values, place_Dw.gather(0, best.indices)
        elif len(square_Dw) > depth:
            # Stable, so that of equally near points the first in order stays.
            order = torch.argsort(square_Dw, dim=0, stable=True)[:depth]
            square_Dw, place_Dw = square_Dw.gather(0, order), place_Dw.gather(0, order)
    if len(square_Dw) > 1:
        order = torch.argsort(square_Dw, dim=0, stable=True)
        place_Dw = place_Dw.gather(0, order)
    return place_Dw.cpu().numpy()
