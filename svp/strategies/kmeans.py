"""KMeans: one image per cluster of the candidates, as a first round without labels.

Source: k-means with as many clusters as picks, and the point nearest each centroid, as compared
by Ash et al. 2020 and named after Zhdanov 2019, "Diverse mini-batch active learning" (whose
weighted variant this is not).
"""

import dataclasses
from typing import ClassVar

import numpy as np

from svp.seed import numpy_generator
from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection, Space
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.lloyd import lloyd, representatives
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.points import Norm, pool_points


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KMeans:
    """The candidate nearest each of `b` centroids; larger clusters first.

    Attributes:
        iterations: Most assignments Lloyd's algorithm makes.
        space: `input` clusters the embeddings, `hidden` the input of the proxy's last layer
            (the embeddings when there is no proxy).
        norm: `none`, `l2` for unit vectors, or `zscore`.
    """

    name: ClassVar[str] = "kmeans"
    family: ClassVar[str] = "cluster"
    summary: ClassVar[str] = "the most typical image of each group; needs no labels"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:local-optimum"
    source: ClassVar[str] = "Lloyd 1982; compared in Ash et al. 2020"
    scaling: ClassVar[str] = "iterations b N h"
    instead: ClassVar[str] = "coreset"

    iterations: int = 20
    space: Space = "hidden"
    norm: Norm = "none"

    def __post_init__(self) -> None:
        check_range("kmeans.iterations", self.iterations, 1)
        check_choice("kmeans.space", self.space, ("input", "hidden"))
        check_choice("kmeans.norm", self.norm, ("none", "l2", "zscore"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        flops = 2.0 * shape.budget * shape.candidates * shape.hidden
        return Cost(
            bytes=shape.tile_bytes
            + 48 * shape.candidates
            + 16 * shape.budget * shape.hidden
            + 64 * 2**20,
            flops=(self.iterations + 1) * flops,
            passes=self.iterations + 2.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose one candidate per cluster; see `Strategy.select`."""
        del oracle
        rows_U = view.candidates(seed)
        if b == len(rows_U):
            places_b = np.arange(b, dtype=np.int64)
            sizes_b = np.ones(b, dtype=np.int64)
            iterations = 0
        else:
            points = pool_points(view, rows_U, seed, budget, space=self.space, norm=self.norm)
            clusters = lloyd(points, b, numpy_generator(seed, "kmeans"), self.iterations)
            places_b = representatives(points, clusters)
            sizes_b = np.sort(clusters.sizes_k)[::-1]
            iterations = clusters.iterations
        return Selection(
            rows_b=rows_U[places_b],
            utility_b=sizes_b.astype(np.float32),
            reason="The most typical image of a group of {utility} similar ones.",
            exactness=self.exactness,
            counters={"iterations": iterations},
        )
