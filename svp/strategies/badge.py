"""BADGE: a batch of large and mutually different loss gradients.

The gradient of the last layer's loss, had the proxy's own prediction been the label, is the outer
product g = q (x) x with q = softmax - onehot(prediction). A point is large where the proxy is
uncertain, and two points are far apart where embedding or prediction differ. The batch is drawn
by D-squared seeding on g, starting from the largest one.

Source: Ash et al. 2020, "Deep batch active learning by diverse, uncertain gradient lower bounds",
algorithm 1, with the authors' first centre (the largest gradient) and without a bias term.
Shapes: T = rows, C = classes, h = width of the last layer's input.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from svp.seed import numpy_generator
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.gradients import pooled_gradients
from svp.strategies.parameters import check_choice
from svp.strategies.points import Points, pool_points
from svp.strategies.rank import TopK
from svp.strategies.seeding import Seeds, d2_seeding

First = Literal["largest", "uniform"]


def largest(points: Points) -> int:
    """Return the position of the point of largest norm, the first of equals."""
    top = TopK(1)
    for part, block in points.blocks():
        norms_T = block.square_norms().cpu().numpy()
        top.push(norms_T, np.arange(part.start, part.stop, dtype=np.int64))
    places, _ = top.best()
    return int(places[0])


def draw_gradients(
    view: PoolView,
    rows_U: Int64Array,
    centres_L: Int64Array,
    b: int,
    seed: int,
    budget: Budget,
    *,
    first: First,
    include_labelled: bool,
    pooled: bool,
    stream: str,
) -> Seeds:
    """Draw `b` of the rows by D-squared seeding on their gradients.

    Args:
        view: The pool, with a proxy.
        rows_U: Candidates, in the order that decides ties.
        centres_L: Labelled rows, used if `include_labelled`.
        b: How many.
        seed: Of the draw.
        budget: Device, tile and cache size.
        first: `largest` gradient, or `uniform`; ignored with labelled gradients.
        include_labelled: Count labelled gradients as drawn already.
        pooled: Pool gradients to 512 entries.
        stream: Name of the stream of random numbers.
    """

    def gradients(rows: Int64Array) -> Points:
        if not pooled:
            return pool_points(view, rows, seed, budget, gradients=True)
        uncached = dataclasses.replace(budget, cache_bytes=0)
        inner = pool_points(view, rows, seed, uncached, gradients=True)
        return pooled_gradients(inner, budget.cache_bytes)

    points = gradients(rows_U)
    generator = numpy_generator(seed, stream)
    if include_labelled and len(centres_L):
        return d2_seeding(points, b, generator, centres=gradients(centres_L))
    place = largest(points) if first == "largest" else None
    return d2_seeding(points, b, generator, first=place)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Badge:
    """D-squared seeding on factored gradient embeddings, exact in law.

    Attributes:
        include_labelled: Treat the gradients of labelled images as drawn already, so that
            gradients like theirs are avoided; the first pick is then drawn too. The published
            method leaves them out; the BASE code (Emam et al. 2021) puts them in.
        first: `largest` starts from the largest gradient, as the authors' code does; `uniform`
            from any, as the ASVP code (Wen et al. 2023).
        pooled: Pool gradients to 16 classes x 32 features, as the BASE and ASVP codes do. This
            averages neighbouring class numbers, and was only ever needed to save memory.
    """

    name: ClassVar[str] = "badge"
    family: ClassVar[str] = "gradient"
    summary: ClassVar[str] = "uncertain images that would teach the proxy different things"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "linear_head"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact-law"
    source: ClassVar[str] = "Ash et al. 2020, algorithm 1"
    scaling: ClassVar[str] = "b N (h + C)"
    instead: ClassVar[str] = "partitioned_badge"

    include_labelled: bool = False
    first: First = "largest"
    pooled: bool = False

    def __post_init__(self) -> None:
        check_choice("badge.first", self.first, ("largest", "uniform"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        width = shape.hidden + shape.classes
        return Cost(
            bytes=shape.tile_bytes + 48 * shape.candidates + 8 * shape.budget * width + 64 * 2**20,
            flops=2.0 * shape.budget * shape.candidates * width,
            passes=2.0 + shape.budget / 256,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Draw `b` candidates; see `Strategy.select`."""
        del oracle
        rows_U = view.candidates(seed)
        seeds = draw_gradients(
            view,
            rows_U,
            view.centres(seed),
            b,
            seed,
            budget,
            first=self.first,
            include_labelled=self.include_labelled,
            pooled=self.pooled,
            stream="badge",
        )
        return Selection(
            rows_b=rows_U[seeds.places_b],
            utility_b=np.sqrt(seeds.weight_b).astype(np.float32),
            reason=(
                "The proxy is unsure here, and this label would change it in a direction that "
                "earlier picks do not (gradient distance {utility})."
            ),
            exactness=self.exactness,
            counters=seeds.counters,
        )
