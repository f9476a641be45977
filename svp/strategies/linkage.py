"""Average-linkage clustering of weighted points by nearest-neighbour chains.

Average linkage never brings two clusters closer than either was to the merged ones (it is
reducible), so merging mutual nearest neighbours in any order gives the same tree as always merging
the closest pair, in O(m^2) time and memory.

Source: Murtagh 1983, "A survey of recent advances in hierarchical clustering algorithms"
(nearest-neighbour chains); Lance and Williams 1967 (update of average linkage). Libraries start
from unit weights, so they cannot cluster points that stand for many.
Shapes: m = points.
"""

import numpy as np
import numpy.typing as npt

from svp.strategies.base import Int64Array

Float32Array = npt.NDArray[np.float32]


def average_linkage(distance_mm: Float32Array, weights_m: Int64Array, clusters: int) -> Int64Array:
    """Return the cluster of each point, (m,), numbered by first appearance.

    Args:
        distance_mm: Distances, symmetric. Overwritten.
        weights_m: How many items each point stands for, at least 1.
        clusters: How many to cut the tree into, in [1, m].
    """
    m = len(weights_m)
    np.fill_diagonal(distance_mm, np.inf)
    weight = weights_m.astype(np.float64)
    merges = np.empty((m - 1, 2), dtype=np.int64)
    heights = np.empty(m - 1)
    alive = np.ones(m, dtype=bool)
    chain: list[int] = []
    for step in range(m - 1):
        if not chain:
            chain.append(int(np.argmax(alive)))
        while True:
            tip = chain[-1]
            nearest = int(np.argmin(distance_mm[tip]))
            # Prefer going back on a tie, or the chain would run in circles.
            if len(chain) > 1 and distance_mm[tip, chain[-2]] <= distance_mm[tip, nearest]:
                nearest = chain[-2]
                break
            chain.append(nearest)
        height = distance_mm[tip, nearest]
        del chain[-2:]
        keep, gone = min(tip, nearest), max(tip, nearest)
        merges[step], heights[step] = (keep, gone), height
        total = weight[keep] + weight[gone]
        row = (weight[keep] * distance_mm[keep] + weight[gone] * distance_mm[gone]) / total
        row = row.astype(np.float32)
        row[[keep, gone]] = np.inf
        distance_mm[keep], distance_mm[:, keep] = row, row
        distance_mm[gone], distance_mm[:, gone] = np.inf, np.inf
        weight[keep] = total
        alive[gone] = False
    return _cut(merges, heights, m, clusters)


def _cut(merges: Int64Array, heights: npt.NDArray[np.float64], m: int, clusters: int) -> Int64Array:
    parent = np.arange(m)

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = int(parent[one])
        return one

    # Stable: of equal heights the one merged first is below.
    for step in np.argsort(heights, kind="stable")[: m - clusters].tolist():
        one, two = root(int(merges[step, 0])), root(int(merges[step, 1]))
        parent[max(one, two)] = min(one, two)
    roots = np.array([root(one) for one in range(m)])
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)
