"""UncertainGCN: candidates that a graph network can hardly tell from labelled images.

Source: Caramalau, Bhattarai and Kim 2021, "Sequential graph convolutional network for active
learning", equation 5.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from svp.errors import InputError
from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.gcn import Settings, Similarity, graph_cost, trained
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.rank import TopK


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class UncertainGCN:
    """Probability of being labelled closest to a margin first.

    Published programs build the whole similarity matrix and so stop at 10,000 candidates, one of
    them at the *first* 10,000, which in a folder sorted by class are few classes. Here the whole
    pool takes part. Features are frozen; results are not comparable to the paper's.

    Attributes:
        epochs: Steps on the whole graph; 200 as published.
        nodes: Random candidates that take part (10,000 as published); 0: all.
        score_margin: Probability to be closest to.
        unlabelled_weight: Of the unlabelled term of the loss.
        similarity: `shifted` (1 + cosine) / 2, or `cosine` as published.
    """

    name: ClassVar[str] = "uncertain_gcn"
    family: ClassVar[str] = "auxiliary"
    summary: ClassVar[str] = "images whose neighbourhood is hardly labelled yet"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "labelled"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:stochastic"
    source: ClassVar[str] = "Caramalau, Bhattarai and Kim 2021, equation 5"
    scaling: ClassVar[str] = "epochs N d 128"
    instead: ClassVar[str] = "coreset"

    epochs: int = 200
    nodes: int = 0
    score_margin: float = 0.1
    unlabelled_weight: float = 1.2
    similarity: Similarity = "shifted"

    def __post_init__(self) -> None:
        check_choice("uncertain_gcn.similarity", self.similarity, ("shifted", "cosine"))
        check_range("uncertain_gcn.epochs", self.epochs, 0)
        check_range("uncertain_gcn.nodes", self.nodes, 0)
        if not 0.0 <= self.score_margin <= 1.0:
            raise InputError(
                f"uncertain_gcn.score_margin must be in [0, 1]. Got {self.score_margin}. Use 0.1."
            )

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        return graph_cost(shape, self.epochs, self.nodes, shape.budget)

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        del oracle
        rows_U = view.candidates(seed)
        if self.nodes:
            rows_U = rows_U[: max(self.nodes, b)]
        settings = Settings(
            epochs=self.epochs,
            unlabelled_weight=self.unlabelled_weight,
            similarity=self.similarity,
        )
        score_n, _, count = trained(view, rows_U, seed, budget, settings, self.name)
        top = TopK(b)
        utility_U = -(score_n[:count] - self.score_margin).abs()
        top.push(utility_U.float().cpu().numpy(), np.arange(count, dtype=np.int64))
        places_b, utility_b = top.best()
        return Selection(
            rows_b=rows_U[places_b],
            utility_b=utility_b,
            reason=(
                "A network on the similarity graph cannot tell whether this is labelled (minus "
                "its distance from the margin: {utility})."
            ),
            exactness=self.exactness,
            counters={"epochs": self.epochs},
        )
