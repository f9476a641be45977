"""PartitionedCoreSet: greedy k-center inside random parts of the pool.

Source: Emam et al. 2021, "Active learning at the ImageNet scale" (BASE), appendix A.3: ten random
parts of candidates and labelled images, a tenth of the budget in each. Its code also drew only
80,000 candidates and 50,000 labelled images first, which the paper does not say; that is
`candidate_cap` and `labelled_cap` here. The ASVP code used 320,000 candidates in 20 parts. The
DISTIL code split in order of position, which gives each part other classes where a data set is
sorted by class; parts here are random.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection, Space
from svp.strategies.coreset import CoreSet
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.cover import k_center
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.partition import interleaved, partitioned_cost, parts_of
from svp.strategies.points import Norm, pool_points


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PartitionedCoreSet:
    """CoreSet run on random parts, each blind to the others.

    Attributes:
        parts: How many; 1 is CoreSet itself.
        candidate_cap: Candidates drawn at random first; 0: all (80000 in the BASE code, 320000 in
            the ASVP code).
        labelled_cap: Labelled images drawn at random first; 0: all (50000 in the BASE code).
        space: `hidden` or `input`, as for `coreset`.
        norm: `none`, `l2` or `zscore`, as for `coreset`.
    """

    name: ClassVar[str] = "partitioned_coreset"
    family: ClassVar[str] = "cover"
    summary: ClassVar[str] = "coreset inside random parts of the pool: faster, less memory"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:partitioned"
    source: ClassVar[str] = "Emam et al. 2021, appendix A.3"
    scaling: ClassVar[str] = "(L + b) N h / parts"
    instead: ClassVar[str] = "more parts"

    parts: int = 10
    candidate_cap: int = 0
    labelled_cap: int = 0
    space: Space = "hidden"
    norm: Norm = "none"

    def __post_init__(self) -> None:
        check_range("partitioned_coreset.parts", self.parts, 1)
        check_range("partitioned_coreset.candidate_cap", self.candidate_cap, 0)
        check_range("partitioned_coreset.labelled_cap", self.labelled_cap, 0)
        check_choice("partitioned_coreset.space", self.space, ("input", "hidden"))
        check_choice("partitioned_coreset.norm", self.norm, ("none", "l2", "zscore"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        return partitioned_cost(
            CoreSet(),
            shape,
            parts=self.parts,
            candidate_cap=self.candidate_cap,
            labelled_cap=self.labelled_cap,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose an equal share in each part; see `Strategy.select`."""
        del oracle
        rows, radii = [], []
        for part in parts_of(
            view,
            b,
            seed,
            parts=self.parts,
            candidate_cap=self.candidate_cap,
            labelled_cap=self.labelled_cap,
        ):
            points, centres = (
                pool_points(view, some, seed, budget, space=self.space, norm=self.norm)
                for some in (part.rows, part.centres)
            )
            cover = k_center(points, centres, part.quota)
            rows.append(part.rows[cover.places_b])
            radii.append(cover.radius_b)
        order = interleaved(rows)
        return Selection(
            rows_b=np.concatenate(rows)[order],
            utility_b=np.concatenate(radii)[order].astype(np.float32),
            reason=(
                "Unlike anything labelled or chosen before it in its part of the pool: the most "
                "similar one is at distance {utility}."
            ),
            exactness=self.exactness,
            counters={"parts": len(rows)},
        )
