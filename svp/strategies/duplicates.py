"""Near-duplicates: groups of rows whose cosine reaches a threshold, exactly and in bounded memory.

All pairs are compared, but almost none in full. Every row is split into its part in an orthonormal
subspace of a few dimensions and the rest, so that by the Cauchy-Schwarz inequality

    cos(a, b) <= a1.b1 + |a2| |b2|,

one inner product of width m + 1 instead of d. What this bound leaves open is computed in full, in
float64 wherever float32 rounding could decide. So the pairs are exactly those whose float64 cosine
reaches the threshold, for any tile size. Groups are their connected components: two rows of one
group may be further apart than the threshold if others lie between them.

Source of the rounding bound: Higham 2002, "Accuracy and stability of numerical algorithms",
section 3.1.
Shapes: N = rows, M = pairs or rows of a block, T = rows of one tile, d = features, m = projected.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.strategies.base import Budget, Int64Array, Rows, gather

_TILE_ROWS: Final = 2048  # one tile of products is 16 MiB
_PAIR_ROWS: Final = 4096  # pairs computed at once in float64, always padded to this shape
_KEPT: Final = 64  # dimensions of the bound
_SAMPLE: Final = 8192  # rows whose second moments give the subspace
_DENSE: Final = 0.004  # share of open pairs from which one float32 product of all is cheaper
_ROUNDING: Final = 1e-12  # a float64 cosine of equal rows may be this far below 1
_FOLD: Final = 2**20  # pairs collected before groups are merged


def near_duplicate_groups(
    x_Nd: torch.Tensor | Rows,
    threshold: float,
    budget: Budget,
    *,
    progress: Progress | None = None,
) -> Int64Array:
    """Group rows that are near-duplicates of each other.

    Rows of zeros have no direction and are nobody's duplicate. Peak memory beyond `x_Nd`:
    about 280 bytes a row and a few tiles.

    Args:
        x_Nd: Embeddings of any norm, float16, float32 or float64, on any device, or `Rows` that
            fetch them.
        threshold: Least cosine of a pair, in (0, 1].
        budget: Device and largest tile; neither changes the groups.
        progress: Where to report.

    Returns:
        Group of every row, (N,) int64. Groups are numbered from 0 in the order of their first
        row; a row without a duplicate is a group of its own.

    Raises:
        InputError: If the threshold is out of range or a value is not finite.
    """
    check_threshold(threshold)
    rows = _Unit(x_Nd, budget)
    merged = _Groups(x_Nd.shape[0])
    tile = min(budget.tile_rows, _TILE_ROWS)
    starts = range(0, x_Nd.shape[0], tile)
    total = len(starts) * (len(starts) + 1) // 2
    with (progress or Silent()).task("comparing", total, unit="tiles") as task:
        for at, start in enumerate(starts):
            a = slice(start, min(start + tile, x_Nd.shape[0]))
            for other in starts[at:]:
                b = slice(other, min(other + tile, x_Nd.shape[0]))
                _compare(rows, merged, a, b, threshold)
                task.advance()
    return merged.numbered()


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that is not in (0, 1]."""
    if not 0.0 < threshold <= 1.0:
        raise InputError(
            f"The threshold of near-duplicates must be in (0, 1]. Got {threshold}. Try 0.98."
        )


def cosines(x_Nd: torch.Tensor | Rows, a_M: Int64Array, b_M: Int64Array) -> npt.NDArray[np.float64]:
    """Return the cosine of rows a and b of each pair in float64, (M,); 0 for rows of zeros.

    A pair's value depends on its two rows alone.
    """
    found = np.empty(len(a_M), dtype=np.float64)
    for start in range(0, len(a_M), _PAIR_ROWS):
        part = slice(start, start + _PAIR_ROWS)
        a_Md, b_Md = _padded(x_Nd, a_M[part]), _padded(x_Nd, b_M[part])
        product_M = (a_Md * b_Md).sum(dim=1)
        norms_M = a_Md.square().sum(dim=1).sqrt() * b_Md.square().sum(dim=1).sqrt()
        cosine_M = torch.where(norms_M > 0, product_M / norms_M, 0.0)
        found[part] = cosine_M[: len(a_M[part])].cpu().numpy()
    return found


def _padded(x_Nd: torch.Tensor | Rows, rows_M: Int64Array) -> torch.Tensor:
    """Return rows in float64 in one fixed shape: sums of other shapes may round differently."""
    index = np.zeros(_PAIR_ROWS, dtype=np.int64)
    index[: len(rows_M)] = rows_M
    return gather(x_Nd, index).double()


def _slice(x_Nd: torch.Tensor | Rows, part: slice) -> torch.Tensor:
    if isinstance(x_Nd, torch.Tensor):
        return x_Nd[part]
    return x_Nd.gather(np.arange(*part.indices(x_Nd.shape[0]), dtype=np.int64))


class _Unit:
    """Unit rows, and what bounds their cosines."""

    def __init__(self, x_Nd: torch.Tensor | Rows, budget: Budget) -> None:
        self.x_Nd, self._device = x_Nd, budget.device
        n, d = x_Nd.shape
        # A caller may have let float32 products run as TF32 (10 bits) or bfloat16 (7 bits).
        unit = {"highest": 2.0**-24, "high": 2.0**-11}.get(
            torch.get_float32_matmul_precision(), 2.0**-8
        )
        self.slack = 2.0 * (d + 16) * unit
        self.norms_N1 = torch.zeros(n, 1, dtype=torch.float64, device=budget.device)
        for start in range(0, n, _TILE_ROWS):
            part = slice(start, start + _TILE_ROWS)
            x_Td = _slice(x_Nd, part).to(budget.device).double()
            # Scaled by the largest value, so that no float64 square can overflow or vanish.
            largest_T1 = x_Td.abs().amax(dim=1, keepdim=True) if d else x_Td.new_zeros(len(x_Td), 1)
            if not bool(torch.isfinite(largest_T1).all()):
                raise InputError(
                    "Embeddings must be finite. Got a value that is not. Embed the pool again."
                )
            scaled_Td = x_Td / largest_T1.clamp_min(torch.finfo(torch.float64).tiny)
            self.norms_N1[part] = largest_T1 * scaled_Td.square().sum(dim=1, keepdim=True).sqrt()
        self.bounds_Nk = self._bounds() if d >= 2 * _KEPT else None

    def unit(self, part: slice) -> torch.Tensor:
        """Return unit rows in float64, zeros for rows of zeros."""
        norms_T1 = self.norms_N1[part]
        x_Td = _slice(self.x_Nd, part).to(self._device).double()
        return torch.where(norms_T1 > 0, x_Td / norms_T1, 0.0)

    def _bounds(self) -> torch.Tensor:
        """Return (projection, norm of the rest) of every unit row, float32 (N, m + 1)."""
        n, d = self.x_Nd.shape
        # The directions that hold most of the rows leave least to the second term. Any
        # orthonormal ones would be right; these come from evenly spread rows.
        moments_dd = torch.zeros(d, d, dtype=torch.float64, device=self._device)
        step = max(1, n // _SAMPLE)
        for start in range(0, n, _TILE_ROWS * step):
            sample_Td = self.unit(slice(start, start + _TILE_ROWS * step, step))
            moments_dd += sample_Td.T @ sample_Td
        _, basis_dd = torch.linalg.eigh(moments_dd)
        basis_dm = basis_dd[:, -_KEPT:]
        bounds_Nk = torch.empty(n, _KEPT + 1, dtype=torch.float32, device=self._device)
        for start in range(0, n, _TILE_ROWS):
            part = slice(start, start + _TILE_ROWS)
            unit_Td = self.unit(part)
            kept_Tm = unit_Td @ basis_dm
            # The rest is measured, not inferred from 1 - |a1|^2, which would lose half the digits.
            rest_T = (unit_Td - kept_Tm @ basis_dm.T).square().sum(dim=1).sqrt()
            bounds_Nk[part, :_KEPT] = kept_Tm.float()
            bounds_Nk[part, _KEPT] = rest_T.float()
        return bounds_Nk


def _compare(rows: _Unit, merged: "_Groups", a: slice, b: slice, threshold: float) -> None:
    """Merge the groups of all near-duplicates between two tiles."""
    least = threshold - rows.slack
    if rows.bounds_Nk is not None:
        bound_TT = rows.bounds_Nk[a] @ rows.bounds_Nk[b].T
        # A maximum reads the tile once; almost every tile ends here or with a few pairs.
        if float(bound_TT.max()) < least:
            return
        open_TT = bound_TT >= least
        own = a.start == b.start  # its diagonal is always open
        count = int(open_TT.sum()) - (bound_TT.shape[0] if own else 0)
        if count <= _DENSE * bound_TT.numel():
            a_M, b_M = _pairs(open_TT, a, b)
            _decide(rows, merged, a_M, b_M, threshold)
            return
    cosine_TT = rows.unit(a).float() @ rows.unit(b).float().T
    merged.merge(*_pairs(cosine_TT >= threshold + rows.slack, a, b))
    a_M, b_M = _pairs((cosine_TT >= least) & (cosine_TT < threshold + rows.slack), a, b)
    _decide(rows, merged, a_M, b_M, threshold)


def _pairs(chosen_TT: torch.Tensor, a: slice, b: slice) -> tuple[Int64Array, Int64Array]:
    """Return the row numbers (a, b) of the chosen pairs with a < b."""
    found_M2 = chosen_TT.nonzero().cpu().numpy()
    a_M, b_M = found_M2[:, 0] + a.start, found_M2[:, 1] + b.start
    upper_M = a_M < b_M
    return a_M[upper_M], b_M[upper_M]


def _decide(
    rows: _Unit, merged: "_Groups", a_M: Int64Array, b_M: Int64Array, threshold: float
) -> None:
    """Merge those pairs whose float64 cosine reaches the threshold."""
    for start in range(0, len(a_M), _PAIR_ROWS):
        part_a, part_b = a_M[start : start + _PAIR_ROWS], b_M[start : start + _PAIR_ROWS]
        # A pair that is together already costs nothing; in a large group that is almost every.
        apart_M = merged.apart(part_a, part_b)
        part_a, part_b = part_a[apart_M], part_b[apart_M]
        if not len(part_a):
            continue
        near_M = cosines(rows.x_Nd, part_a, part_b) >= threshold - _ROUNDING
        merged.merge(part_a[near_M], part_b[near_M])


class _Groups:
    """Connected components of the pairs so far; the root of a group is its smallest row."""

    def __init__(self, n: int) -> None:
        self._root_N: Int64Array = np.arange(n, dtype=np.int64)
        self._waiting: list[tuple[Int64Array, Int64Array]] = []
        self._count = 0

    def apart(self, a_M: Int64Array, b_M: Int64Array) -> npt.NDArray[np.bool_]:
        """Return which pairs are not known to be in one group, (M,)."""
        return np.not_equal(self._root_N[a_M], self._root_N[b_M])

    def merge(self, a_M: Int64Array, b_M: Int64Array) -> None:
        """Put both rows of each pair into one group."""
        apart_M = self.apart(a_M, b_M)
        if not apart_M.any():
            return
        self._waiting.append((a_M[apart_M], b_M[apart_M]))
        self._count += int(apart_M.sum())
        # Each fold costs N: many pairs share one.
        if self._count >= max(_FOLD, len(self._root_N)):
            self._fold()

    def numbered(self) -> Int64Array:
        """Return groups numbered from 0 in the order of their first row."""
        self._fold()
        return np.unique(self._root_N, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def _fold(self) -> None:
        if not self._waiting:
            return
        a_M = self._root_N[np.concatenate([a for a, _ in self._waiting])]
        b_M = self._root_N[np.concatenate([b for _, b in self._waiting])]
        self._waiting, self._count = [], 0
        # The larger root takes the smaller one, until no pair is apart: each pass at least
        # halves the chains, because whole chains are followed to their end after it.
        while len(a_M):
            high_M, low_M = np.maximum(a_M, b_M), np.minimum(a_M, b_M)
            np.minimum.at(self._root_N, high_M, low_M)
            for _ in range(max(1, math.ceil(math.log2(len(self._root_N) + 1)))):
                shorter_N = self._root_N[self._root_N]
                if np.array_equal(shorter_N, self._root_N):
                    break
                self._root_N = shorter_N
            a_M, b_M = self._root_N[high_M], self._root_N[low_M]
            apart_M = a_M != b_M
            a_M, b_M = a_M[apart_M], b_M[apart_M]
