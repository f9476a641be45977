"""SSLRandom: the random draw that goes with a semi-supervised proxy.

Comparisons list it as a method of its own, because there the classifier is trained with the
unlabelled images too. The draw is `random`; what differs is the proxy, which a study chooses
(`flexmatch`).

Source: the baseline of Gao et al. 2020, "Consistency-based semi-supervised active learning".
"""

import dataclasses
from typing import ClassVar

from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.random import Random


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SSLRandom:
    """Uniform without replacement: under one seed the same items as `random`."""

    name: ClassVar[str] = "ssl_random"
    family: ClassVar[str] = "semi-supervised"
    summary: ClassVar[str] = "random images, to go with a semi-supervised proxy"
    needs: ClassVar[frozenset[Need]] = frozenset()
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact-law"
    source: ClassVar[str] = "baseline of Gao et al. 2020"
    scaling: ClassVar[str] = "N"
    instead: ClassVar[str] = ""

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        return Random().cost(shape)

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        return Random().select(view, b, seed, budget=budget, oracle=oracle)
