"""PartitionedBADGE: BADGE inside random parts of the pool.

Source: Emam et al. 2021, "Active learning at the ImageNet scale" (BASE), appendix A.3. Its code
pooled gradients to 512 entries, put the labelled ones in, and first drew 80,000 candidates and
50,000 labelled images, which the paper does not say; the ASVP code (Wen et al. 2023) drew 320,000
candidates in 20 parts, and started each from a uniform pick. All are options here; the defaults
are those of `badge`.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from svp.strategies.badge import Badge, First, draw_gradients
from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.partition import interleaved, partitioned_cost, parts_of


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PartitionedBadge:
    """BADGE run on random parts, each blind to the others.

    Attributes:
        parts: How many; 1 is BADGE itself.
        candidate_cap: Candidates drawn at random first; 0: all (80000 in the BASE code, 320000 in
            the ASVP code).
        labelled_cap: Labelled images drawn at random first; 0: all (50000 in the BASE code).
        include_labelled: As for `badge`; true in the BASE code.
        first: As for `badge`; `uniform` in the ASVP code.
        pooled: As for `badge`; true in both codes.
    """

    name: ClassVar[str] = "partitioned_badge"
    family: ClassVar[str] = "gradient"
    summary: ClassVar[str] = "badge inside random parts of the pool: faster, less memory"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "linear_head"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:partitioned"
    source: ClassVar[str] = "Emam et al. 2021, appendix A.3"
    scaling: ClassVar[str] = "b N (h + C) / parts"
    instead: ClassVar[str] = "more parts"

    parts: int = 10
    candidate_cap: int = 0
    labelled_cap: int = 0
    include_labelled: bool = False
    first: First = "largest"
    pooled: bool = False

    def __post_init__(self) -> None:
        check_range("partitioned_badge.parts", self.parts, 1)
        check_range("partitioned_badge.candidate_cap", self.candidate_cap, 0)
        check_range("partitioned_badge.labelled_cap", self.labelled_cap, 0)
        check_choice("partitioned_badge.first", self.first, ("largest", "uniform"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        return partitioned_cost(
            Badge(include_labelled=self.include_labelled),
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
        rows, weights = [], []
        for index, part in enumerate(
            parts_of(
                view,
                b,
                seed,
                parts=self.parts,
                candidate_cap=self.candidate_cap,
                labelled_cap=self.labelled_cap,
            )
        ):
            seeds = draw_gradients(
                view,
                part.rows,
                part.centres,
                part.quota,
                seed,
                budget,
                first=self.first,
                include_labelled=self.include_labelled,
                pooled=self.pooled,
                # The first part draws as BADGE does, so one part is BADGE.
                stream="badge" if index == 0 else f"badge-{index}",
            )
            rows.append(part.rows[seeds.places_b])
            weights.append(seeds.weight_b)
        order = interleaved(rows)
        return Selection(
            rows_b=np.concatenate(rows)[order],
            utility_b=np.sqrt(np.concatenate(weights)[order]).astype(np.float32),
            reason=(
                "The proxy is unsure here, and this label would change it in a direction that "
                "earlier picks in its part of the pool do not (gradient distance {utility})."
            ),
            exactness=self.exactness,
            counters={"parts": len(rows)},
        )
