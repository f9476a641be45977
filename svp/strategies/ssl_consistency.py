"""SSLConsistency: items whose prediction changes with the augmentation.

Source: Gao et al. 2020, "Consistency-based semi-supervised active learning: towards minimizing
labeling cost", equation 4.
Shapes: V = views, T = rows, C = classes.
"""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import torch

from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.rank import rank_scored


def inconsistency(z_VTC: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the sum over classes of the variance of p over views, (T,), in [0, 1).

    The variance is that of the population (divided by V). One pass, by Welford's update, so
    equal views give exactly 0.
    """
    mean_TC: torch.Tensor | None = None
    square_TC: torch.Tensor | None = None
    count = 0
    for z_TC in z_VTC:
        p_TC = z_TC.softmax(dim=1)
        count += 1
        if mean_TC is None or square_TC is None:
            mean_TC, square_TC = p_TC, torch.zeros_like(p_TC)
            continue
        before_TC = p_TC - mean_TC
        mean_TC = mean_TC + before_TC / count
        square_TC = square_TC + before_TC * (p_TC - mean_TC)
    assert square_TC is not None, "there is at least one view"
    return square_TC.sum(dim=1) / count


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SSLConsistency:
    """Largest variance of the predicted probabilities over augmented views first.

    The views are those that are stored, often two to five; the published code draws fifty
    augmentations anew, so its estimate of the variance is smoother. The number of views is among
    the counters of the selection. The plain image is not among the views.
    """

    name: ClassVar[str] = "ssl_consistency"
    family: ClassVar[str] = "semi-supervised"
    summary: ClassVar[str] = (
        "images whose class seems to change when they are cropped or recoloured"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "views"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Gao et al. 2020, equation 4"
    scaling: ClassVar[str] = "views N h C"
    instead: ClassVar[str] = "margin"

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        views = max(shape.views, 1)
        return Cost(
            bytes=(views + 1) * shape.tile_bytes + 32 * shape.candidates,
            flops=views * shape.logits_flops,
            passes=float(views),
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the `b` candidates of largest variance; see `Strategy.select`."""
        del oracle
        rows_U = view.candidates(seed)
        tiles = [view.logit_tiles(rows_U, budget, one) for one in range(len(view.views))]
        scored = (
            (blocks[0][0], inconsistency(z_TC for _, z_TC in blocks))
            for blocks in zip(*tiles, strict=True)
        )
        rows_b, utility_b = rank_scored(rows_U, b, scored)
        return Selection(
            rows_b=rows_b,
            utility_b=utility_b,
            reason=(
                "The proxy says something else when the image is augmented (variance of its "
                "probabilities {utility}; 0 is agreement)."
            ),
            exactness=self.exactness,
            counters={"views": len(view.views)},
        )
