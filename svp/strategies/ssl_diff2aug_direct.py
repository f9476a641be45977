"""SSLDiff2AugDirect: smallest margin of the mean prediction for an image and an augmented one.

Source: Song et al. 2019, "Combining MixMatch and active learning for better accuracy with fewer
labels", section 3 ("diff2", "aug", "direct").
Shapes: T = rows, C = classes.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import torch

from svp.errors import InputError
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_range
from svp.strategies.rank import rank_scored


def mean_margin(clean_TC: torch.Tensor, augmented_TC: torch.Tensor) -> torch.Tensor:
    """Return minus the gap of the two largest mean probabilities, (T,), in [-1, 0].

    Args:
        clean_TC: Logits of the plain images.
        augmented_TC: Logits of an augmented view of them.
    """
    mean_TC = (clean_TC.double().softmax(dim=1) + augmented_TC.double().softmax(dim=1)) / 2.0
    if mean_TC.shape[1] == 1:
        return -mean_TC[:, 0]
    top_T2 = mean_TC.topk(2, dim=1).values
    return top_T2[:, 1] - top_T2[:, 0]


def check_stored(what: str, number: int, view: PoolView) -> None:
    """Refuse a view that is not stored."""
    if number >= len(view.views):
        raise InputError(
            f"{what} must be a stored view, in [0, {len(view.views)}). Got {number}. "
            "Lower it, or embed more views."
        )


def scored_tiles(
    view: PoolView, rows: Int64Array, budget: Budget, number: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (positions in `rows`, `mean_margin`) block by block, with the stored view `number`."""
    clean, augmented = view.logit_tiles(rows, budget), view.logit_tiles(rows, budget, number)
    for (part, clean_TC), (_, augmented_TC) in zip(clean, augmented, strict=True):
        yield part, mean_margin(clean_TC, augmented_TC)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SSLDiff2AugDirect:
    """Smallest margin of the mean over two views first.

    Attributes:
        view: Which stored view is the augmented one; the published code draws it anew.
    """

    name: ClassVar[str] = "ssl_diff2aug_direct"
    family: ClassVar[str] = "semi-supervised"
    summary: ClassVar[str] = "images between two classes, the plain and an augmented view averaged"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "views"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Song et al. 2019, section 3"
    scaling: ClassVar[str] = "2 N h C"
    instead: ClassVar[str] = "margin"

    view: int = 0

    def __post_init__(self) -> None:
        check_range("ssl_diff2aug_direct.view", self.view, 0)

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        return Cost(
            bytes=3 * shape.tile_bytes + 32 * shape.candidates,
            flops=2.0 * shape.logits_flops,
            passes=2.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the `b` candidates of smallest mean margin; see `Strategy.select`."""
        del oracle
        check_stored("ssl_diff2aug_direct.view", self.view, view)
        rows_U = view.candidates(seed)
        rows_b, utility_b = rank_scored(rows_U, b, scored_tiles(view, rows_U, budget, self.view))
        return Selection(
            rows_b=rows_b,
            utility_b=utility_b,
            reason=(
                "The proxy wavers between two classes, the image and an augmented view averaged "
                "(minus the gap: {utility}; 0 is a tie)."
            ),
            exactness=self.exactness,
        )
