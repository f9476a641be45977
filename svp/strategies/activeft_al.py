"""ActiveFT(al): ActiveFT in every round, with labelled images as centroids that do not move.

Source: the per-round strategy `al` of ASVP (Wen et al. 2023), after Xie et al. 2023, "Active
finetuning". The published code finds labelled centroids again by their nearest neighbour, which
copies of an image break, and fails on pools smaller than its minibatch; here labelled centroids
are pinned, and only the others choose.
"""

import dataclasses
from typing import ClassVar

import numpy as np
import torch

from svp.seed import numpy_generator
from svp.strategies.activeft_pre import activeft_cost, check_schedule
from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection, Space
from svp.strategies.centroids import Schedule, learn_centroids, match
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_choice
from svp.strategies.points import pool_points


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ActiveFTAl:
    """Centroids learned beside the labelled images, on features of the current proxy.

    Attributes:
        iterations: Steps, as for `activeft_pre`.
        rate: Learning rate of Adam.
        temperature: Of the similarities.
        minibatch: Candidates and labelled images per step.
        include_self: As for `activeft_pre`.
        space: `hidden` uses the input of the proxy's last layer, as published (the embeddings
            when there is no proxy); `input` the embeddings.
    """

    name: ClassVar[str] = "activeft_al"
    family: ClassVar[str] = "cover"
    summary: ClassVar[str] = "images spread like the pool, away from labelled ones"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:gradient-descent"
    source: ClassVar[str] = "Wen et al. 2023; Xie et al. 2023, algorithm 1"
    scaling: ClassVar[str] = "iterations (L + b) min(N, minibatch) h"
    instead: ClassVar[str] = "activeft_pre"

    iterations: int = 100
    rate: float = 1e-3
    temperature: float = 0.07
    minibatch: int = 100_000
    include_self: bool = True
    space: Space = "hidden"

    def __post_init__(self) -> None:
        check_schedule("activeft_al", self.iterations, self.rate, self.temperature, self.minibatch)
        check_choice("activeft_al.space", self.space, ("input", "hidden"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        both = dataclasses.replace(shape, candidates=shape.candidates + shape.labelled)
        return activeft_cost(both, shape.labelled + shape.budget, self.iterations, self.minibatch)

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the candidate nearest each centroid that moved; see `Strategy.select`."""
        del oracle
        rows_U, rows_L = view.candidates(seed), view.centres(seed)
        both = np.concatenate([rows_U, rows_L])
        points = pool_points(view, both, seed, budget, space=self.space, norm="l2")
        fixed = np.arange(len(rows_U), len(both), dtype=np.int64)
        start_kh = points.take(np.concatenate([fixed, np.arange(b, dtype=np.int64)])).x_Mh
        schedule = Schedule(
            iterations=self.iterations,
            rate=self.rate,
            temperature=self.temperature,
            minibatch=self.minibatch,
            include_self=self.include_self,
        )
        learned = learn_centroids(
            points, start_kh, len(rows_L), schedule, numpy_generator(seed, "activeft_al")
        )
        candidates = pool_points(view, rows_U, seed, budget, space=self.space, norm="l2")
        places_b, cosine_b = match(candidates, learned.theta_kh[len(rows_L) :])
        return Selection(
            rows_b=rows_U[places_b],
            utility_b=cosine_b.to(torch.float32).numpy(),
            reason=(
                "Nearest to one of the points that spread like the pool and keep away from "
                "labelled images (cosine {utility})."
            ),
            exactness=self.exactness,
            counters={"iterations": self.iterations},
        )
