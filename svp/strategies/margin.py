"""Margin sampling: items whose two most likely classes are closest.

Source: Scheffer, Decomain and Wrobel 2001, "Active hidden Markov models for information
extraction".
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


def margin(z_TC: torch.Tensor, space: Literal["prob", "logit"]) -> torch.Tensor:
    """Return minus the gap of the two best classes, (T,).

    For `prob` in [-1, 0]; with one class the gap is 1, or infinite for `logit`.
    """
    if z_TC.shape[1] == 1:
        # No second class exists; the sum with zeros keeps NaN.
        return z_TC[:, 0] * 0.0 - (1.0 if space == "prob" else 3.0e38)
    if space == "logit":
        top_T2 = z_TC.topk(2, dim=1).values
        return top_T2[:, 1] - top_T2[:, 0]
    other = others(z_TC)
    second_T = other.exp_TC.amax(dim=1)
    return (second_T - 1.0) / (1.0 + other.mass_T)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Margin:
    """Smallest gap between the two most likely classes first.

    Attributes:
        space: `prob` compares probabilities; `logit` raw logits, as BASE (2022, section 5) words
            it. The two rank differently.
    """

    name: ClassVar[str] = "margin"
    family: ClassVar[str] = "score"
    summary: ClassVar[str] = "images on which the proxy wavers between two classes"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    per_row: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Scheffer et al. 2001"
    scaling: ClassVar[str] = "N h C"
    instead: ClassVar[str] = ""

    space: Literal["prob", "logit"] = "prob"

    def __post_init__(self) -> None:
        check_choice("margin.space", self.space, ("prob", "logit"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        return Cost(
            bytes=shape.tile_bytes + 32 * shape.candidates, flops=shape.logits_flops, passes=1.0
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the `b` candidates of smallest margin; see `Strategy.select`."""
        del oracle
        rows_b, utility_b = rank_by_logits(
            view, b, seed, budget, lambda z_TC: margin(z_TC, self.space)
        )
        unit = "probabilities" if self.space == "prob" else "logits"
        return Selection(
            rows_b=rows_b,
            utility_b=utility_b,
            reason=(
                f"The proxy wavers between two classes (minus the gap of their {unit}: "
                "{utility}; 0 is a tie)."
            ),
            exactness=self.exactness,
        )
