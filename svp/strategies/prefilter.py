"""Candidate pre-filtering: a cheap score keeps the best, a costly strategy chooses among them.

Source: the two stages of Wei, Iyer and Bilmes 2015, "Submodularity in data subset selection and
active learning" (filtered active submodular selection), with any strategy as the second.
Shapes: U = candidates, b = budget.
"""

import dataclasses

from svp.errors import InputError
from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection, Strategy
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_range
from svp.strategies.wrapper import Wrapper, reasons_of, restricted


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prefilter(Wrapper):
    """Keeps the `times` * b best candidates by a score; the inner strategy sees no others.

    Attributes:
        by: The score: a strategy that ranks each candidate by itself, such as margin.
        times: Candidates kept per pick, at least 1.
    """

    by: Strategy
    times: int

    def __post_init__(self) -> None:
        check_range("prefilter", self.times, 1)
        if not getattr(type(self.by), "per_row", False):
            raise InputError(
                "prefilter must rank by a score, a strategy that looks at each image alone. "
                f"Got {self.by.name}. Use margin, entropy or least_confidence."
            )

    @property
    def needs(self) -> frozenset[Need]:
        """What either needs."""
        return self.inner.needs | self.by.needs

    @property
    def stochastic(self) -> bool:
        """Whether either draws at random."""
        return self.inner.stochastic or self.by.stochastic

    @property
    def exactness(self) -> str:
        """The inner strategy's choice among all candidates is only approximated."""
        return "approx:prefilter"

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        kept = min(self.times * shape.budget, shape.candidates)
        first = self.by.cost(dataclasses.replace(shape, budget=kept))
        then = self.inner.cost(dataclasses.replace(shape, candidates=kept))
        return Cost(
            bytes=max(first.bytes, then.bytes) + 24 * kept,
            flops=first.flops + then.flops,
            passes=first.passes + then.passes * kept / max(1, shape.candidates),
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        kept = min(self.times * b, len(view.unlabelled_U))
        best = self.by.select(view, kept, seed, budget=budget)
        narrowed = restricted(view, best.rows_b)
        chosen = self.inner.select(narrowed, b, seed, budget=budget, oracle=oracle)
        return dataclasses.replace(
            chosen,
            exactness=self.exactness,
            reasons_b=reasons_of(chosen, f"Among the {kept:,} best by {self.by.name}."),
            counters={**chosen.counters, "prefiltered": kept},
        )
