"""D-squared seeding without reading all points at every draw.

A point is drawn with probability proportional to its squared distance from everything drawn before.

Source: Arthur and Vassilvitskii 2007, "k-means++", for the law. Distances to points drawn since
the last full pass are left out of the weights of all n points, so a weight can only be too large.
A draw proposes by these stale weights and accepts with probability true / stale, which gives
exactly the law of the true weights. All picks since the last pass are folded in by one matrix
product once they are many or proposals are often refused.

Shapes: n = points, P = proposals of one round, K = centres folded in, b = picks.
"""

import dataclasses
from typing import Final

import numpy as np
import torch

from svp.strategies.base import Float64Array, Int64Array
from svp.strategies.distance import exact_pairs, relative_error, snapped, square_distances
from svp.strategies.points import Factors, Points, join

_PROPOSALS: Final = 256
_PENDING: Final = 256
_CENTRE_ROWS: Final = 2048
_STALLS: Final = 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Seeds:
    """What was drawn.

    Attributes:
        places_b: Positions, in the order drawn.
        weight_b: Squared distance of each to everything before it when it was drawn; squared
            norm for a given first point.
        counters: `passes` over all points, `proposals` made.
    """

    places_b: Int64Array
    weight_b: Float64Array
    counters: dict[str, int]


def d2_seeding(
    points: Points,
    b: int,
    generator: np.random.Generator,
    *,
    first: int | None = None,
    centres: Points | None = None,
    share_n: Float64Array | None = None,
) -> Seeds:
    """Draw `b` distinct points by the D-squared law.

    Once every point left coincides with a centre the rest is taken in order.

    Args:
        points: What to draw from.
        b: How many, in [1, n].
        generator: Source of every random number.
        first: The first pick, if it is not drawn.
        centres: Points that count as drawn already. With neither `first` nor `centres` the first
            pick is uniform.
        share_n: Factor in (0, 1] on the squared distance of each point, and on its chance of
            being a uniform first pick; None: 1 for all.
    """
    seeding = _Seeding(points, b, share_n)
    if centres is not None and len(centres):
        for _, block in centres.blocks():
            seeding.add_centre(block)
    else:
        if first is not None:
            place = first
        elif share_n is None:
            place = int(generator.integers(len(points)))
        else:
            cumulative_n = np.cumsum(share_n)
            draw = generator.random() * cumulative_n[-1]
            place = min(int(np.searchsorted(cumulative_n, draw, side="right")), len(points) - 1)
        chosen = points.take(np.array([place], dtype=np.int64))
        seeding.accept(place, float(chosen.double().square_norms()[0]))
        seeding.add_centre(chosen)
    return seeding.run(generator)


class _Seeding:
    def __init__(self, points: Points, b: int, share_n: Float64Array | None) -> None:
        self._points, self._b, self._share_n = points, b, share_n
        _, first = next(points.blocks())
        device = first.x_Mh.device
        # Norms enlarged by the error bound make every float32 distance an upper bound.
        self._enlarge = 1.0 + relative_error(first)
        self._stale_n = torch.full((len(points),), torch.inf, device=device)
        self._nearest_n = torch.zeros(len(points), dtype=torch.int64, device=device)
        self._chosen_n = np.zeros(len(points), dtype=bool)
        self._folded: list[Factors] = []
        self._folded_rows = 0
        self._pending: list[Factors] = []
        self._places: list[int] = []
        self._weights: list[float] = []
        self._counters = {"passes": 0, "proposals": 0}

    def accept(self, place: int, weight: float) -> None:
        self._chosen_n[place] = True
        self._places.append(place)
        self._weights.append(weight)

    def add_centre(self, factors: Factors) -> None:
        self._pending.append(factors)

    def run(self, generator: np.random.Generator) -> Seeds:
        stalls = 0
        while len(self._places) < self._b:
            # The weights below are upper bounds until the exact ones replace them after a stall.
            weight_n = self._fold() if stalls < _STALLS else self._exact_weights()
            cumulative_n = np.cumsum(weight_n)
            if not cumulative_n[-1] > 0:
                self._take_rest()
                break
            accepted = 0
            while len(self._places) < self._b:
                new = self._round(generator, weight_n, cumulative_n)
                accepted += new
                waiting = sum(len(factors) for factors in self._pending)
                if waiting >= _PENDING or new < _PROPOSALS // 4:
                    break
            if stalls < _STALLS:
                stalls = 0 if accepted else stalls + 1
        return Seeds(
            places_b=np.asarray(self._places, dtype=np.int64),
            weight_b=np.asarray(self._weights, dtype=np.float64),
            counters=self._counters,
        )

    def _round(
        self, generator: np.random.Generator, weight_n: Float64Array, cumulative_n: Float64Array
    ) -> int:
        """Make one round of proposals; return how many were accepted."""
        self._counters["proposals"] += _PROPOSALS
        draw_P = generator.random(_PROPOSALS) * cumulative_n[-1]
        luck_P = generator.random(_PROPOSALS)
        places_P = np.searchsorted(cumulative_n, draw_P, side="right")
        # Rounding may carry the last draw past the end, or onto a point of weight 0.
        places_P = np.minimum(places_P, int(np.flatnonzero(weight_n)[-1]))
        proposed = self._points.take(places_P)
        true_P, between_PP = self._true_weights(proposed, places_P)
        accepted: list[int] = []
        for index, place in enumerate(places_P.tolist()):
            true = float(true_P[index])
            share = 1.0 if self._share_n is None else float(self._share_n[place])
            if self._chosen_n[place] or not luck_P[index] * weight_n[place] < true * share:
                continue
            self.accept(place, true)
            accepted.append(index)
            np.minimum(true_P, between_PP[index], out=true_P)
            if len(self._places) == self._b:
                break
        if accepted:
            self.add_centre(proposed[torch.tensor(accepted, device=proposed.x_Mh.device)])
        return len(accepted)

    def _true_weights(
        self, proposed: Factors, places_P: Int64Array
    ) -> tuple[Float64Array, Float64Array]:
        """Return float64 squared distances of proposals to all centres, and between them."""
        precise = proposed.double()
        norms_P = precise.square_norms()
        index = torch.from_numpy(places_P).to(norms_P.device)
        true_P = exact_pairs(proposed, join(self._folded)[self._nearest_n[index]])
        if self._pending:
            pending = join(self._pending).double()
            true_P = torch.minimum(true_P, _precise(precise, norms_P, pending).amin(dim=1))
        between_PP = _precise(precise, norms_P, precise)
        return true_P.cpu().numpy(), between_PP.cpu().numpy()

    def _fold(self) -> Float64Array:
        """Fold pending centres into all points; return the weights to propose by."""
        if self._pending:
            self._counters["passes"] += 1
            pending = join(self._pending)
            norms_K = pending.square_norms() * self._enlarge
            for part, block in self._points.blocks():
                norms_T = block.square_norms() * self._enlarge
                for start in range(0, len(pending), _CENTRE_ROWS):
                    some = slice(start, start + _CENTRE_ROWS)
                    square_TK = square_distances(block, norms_T, pending[some], norms_K[some])
                    least = square_TK.min(dim=1)
                    nearer_T = least.values < self._stale_n[part]
                    offset = self._folded_rows + start
                    self._nearest_n[part] = torch.where(
                        nearer_T, least.indices + offset, self._nearest_n[part]
                    )
                    self._stale_n[part] = torch.where(nearer_T, least.values, self._stale_n[part])
            self._folded.append(pending)
            self._folded_rows += len(pending)
            self._pending = []
        weight_n = self._stale_n.clamp_min(0.0).double().cpu().numpy()
        return self._shared(weight_n)

    def _exact_weights(self) -> Float64Array:
        """Return the true weights; for pools in which nearly everything coincides."""
        self._fold()
        folded = join(self._folded)
        weight_n = np.zeros(len(self._points))
        for part, block in self._points.blocks():
            weight_n[part] = exact_pairs(block, folded[self._nearest_n[part]]).cpu().numpy()
        return self._shared(weight_n)

    def _shared(self, weight_n: Float64Array) -> Float64Array:
        if self._share_n is not None:
            weight_n *= self._share_n
        weight_n[self._chosen_n] = 0.0
        return weight_n

    def _take_rest(self) -> None:
        rest = np.flatnonzero(~self._chosen_n)[: self._b - len(self._places)]
        for place in rest.tolist():
            self.accept(place, 0.0)


def _precise(a: Factors, a_norms: torch.Tensor, b: Factors) -> torch.Tensor:
    b_norms = b.square_norms()
    return snapped(square_distances(a, a_norms, b, b_norms), a_norms[:, None] + b_norms)
