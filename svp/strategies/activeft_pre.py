"""ActiveFT(pre): images near centroids that follow the pool and repel each other, in one shot.

Source: Xie et al. 2023, "Active finetuning"; as the single-shot baseline `pre` of ASVP (Wen et
al. 2023). The loss keeps the term of a centroid with itself, as the published code does.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from svp.errors import InputError
from svp.seed import numpy_generator
from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.centroids import NEAREST, Schedule, learn_centroids, match
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_range
from svp.strategies.points import pool_points


def activeft_cost(shape: PoolShape, centroids: int, iterations: int, minibatch: int) -> Cost:
    """Return what learning and matching this many centroids costs."""
    batch = min(minibatch, shape.candidates)
    drawn = 4 * batch * shape.hidden if minibatch < shape.candidates else 0
    return Cost(
        bytes=shape.tile_bytes
        + 64 * shape.candidates
        + drawn
        + centroids * (64 * shape.hidden + 64 * NEAREST + 16 * 1024)
        + 8 * 1024 * centroids
        + 64 * 2**20,
        flops=2.0
        * centroids
        * shape.hidden
        * (iterations * (batch + 2.0 * centroids) + shape.candidates),
        passes=iterations * batch / shape.candidates + 2.0,
    )


def check_schedule(name: str, iterations: int, rate: float, temperature: float, size: int) -> None:
    """Refuse a schedule that cannot run."""
    check_range(f"{name}.iterations", iterations, 0)
    check_range(f"{name}.minibatch", size, 1)
    for what, value in (("rate", rate), ("temperature", temperature)):
        if not 0.0 < value < np.inf:
            raise InputError(
                f"{name}.{what} must be above 0. Got {value}. Leave it at its default."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ActiveFTPre:
    """Centroids learned on the embeddings as unit vectors; labels are ignored.

    Attributes:
        iterations: Steps; the authors used 300 for CIFAR and 100 for ImageNet. 0 keeps the random
            images that centroids start from.
        rate: Learning rate of Adam.
        temperature: Of the similarities.
        minibatch: Candidates per step (100000 in the authors' code, 20000 in the ASVP code).
        include_self: Repel a centroid from itself too, as the published code does and the paper
            does not.
    """

    name: ClassVar[str] = "activeft_pre"
    family: ClassVar[str] = "cover"
    summary: ClassVar[str] = "images spread like the pool, from learned centroids; needs no labels"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:gradient-descent"
    source: ClassVar[str] = "Xie et al. 2023, algorithm 1"
    scaling: ClassVar[str] = "iterations b min(N, minibatch) h"
    instead: ClassVar[str] = "kmeans"

    iterations: int = 100
    rate: float = 1e-3
    temperature: float = 0.07
    minibatch: int = 100_000
    include_self: bool = True

    def __post_init__(self) -> None:
        check_schedule("activeft_pre", self.iterations, self.rate, self.temperature, self.minibatch)

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        wide = dataclasses.replace(shape, hidden=shape.dim)
        return activeft_cost(wide, shape.budget, self.iterations, self.minibatch)

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the candidate nearest each learned centroid; see `Strategy.select`."""
        del oracle
        rows_U = view.candidates(seed)
        points = pool_points(view, rows_U, seed, budget, space="input", norm="l2")
        # Candidates come in the order of a hash: the first ones are drawn at random.
        start_bh = points.take(np.arange(b, dtype=np.int64)).x_Mh
        schedule = Schedule(
            iterations=self.iterations,
            rate=self.rate,
            temperature=self.temperature,
            minibatch=self.minibatch,
            include_self=self.include_self,
        )
        learned = learn_centroids(
            points, start_bh, 0, schedule, numpy_generator(seed, "activeft_pre")
        )
        places_b, cosine_b = match(points, learned.theta_kh)
        return Selection(
            rows_b=rows_U[places_b],
            utility_b=cosine_b.numpy().astype(np.float32),
            reason="Nearest to one of the points that spread like the pool (cosine {utility}).",
            exactness=self.exactness,
            counters={"iterations": self.iterations},
        )
