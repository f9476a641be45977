"""DBAL: one uncertain image per cluster of the uncertain ones.

Source: Zhdanov 2019, "Diverse mini-batch active learning": keep the beta * b most informative
candidates, cluster them by k-means with their informativeness as weight, and take the image
nearest each of b centroids. Other code called "KMeans" after this paper clusters the whole pool
without weights; that is `kmeans` here.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from svp.seed import numpy_generator
from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection, Space
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.lloyd import lloyd, representatives
from svp.strategies.margin import margin
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.points import Norm, pool_points
from svp.strategies.rank import rank_by_logits

_LEAST = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Dbal:
    """Weighted k-means on the most uncertain candidates; larger clusters first.

    Informativeness is 1 minus the gap between the two most likely classes.

    Attributes:
        beta: Candidates kept per pick; 1 is `margin`. The paper used 10 and 50.
        iterations: Most assignments Lloyd's algorithm makes.
        weighted: Weigh candidates by their informativeness; false: all the same.
        space: `hidden` or `input`, as for `kmeans`.
        norm: `none`, `l2` or `zscore`, as for `kmeans`.
    """

    name: ClassVar[str] = "dbal"
    family: ClassVar[str] = "hybrid"
    summary: ClassVar[str] = "one image of each group of uncertain images"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:local-optimum"
    source: ClassVar[str] = "Zhdanov 2019"
    scaling: ClassVar[str] = "N h C + iterations beta b^2 h"
    instead: ClassVar[str] = "margin"

    beta: int = 10
    iterations: int = 20
    weighted: bool = True
    space: Space = "hidden"
    norm: Norm = "none"

    def __post_init__(self) -> None:
        check_range("dbal.beta", self.beta, 1)
        check_range("dbal.iterations", self.iterations, 1)
        check_choice("dbal.space", self.space, ("input", "hidden"))
        check_choice("dbal.norm", self.norm, ("none", "l2", "zscore"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        kept = min(self.beta * shape.budget, shape.candidates)
        flops = 2.0 * shape.budget * kept * shape.hidden
        return Cost(
            bytes=shape.tile_bytes
            + 32 * shape.candidates
            + 64 * kept
            + 24 * shape.budget * shape.hidden
            + 64 * 2**20,
            flops=shape.logits_flops + (self.iterations + 1) * flops,
            passes=1.0 + (self.iterations + 2.0) * kept / shape.candidates,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose one candidate per cluster of uncertain ones; see `Strategy.select`."""
        del oracle
        kept = min(self.beta * b, len(view.unlabelled_U))
        rows_M, utility_M = rank_by_logits(
            view, kept, seed, budget, lambda z_TC: margin(z_TC, "prob")
        )
        if kept == b:
            places_b = np.arange(b, dtype=np.int64)
            sizes_b = np.ones(b, dtype=np.int64)
            iterations = 0
        else:
            points = pool_points(view, rows_M, seed, budget, space=self.space, norm=self.norm)
            share_M = None
            if self.weighted:
                share_M = np.maximum(1.0 + utility_M.astype(np.float64), _LEAST)
                share_M /= share_M.max()
            clusters = lloyd(
                points, b, numpy_generator(seed, "dbal"), self.iterations, share_n=share_M
            )
            places_b = representatives(points, clusters)
            sizes_b = np.sort(clusters.sizes_k)[::-1]
            iterations = clusters.iterations
        return Selection(
            rows_b=rows_M[places_b],
            utility_b=sizes_b.astype(np.float32),
            reason="The most typical image of a group of {utility} on which the proxy wavers.",
            exactness=self.exactness,
            counters={"iterations": iterations, "kept": kept},
        )
