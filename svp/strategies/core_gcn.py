"""CoreGCN: k-center on the hidden layer of a graph network.

Source: Caramalau, Bhattarai and Kim 2021, "Sequential graph convolutional network for active
learning", equation 6.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.cover import FRONTIER, k_center
from svp.strategies.gcn import WIDTH, Settings, Similarity, as_points, graph_cost, trained
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.points import pool_points


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CoreGCN:
    """Farthest from labelled and chosen nodes, in the 128 hidden units of the graph network.

    Attributes:
        epochs: Steps on the whole graph; 200 as published.
        nodes: Random candidates that take part (10,000 as published); 0: all. A published program
            takes the first ones of the pool, which is not offered.
        features: `hidden` as the paper has it; `raw` as the authors' program, which runs k-center
            on the features it was given and never uses the network.
        unlabelled_weight: Of the unlabelled term of the loss.
        similarity: `shifted` (1 + cosine) / 2, or `cosine` as published.
    """

    name: ClassVar[str] = "core_gcn"
    family: ClassVar[str] = "auxiliary"
    summary: ClassVar[str] = "images that cover the pool in a similarity graph's own features"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "labelled"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:stochastic"
    source: ClassVar[str] = "Caramalau, Bhattarai and Kim 2021, equation 6"
    scaling: ClassVar[str] = "epochs N d 128 + (L + b) N 128"
    instead: ClassVar[str] = "coreset"

    epochs: int = 200
    nodes: int = 0
    features: Literal["hidden", "raw"] = "hidden"
    unlabelled_weight: float = 1.2
    similarity: Similarity = "shifted"

    def __post_init__(self) -> None:
        check_choice("core_gcn.similarity", self.similarity, ("shifted", "cosine"))
        check_choice("core_gcn.features", self.features, ("hidden", "raw"))
        check_range("core_gcn.epochs", self.epochs, 0)
        check_range("core_gcn.nodes", self.nodes, 0)

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        graph = graph_cost(shape, self.epochs, self.nodes, shape.budget)
        centres = shape.labelled + shape.budget
        width = max(WIDTH, shape.dim)
        return Cost(
            bytes=graph.bytes
            + 48 * shape.candidates
            + 8 * (FRONTIER + 2 * centres) * width
            + 64 * 2**20,
            flops=graph.flops + 2.0 * centres * shape.candidates * width,
            passes=graph.passes,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        del oracle
        rows_U = view.candidates(seed)
        if self.nodes:
            rows_U = rows_U[: max(self.nodes, b)]
        if self.features == "raw":
            points = pool_points(view, rows_U, seed, budget, space="input")
            centres = pool_points(view, view.centres(seed), seed, budget, space="input")
        else:
            settings = Settings(
                epochs=self.epochs,
                unlabelled_weight=self.unlabelled_weight,
                similarity=self.similarity,
            )
            _, hidden_nw, count = trained(view, rows_U, seed, budget, settings, self.name)
            points, centres = as_points(hidden_nw[:count]), as_points(hidden_nw[count:])
        cover = k_center(points, centres, b)
        return Selection(
            rows_b=rows_U[cover.places_b],
            utility_b=cover.radius_b.astype(np.float32),
            reason=(
                "Unlike anything labelled or chosen before it in a similarity graph: the most "
                "similar one is at distance {utility}."
            ),
            exactness=self.exactness,
            counters={"epochs": self.epochs, **cover.counters},
        )
