"""SSLDiff2AugKmeans: the smallest margins of every cluster, in proportion to its size.

Source: Song et al. 2019, "Combining MixMatch and active learning for better accuracy with fewer
labels", section 3 ("diff2", "aug", "k-means").
Shapes: U = candidates, L = labelled, k = clusters, h = width, T = rows.
"""

import dataclasses
from typing import ClassVar

import numpy as np
import torch

from svp.seed import numpy_generator
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection, Space
from svp.strategies.block import on_whole_block
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.lloyd import Clusters, lloyd
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.points import Norm, Points, pool_points
from svp.strategies.rank import check_scores
from svp.strategies.ssl_diff2aug_direct import check_stored, scored_tiles


def proportional_quotas(sizes_k: Int64Array, b: int) -> Int64Array:
    """Return how many of `b` items each cluster gives, (k,), within 1 of b n_k / sum n.

    Everybody's share is rounded down; what is left goes, one each, to the clusters in order that
    still have some.

    Args:
        sizes_k: Candidates per cluster.
        b: How many, at most their sum.
    """
    quotas_k = b * sizes_k // int(sizes_k.sum())
    short = np.flatnonzero(quotas_k < sizes_k)[: b - int(quotas_k.sum())]
    quotas_k[short] += 1
    return quotas_k


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SSLDiff2AugKmeans:
    """Smallest margins of the mean over two views, clusters served in proportion.

    Clusters are found over candidates and labelled images together; shares count the candidates.
    What rounding leaves goes to the largest clusters, where the published code begins with
    cluster 0. That code also writes the first row of a batch over all its rows, so that its
    clusters are batches of the loader and not clusters of images.

    Attributes:
        clusters: k.
        view: Which stored view is the augmented one.
        iterations: Most assignments of k-means.
        space: As in `kmeans`.
        norm: As in `kmeans`.
    """

    name: ClassVar[str] = "ssl_diff2aug_kmeans"
    family: ClassVar[str] = "semi-supervised"
    summary: ClassVar[str] = "images between two classes, from every group in proportion"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "views"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:local-optimum"
    source: ClassVar[str] = "Song et al. 2019, section 3"
    scaling: ClassVar[str] = "iterations clusters N h + 2 N h C"
    instead: ClassVar[str] = "ssl_diff2aug_direct"

    clusters: int = 20
    view: int = 0
    iterations: int = 20
    space: Space = "hidden"
    norm: Norm = "none"

    def __post_init__(self) -> None:
        check_range("ssl_diff2aug_kmeans.clusters", self.clusters, 1)
        check_range("ssl_diff2aug_kmeans.view", self.view, 0)
        check_range("ssl_diff2aug_kmeans.iterations", self.iterations, 1)
        check_choice("ssl_diff2aug_kmeans.space", self.space, ("input", "hidden"))
        check_choice("ssl_diff2aug_kmeans.norm", self.norm, ("none", "l2", "zscore"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        items = shape.candidates + shape.labelled
        return Cost(
            bytes=3 * shape.tile_bytes
            + 96 * items
            + 24 * self.clusters * shape.hidden
            + 4 * 1024 * self.clusters
            + 64 * 2**20,
            flops=2.0 * shape.logits_flops
            + 2.0 * (self.iterations + 2) * self.clusters * items * shape.hidden,
            passes=self.iterations + 5.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates, clusters in proportion; see `Strategy.select`."""
        del oracle
        check_stored("ssl_diff2aug_kmeans.view", self.view, view)
        rows_U = view.candidates(seed)
        score_U = np.empty(len(rows_U), dtype=np.float32)
        for part, score_T in scored_tiles(view, rows_U, budget, self.view):
            score_U[part] = score_T.cpu().numpy()
        check_scores(score_U)
        every = np.concatenate([rows_U, view.centres(seed)])
        points = pool_points(view, every, seed, budget, space=self.space, norm=self.norm)
        k = min(self.clusters, len(every))
        clusters = lloyd(points, k, numpy_generator(seed, self.name), self.iterations)
        label_U = _nearest(points, clusters)[: len(rows_U)]
        sizes_k = np.bincount(label_U, minlength=k).astype(np.int64)
        by_size = np.argsort(-sizes_k, kind="stable")
        quotas_k = np.empty(k, dtype=np.int64)
        quotas_k[by_size] = proportional_quotas(sizes_k[by_size], b)
        ranked = np.argsort(-score_U, kind="stable")
        by_cluster = ranked[np.argsort(label_U[ranked], kind="stable")]
        first_k = np.cumsum(sizes_k) - sizes_k
        rank_U = np.arange(len(rows_U)) - first_k[label_U[by_cluster]]
        chosen = by_cluster[rank_U < quotas_k[label_U[by_cluster]]]
        chosen = chosen[np.lexsort((chosen, -score_U[chosen]))]
        return Selection(
            rows_b=rows_U[chosen],
            utility_b=score_U[chosen],
            reason=(
                "In its group of similar images the proxy wavers most here, the image and an "
                "augmented view averaged (minus the gap: {utility}; 0 is a tie)."
            ),
            exactness=self.exactness,
            counters={"clusters": k, "iterations": clusters.iterations},
        )


def _nearest(points: Points, clusters: Clusters) -> Int64Array:
    """Return the cluster of every point, by its final centroids."""
    centroids_kh = clusters.centroids_kh
    norms_k = centroids_kh.square().sum(dim=1)
    label_n = np.empty(len(points), dtype=np.int64)
    for part, block in points.blocks():
        square_Tk = on_whole_block(
            lambda x_Th: torch.addmm(norms_k, x_Th, centroids_kh.T, alpha=-2.0),
            block.shifted(clusters.origin_h).x_Mh,
        )
        label_n[part] = square_Tk.argmin(dim=1).cpu().numpy()
    return label_n
