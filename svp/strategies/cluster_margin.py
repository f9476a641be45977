"""ClusterMargin: uncertain images, taken in turn from clusters of the pool.

Source: Citovsky et al. 2021, "Batch active learning at scale". The pool is clustered once by
average linkage; in each round the k_m candidates of smallest margin are grouped by cluster, and
clusters are visited in turn from the smallest.

Published codes: one writes the embedding of one image of every loading batch to the whole batch,
so that its clusters are loading batches; another leaves out the k_m smallest margins and uses
Ward's linkage. Neither is reproduced.
"""

import base64
import dataclasses
import hashlib
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import numpy as np
import torch

from svp.errors import InputError
from svp.seed import numpy_generator
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection, Space
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.keys import hash_keys
from svp.strategies.linkage import average_linkage
from svp.strategies.lloyd import assign, lloyd
from svp.strategies.margin import margin
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.points import Norm, pool_points
from svp.strategies.rank import rank_by_logits

_CLUSTERING_SEED: Final = 0
_MICRO_ITERATIONS: Final = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClusterMargin:
    """The smallest margins, spread over clusters.

    Clusters are found in the first round and kept: they depend on the embeddings only. Pools of
    more than `micro_clusters` images are first reduced to that many by k-means, and those are
    clustered with their sizes as weights (the named approximation `hac-microclusters`).

    Attributes:
        candidates_ratio: k_m = this times the budget (1.25 to 10 in the paper's experiments).
        clusters: How many clusters the tree is cut into.
        micro_clusters: See above.
        within: Order inside a cluster: `margin`, smallest first, or `random`.
        space: `input` clusters the embeddings; `hidden` the input of the proxy's last layer,
            which changes, so the clusters are found again in every round.
        norm: `none`, `l2` or `zscore`, as for `coreset`.
    """

    name: ClassVar[str] = "cluster_margin"
    family: ClassVar[str] = "hybrid"
    summary: ClassVar[str] = "images on which the proxy wavers, in turn from different groups"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Citovsky et al. 2021, algorithms 1 and 2"
    scaling: ClassVar[str] = "N h C; once: micro_clusters (N + micro_clusters) h"
    instead: ClassVar[str] = "cluster_margin with fewer micro_clusters"

    candidates_ratio: float = 10.0
    clusters: int = 20
    micro_clusters: int = 4096
    within: Literal["margin", "random"] = "margin"
    space: Space = "input"
    norm: Norm = "none"

    def __post_init__(self) -> None:
        if not 1.0 <= self.candidates_ratio < np.inf:
            raise InputError(
                "cluster_margin.candidates_ratio must be at least 1. "
                f"Got {self.candidates_ratio}. Use 10 as published."
            )
        check_range("cluster_margin.clusters", self.clusters, 1)
        check_range("cluster_margin.micro_clusters", self.micro_clusters, 1)
        check_choice("cluster_margin.within", self.within, ("margin", "random"))
        check_choice("cluster_margin.space", self.space, ("input", "hidden"))
        check_choice("cluster_margin.norm", self.norm, ("none", "l2", "zscore"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        rows = shape.candidates + shape.labelled
        micro = min(self.micro_clusters, rows)
        reduce = 2.0 * (_MICRO_ITERATIONS + 2) * micro * rows if micro < rows else 0.0
        return Cost(
            bytes=shape.tile_bytes
            + 160 * rows
            + 16 * micro * micro
            + 48 * micro * shape.hidden
            + 64 * 2**20,
            flops=shape.logits_flops + (reduce + 2.0 * micro * micro) * shape.hidden,
            passes=1.0 + (_MICRO_ITERATIONS + 3.0 if micro < rows else 1.0),
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose small margins in turn from clusters; see `Strategy.select`."""
        del oracle
        # In the order of one fixed hash, so that every round and every seed finds the same.
        all_rows = np.sort(np.concatenate([view.unlabelled_U, view.labelled_L]))
        by_key = np.argsort(view.keys_N[all_rows], kind="stable")
        all_rows = all_rows[by_key]
        exact = len(all_rows) <= self.micro_clusters
        digest = self._digest(view, all_rows)
        labels = _kept(view.state, digest, len(all_rows)) if self.space == "input" else None
        found = labels is None
        if labels is None:
            labels = self._clusters(view, all_rows, budget)
        cluster_N = np.full(len(view.keys_N), -1, dtype=np.int64)
        cluster_N[all_rows] = labels
        kept = min(max(b, int(self.candidates_ratio * b)), len(view.unlabelled_U))
        rows_M, utility_M = rank_by_logits(
            view, kept, seed, budget, lambda z_TC: margin(z_TC, "prob")
        )
        if self.within == "random":
            tickets_M = hash_keys(view.keys_N[rows_M], seed)
            order = np.argsort(tickets_M, kind="stable")
            rows_M, utility_M = rows_M[order], utility_M[order]
        places_b = round_robin(cluster_N[rows_M], b)
        return Selection(
            rows_b=rows_M[places_b],
            utility_b=utility_M[places_b],
            reason=(
                "The proxy wavers between two classes, and its group is not yet in the batch as "
                "often (minus the gap of their probabilities: {utility}; 0 is a tie)."
            ),
            exactness=self.exactness if exact else "approx:hac-microclusters",
            counters={"clusterings": int(found), "kept": kept},
            state=_state(digest, labels) if self.space == "input" else {},
        )

    def _digest(self, view: PoolView, rows: Int64Array) -> str:
        """Return what the clusters depend on: the items and the parameters."""
        digest = hashlib.blake2b(view.keys_N[rows].astype("<u8").tobytes(), digest_size=16)
        digest.update(f"{self.clusters}/{self.micro_clusters}/{self.norm}".encode())
        return digest.hexdigest()

    def _clusters(self, view: PoolView, rows: Int64Array, budget: Budget) -> Int64Array:
        points = pool_points(view, rows, _CLUSTERING_SEED, budget, space=self.space, norm=self.norm)
        clusters = min(self.clusters, len(rows))
        if len(rows) <= self.micro_clusters:
            x_mh = torch.cat([block.x_Mh for _, block in points.blocks()])
            return average_linkage(_distances(x_mh), np.ones(len(rows), dtype=np.int64), clusters)
        generator = numpy_generator(_CLUSTERING_SEED, "cluster_margin")
        micro = lloyd(points, self.micro_clusters, generator, _MICRO_ITERATIONS)
        labels = assign(points, micro)
        sizes = np.bincount(labels, minlength=self.micro_clusters)
        filled = np.flatnonzero(sizes)
        centroids = micro.centroids_kh[torch.from_numpy(filled).to(micro.centroids_kh.device)]
        joined = average_linkage(_distances(centroids), sizes[filled], min(clusters, len(filled)))
        cluster_of = np.zeros(self.micro_clusters, dtype=np.int64)
        cluster_of[filled] = joined
        return cluster_of[labels]


def round_robin(clusters_M: Int64Array, b: int) -> Int64Array:
    """Return the positions of `b` items taken in turn from clusters, smallest cluster first.

    Inside a cluster the order given is kept; a cluster that is used up is skipped.
    """
    names, inverse, sizes = np.unique(clusters_M, return_inverse=True, return_counts=True)
    first = np.full(len(names), len(clusters_M))
    np.minimum.at(first, inverse, np.arange(len(clusters_M)))
    by_cluster = np.argsort(inverse, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    turn = np.empty(len(clusters_M), dtype=np.int64)
    turn[by_cluster] = np.arange(len(clusters_M)) - np.repeat(starts, sizes)
    # Of clusters of one size, the one whose best item comes first.
    return np.lexsort((first[inverse], sizes[inverse], turn))[:b].astype(np.int64)


def _distances(x_mh: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return all distances, float32 (m, m), computed in float64."""
    x = (x_mh.double() - x_mh.double().mean(dim=0)).contiguous()
    norms = x.square().sum(dim=1)
    distance = np.empty((len(x), len(x)), dtype=np.float32)
    for start in range(0, len(x), 1024):
        some = slice(start, start + 1024)
        scale = norms[some, None] + norms
        square = scale - 2.0 * x[some] @ x.T
        square = torch.where(square > 1e-11 * scale, square, 0.0)
        distance[some] = square.sqrt_().float().cpu().numpy()
    # The chains need one value per pair.
    return np.minimum(distance, distance.T)


def _state(digest: str, labels: Int64Array) -> dict[str, Any]:
    """Return clusters in the order of the items' keys, packed."""
    width = np.min_scalar_type(int(labels.max()))
    packed = zlib.compress(labels.astype(width.newbyteorder("<")).tobytes(), 6)
    return {
        "items": digest,
        "type": width.newbyteorder("<").str,
        "clusters": base64.b64encode(packed).decode(),
    }


def _kept(state: Mapping[str, Any], digest: str, n: int) -> Int64Array | None:
    """Return the clusters of an earlier round, or None where the items are others."""
    if state.get("items") != digest:
        return None
    if state["type"] not in ("|u1", "<u2", "<u4"):
        return None
    width = np.dtype(state["type"])
    raw = zlib.decompressobj().decompress(base64.b64decode(state["clusters"]), n * width.itemsize)
    return (
        np.frombuffer(raw, dtype=width).astype(np.int64) if len(raw) == n * width.itemsize else None
    )
