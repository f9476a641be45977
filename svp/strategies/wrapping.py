"""What may be put around a strategy, and in which order.

From the outside in:

1. `random_share`: random picks come first, from all candidates, because they stand for the pool.
2. `collapse_duplicates`: what is offered to all that follows; random picks count as taken.
3. `groups`: how many in each group.
4. `class_balance`: within them, how many of each predicted class.
5. `prefilter`: within those, only the best by a score.

The strategy itself chooses last, and never knows.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from svp.errors import InputError
from svp.strategies.base import Strategy
from svp.strategies.class_balance import ClassBalance
from svp.strategies.collapse import CollapseDuplicates
from svp.strategies.duplicates import check_threshold
from svp.strategies.group_quota import GroupQuota
from svp.strategies.parameters import check_number
from svp.strategies.prefilter import Prefilter
from svp.strategies.random_share import RandomShare


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wrapping:
    """What to put around a strategy.

    Attributes:
        random_share: Share of the batch drawn at random, in [0, 1].
        collapse_duplicates: Least cosine of near-duplicates, in (0, 1]; None: all are candidates.
        groups: Quotas per group, `equal` or `proportional`; None: none.
        class_balance: Whether to fill up classes with few labels.
        prefilter: `NAME:K` keeps the K * b best by the score NAME; None: all are candidates.
    """

    random_share: float = 0.0
    collapse_duplicates: float | None = None
    groups: Literal["equal", "proportional"] | None = None
    class_balance: bool = False
    prefilter: str | None = None

    def __post_init__(self) -> None:
        check_number("random_share", self.random_share, 0.0, 1.0)
        if self.collapse_duplicates is not None:
            check_threshold(self.collapse_duplicates)
        if self.prefilter is not None:
            _score(self.prefilter)

    def table(self) -> dict[str, Any]:
        """Return what is not at its default, by name; `Wrapping(**table)` gives it back."""
        default = Wrapping()
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(default, field.name)
        }

    def without_proxy(self) -> "Wrapping":
        """Return the same without what asks a proxy, for a round that has none."""
        return dataclasses.replace(self, class_balance=False, prefilter=None)


def wrap(strategy: Strategy, wrapping: Wrapping) -> Strategy:
    """Return `strategy` with `wrapping` around it.

    Raises:
        InputError: If the prefilter is no score.
    """
    if wrapping.prefilter is not None:
        by, times = _score(wrapping.prefilter)
        strategy = Prefilter(inner=strategy, by=by, times=times)
    if wrapping.class_balance:
        strategy = ClassBalance(inner=strategy)
    if wrapping.groups is not None:
        strategy = GroupQuota(inner=strategy, mode=wrapping.groups)
    if wrapping.collapse_duplicates is not None:
        strategy = CollapseDuplicates(inner=strategy, threshold=wrapping.collapse_duplicates)
    if wrapping.random_share > 0:
        strategy = RandomShare(inner=strategy, share=wrapping.random_share)
    return strategy


def wrapping_of(table: Mapping[str, Any]) -> Wrapping:
    """Return the wrapping that `Wrapping.table` described."""
    return Wrapping(**table)


def _score(text: str) -> tuple[Strategy, int]:
    # The catalogue uses this module, so it can only be asked once both exist.
    from svp.strategies.catalog import build_strategy

    name, sign, times = text.partition(":")
    if not sign or not times.isdecimal() or int(times) < 1:
        raise InputError(
            f"prefilter must be NAME:K, a score and how many to keep per pick. Got {text!r}. "
            'Write for example "margin:10".'
        )
    by = build_strategy(name)
    # Built once to refuse what is no score before anything runs.
    Prefilter(inner=by, by=by, times=int(times))
    return by, int(times)
