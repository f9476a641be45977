"""Balancing: random images until the rarest classes need what is left of the budget.

Source: Aggarwal et al. 2020, "Active learning for imbalanced datasets"; the rule as in the code
of BASE (Emam et al. 2021), whose variable says nearest frequent class where the code takes the
farthest: candidates score dist^2 to the centre of the rarest class over the *largest* dist^2 to a
centre of a frequent class. Each pick is labelled before the next one is made.

Shapes: U = candidates, C = classes, h = width.
"""

import dataclasses
from typing import ClassVar, Final

import numpy as np
import torch

from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection, Space
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_choice
from svp.strategies.points import Norm, Points, pool_points

_ROWS: Final = 65_536
# Ratios this close in float32 are compared in float64.
_NEAR: Final = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Balancing:
    """Random picks, then the candidate that looks most like the rarest class.

    A frequent class has more labelled images than the mean. When the budget left is at most
    (number of other classes) * (mean count of frequent ones - mean count of the others), picks go
    to the rarest class. The early picks of a large batch are therefore random.

    Attributes:
        pseudo: Assume the proxy's prediction for each pick instead of reading its label.
        space: `hidden` measures in the input of the proxy's last layer (the embeddings when there
            is no proxy), `input` in the embeddings.
        norm: `none`, `l2` or `zscore`, as for `coreset`.
    """

    name: ClassVar[str] = "balancing"
    family: ClassVar[str] = "balance"
    summary: ClassVar[str] = "images that look like the classes with the fewest labels"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "labelled"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Aggarwal et al. 2020; code of Emam et al. 2021"
    scaling: ClassVar[str] = "b N (h + C)"
    instead: ClassVar[str] = "base"

    pseudo: bool = False
    space: Space = "hidden"
    norm: Norm = "none"

    def __post_init__(self) -> None:
        check_choice("balancing.space", self.space, ("input", "hidden"))
        check_choice("balancing.norm", self.norm, ("none", "l2", "zscore"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        return Cost(
            bytes=shape.tile_bytes
            + (4 * shape.classes + 64) * shape.candidates
            + 24 * shape.classes * shape.hidden
            + 16 * (shape.labelled + 1024) * shape.hidden
            + 12 * _ROWS * shape.classes
            + 32 * 2**20,
            flops=2.0 * shape.candidates * shape.hidden * (shape.classes + shape.budget),
            passes=shape.budget + 2.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates one after the other; see `Strategy.select`."""
        rows_U = view.candidates(seed)
        points = pool_points(view, rows_U, seed, budget, space=self.space, norm=self.norm)
        centres_L = view.centres(seed)
        labelled = pool_points(view, centres_L, seed, budget, space=self.space, norm=self.norm)
        y_L = view.y_L[np.searchsorted(view.labelled_L, centres_L)]
        classes = _Centres(points, labelled, y_L, view.n_classes)
        guess_U = _predictions(view, rows_U, budget) if self.pseudo else None
        places: list[int] = []
        ratios: list[float] = []
        open_U = np.ones(len(rows_U), dtype=bool)
        next_random = 0
        for left in range(b, 0, -1):
            if classes.wanted(left):
                place, ratio = classes.most_like_rarest()
            else:
                while not open_U[next_random]:
                    next_random += 1
                place, ratio = next_random, 1.0
            open_U[place] = False
            places.append(place)
            ratios.append(ratio)
            classes.close(place)
            if left == 1:
                break
            if guess_U is not None:
                label = int(guess_U[place])
            else:
                assert oracle is not None, "run_strategy gives an oracle"
                label = int(oracle(rows_U[place : place + 1])[0])
            classes.add(place, label)
        return Selection(
            rows_b=rows_U[np.asarray(places, dtype=np.int64)],
            utility_b=-np.asarray(ratios, dtype=np.float32),
            reason=(
                "Near the class with the fewest labels and far from frequent ones (minus the ratio "
                "of squared distances: {utility}; -1 is a random pick)."
            ),
            exactness=self.exactness,
            counters={"column_updates": classes.updates, "random": classes.random},
        )


class _Centres:
    """Class centres, and the squared distance of every candidate to each of them.

    A new label moves one centre, so one column of the distances is computed again. Centres are
    sums in float64, in a fixed order; float32 distances propose and float64 decides.
    """

    def __init__(self, points: Points, labelled: Points, y_L: Int64Array, n_classes: int) -> None:
        self._points = points
        _, first = next(points.blocks())
        device = first.x_Mh.device
        self._origin_h = first.x_Mh.mean(dim=0)
        self._counts_C = np.bincount(y_L, minlength=n_classes).astype(np.int64)
        self._sums_Ch = torch.zeros(
            n_classes, first.x_Mh.shape[1], dtype=torch.float64, device=device
        )
        for part, block in labelled.blocks():
            index = torch.from_numpy(y_L[part]).to(device)
            onehot = torch.nn.functional.one_hot(index, n_classes).double()
            self._sums_Ch += onehot.T @ block.x_Mh.double()
        self._square_UC = torch.full((len(points), n_classes), torch.inf, device=device)
        self._open_U = torch.ones(len(points), dtype=torch.bool, device=device)
        self._stale = set(range(n_classes))
        self.updates = 0
        self.random = 0

    def wanted(self, left: int) -> bool:
        """Return whether the rest of the budget must go to rare classes."""
        major_C = self._counts_C > self._counts_C.mean()
        if not major_C.any():
            # Perfect balance.
            self.random += 1
            return False
        gap = self._counts_C[major_C].mean() - self._counts_C[~major_C].mean()
        wanted = bool(left <= (~major_C).sum() * gap)
        self.random += not wanted
        return wanted

    def add(self, place: int, label: int) -> None:
        """Count a candidate as labelled."""
        x_h = self._points.take(np.array([place], dtype=np.int64)).x_Mh[0].double()
        self._sums_Ch[label] += x_h
        self._counts_C[label] += 1
        self._stale.add(label)

    def close(self, place: int) -> None:
        """Take a candidate out of the choice."""
        self._open_U[place] = False

    def most_like_rarest(self) -> tuple[int, float]:
        """Return the candidate of least ratio, the first of equals, and the ratio."""
        self._update()
        rarest = int(self._counts_C.argmin())
        major = np.flatnonzero(self._counts_C > self._counts_C.mean())
        major_index = torch.from_numpy(major).to(self._square_UC.device)
        known = bool(self._counts_C[rarest] > 0)
        ratio_U = torch.empty(len(self._points), device=self._square_UC.device)
        for start in range(0, len(self._points), _ROWS):
            square_TC = self._square_UC[start : start + _ROWS]
            far_T = square_TC[:, major_index].amax(dim=1).clamp_min_(1e-30)
            near_T = square_TC[:, rarest] if known else torch.ones_like(far_T)
            ratio_U[start : start + _ROWS] = near_T / far_T
        ratio_U = torch.where(self._open_U, ratio_U, torch.inf)
        least = float(ratio_U.min())
        close = torch.nonzero((ratio_U <= least * (1.0 + _NEAR) + _NEAR * 1e-3) & self._open_U)
        places = close.flatten()
        exact = self._exact(places, rarest if known else None, major)
        index = int(torch.nonzero(exact <= exact.min() * (1.0 + 1e-12))[0, 0])
        return int(places[index]), float(exact[index])

    def _exact(self, places: torch.Tensor, rarest: int | None, major: Int64Array) -> torch.Tensor:
        found = []
        for start in range(0, len(places), 256):
            some = places[start : start + 256].cpu().numpy()
            x_Mh = self._points.take(some).x_Mh.double()
            far_M = torch.zeros(len(x_Mh), dtype=torch.float64, device=x_Mh.device)
            for one in major.tolist():
                far_M = torch.maximum(far_M, (x_Mh - self._mean(one)).square().sum(dim=1))
            near_M = torch.ones_like(far_M)
            if rarest is not None:
                near_M = (x_Mh - self._mean(rarest)).square().sum(dim=1)
            # A candidate on every frequent centre is the least wanted.
            found.append(torch.where(far_M > 0, near_M / far_M.clamp_min(1e-300), 1e30))
        return torch.cat(found)

    def _mean(self, one: int) -> torch.Tensor:
        return self._sums_Ch[one] / float(self._counts_C[one])

    def _update(self) -> None:
        """Compute the columns of the centres that moved."""
        stale = [one for one in sorted(self._stale) if self._counts_C[one] > 0]
        self._stale.clear()
        if not stale:
            return
        self.updates += len(stale)
        centres_Kh = torch.stack([self._mean(one) for one in stale]).float() - self._origin_h
        norms_K = centres_Kh.square().sum(dim=1)
        index = torch.tensor(stale, device=self._square_UC.device)
        for part, block in self._points.blocks():
            shifted = block.shifted(self._origin_h)
            square_TK = torch.addmm(norms_K, shifted.x_Mh, centres_Kh.T, alpha=-2.0)
            square_TK += shifted.square_norms()[:, None]
            self._square_UC[part, index] = square_TK.clamp_min_(0.0)


def _predictions(view: PoolView, rows_U: Int64Array, budget: Budget) -> Int64Array:
    guess_U = np.empty(len(rows_U), dtype=np.int64)
    for part, z_TC in view.logit_tiles(rows_U, budget):
        guess_U[part] = z_TC.argmax(dim=1).cpu().numpy()
    return guess_U
