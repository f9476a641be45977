"""Entropy sampling: items over whose class the proxy is most undecided.

Source: Shannon 1948, "A mathematical theory of communication" (the entropy); Settles 2009,
"Active learning literature survey", section 3.1 (its use).
Shapes: T = rows, C = classes.
"""

import dataclasses
from typing import ClassVar

import torch

from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.rank import rank_by_logits
from svp.strategies.softmax import others


def entropy(z_TC: torch.Tensor) -> torch.Tensor:
    """Return the entropy of softmax(z) in nats, (T,), in [0, ln C].

    H = log(1 + mass) + sum_c p_c (z_best - z_c): every term is non-negative, so nothing cancels,
    and a class of probability 0 adds 0.
    """
    other = others(z_TC)
    # exp(-gap) underflows to 0 long before gap does, and 0 * inf would be NaN.
    spread_TC = torch.where(other.exp_TC > 0, other.exp_TC * other.gap_TC, 0.0)
    return torch.log1p(other.mass_T) + spread_TC.sum(dim=1) / (1.0 + other.mass_T)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entropy:
    """Highest entropy of the predicted classes first."""

    name: ClassVar[str] = "entropy"
    family: ClassVar[str] = "score"
    summary: ClassVar[str] = "images over which the proxy spreads its guess most widely"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    per_row: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Settles 2009, section 3.1"
    scaling: ClassVar[str] = "N h C"
    instead: ClassVar[str] = ""

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        return Cost(
            bytes=shape.tile_bytes + 32 * shape.candidates, flops=shape.logits_flops, passes=1.0
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the `b` candidates of highest entropy; see `Strategy.select`."""
        del oracle
        rows_b, utility_b = rank_by_logits(view, b, seed, budget, entropy)
        return Selection(
            rows_b=rows_b,
            utility_b=utility_b,
            reason=(
                "The proxy spreads its guess over several classes (entropy {utility} nats; 0 is "
                "certainty)."
            ),
            exactness=self.exactness,
        )
