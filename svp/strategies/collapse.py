"""Near-duplicate collapsing: of images that show the same, one may be labelled.

Shapes: N = pool, U = candidates, b = budget.
"""

import dataclasses

import numpy as np

from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection
from svp.strategies.block import BLOCK_ROWS
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.duplicates import check_threshold, near_duplicate_groups
from svp.strategies.keys import hash_keys
from svp.strategies.wrapper import Wrapper, joined, reasons_of, restricted

_TILE_ROWS = 2048
_PAIR_ROWS = 4096
_FOLD = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CollapseDuplicates(Wrapper):
    """Offers one representative of every group of near-duplicates.

    A group counts once: where one of its items is labelled, waits for a label, or was drawn for
    this batch already (any item of the pool that is no candidate), none of the others is offered.
    The representative is the item whose key has the smallest hash, whatever the seed. If there
    are fewer groups than picks, the rest is chosen among the near-duplicates.

    Attributes:
        threshold: Least cosine of near-duplicates, in (0, 1].
    """

    threshold: float

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    @property
    def needs(self) -> frozenset[Need]:
        """Embeddings, to compare images."""
        return self.inner.needs | {"embeddings"}

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        tile = min(shape.pool, _TILE_ROWS)
        grouping = (
            300 * shape.pool
            + 48 * tile * tile
            + 64 * (tile + _PAIR_ROWS) * shape.dim
            + 24 * shape.dim * shape.dim
            + 48 * min(_FOLD, shape.pool * shape.pool)
        )
        own = self.inner.cost(shape)
        return Cost(
            bytes=max(grouping, own.bytes) + 32 * shape.pool,
            flops=own.flops + 130.0 * shape.pool * shape.pool,
            passes=own.passes + 3.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        # Whole blocks, like every other reading of the pool: tiles of few rows would be pairs.
        tiled = dataclasses.replace(budget, tile_rows=max(budget.tile_rows, BLOCK_ROWS))
        group_N = near_duplicate_groups(view.embeddings_Nd, self.threshold, tiled)
        rows = _representatives(view, group_N)
        first = min(b, len(rows))
        counters = {"representatives": len(rows)}
        parts: list[Selection] = []
        if first:
            narrowed = restricted(view, rows)
            parts.append(self.inner.select(narrowed, first, seed, budget=budget, oracle=oracle))
        if first < b:
            others = np.setdiff1d(view.unlabelled_U, rows, assume_unique=True)
            rest = restricted(view, others, {} if parts else None)
            chosen = self.inner.select(rest, b - first, seed, budget=budget, oracle=oracle)
            note = "A near-duplicate: nothing else was left."
            parts.append(dataclasses.replace(chosen, reasons_b=reasons_of(chosen, note)))
            counters["near_duplicates_chosen"] = b - first
        whole = joined(parts, np.arange(b, dtype=np.int64), parts[0].state)
        size_b = np.bincount(group_N)[group_N[whole.rows_b]].tolist()
        reasons = tuple(
            f"{reason} Stands for {size} near-duplicates." if size > 1 and place < first else reason
            for place, (reason, size) in enumerate(zip(whole.reasons_b, size_b, strict=True))
        )
        return dataclasses.replace(
            whole, reasons_b=reasons, counters={**whole.counters, **counters}
        )


def _representatives(view: PoolView, group_N: Int64Array) -> Int64Array:
    """Return one candidate of every group that has nothing else than candidates, ascending."""
    taken_N = np.ones(len(group_N), dtype=bool)
    taken_N[view.unlabelled_U] = False
    free = np.ones(int(group_N.max()) + 1, dtype=bool)
    free[group_N[taken_N]] = False
    rows = view.unlabelled_U[free[group_N[view.unlabelled_U]]]
    rows = rows[np.argsort(hash_keys(view.keys_N[rows], 0), kind="stable")]
    firsts = np.unique(group_N[rows], return_index=True)[1]
    return np.sort(rows[firsts])
