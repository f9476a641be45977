"""BAIT for a linear model with equal noise everywhere: every item's information is x x'.

The Fisher information loses its factor P_i, so the matrices are h x h whatever the number of
classes, and with W = M^-1 and H = W F W all the greedy choice needs of an item are two numbers,
a = x'Wx and c = x'Hx: adding it lowers tr(W F) by c / (1 + a). After a pick, both follow for all
items from one product of the pool with two vectors, y = W x and v = H x.

Source: Ash et al. 2021, algorithm 1, with the regression information that LabelBench (Zhang et
al. 2024) keeps behind a switch.
Shapes: n = candidates, T = rows of one block, h = width.
"""

import dataclasses
from typing import ClassVar, Final

import numpy as np
import torch

from svp.errors import InputError
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_range
from svp.strategies.points import Factors, Points, pool_points
from svp.strategies.principal import Principal

_RECOMPUTE: Final = 512


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
        picks = 2 * shape.budget
        return Cost(
            bytes=shape.tile_bytes
            + 64 * shape.candidates
            + 24 * shape.tile_rows * shape.hidden
            + 72 * shape.hidden**2
            + 16 * picks * (shape.hidden + 2),
            flops=4.0 * picks * shape.candidates * shape.hidden
            + 2.0 * (3 + picks / _RECOMPUTE) * rows * shape.hidden**2,
            passes=picks + 5.0,
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
            counters={"recomputed": found.recomputed},
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """A batch: places, how much the trace grows without each, the trace, and recomputations."""

    places_b: Int64Array
    worth_b: np.ndarray[tuple[int], np.dtype[np.float64]]
    trace: float
    recomputed: int


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
        self._points, self._principal = points, principal
        _, first = next(points.blocks())
        h, device = principal.width, first.x_Mh.device
        eye = torch.eye(h, dtype=torch.float64, device=device)
        known = self._moment(labelled) if len(labelled) else torch.zeros_like(eye)
        self._target_hh = (known + self._moment(points)) / (len(points) + len(labelled))
        self._base_hh = known + ridge * eye
        self._open_n = torch.ones(len(points), dtype=torch.bool, device=device)
        self._a_n = torch.zeros(len(points), dtype=torch.float64, device=device)
        self._c_n = torch.zeros(len(points), dtype=torch.float64, device=device)

    def run(self, b: int) -> Found:
        """Return the batch of `b`, the most useful first."""
        places, x_kh = self._forward(min(2 * b, len(self._points)))
        kept = self._backward(x_kh, b)
        places_b, x_bh = np.asarray(places, dtype=np.int64)[kept], x_kh[kept]
        inverse, product = self._inverse(x_bh)
        a_b = ((x_bh @ inverse) * x_bh).sum(dim=1)
        c_b = ((x_bh @ product) * x_bh).sum(dim=1)
        worth_b = (c_b / (1.0 - a_b).clamp_min(1e-30)).clamp(0.0, 3e38).cpu().numpy()
        order = np.lexsort((places_b, -worth_b))
        return Found(
            places_b=places_b[order],
            worth_b=worth_b[order],
            trace=float((inverse * self._target_hh).sum()),
            recomputed=self._recomputed,
        )

    def _moment(self, points: Points) -> torch.Tensor:
        total = None
        for _, block in points.blocks():
            x_Th = self._principal(block.x_Mh)
            total = x_Th.T @ x_Th if total is None else total + x_Th.T @ x_Th
        assert total is not None, "there are points"
        return total

    def _inverse(self, x_kh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inverse = torch.linalg.inv(self._base_hh + x_kh.T @ x_kh)
        inverse = (inverse + inverse.T) / 2.0
        return inverse, inverse @ self._target_hh @ inverse

    def _forward(self, count: int) -> tuple[list[int], torch.Tensor]:
        self._recomputed = 0
        places: list[int] = []
        x_kh = torch.zeros(count, self._principal.width, dtype=torch.float64)
        x_kh = x_kh.to(self._a_n.device)
        inverse, product = self._inverse(x_kh[:0])
        self._refresh(inverse, product)
        for turn in range(count):
            gain_n = torch.where(self._open_n, self._c_n / (1.0 + self._a_n), -torch.inf)
            place = int(gain_n.argmax())
            x_h = self._row(place)
            x_kh[turn] = x_h
            places.append(place)
            self._open_n[place] = False
            y_h, v_h = inverse @ x_h, product @ x_h
            s = float(1.0 / (1.0 + x_h @ y_h))
            q = float(x_h @ v_h)
            inverse -= s * torch.outer(y_h, y_h)
            cross = torch.outer(y_h, v_h)
            product += s * s * q * torch.outer(y_h, y_h) - s * (cross + cross.T)
            if turn + 1 == count:
                break
            if (turn + 1) % _RECOMPUTE == 0:
                # Rounding of the rank-one updates would add up.
                inverse, product = self._inverse(x_kh[: turn + 1])
                self._refresh(inverse, product)
            else:
                self._follow(y_h, v_h, s, q)
        return places, x_kh

    def _row(self, place: int) -> torch.Tensor:
        """Return one candidate, from the same block as everywhere."""
        for part, block in self._points.blocks():
            if part.start <= place < part.stop:
                return self._principal(block.x_Mh)[place - part.start]
        raise AssertionError("a place is in one of the blocks")

    def _refresh(self, inverse: torch.Tensor, product: torch.Tensor) -> None:
        self._recomputed += 1
        for part, block in self._points.blocks():
            x_Th = self._principal(block.x_Mh)
            self._a_n[part] = ((x_Th @ inverse) * x_Th).sum(dim=1)
            self._c_n[part] = ((x_Th @ product) * x_Th).sum(dim=1)

    def _follow(self, y_h: torch.Tensor, v_h: torch.Tensor, s: float, q: float) -> None:
        """Update both numbers of all candidates after a pick."""
        sides_h2, shift_2 = self._principal.back(torch.stack([y_h, v_h], dim=1))
        for part, block in self._points.blocks():
            along_T2 = _along(block, sides_h2, shift_2)
            y_T, v_T = along_T2[:, 0], along_T2[:, 1]
            self._a_n[part] -= s * y_T.square()
            self._c_n[part] += s * y_T * (s * q * y_T - 2.0 * v_T)

    def _backward(self, x_kh: torch.Tensor, b: int) -> list[int]:
        """Return which of the rows to keep, after removing the least useful one by one."""
        inverse, product = self._inverse(x_kh)
        a_k = ((x_kh @ inverse) * x_kh).sum(dim=1)
        c_k = ((x_kh @ product) * x_kh).sum(dim=1)
        open_k = torch.ones(len(x_kh), dtype=torch.bool, device=x_kh.device)
        for _ in range(len(x_kh) - b):
            loss_k = torch.where(open_k, c_k / (1.0 - a_k), torch.inf)
            worst = int(loss_k.argmin())
            open_k[worst] = False
            x_h = x_kh[worst]
            y_h, v_h = inverse @ x_h, product @ x_h
            s = float(1.0 / (1.0 - x_h @ y_h))
            q = float(x_h @ v_h)
            inverse += s * torch.outer(y_h, y_h)
            cross = torch.outer(y_h, v_h)
            product += s * s * q * torch.outer(y_h, y_h) + s * (cross + cross.T)
            y_k, v_k = x_kh @ y_h, x_kh @ v_h
            a_k += s * y_k.square()
            c_k += s * y_k * (s * q * y_k + 2.0 * v_k)
        return torch.nonzero(open_k).flatten().tolist()


def _along(block: Factors, sides_h2: torch.Tensor, shift_2: torch.Tensor) -> torch.Tensor:
    # Float32 for the product with the pool: the updates are small beside what they change.
    return (block.x_Mh @ sides_h2.float()).double() - shift_2
