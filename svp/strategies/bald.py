"""BALD with dropout: items on which sub-networks of the proxy disagree, each being sure.

Every pass drops a random part of what the last layer reads. The score is the mutual information
between the prediction and the mask: the entropy of the mean prediction minus the mean entropy.

Source: Houlsby et al. 2011, "Bayesian active learning for classification and preference
learning", equation 2; Gal, Islam and Ghahramani 2017, "Deep Bayesian active learning with image
data" (dropout in place of a posterior).
Shapes: P = passes, T = rows, C = classes, h = width of the last layer's input.
"""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch

from svp.seed import numpy_generator
from svp.strategies.base import Budget, LinearHead, Need, Oracle, PoolView, Selection
from svp.strategies.block import on_whole_block
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_number, check_range
from svp.strategies.rank import rank_scored


def disagreement(z_PTC: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return H(mean_t p_t) - mean_t H(p_t) in nats, (T,), in [0, ln C], for logits pass by pass.

    Two sums are kept, not the passes: of p, and of p log p.
    """
    total_TC: torch.Tensor | None = None
    negative_T: torch.Tensor | None = None
    passes = 0
    for z_TC in z_PTC:
        log_p_TC = z_TC.log_softmax(dim=1)
        p_TC = log_p_TC.exp()
        # A probability of 0 adds 0, where 0 * -inf would be NaN.
        inward_T = torch.where(p_TC > 0, p_TC * log_p_TC, 0.0).sum(dim=1)
        total_TC = p_TC if total_TC is None else total_TC + p_TC
        negative_T = inward_T if negative_T is None else negative_T + inward_T
        passes += 1
    assert total_TC is not None, "there is at least one pass"
    assert negative_T is not None, "there is at least one pass"
    mean_TC = total_TC / passes
    return (negative_T / passes - torch.xlogy(mean_TC, mean_TC).sum(dim=1)).clamp_min(0.0)


def dropout_masks(passes: int, width: int, rate: float, seed: int) -> torch.Tensor:
    """Return one mask per pass, float32 (P, h): 0 where dropped, 1 / (1 - rate) where kept."""
    kept_Ph = numpy_generator(seed, "bald").random((passes, width)) >= rate
    return torch.from_numpy(kept_Ph.astype(np.float32) / np.float32(1.0 - rate))


def masked_disagreement(
    h_Th: torch.Tensor, head: LinearHead, mask_Ph: torch.Tensor
) -> torch.Tensor:
    """Return `disagreement` of the head under every mask, (T,)."""
    return disagreement(
        torch.nn.functional.linear(h_Th * mask_h, head.weight_Cd, head.bias_C) for mask_h in mask_Ph
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bald:
    """Largest mutual information between prediction and dropout mask first.

    What it is not: the encoder is frozen, so nothing of its uncertainty is seen; the masks fall
    on the input of the last layer alone (for a linear proxy, on the standardised embeddings);
    and a head that was not trained with dropout shows how sensitive it is to missing features,
    not how a posterior disagrees. One mask per pass is shared by the whole pool, so that an
    item's score does not depend on the block it is read in; published code draws anew for every
    batch, and one of them also lets batch normalisation run on batch statistics.

    Attributes:
        passes: Masks drawn.
        rate: Share of features dropped, in [0, 1).
    """

    name: ClassVar[str] = "bald"
    family: ClassVar[str] = "score"
    summary: ClassVar[str] = "images whose class depends on which features the proxy looks at"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "linear_head"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    per_row: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact-law"
    source: ClassVar[str] = "Gal et al. 2017; Houlsby et al. 2011, equation 2"
    scaling: ClassVar[str] = "passes N h C"
    instead: ClassVar[str] = "entropy"

    passes: int = 10
    rate: float = 0.5

    def __post_init__(self) -> None:
        check_range("bald.passes", self.passes, 1)
        check_number("bald.rate", self.rate, 0.0, 1.0, below=True)

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        return Cost(
            bytes=2 * shape.tile_bytes + 32 * shape.candidates + 16 * self.passes * shape.hidden,
            flops=self.passes * (shape.logits_flops + 10.0 * shape.candidates * shape.classes),
            passes=1.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the `b` candidates of largest disagreement; see `Strategy.select`."""
        del oracle
        head = view.required_proxy().head
        mask_Ph = dropout_masks(self.passes, head.weight_Cd.shape[1], self.rate, seed)
        mask_Ph = mask_Ph.to(budget.device)
        rows_U = view.candidates(seed)
        scored = (
            (part, on_whole_block(lambda h: masked_disagreement(h, head, mask_Ph), h_Th))
            for part, h_Th in view.space_tiles(rows_U, budget)
        )
        rows_b, utility_b = rank_scored(rows_U, b, scored)
        return Selection(
            rows_b=rows_b,
            utility_b=utility_b,
            reason=(
                "The proxy decides otherwise when it misses some features (mutual information "
                "{utility} nats; 0 is agreement)."
            ),
            exactness=self.exactness,
            counters={"passes": self.passes},
        )
