"""A share of random picks, so that a campaign can be judged by its own labels.

The random part is a simple random sample without replacement of n of the U candidates, drawn
before the strategy is asked. Every one of its picks had the chance n / U to be drawn, whatever the
strategy thinks of it, so the mean over that part estimates the mean over all candidates without
bias (for a total, Horvitz and Thompson 1952: the sum of values over their chances), and with the
items labelled before, whose answers are known, the accuracy on the whole pool. Picks of the
strategy have no such chance, since it would choose many of them again and again; theirs is NaN.

The sample is ordered by a seeded hash of keys. So each beginning of it is a simple random sample
too: if only k of the n are labelled, in order, their chance was k / U.

Source: Horvitz and Thompson 1952, "A generalization of sampling without replacement from a finite
universe"; Cochran 1977, "Sampling techniques", chapter 2.
Shapes: U = candidates, n = random picks, b = budget.
"""

import dataclasses
import math

import numpy as np

from svp.seed import derive_seed
from svp.strategies.base import Budget, Oracle, PoolView, Selection
from svp.strategies.keys import hash_keys
from svp.strategies.parameters import check_number
from svp.strategies.wrapper import Wrapper, interleaved, joined, restricted


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RandomShare(Wrapper):
    """Draws a share of the batch at random; the strategy fills the rest from what is left.

    Both parts are spread evenly over the order to label. `Selection.probability_b` is the chance
    with which a pick was drawn, n / U, for the random part and NaN for the rest.

    Attributes:
        share: Share of the batch, in [0, 1]; n = share * b, rounded half up.
    """

    share: float

    def __post_init__(self) -> None:
        check_number("random_share", self.share, 0.0, 1.0)

    @property
    def stochastic(self) -> bool:
        """Whether anything draws at random."""
        return self.share > 0 or self.inner.stochastic

    @property
    def exactness(self) -> str:
        """Exactness of the whole: the random part is a draw from exactly the stated law."""
        own = self.inner.exactness
        return "exact-law" if self.share > 0 and own == "exact" else own

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        drawn = math.floor(self.share * b + 0.5)
        if not drawn:
            chosen = self.inner.select(view, b, seed, budget=budget, oracle=oracle)
            return dataclasses.replace(chosen, exactness=self.exactness)
        # A seed of its own: the draw must not depend on what decides the strategy's ties.
        own_seed = derive_seed(seed, "random-share")
        rows_n = view.candidates(own_seed)[:drawn]
        ticket_n = hash_keys(view.keys_N[rows_n], own_seed).astype(np.float64) / 2.0**64
        random = Selection(
            rows_b=rows_n,
            utility_b=(1.0 - ticket_n).astype(np.float32),
            reason=(
                "Drawn at random, whatever the model thinks (ticket {utility} of 1), so that the "
                "batch can be judged."
            ),
            exactness="exact-law",
            counters={"random": drawn},
            probability_b=np.full(drawn, drawn / len(view.unlabelled_U)),
        )
        if drawn == b:
            return dataclasses.replace(random, exactness=self.exactness, state=dict(view.state))
        left = restricted(view, np.setdiff1d(view.unlabelled_U, rows_n, assume_unique=True))
        chosen = self.inner.select(left, b - drawn, seed, budget=budget, oracle=oracle)
        order_b = interleaved([b - drawn, drawn])
        whole = joined([chosen, random], order_b, chosen.state)
        return dataclasses.replace(whole, reason=chosen.reason)
