"""Random sampling: the baseline every other strategy is measured against.

A candidate's place is the seeded hash of its key, so the draw is uniform without replacement,
does not depend on the order of the pool, and a larger budget under the same seed extends a
smaller one.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.keys import hash_keys


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Random:
    """Uniform without replacement."""

    name: ClassVar[str] = "random"
    family: ClassVar[str] = "baseline"
    summary: ClassVar[str] = "images drawn at random, each with the same chance"
    needs: ClassVar[frozenset[Need]] = frozenset()
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact-law"
    source: ClassVar[str] = "simple random sampling"
    scaling: ClassVar[str] = "N"
    instead: ClassVar[str] = ""

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        return Cost(bytes=32 * shape.candidates, flops=0.0, passes=0.0)

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        del budget, oracle
        rows_b = view.candidates(seed)[:b]
        ticket_b = hash_keys(view.keys_N[rows_b], seed).astype(np.float64) / 2.0**64
        return Selection(
            rows_b=rows_b,
            utility_b=(1.0 - ticket_b).astype(np.float32),
            reason=(
                "Drawn at random, whatever the model thinks (ticket {utility} of 1, the highest "
                "come first)."
            ),
            exactness=self.exactness,
        )
