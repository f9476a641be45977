"""ProbCover: images whose neighbourhoods together cover most of the pool.

Source: Yehuda et al. 2022, "Active learning through a covering lens". The authors' code gives no
neighbours to the last n mod 500 images, and once everything is covered returns its first image
again and again; here no image is picked twice, and what is left is filled by `fallback`.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from svp.errors import InputError
from svp.seed import numpy_generator
from svp.strategies.balls import ball_cover, purity_radius
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection, Space
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.cover import k_center
from svp.strategies.lloyd import assign, lloyd
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.points import Norm, Points, join, pool_points

_BALLS = 4096
_ITERATIONS = 10


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProbCover:
    """Greedy cover by balls of one radius; labelled images cover theirs already.

    Attributes:
        delta: Radius; None: the largest at which a share `purity` of the balls hold one k-means
            cluster only, found in the first round and kept. The published code used 0.6 to 0.75
            on unit vectors; other encoders need other radii.
        purity: See `delta`.
        clusters: Clusters that stand for classes in `delta`; 0: the number of classes, or 10
            before there are any.
        fallback: What fills the batch once everything is covered: `random`, or `coreset`.
        sub_pool: Candidates drawn at random, to cover and to choose from; 0: all. Fewer make it
            the named approximation `sub-pool`.
        space: `input` or `hidden`, as for `kmeans`.
        norm: `l2` for unit vectors as published, `none` or `zscore`.
    """

    name: ClassVar[str] = "probcover"
    family: ClassVar[str] = "cover"
    summary: ClassVar[str] = "images with the most others close by; for small budgets"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Yehuda et al. 2022, algorithm 1"
    scaling: ClassVar[str] = "N^2 h"
    instead: ClassVar[str] = "probcover with sub_pool = 200000"

    delta: float | None = None
    purity: float = 0.95
    clusters: int = 0
    fallback: Literal["random", "coreset"] = "random"
    sub_pool: int = 0
    space: Space = "input"
    norm: Norm = "l2"

    def __post_init__(self) -> None:
        if self.delta is not None and not 0.0 < self.delta < np.inf:
            raise InputError(
                f"probcover.delta must be above 0. Got {self.delta}. Leave it out to choose one."
            )
        if not 0.0 <= self.purity <= 1.0:
            raise InputError(
                f"probcover.purity must be in [0, 1]. Got {self.purity}. Use 0.95 as published."
            )
        check_range("probcover.clusters", self.clusters, 0)
        check_choice("probcover.fallback", self.fallback, ("random", "coreset"))
        check_range("probcover.sub_pool", self.sub_pool, 0)
        check_choice("probcover.space", self.space, ("input", "hidden"))
        check_choice("probcover.norm", self.norm, ("none", "l2", "zscore"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        rows = max(min(self.sub_pool or shape.candidates, shape.candidates), shape.budget)
        centres = shape.labelled + shape.budget
        return Cost(
            bytes=shape.tile_bytes
            + 64 * shape.candidates
            + 8 * (_BALLS + 2 * centres) * shape.hidden
            + (4 * rows * shape.hidden if self.fallback == "coreset" else 0)
            + 160 * 2**20,
            flops=2.0 * rows * (1.5 * rows + shape.labelled + _BALLS) * shape.hidden,
            passes=rows / 1024 + shape.budget * 2.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates by greedy ball cover; see `Strategy.select`."""
        del oracle
        all_U = view.candidates(seed)
        # Candidates come in the order of a hash: the first ones are a random sample.
        rows_U = all_U[: max(self.sub_pool, b)] if self.sub_pool else all_U
        points = self._points(view, rows_U, seed, budget)
        centres = self._points(view, view.centres(seed), seed, budget)
        delta = self._radius(view, points, seed)
        cover = ball_cover(points, centres, b, delta)
        places_b = self._filled(points, centres, cover.places_b, b)
        gains_b = np.zeros(b, dtype=np.float32)
        gains_b[: len(cover.gains_b)] = cover.gains_b
        return Selection(
            rows_b=rows_U[places_b],
            utility_b=gains_b,
            reason=(
                f"Within {delta:.3g} of it lie {{utility}} images that nothing labelled or chosen "
                "before is close to."
            ),
            exactness="approx:sub-pool" if len(rows_U) < len(all_U) else self.exactness,
            counters={
                "covered": cover.covered,
                "fallback": b - len(cover.places_b),
                "exact_pairs": cover.exact_pairs,
            },
            state={"delta": delta},
        )

    def _points(self, view: PoolView, rows: Int64Array, seed: int, budget: Budget) -> Points:
        return pool_points(view, rows, seed, budget, space=self.space, norm=self.norm)

    def _radius(self, view: PoolView, points: Points, seed: int) -> float:
        if self.delta is not None:
            return self.delta
        if "delta" in view.state:
            return float(view.state["delta"])
        clusters = self.clusters or (view.n_classes if view.n_classes > 1 else 10)
        clusters = min(clusters, len(points))
        found = lloyd(points, clusters, numpy_generator(seed, "probcover"), _ITERATIONS)
        return purity_radius(points, assign(points, found), self.purity, _BALLS)

    def _filled(self, points: Points, centres: Points, places: Int64Array, b: int) -> Int64Array:
        """Return the picks with the batch filled by `fallback`."""
        missing = b - len(places)
        rest = np.setdiff1d(np.arange(len(points), dtype=np.int64), places)
        if not missing or self.fallback == "random":
            # In the order of a hash, so the first ones are drawn at random.
            return np.concatenate([places, rest[:missing]])
        chosen = [block for _, block in centres.blocks()] if len(centres) else []
        if len(places):
            chosen.append(points.take(places))
        left = Points(points.take(rest))
        filled = k_center(left, Points(join(chosen)) if chosen else centres, missing)
        return np.concatenate([places, rest[filled.places_b]])
