"""CoreSet: images farthest from everything that is labelled or already chosen.

Source: Sener and Savarese 2018, "Active learning for convolutional neural networks: a core-set
approach", algorithm 1 (k-center greedy, not their mixed-integer refinement).
"""

import dataclasses
from typing import ClassVar, Final, Literal

import numpy as np

from svp.seed import numpy_generator
from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection, Space
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.cover import FRONTIER, k_center, one_center
from svp.strategies.parameters import check_choice
from svp.strategies.points import Norm, pool_points

_SAMPLE: Final = 50_000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CoreSet:
    """Greedy k-center with the labelled images as initial centres.

    Published codes start differently without labelled images: from the 1-center (BASE), from any
    image (ActiveFT), or not at all (DISTIL fails). See `first`.

    Attributes:
        space: `hidden` measures in the input of the proxy's last layer (for a linear proxy, the
            standardised embeddings), and in the embeddings when there is no proxy; `input` always
            in the embeddings.
        norm: `none`, `l2` for unit vectors, or `zscore`.
        first: First pick without labelled images. `mean`: the candidate nearest the mean of all;
            `one_center`: the one whose farthest other candidate is nearest, as in BASE (of a
            random 50,000 where there are more); `random`: any, as in ActiveFT.
    """

    name: ClassVar[str] = "coreset"
    family: ClassVar[str] = "cover"
    summary: ClassVar[str] = "images farthest from everything labelled or already chosen"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Sener and Savarese 2018, algorithm 1"
    scaling: ClassVar[str] = "(L + b) N h"
    instead: ClassVar[str] = "partitioned_coreset"

    space: Space = "hidden"
    norm: Norm = "none"
    first: Literal["mean", "one_center", "random"] = "mean"

    def __post_init__(self) -> None:
        check_choice("coreset.space", self.space, ("input", "hidden"))
        check_choice("coreset.norm", self.norm, ("none", "l2", "zscore"))
        check_choice("coreset.first", self.first, ("mean", "one_center", "random"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        centres = shape.labelled + shape.budget
        # The frontier, the centres themselves in both precisions, and one block against them.
        rows = FRONTIER + 2 * centres
        return Cost(
            bytes=shape.tile_bytes + 64 * shape.candidates + 8 * rows * shape.hidden + 64 * 2**20,
            flops=2.0 * centres * shape.candidates * shape.hidden,
            passes=4.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates by greedy k-center; see `Strategy.select`."""
        del oracle
        rows_U = view.candidates(seed)
        points = pool_points(view, rows_U, seed, budget, space=self.space, norm=self.norm)
        centres = pool_points(
            view, view.centres(seed), seed, budget, space=self.space, norm=self.norm
        )
        first = None
        if not len(centres) and self.first == "random":
            first = int(numpy_generator(seed, "coreset").integers(len(rows_U)))
        elif not len(centres) and self.first == "one_center":
            # Candidates come in the order of a hash, so the first ones are a random sample.
            sample_U = rows_U[:_SAMPLE]
            first = one_center(
                points
                if len(sample_U) == len(rows_U)
                else pool_points(view, sample_U, seed, budget, space=self.space, norm=self.norm)
            )
        cover = k_center(points, centres, b, first=first)
        return Selection(
            rows_b=rows_U[cover.places_b],
            utility_b=cover.radius_b.astype(np.float32),
            reason=(
                "Unlike anything labelled or chosen before it: the most similar one is at "
                "distance {utility}."
            ),
            exactness=self.exactness,
            counters=cover.counters,
        )
