"""TypiClust: the most typical image of each cluster that has no labels yet.

Source: Hacohen et al. 2022, "Active learning on a budget: opposite strategies suit high and low
budgets". The paper defines typicality by distances; its code passes squared ones
(`distance="squared"`).
"""

import dataclasses
from typing import ClassVar, Final, Literal

import numpy as np
import torch

from svp.seed import numpy_generator
from svp.strategies.base import (
    Budget,
    Float64Array,
    Int64Array,
    Need,
    Oracle,
    PoolView,
    Selection,
    Space,
)
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.lloyd import assign, lloyd
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.points import Norm, pool_points

_SMALLEST: Final = 5
_DEPTH: Final = 2
_ENTRIES: Final = 4_194_304
_EPSILON: Final = 1e-5
_TIE: Final = 1e-10
# Below this share of the norms, a float64 squared distance is rounding noise.
_SAME: Final = 1e-11


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TypiClust:
    """One typical image per cluster: fewest labels first, then largest.

    Clusters of at most five images come last. Clusters are visited in turn; with many more picks
    than `max_clusters` each gets many picks and the batch is less diverse.

    Attributes:
        max_clusters: There are labelled + budget clusters, and at most this many.
        neighbours: Neighbours that decide typicality, at most half of the cluster.
        iterations: Most assignments Lloyd's algorithm makes.
        distance: `l2` as in the paper, `squared` as in its code.
        space: `input` or `hidden`, as for `kmeans`.
        norm: `l2` for unit vectors as published, `none` or `zscore`.
    """

    name: ClassVar[str] = "typiclust"
    family: ClassVar[str] = "cluster"
    summary: ClassVar[str] = "the image with the closest neighbours in each unlabelled group"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:local-optimum"
    source: ClassVar[str] = "Hacohen et al. 2022, algorithm 1"
    scaling: ClassVar[str] = "iterations k N h + N^2 h / k, k clusters"
    instead: ClassVar[str] = "kmeans"

    max_clusters: int = 500
    neighbours: int = 20
    iterations: int = 20
    distance: Literal["l2", "squared"] = "l2"
    space: Space = "input"
    norm: Norm = "l2"

    def __post_init__(self) -> None:
        check_range("typiclust.max_clusters", self.max_clusters, 1)
        check_range("typiclust.neighbours", self.neighbours, 1)
        check_range("typiclust.iterations", self.iterations, 1)
        check_choice("typiclust.distance", self.distance, ("l2", "squared"))
        check_choice("typiclust.space", self.space, ("input", "hidden"))
        check_choice("typiclust.norm", self.norm, ("none", "l2", "zscore"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        rows = shape.candidates + shape.labelled
        clusters = min(shape.labelled + shape.budget, self.max_clusters)
        # All candidates may be in one cluster.
        lists = 16 * _DEPTH * (self.neighbours + 4) + 24
        return Cost(
            bytes=shape.tile_bytes
            + 96 * rows
            + shape.candidates * (4 * shape.hidden + 2 * lists)
            + 16 * clusters * shape.hidden
            + 192 * 2**20,
            flops=2.0 * rows * shape.hidden * ((self.iterations + 2) * clusters + rows / clusters),
            passes=self.iterations + 4.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the most typical candidates; see `Strategy.select`."""
        del oracle
        rows_U, rows_L = view.candidates(seed), view.centres(seed)
        rows = np.concatenate([rows_U, rows_L])
        points = pool_points(view, rows, seed, budget, space=self.space, norm=self.norm)
        k = min(len(rows_L) + b, self.max_clusters, len(rows))
        found = lloyd(points, k, numpy_generator(seed, "typiclust"), self.iterations)
        labels = assign(points, found)
        visits = visiting_order(labels[: len(rows_U)], labels[len(rows_U) :], k, b)
        places_b = np.empty(b, dtype=np.int64)
        typical_b = np.empty(b)
        for cluster in np.unique(visits):
            turns = np.flatnonzero(visits == cluster)
            members = np.flatnonzero(labels[: len(rows_U)] == cluster)
            inside = _Cluster(points.take(members).x_Mh, self.neighbours, self.distance)
            chosen, typical = inside.most_typical(len(turns))
            places_b[turns], typical_b[turns] = members[chosen], typical
        return Selection(
            rows_b=rows_U[places_b],
            utility_b=typical_b.astype(np.float32),
            reason=(
                "The most typical image left in a group with few labels (typicality {utility}: "
                "one over the mean distance to its neighbours)."
            ),
            exactness=self.exactness,
            counters={"clusters": k, "iterations": found.iterations},
        )


def visiting_order(labels_U: Int64Array, labels_L: Int64Array, clusters: int, b: int) -> Int64Array:
    """Return the cluster of each pick, (b,).

    Clusters are visited in turn, those with the fewest labelled images first, then the largest;
    clusters of at most five images only after all others are used up.
    """
    left = np.bincount(labels_U, minlength=clusters)
    labelled = np.bincount(labels_L, minlength=clusters)
    size = left + labelled
    order = np.lexsort((np.arange(clusters), -size, labelled))
    visits: list[int] = []
    for group in (order[size[order] > _SMALLEST], order[size[order] <= _SMALLEST]):
        open_clusters = group[left[group] > 0]
        while len(open_clusters) and len(visits) < b:
            visits.extend(open_clusters[: b - len(visits)].tolist())
            left[open_clusters] -= 1
            open_clusters = open_clusters[left[open_clusters] > 0]
    return np.asarray(visits, dtype=np.int64)


class _Cluster:
    """Candidates of one cluster, with lists of their nearest neighbours.

    Lists are deeper than needed, so that a removal seldom asks for distances again.
    """

    def __init__(self, x_Mh: torch.Tensor, neighbours: int, distance: str) -> None:
        self._x_Mh = x_Mh - x_Mh.double().mean(dim=0).float()
        self._neighbours, self._distance = neighbours, distance
        m = len(x_Mh)
        self._alive = np.ones(m, dtype=bool)
        self._depth = max(1, min(m - 1, _DEPTH * neighbours))
        self._near = np.zeros((m, self._depth), dtype=np.int64)
        self._far = np.full((m, self._depth), np.inf)
        if m > 1:
            self._list(np.arange(m, dtype=np.int64))

    def most_typical(self, count: int) -> tuple[Int64Array, Float64Array]:
        """Return positions of the `count` most typical, each removed before the next."""
        chosen = np.empty(count, dtype=np.int64)
        typical = np.empty(count)
        for index in range(count):
            value_M = self._typicality()
            best = value_M.max()
            place = int(np.flatnonzero(value_M >= best * (1.0 - _TIE))[0])
            chosen[index], typical[index] = place, best
            self._alive[place] = False
        return chosen, typical

    def _typicality(self) -> Float64Array:
        alive = np.flatnonzero(self._alive)
        value_M = np.full(len(self._alive), -1.0)
        used = min(self._neighbours, len(alive) // 2)
        if not used:
            value_M[alive] = 0.0
            return value_M
        there = self._alive[self._near[alive]] & np.isfinite(self._far[alive])
        short = there.sum(axis=1) < used
        if short.any():
            self._list(alive[short])
            there = self._alive[self._near[alive]] & np.isfinite(self._far[alive])
        there &= np.cumsum(there, axis=1) <= used
        mean = np.where(there, self._far[alive], 0.0).sum(axis=1) / used
        value_M[alive] = 1.0 / (mean + _EPSILON)
        return value_M

    def _list(self, members: Int64Array) -> None:
        """List the nearest others that are left for these members."""
        device = self._x_Mh.device
        alive = np.flatnonzero(self._alive)
        other = self._x_Mh[torch.from_numpy(alive).to(device)].double()
        norms_A = other.square().sum(dim=1)
        places_A = torch.from_numpy(alive).to(device)
        depth = min(self._depth, len(alive) - 1)
        for start in range(0, len(members), max(1, _ENTRIES // len(alive))):
            some = members[start : start + max(1, _ENTRIES // len(alive))]
            index = torch.from_numpy(some).to(device)
            x = self._x_Mh[index].double()
            norms = x.square().sum(dim=1)[:, None] + norms_A
            square = norms - 2.0 * x @ other.T
            square = torch.where(square > _SAME * norms, square, 0.0)
            square[places_A == index[:, None]] = torch.inf
            # Ties in float64 noise at worst swap equal neighbours.
            least = square.topk(depth, dim=1, largest=False, sorted=True)
            far = least.values if self._distance == "squared" else least.values.sqrt()
            self._near[some, :depth] = places_A[least.indices].cpu().numpy()
            self._far[some, :depth] = far.cpu().numpy()
            self._far[some, depth:] = np.inf
