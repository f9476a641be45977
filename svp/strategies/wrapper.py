"""Wrappers: strategies around any other strategy, and what they share.

A wrapper narrows what its inner strategy may choose from, or how many of what kind, and passes
everything else on. It is called by the inner strategy's name, reads labels where that does, and
hands it its own state. How wrappers are stacked is settled in `svp.strategies.wrapping`.

Shapes: U = candidates, b = budget.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from svp.strategies.base import Float64Array, Int64Array, Need, PoolView, Selection, Strategy
from svp.strategies.cost import Cost, PoolShape


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wrapper:
    """A strategy around another one; describes itself as that one until it says otherwise.

    Attributes:
        inner: What chooses.
    """

    inner: Strategy

    @property
    def name(self) -> str:
        """Name of the inner strategy."""
        return self.inner.name

    @property
    def family(self) -> str:
        """Family of the inner strategy."""
        return self.inner.family

    @property
    def summary(self) -> str:
        """Summary of the inner strategy."""
        return self.inner.summary

    @property
    def needs(self) -> frozenset[Need]:
        """What the inner strategy needs, and the wrapper."""
        return self.inner.needs

    @property
    def stochastic(self) -> bool:
        """Whether anything draws at random."""
        return self.inner.stochastic

    @property
    def uses_oracle(self) -> bool:
        """Whether the inner strategy reads labels inside the batch."""
        return self.inner.uses_oracle

    @property
    def exactness(self) -> str:
        """Exactness of the whole."""
        return self.inner.exactness

    @property
    def source(self) -> str:
        """Source of the inner strategy."""
        return self.inner.source

    @property
    def scaling(self) -> str:
        """How the arithmetic of the inner strategy grows."""
        return self.inner.scaling

    @property
    def instead(self) -> str:
        """What to use when it does not fit a memory cap."""
        return self.inner.instead

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        own = self.inner.cost(shape)
        return dataclasses.replace(own, bytes=own.bytes + 48 * shape.candidates)


def innermost(strategy: Strategy) -> Strategy:
    """Return the strategy inside all wrappers."""
    while isinstance(strategy, Wrapper):
        strategy = strategy.inner
    return strategy


def restricted(
    view: PoolView, rows: Int64Array, state: Mapping[str, Any] | None = None
) -> PoolView:
    """Return the same pool with these candidates only, and with another state if one is given."""
    narrowed = dataclasses.replace(view, unlabelled_U=np.sort(rows))
    return narrowed if state is None else dataclasses.replace(narrowed, state=state)


def reasons_of(selection: Selection, note: str = "") -> tuple[str, ...]:
    """Return the reason of every pick, each followed by `note`."""
    own = selection.reasons_b or (selection.reason,) * len(selection.rows_b)
    return tuple(f"{one} {note}".rstrip() for one in own)


def probabilities_of(selection: Selection) -> Float64Array:
    """Return the chance of every pick, (b,), NaN where it is not known."""
    if selection.probability_b is not None:
        return selection.probability_b
    return np.full(len(selection.rows_b), np.nan)


def weakest(exactness: Sequence[str]) -> str:
    """Return the exactness of a whole whose parts have these."""
    for one in exactness:
        if one.startswith("approx:"):
            return one
    return "exact-law" if "exact-law" in exactness else "exact"


def joined(parts: Sequence[Selection], order_b: Int64Array, state: Mapping[str, Any]) -> Selection:
    """Return several selections as one.

    Args:
        parts: At least one.
        order_b: Places among the picks of all parts, one after the other, in the order to label.
        state: Of the whole.
    """
    reasons = [reason for part in parts for reason in reasons_of(part)]
    chance_b = np.concatenate([probabilities_of(part) for part in parts])[order_b]
    counters: dict[str, int] = {}
    for part in parts:
        for name, count in part.counters.items():
            counters[name] = counters.get(name, 0) + count
    return Selection(
        rows_b=np.concatenate([part.rows_b for part in parts])[order_b],
        utility_b=np.concatenate([part.utility_b for part in parts])[order_b],
        reason=parts[0].reason,
        exactness=weakest([part.exactness for part in parts]),
        counters=counters,
        reasons_b=tuple(reasons[place] for place in order_b.tolist()),
        probability_b=None if np.isnan(chance_b).all() else chance_b,
        state=state,
    )


def interleaved(counts: Sequence[int]) -> Int64Array:
    """Return the order that spreads every part evenly over the whole.

    So whoever labels only the beginning has some of every part, in its proportion.

    Args:
        counts: Picks of every part; of equals the first comes first.

    Returns:
        Places among all picks, one part after the other, in the order to label.
    """
    part_b = np.repeat(np.arange(len(counts)), counts)
    at_b = np.concatenate([(np.arange(n) + 0.5) / n for n in counts if n])
    return np.lexsort((part_b, at_b)).astype(np.int64)
