"""Class balance: quotas by the proxy's predicted class, against the labels so far.

Shapes: U = candidates, C = classes, b = budget.
"""

import dataclasses

import numpy as np

from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.quotas import choose_by_quota, levelled
from svp.strategies.wrapper import Wrapper


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClassBalance(Wrapper):
    """Fills up the classes with fewest labels first; the inner strategy chooses in each by itself.

    Quotas make the labels so far plus this batch as level over classes as the predictions allow.
    Predictions may be wrong, and a class nobody has labelled yet is not predicted at all.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """A proxy, to predict classes."""
        return self.inner.needs | {"embeddings", "logits"}

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        own = self.inner.cost(shape)
        return Cost(
            bytes=max(own.bytes, shape.tile_bytes) + 64 * shape.candidates + 64 * shape.classes,
            flops=own.flops + shape.logits_flops,
            passes=own.passes + 1.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        rows = view.candidates(seed)
        class_N = np.empty(len(view.keys_N), dtype=np.int64)
        for part, z_TC in view.logit_tiles(rows, budget):
            class_N[rows[part]] = z_TC.argmax(dim=1).cpu().numpy()
        part_U = class_N[view.unlabelled_U]
        free_C = np.bincount(part_U, minlength=view.n_classes)
        labelled_C = np.bincount(view.y_L, minlength=view.n_classes)
        quota_C = levelled(free_C, labelled_C, b)
        return choose_by_quota(
            self.inner, view, part_U, quota_C, seed, budget, oracle, what="predicted class"
        )
