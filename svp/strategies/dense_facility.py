"""Facility location over a stored table of similarities, for point sets small enough to have one.

The same picks as `svp.strategies.facility.facility_location`, which stores nothing, computes the
products again after every pick, and so takes several times as long.

Source: Nemhauser, Wolsey and Fisher 1978 (greedy). Gains are kept by difference: a pick raises
few rows, and lowers every gain by what those rows no longer offer.
Shapes: n = points, D = rows that a pick serves better than all before it, b = picks.
"""

from typing import Final

import numpy as np
import torch

from svp.strategies.facility import Facilities, Similarity
from svp.strategies.points import Points

# Gains closer than this share are ties, as where no table is stored.
_SAME: Final = 1e-11
_ROWS: Final = 512


def table_bytes(n: int) -> int:
    """Return the memory that `dense_facility_location` of n points holds beyond them."""
    return 8 * n * n + 8 * n * (3 * _ROWS + 16)


def dense_facility_location(
    points: Points, b: int, *, similarity: Similarity = "clipped"
) -> Facilities:
    """Choose `b` of the points that together resemble all of them, by greedy facility location.

    Args:
        points: Unit vectors, or zeros, without a second factor.
        b: How many, in [1, n].
        similarity: As in `svp.strategies.facility.facility_location`.
    """
    n = len(points)
    x_nh = torch.cat([block.x_Mh for _, block in points.blocks()]).double()
    table_nn = x_nh @ x_nh.T
    del x_nh
    if similarity == "shifted":
        table_nn.add_(1.0).mul_(0.5)
    table_nn.clamp_min_(0.0)
    reached_n = torch.zeros(n, dtype=torch.float64, device=table_nn.device)
    gain_n = table_nn.sum(dim=0)
    open_n = torch.ones_like(reached_n, dtype=torch.bool)
    places: list[int] = []
    gains: list[float] = []
    improved = 0
    while len(places) < b:
        left_n = torch.where(open_n, gain_n, -torch.inf)
        best = left_n.max()
        place = int((left_n >= best - _SAME * (1.0 + best)).nonzero()[0])
        gain = float(gain_n[place])
        if gain <= _SAME * n:
            rest = torch.nonzero(open_n).flatten()[: b - len(places)].tolist()
            places.extend(rest)
            gains.extend([0.0] * len(rest))
            break
        places.append(place)
        gains.append(gain)
        open_n[place] = False
        column_n = table_nn[place]
        rows = torch.nonzero(column_n > reached_n).flatten()
        improved += len(rows)
        for some in torch.split(rows, _ROWS):
            over_Dn = table_nn[some].sub_(reached_n[some][:, None]).clamp_min_(0.0)
            width_D1 = (column_n[some] - reached_n[some])[:, None]
            gain_n -= torch.minimum(over_Dn, width_D1).sum(dim=0)
        reached_n = torch.maximum(reached_n, column_n)
    return Facilities(
        places_b=np.asarray(places, dtype=np.int64),
        gains_b=np.asarray(gains, dtype=np.float64),
        counters={"improved_rows": improved},
    )
