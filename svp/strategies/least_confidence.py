"""Least confidence: items whose most likely class is least likely.

Source: Lewis and Gale 1994, "A sequential algorithm for training text classifiers".
Shapes: T = rows, C = classes.
"""

import dataclasses
from typing import ClassVar, Literal

import torch

from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_choice
from svp.strategies.rank import rank_by_logits
from svp.strategies.softmax import others


def least_confidence(z_TC: torch.Tensor, space: Literal["prob", "logit"]) -> torch.Tensor:
    """Return 1 - max p in [0, 1 - 1/C], or -max z for `logit`; (T,)."""
    if space == "logit":
        return -z_TC.amax(dim=1)
    mass_T = others(z_TC).mass_T
    return mass_T / (1.0 + mass_T)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LeastConfidence:
    """Lowest probability of the most likely class first.

    Attributes:
        space: `prob` ranks by the softmax; `logit` by the largest raw logit, as BASE (2022,
            section 5) words it. The two rank differently.
    """

    name: ClassVar[str] = "least_confidence"
    family: ClassVar[str] = "score"
    summary: ClassVar[str] = "images whose best class the proxy trusts least"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    per_row: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Lewis and Gale 1994"
    scaling: ClassVar[str] = "N h C"
    instead: ClassVar[str] = ""

    space: Literal["prob", "logit"] = "prob"

    def __post_init__(self) -> None:
        check_choice("least_confidence.space", self.space, ("prob", "logit"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        return Cost(
            bytes=shape.tile_bytes + 32 * shape.candidates, flops=shape.logits_flops, passes=1.0
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the `b` least confident candidates; see `Strategy.select`."""
        del oracle
        rows_b, utility_b = rank_by_logits(
            view, b, seed, budget, lambda z_TC: least_confidence(z_TC, self.space)
        )
        reason = (
            "The proxy leaves a probability of {utility} to classes other than its best guess."
            if self.space == "prob"
            else "The proxy's strongest class scores low here (minus its logit: {utility})."
        )
        return Selection(
            rows_b=rows_b, utility_b=utility_b, reason=reason, exactness=self.exactness
        )
