"""Facility location: chosen points that together resemble every represented point.

F(S) = sum over represented points r of the largest similarity s(r, j) to a chosen j. Greedy
maximisation is within 1 - 1/e of the best set, because F is monotone and submodular for s >= 0.

Source: Nemhauser, Wolsey and Fisher 1978, "An analysis of approximations for maximizing submodular
set functions". Bound of rounding errors: Higham and Mary 2019, "A new approach to probabilistic
rounding error analysis" (errors grow with the square root of the number of operations).

Similarities are never stored. The first gains take all pairs, one tile at a time. A pick then
changes only the rows that it serves better than all picks before, so the gains of all candidates
follow by one product with those rows: over b picks about log b times all pairs, however flat the
gains are (stale gains, as in the lazy greedy algorithm of Minoux 1978, would be refreshed by the
hundred per pick in a pool of alike images). Float32 gains only propose; candidates that rounding
might confuse are computed in float64 over the rows they would serve, and equal ones fall to the
first in order.

Shapes: R = represented points, n = candidates, h = width, b = picks, D = rows a pick improves.
"""

import dataclasses
from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
import torch

from svp.strategies.base import Float64Array, Int64Array
from svp.strategies.block import BLOCK_ROWS
from svp.strategies.points import Factors, Points

Similarity = Literal["clipped", "shifted"]

_GROUP_BLOCKS: Final = 8
_UNIT: Final = 2.0**-24
# Share of a gain that float32 sums and errors shared by copies of one row may amount to.
_SHARED: Final = 4e-6
# Gains closer than this share are ties in float64.
_SAME: Final = 1e-11


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Facilities:
    """What the greedy algorithm chose.

    Attributes:
        places_b: Positions among the candidates, in order.
        gains_b: Increase of F by each pick, never increasing.
        counters: `improved_rows` over all picks, `exact_gains` decided in float64.
    """

    places_b: Int64Array
    gains_b: Float64Array
    counters: dict[str, int]


def facility_bytes(represented: int, candidates: int, hidden: int) -> int:
    """Return an upper bound of the memory `facility_location` holds beyond the points."""
    return 48 * represented + 64 * candidates + 96 * BLOCK_ROWS * hidden + 48 * 2**20


def facility_location(
    represented: Points,
    candidates: Points,
    b: int,
    *,
    similarity: Similarity = "clipped",
    covered: Points | None = None,
) -> Facilities:
    """Choose `b` candidates by greedy facility location.

    The first pick of equal ones is the first in order. Once no candidate adds anything, the rest
    is taken in order with a gain of 0.

    Args:
        represented: What F sums over: unit vectors, or zeros, without a second factor. Pass the
            same object as `candidates` where both are the same points: the first gains then take
            half the time.
        candidates: What may be chosen: unit vectors.
        b: How many, in [1, n].
        similarity: `clipped` is max(0, cosine); `shifted` is (1 + cosine) / 2. Raw cosines would
            let F fall and void the guarantee.
        covered: Points that count as chosen already.
    """
    return _Greedy(represented, candidates, similarity, covered).run(b)


class _Greedy:
    def __init__(
        self,
        represented: Points,
        candidates: Points,
        similarity: Similarity,
        covered: Points | None,
    ) -> None:
        self._represented, self._candidates = represented, candidates
        _, first = next(candidates.blocks())
        device = first.x_Mh.device
        # max(0, s - m) with s = (1 + c) / 2 is half of max(0, c - t) with t = 2 m - 1, so both
        # similarities are handled as cosines above a threshold.
        self._factor, start = (1.0, 0.0) if similarity == "clipped" else (0.5, -1.0)
        self._error = first.x_Mh.shape[1] ** 0.5 * _UNIT
        self._reached_R = torch.full((len(represented),), start, dtype=torch.float64, device=device)
        if covered is not None and len(covered):
            self._cover(covered)
        n = len(candidates)
        self._gain_n = torch.zeros(n, dtype=torch.float64, device=device)
        # Terms that entered a gain since it was last exact; 0: it is exact.
        self._terms_n = torch.full((n,), len(represented), dtype=torch.float64, device=device)
        self._open_n = torch.ones(n, dtype=torch.bool, device=device)
        self._counters = {"improved_rows": 0, "exact_gains": 0}

    def run(self, b: int) -> Facilities:
        self._first_gains()
        nothing = _SAME * len(self._represented)
        places: list[int] = []
        gains: list[float] = []
        while len(places) < b:
            place, gain = self._best()
            if gain <= nothing:
                rest = torch.nonzero(self._open_n).flatten()[: b - len(places)].tolist()
                places.extend(rest)
                gains.extend([0.0] * len(rest))
                break
            places.append(place)
            gains.append(gain)
            self._open_n[place] = False
            if len(places) < b:
                self._take(place)
        return Facilities(
            places_b=np.asarray(places, dtype=np.int64),
            gains_b=np.asarray(gains, dtype=np.float64),
            counters=self._counters,
        )

    def _cover(self, covered: Points) -> None:
        for part, block in self._represented.blocks():
            x_Th = block.x_Mh.double()
            for _, other in covered.blocks():
                nearest_T = (x_Th @ other.x_Mh.double().T).amax(dim=1)
                self._reached_R[part] = torch.maximum(self._reached_R[part], nearest_T)

    def _first_gains(self) -> None:
        """Sum the gain of every candidate over all pairs, one tile at a time."""
        reached_R = self._reached_R.float()
        symmetric = self._represented is self._candidates
        for group in _groups(self._represented):
            begin = group[0][0].start if symmetric else 0
            for column, other in self._candidates.blocks():
                if symmetric and column.start < begin:
                    continue
                for row, block in group:
                    if symmetric and row.start > column.start:
                        continue
                    cosine_TK = block.x_Mh @ other.x_Mh.T
                    self._gain_n[column] += _above(cosine_TK, reached_R[row][:, None], 0)
                    if symmetric and row.start < column.start:
                        self._gain_n[row] += _above(cosine_TK, reached_R[column][None], 1)

    def _best(self) -> tuple[int, float]:
        """Return the first of the best open candidates and its exact gain."""
        while True:
            doubt_n = 4.0 * self._error * self._terms_n.sqrt() + _SHARED * self._gain_n.abs()
            doubt_n = torch.where(self._terms_n > 0, doubt_n, _SAME * (1.0 + self._gain_n.abs()))
            upper_n = torch.where(self._open_n, self._gain_n + doubt_n, -torch.inf)
            least = torch.where(self._open_n, self._gain_n - doubt_n, -torch.inf).max()
            finalists = torch.nonzero(upper_n >= least).flatten()
            open_F = self._terms_n[finalists] > 0
            if not bool(open_F.any()):
                place = int(finalists[0])
                return place, float(self._gain_n[place]) * self._factor
            unsure = finalists[open_F]
            # The most promising first: their exact gains rule others out.
            order = torch.argsort(upper_n[unsure], descending=True, stable=True)[:16]
            for place in unsure[order].tolist():
                self._decide(place)

    def _decide(self, place: int) -> None:
        """Compute one gain in float64 over the rows that it improves."""
        self._counters["exact_gains"] += 1
        total = torch.zeros((), dtype=torch.float64, device=self._gain_n.device)
        for rows, cosine in self._served(place):
            total += (cosine - self._reached_R[rows]).sum()
        self._gain_n[place] = total
        self._terms_n[place] = 0.0

    def _served(self, place: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield rows that a candidate serves better than all picks, with float64 cosines."""
        chosen_h = self._candidates.take(np.array([place], dtype=np.int64)).x_Mh[0]
        margin = 16.0 * self._error + 2.0 * _UNIT
        near: list[torch.Tensor] = []
        for part, block in self._represented.blocks():
            cosine_T = torch.mv(block.x_Mh, chosen_h)
            near_T = torch.nonzero(cosine_T > self._reached_R[part] - margin).flatten()
            near.append(near_T + part.start)
        rows = torch.cat(near)
        chosen_h = chosen_h.double()
        for start in range(0, len(rows), BLOCK_ROWS):
            some = rows[start : start + BLOCK_ROWS]
            cosine = self._represented.take(some.cpu().numpy()).x_Mh.double() @ chosen_h
            better = cosine > self._reached_R[some]
            yield some[better], cosine[better]

    def _take(self, place: int) -> None:
        """Add a pick: raise what it serves better, and lower all gains by the same."""
        found = list(self._served(place))
        rows = torch.cat([rows for rows, _ in found])
        new_D = torch.cat([cosine for _, cosine in found])
        self._counters["improved_rows"] += len(rows)
        low_D, high_D = self._reached_R[rows].float(), new_D.float()
        self._reached_R[rows] = new_D
        for start in range(0, len(rows), BLOCK_ROWS):
            some = slice(start, start + BLOCK_ROWS)
            x_Dh = self._represented.take(rows[some].cpu().numpy()).x_Mh
            low_D1, width_D1 = low_D[some][:, None], (high_D - low_D)[some][:, None]
            for part, block in self._candidates.blocks():
                over_DT = (x_Dh @ block.x_Mh.T).sub_(low_D1)
                # A candidate that none of these rows concerns keeps its exact gain.
                near_T = over_DT.amax(dim=0) > -16.0 * self._error
                self._terms_n[part] += torch.where(near_T, float(len(x_Dh)), 0.0)
                less_DT = torch.minimum(over_DT.clamp_min_(0.0), width_D1)
                self._gain_n[part] -= less_DT.sum(dim=0).double()


def _above(cosine: torch.Tensor, reached: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the sum of what exceeds a threshold along one dimension, as float64."""
    return (cosine - reached).clamp_min_(0.0).sum(dim=dim).double()


def _groups(points: Points) -> Iterator[list[tuple[slice, Factors]]]:
    """Yield a few blocks at once, so that the other side is read less often."""
    group: list[tuple[slice, Factors]] = []
    for part, block in points.blocks():
        group.append((part, block))
        if len(group) == _GROUP_BLOCKS:
            yield group
            group = []
    if group:
        yield group
