"""BalancedRandom: a random draw with equally many items of every class, if one knew the classes.

A yardstick: how far would class balance alone carry, without any idea of which items are
informative? It reads the labels of the whole pool, so it is no way to choose what to label.

Source: Emam et al. 2021, "Active learning at the ImageNet scale" (BASE), baseline "balanced
random".
Shapes: U = candidates, C = classes, b = picks.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from svp.errors import InputError
from svp.seed import numpy_generator
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.keys import hash_keys


def water_filling(
    supply_C: Int64Array, b: int, generator: np.random.Generator | None = None
) -> Int64Array:
    """Return how many of `b` items each class gives, as equal as the supply allows, (C,).

    Every class gives min(supply, t) with the largest t that stays within b; what is left goes,
    one each, to classes that still have some: drawn by `generator`, or the first ones.

    Args:
        supply_C: Items of each class.
        b: How many in all, at most the sum of the supply.
        generator: Draws who gives one more; None: the classes of lowest number.
    """
    low, high = 0, int(supply_C.max(initial=0))
    while low < high:
        level = (low + high + 1) // 2
        if int(np.minimum(supply_C, level).sum()) <= b:
            low = level
        else:
            high = level - 1
    given_C = np.minimum(supply_C, low)
    rest = np.flatnonzero(supply_C > low)
    if generator is not None:
        rest = generator.permutation(rest)
    given_C[rest[: b - int(given_C.sum())]] += 1
    return given_C


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BalancedRandom:
    """As many items of every class as its supply allows, each class at random.

    Classes that give one item more than others are drawn at random; the published code takes
    those with the largest supply. It also begins these runs with a balanced first batch, so that
    they start from other labels than their competitors; here the first batch is the study's.

    Attributes:
        pseudo: Balance the classes that the proxy predicts, and read no label. That can be
            deployed, and is another method.
    """

    name: ClassVar[str] = "balanced_random"
    family: ClassVar[str] = "oracle"
    summary: ClassVar[str] = "equally many random images per class: a yardstick that knows labels"
    needs: ClassVar[frozenset[Need]] = frozenset()
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact-law"
    source: ClassVar[str] = "Emam et al. 2021, balanced random"
    scaling: ClassVar[str] = "N"
    instead: ClassVar[str] = "random"

    pseudo: bool = False

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        return Cost(
            bytes=64 * shape.candidates + 64 * shape.classes + shape.tile_bytes * self.pseudo,
            flops=shape.logits_flops * self.pseudo,
            passes=1.0 * self.pseudo,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates, balanced over classes; see `Strategy.select`."""
        rows_U = view.candidates(seed)
        class_U = (
            _predicted(view, rows_U, budget) if self.pseudo or oracle is None else oracle(rows_U)
        )
        supply_C = np.bincount(class_U, minlength=view.n_classes).astype(np.int64)
        given_C = water_filling(supply_C, b, numpy_generator(seed, "balanced_random"))
        # Candidates are in random order already, so the first of each class are a random draw.
        by_class = np.argsort(class_U, kind="stable")
        first_C = np.cumsum(supply_C) - supply_C
        rank_U = np.empty(len(rows_U), dtype=np.int64)
        rank_U[by_class] = np.arange(len(rows_U)) - first_C[class_U[by_class]]
        rows_b = rows_U[rank_U < given_C[class_U]]
        ticket_b = hash_keys(view.keys_N[rows_b], seed).astype(np.float64) / 2.0**64
        return Selection(
            rows_b=rows_b,
            utility_b=(1.0 - ticket_b).astype(np.float32),
            reason=(
                "Drawn at random from its class, every class having an equal share (ticket "
                "{utility} of 1)."
            ),
            exactness=self.exactness,
        )


def _predicted(view: PoolView, rows_U: Int64Array, budget: Budget) -> Int64Array:
    class_U = np.empty(len(rows_U), dtype=np.int64)
    for part, z_TC in view.logit_tiles(rows_U, budget):
        if bool(z_TC.isnan().any()):
            raise InputError(
                f"Logits must be numbers. Got NaN for {int(z_TC.isnan().any(dim=1).sum())} of "
                f"{len(z_TC)} items. Check the proxy and the embeddings."
            )
        class_U[part] = z_TC.argmax(dim=1).cpu().numpy()
    return class_U
