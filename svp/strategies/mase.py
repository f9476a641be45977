"""MASE: items nearest the decision boundary of the proxy's last layer.

For a linear head the nearest point of another class lies across one of C - 1 hyperplanes, at
distance min over c of (z_best - z_c) / |w_best - w_c|. Dividing by the norms is what sets it
apart from the gap of the logits.

Source: Emam et al. 2021, "Active learning at the ImageNet scale" (BASE), algorithm 1.
Shapes: T = rows, C = classes.
"""

import dataclasses
from typing import ClassVar

import torch

from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.rank import rank_by_logits
from svp.strategies.weights import boundary_distances, head_distances


def mase(z_TC: torch.Tensor, distance_CC: torch.Tensor) -> torch.Tensor:
    """Return minus the distance to the nearest decision boundary, (T,), at most 0.

    Args:
        z_TC: Logits.
        distance_CC: Euclidean distances of the classes' weights
            (`svp.strategies.weights.weight_distances`).
    """
    return -boundary_distances(z_TC, distance_CC).amin(dim=1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mase:
    """Smallest distance to a decision boundary first.

    The distance is taken where the last layer reads: for a linear proxy in the standardised
    embeddings, for an MLP in its hidden layer, where it is no distance between images. Classes
    with equal weights have no boundary and are passed over, as in the published code; an item
    without any boundary comes last.
    """

    name: ClassVar[str] = "mase"
    family: ClassVar[str] = "score"
    summary: ClassVar[str] = "images closest to where the proxy would change its mind"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "linear_head"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    per_row: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Emam et al. 2021, algorithm 1"
    scaling: ClassVar[str] = "N h C"
    instead: ClassVar[str] = "margin"

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        table = 24 * shape.classes**2 + 8 * shape.classes * shape.hidden
        return Cost(
            bytes=shape.tile_bytes + 32 * shape.candidates + table,
            flops=shape.logits_flops + 4.0 * shape.candidates * shape.classes,
            passes=1.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the `b` candidates nearest a boundary; see `Strategy.select`."""
        del oracle
        distance_CC = head_distances(view, budget.device)
        rows_b, utility_b = rank_by_logits(
            view, b, seed, budget, lambda z_TC: mase(z_TC, distance_CC)
        )
        return Selection(
            rows_b=rows_b,
            utility_b=utility_b,
            reason=(
                "A small change would make the proxy decide otherwise (minus the distance to its "
                "nearest boundary: {utility})."
            ),
            exactness=self.exactness,
        )
