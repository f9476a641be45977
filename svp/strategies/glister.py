"""GLISTER-Active: picks whose gradient step lowers the loss on everything at hand.

The validation set V is the labelled rows with their labels and the candidates with the proxy's
predictions. After a virtual step on the labelled rows, a pick j is worth q_j (G x_j), the inner
product of its loss gradient q_j (x) x_j (its label taken to be the prediction) with the gradient
G of the loss on V. Taking it moves the last layer by -eta q_j (x) x_j, and with it all logits of
V by -eta (x_i . x_j) q_j: a rank-one update. No network is trained.

Source: Killamsetty et al. 2021, "GLISTER: generalization based data subset selection for
efficient and robust learning", algorithm 1 and the active form of section 5; DISTIL (Beck et al.
2021) for the program.
Shapes: T = rows of one block, C = classes, h = width of the last layer's input, r = picks of one
refresh, U = candidates, V = validation rows. Every x carries a constant 1 for the bias.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import torch

from svp.errors import InputError
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.points import Factors, Points, join, pool_points
from svp.strategies.rank import TopK


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Glister:
    """Greedy choice by one-step gains, with rank-one updates of the validation logits.

    Attributes:
        eta: Size of the virtual steps; the published experiments use 0.01.
        labelled_step: Gradient of the labelled rows in the first step. `mean`; or `sum`, as in
            DISTIL's program, where the step grows with the number of labels and leaves the range
            in which one step means anything.
        refresh_every: Picks between two refreshes of the gains. 1 is exact; more takes that many
            of the highest gains at once (`approx:refresh`).
        validation: Rows of V, drawn at random in proportion from candidates and labelled rows; 0:
            all (anything else is `approx:validation-sample`).
    """

    name: ClassVar[str] = "glister"
    family: ClassVar[str] = "gradient"
    summary: ClassVar[str] = "images whose label should lower the loss on all others most"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {"embeddings", "logits", "linear_head", "labelled"}
    )
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Killamsetty et al. 2021, algorithm 1"
    scaling: ClassVar[str] = "b / refresh_every * N h C"
    instead: ClassVar[str] = "glister with refresh_every = 100, or badge"

    eta: float = 0.01
    labelled_step: Literal["mean", "sum"] = "mean"
    refresh_every: int = 1
    validation: int = 0

    def __post_init__(self) -> None:
        check_choice("glister.labelled_step", self.labelled_step, ("mean", "sum"))
        check_range("glister.refresh_every", self.refresh_every, 1)
        check_range("glister.validation", self.validation, 0)
        if not 0.0 <= self.eta < float("inf"):
            raise InputError(
                f"glister.eta must be at least 0. Got {self.eta}. The published value is 0.01."
            )

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        rows = shape.candidates + shape.labelled
        held = min(rows, self.validation) if self.validation else rows
        refreshes = -(-shape.budget // self.refresh_every)
        both = (held + shape.candidates) * shape.hidden * shape.classes
        return Cost(
            # Logits of V; gains and flags of U; G, and the factors of the picks of a refresh.
            bytes=shape.tile_bytes
            + 4 * (held + 2048) * shape.classes
            + 64 * shape.candidates
            + 24 * shape.classes * (shape.hidden + 1)
            + 16 * min(self.refresh_every, shape.budget) * (shape.hidden + shape.classes + 1024),
            flops=2.0 * refreshes * both,
            passes=2.0 * refreshes + 2.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates greedily; see `Strategy.select`."""
        del oracle
        rows_U = view.candidates(seed)
        rows_L = view.centres(seed)
        y_L = view.y_L[np.searchsorted(view.labelled_L, rows_L)]
        points = pool_points(view, rows_U, seed, budget, gradients=True)
        labelled = pool_points(view, rows_L, seed, budget, gradients=True)
        model = Model(view, points, labelled, y_L, self)
        places: list[int] = []
        gains: list[float] = []
        while len(places) < b:
            chosen, gain = model.best(min(self.refresh_every, b - len(places)))
            places.extend(chosen.tolist())
            gains.extend(gain.tolist())
            if len(places) < b:
                model.take(chosen)
        exactness = self.exactness
        if self.validation and self.validation < len(rows_U) + len(rows_L):
            exactness = "approx:validation-sample"
        elif self.refresh_every > 1:
            exactness = "approx:refresh"
        return Selection(
            rows_b=rows_U[places],
            utility_b=np.asarray(gains, dtype=np.float32),
            reason="A step on this label would lower the loss on the others (gain {utility}).",
            exactness=exactness,
            counters={"refreshes": -(-b // self.refresh_every)},
        )


class Model:
    """The last layer's virtual state, as logits of V.

    Args:
        view: The pool, with a proxy.
        points: Candidates with their gradient factors.
        labelled: Labelled rows, in any fixed order.
        y_L: Their classes.
        strategy: Parameters.
    """

    def __init__(
        self, view: PoolView, points: Points, labelled: Points, y_L: Int64Array, strategy: Glister
    ) -> None:
        self._points, self._labelled = points, labelled
        head = view.required_proxy().head
        self._eta = strategy.eta
        rows = len(points) + len(labelled)
        share = min(1.0, strategy.validation / rows) if strategy.validation else 1.0
        # At least one of each, so that a small sample is not empty.
        self._of_points = max(1, round(share * len(points)))
        self._of_labelled = max(1, round(share * len(labelled)))
        _, first = next(points.blocks())
        device = first.x_Mh.device
        weight_Ch, bias_C = head.weight_Cd.to(device), head.bias_C.to(device)
        self._y_V = torch.empty(self._of_points + self._of_labelled, dtype=torch.int64)
        self._y_V = self._y_V.to(device)
        self._z_VC = torch.empty(len(self._y_V), len(bias_C), device=device)
        truth_L = torch.from_numpy(y_L).to(device)
        for part, block in self._validation():
            z_TC = torch.nn.functional.linear(block.x_Mh, weight_Ch, bias_C)
            self._z_VC[part] = z_TC
            inside = slice(part.start - self._of_points, part.stop - self._of_points)
            known = part.start >= self._of_points
            self._y_V[part] = truth_L[inside] if known else z_TC.argmax(dim=1)
        self._open_U = torch.ones(len(points), dtype=torch.bool, device=device)
        self._step(*self._labelled_gradient(weight_Ch, bias_C, truth_L, strategy.labelled_step))

    def gains(self) -> torch.Tensor:
        """Return the gain of every candidate at the present state, (U,)."""
        gradient_Ch, gradient_C = self.gradient()
        gain_U = torch.empty(len(self._points), device=gradient_C.device)
        for part, block in self._points.blocks():
            assert block.q_MC is not None
            along_TC = torch.nn.functional.linear(block.x_Mh, gradient_Ch, gradient_C)
            gain_U[part] = (along_TC * block.q_MC).sum(dim=1)
        return gain_U

    def gradient(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradient of the mean loss on V: of the weights (C, h), of the bias (C,)."""
        total: tuple[torch.Tensor, torch.Tensor] | None = None
        for part, block in self._validation():
            residual_TC = torch.softmax(self._z_VC[part], dim=1)
            own_T1 = self._y_V[part][:, None]
            residual_TC.scatter_add_(1, own_T1, -torch.ones_like(own_T1, dtype=torch.float32))
            total = _added(total, residual_TC, block)
        assert total is not None, "there are candidates"
        scale = 1.0 / len(self._y_V)
        return (total[0] * scale).float(), (total[1] * scale).float()

    def best(self, r: int) -> tuple[Int64Array, np.ndarray[tuple[int], np.dtype[np.float32]]]:
        """Return the places of the r highest gains, the first of equals, and the gains."""
        gain_U = torch.where(self._open_U, self.gains(), -torch.inf)
        if r == 1:
            place = gain_U.argmax()
            return place.reshape(1).cpu().numpy(), gain_U[place].reshape(1).cpu().numpy()
        top = TopK(r)
        top.push(gain_U.cpu().numpy(), np.arange(len(gain_U), dtype=np.int64))
        return top.best()

    def take(self, places_r: Int64Array) -> None:
        """Make the virtual steps of these candidates."""
        # From the same blocks as everywhere: computed beside other rows, last bits could differ.
        found: list[tuple[int, Factors]] = []
        for part, block in self._points.blocks():
            inside = np.flatnonzero((places_r >= part.start) & (places_r < part.stop))
            found += [(int(at), block[int(places_r[at]) - part.start :][:1]) for at in inside]
        chosen = join([factors for _, factors in sorted(found, key=lambda pair: pair[0])])
        assert chosen.q_MC is not None
        self._open_U[torch.from_numpy(places_r).to(self._open_U.device)] = False
        x_hr, q_rC = chosen.x_Mh.T.contiguous(), chosen.q_MC * self._eta
        for part, block in self._validation():
            inner_Tr = block.x_Mh @ x_hr + 1.0
            self._z_VC[part] -= inner_Tr @ q_rC

    def _step(self, gradient_Ch: torch.Tensor, gradient_C: torch.Tensor) -> None:
        for part, block in self._validation():
            along_TC = torch.nn.functional.linear(block.x_Mh, gradient_Ch, gradient_C)
            self._z_VC[part] -= self._eta * along_TC

    def _labelled_gradient(
        self,
        weight_Ch: torch.Tensor,
        bias_C: torch.Tensor,
        truth_L: torch.Tensor,
        kind: Literal["mean", "sum"],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total: tuple[torch.Tensor, torch.Tensor] | None = None
        for part, block in self._labelled.blocks():
            z_TC = torch.nn.functional.linear(block.x_Mh, weight_Ch, bias_C)
            residual_TC = torch.softmax(z_TC, dim=1)
            own_T1 = truth_L[part][:, None]
            residual_TC.scatter_add_(1, own_T1, -torch.ones_like(own_T1, dtype=torch.float32))
            total = _added(total, residual_TC, block)
        assert total is not None, "the strategy needs labelled rows"
        scale = 1.0 / len(truth_L) if kind == "mean" else 1.0
        return (total[0] * scale).float(), (total[1] * scale).float()

    def _validation(self) -> Iterator[tuple[slice, Factors]]:
        """Yield (positions in V, rows): candidates first, then labelled rows."""
        for points, rows, offset in (
            (self._points, self._of_points, 0),
            (self._labelled, self._of_labelled, self._of_points),
        ):
            for part, block in points.blocks():
                if part.start >= rows:
                    break
                stop = min(part.stop, rows)
                yield slice(offset + part.start, offset + stop), block[: stop - part.start]


def _added(
    total: tuple[torch.Tensor, torch.Tensor] | None, residual_TC: torch.Tensor, block: Factors
) -> tuple[torch.Tensor, torch.Tensor]:
    weights_Ch = (residual_TC.T @ block.x_Mh).double()
    bias_C = residual_TC.sum(dim=0, dtype=torch.float64)
    return (weights_Ch, bias_C) if total is None else (total[0] + weights_Ch, total[1] + bias_C)
