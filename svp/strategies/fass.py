"""FASS: of the most uncertain candidates, those that together represent them best.

First the candidates are cut to `top_n` times the budget by entropy; then greedy facility location
chooses among them the items that the rest of them resemble most.

Source: Wei, Iyer and Bilmes 2015, "Submodularity in data subset selection and active learning",
section 5 (filtered active submodular selection); settings of Beck et al. 2021 (top_n 5).
Shapes: n = candidates kept, h = width, b = picks.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection, Space
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.dense_facility import dense_facility_location, table_bytes
from svp.strategies.entropy import entropy
from svp.strategies.facility import Similarity, facility_bytes, facility_location
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.points import pool_points
from svp.strategies.rank import rank_by_logits


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fass:
    """Greedy facility location over the most uncertain candidates.

    Labelled images are ignored, as published. The published code stores all n x n similarities;
    here they are stored only if the budget's cache holds them, and computed anew otherwise.

    Attributes:
        top_n: Candidates kept per pick; 1 makes it `entropy`.
        similarity: `clipped` is max(0, cosine); `shifted` is (1 + cosine) / 2, which chooses as
            raw cosines do. Negative similarities would void the greedy guarantee.
        space: `hidden` compares what the last layer reads, `input` the embeddings.
    """

    name: ClassVar[str] = "fass"
    family: ClassVar[str] = "hybrid"
    summary: ClassVar[str] = "of the most uncertain images, those that stand for the others"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Wei et al. 2015, section 5"
    scaling: ClassVar[str] = "N h C + (top_n b)^2 h"
    instead: ClassVar[str] = "fass with a smaller top_n, or entropy"

    top_n: int = 5
    similarity: Similarity = "clipped"
    space: Space = "hidden"

    def __post_init__(self) -> None:
        check_range("fass.top_n", self.top_n, 1)
        check_choice("fass.similarity", self.similarity, ("clipped", "shifted"))
        check_choice("fass.space", self.space, ("input", "hidden"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        kept = min(self.top_n * shape.budget, shape.candidates)
        return Cost(
            bytes=shape.tile_bytes
            + 32 * shape.candidates
            + 20 * kept * shape.hidden
            + facility_bytes(kept, kept, shape.hidden),
            flops=shape.logits_flops + 4.0 * kept**2 * shape.hidden,
            passes=2.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` of the most uncertain candidates; see `Strategy.select`."""
        del oracle
        kept = min(self.top_n * b, len(view.unlabelled_U))
        rows_n, _ = rank_by_logits(view, kept, seed, budget, entropy)
        points = pool_points(view, rows_n, seed, budget, space=self.space, norm="l2")
        if table_bytes(kept) <= budget.cache_bytes:
            chosen = dense_facility_location(points, b, similarity=self.similarity)
        else:
            chosen = facility_location(points, points, b, similarity=self.similarity)
        return Selection(
            rows_b=rows_n[chosen.places_b],
            utility_b=chosen.gains_b.astype(np.float32),
            reason=(
                "Uncertain, and it stands for other uncertain images (it adds {utility} to their "
                "similarity with the batch)."
            ),
            exactness=self.exactness,
            counters={"kept": kept, **chosen.counters},
        )
