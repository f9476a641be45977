"""BAIT for a linear model with equal noise everywhere: every item's information is x x'.

The Fisher information loses its factor P_i, so the matrices are h x h whatever the number of
classes, and with W = M^-1 and H = W F W all the greedy choice needs of an item are two numbers,
a = x'Wx and c = x'Hx; see `svp.strategies.greedy_design`.

Source: Ash et al. 2021, algorithm 1, with the regression information that LabelBench (Zhang et
al. 2024) keeps behind a switch.
Shapes: n = candidates, T = rows of one block, h = width, k = items added.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch

from svp.errors import InputError
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection
from svp.strategies.block import BLOCK_ROWS
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.greedy_design import (
    AHEAD,
    WATCHED,
    GreedyDesign,
    Held,
    inverse_and_product,
    recomputations,
)
from svp.strategies.parameters import check_range
from svp.strategies.points import Points, pool_points
from svp.strategies.principal import Principal


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BaitRegression:
    """Greedy design for least squares on the last layer's input; looks at no prediction.

    Twice the budget is added, then the least useful are removed.

    Attributes:
        dims: Principal axes to use; 0: all.
        ridge: Added to the diagonal of M.
    """

    name: ClassVar[str] = "bait_regression"
    family: ClassVar[str] = "design"
    summary: ClassVar[str] = "a batch that covers all directions of the embeddings best"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:regression"
    source: ClassVar[str] = "Ash et al. 2021, algorithm 1, for regression"
    scaling: ClassVar[str] = "b N h + N h^2"
    instead: ClassVar[str] = "coreset"

    dims: int = 0
    ridge: float = 1.0

    def __post_init__(self) -> None:
        check_range("bait_regression.dims", self.dims, 0)
        if not 0.0 < self.ridge < float("inf"):
            raise InputError(
                f"bait_regression.ridge must be positive. Got {self.ridge}. Use 1 or 0.01."
            )

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        rows = shape.candidates + shape.labelled
        picks = min(2 * shape.budget, shape.candidates)
        width = min(self.dims, shape.hidden) if self.dims else shape.hidden
        times = recomputations(picks, width)
        return Cost(
            bytes=shape.tile_bytes
            + 80 * shape.candidates
            + 24 * shape.tile_rows * shape.hidden
            + 96 * shape.hidden**2
            + 16 * (picks + WATCHED) * (shape.hidden + 2)
            + 128 * AHEAD * BLOCK_ROWS,
            flops=4.0 * picks * shape.candidates * shape.hidden
            + 2.0 * (1 + 2 * times) * rows * shape.hidden**2,
            # Where every guess is right; a wrong one costs two more.
            passes=4.0 + times + 2.0 * picks / AHEAD,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates greedily; see `Strategy.select`."""
        del oracle
        rows_U = view.candidates(seed)
        principal = Principal(view, seed, budget, self.dims)
        points = pool_points(view, rows_U, seed, budget)
        labelled = pool_points(view, view.centres(seed), seed, budget)
        found = Regression(points, labelled, principal, self.ridge).run(b)
        return Selection(
            rows_b=rows_U[found.places_b],
            utility_b=found.worth_b.astype(np.float32),
            reason=(
                "Shows a direction of the embeddings that the rest of the batch does not (without "
                "it the expected error would rise by {utility})."
            ),
            exactness=self.exactness,
            counters=found.counters,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """A batch: places, how much the trace grows without each, the trace, and counts."""

    places_b: Int64Array
    worth_b: np.ndarray[tuple[int], np.dtype[np.float64]]
    trace: float
    counters: dict[str, int]


class Regression:
    """The greedy design.

    Args:
        points: Candidates.
        labelled: Labelled rows, maybe none.
        principal: How x is centred and projected.
        ridge: Diagonal of M.
    """

    def __init__(
        self, points: Points, labelled: Points, principal: Principal, ridge: float
    ) -> None:
        self._items = _Candidates(points, principal)
        moment_hh = self._moment(points)
        known_hh = self._moment(labelled) if len(labelled) else torch.zeros_like(moment_hh)
        eye_hh = torch.eye(len(moment_hh), dtype=torch.float64, device=moment_hh.device)
        self._target_hh = (known_hh + moment_hh) / (len(points) + len(labelled))
        self._base_hh = known_hh + ridge * eye_hh

    def run(self, b: int) -> Found:
        """Return the batch of `b`, the most useful first."""
        forward = GreedyDesign(self._items, self._base_hh, self._target_hh, adds=True)
        places, x_kh = forward.run(min(2 * b, len(self._items)))
        with_all_hh = self._base_hh + x_kh.T @ x_kh
        backward = GreedyDesign(Held(x_kh), with_all_hh, self._target_hh, adds=False)
        removed, _ = backward.run(len(places) - b)
        kept = np.setdiff1d(np.arange(len(places)), np.asarray(removed, dtype=np.int64))
        places_b, x_bh = np.asarray(places, dtype=np.int64)[kept], x_kh[kept]
        inverse, product = inverse_and_product(self._base_hh + x_bh.T @ x_bh, self._target_hh)
        a_b = ((x_bh @ inverse) * x_bh).sum(dim=1)
        c_b = ((x_bh @ product) * x_bh).sum(dim=1)
        worth_b = (c_b / (1.0 - a_b).clamp_min(1e-30)).clamp(0.0, 3e38).cpu().numpy()
        order = np.lexsort((places_b, -worth_b))
        return Found(
            places_b=places_b[order],
            worth_b=worth_b[order],
            trace=float((inverse * self._target_hh).sum()),
            counters={"recomputed": forward.recomputed, "readings": forward.readings},
        )

    def _moment(self, points: Points) -> torch.Tensor:
        total = None
        for _, block in points.blocks():
            x_Th = self._items.represent(block.x_Mh)
            total = x_Th.T @ x_Th if total is None else total + x_Th.T @ x_Th
        assert total is not None, "there are points"
        return total


class _Candidates:
    """Points of the pool, centred and projected."""

    def __init__(self, points: Points, principal: Principal) -> None:
        self._points, self.represent, self.back = points, principal, principal.back

    def __len__(self) -> int:
        return len(self._points)

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for part, block in self._points.blocks():
            yield part, block.x_Mh
