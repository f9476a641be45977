"""Centred representations of a pool, optionally on their leading principal axes, in float64.

Shapes: n = rows, T = rows of one block, h = width, r = axes kept.
"""

import torch

from svp.strategies.base import Budget, Int64Array, PoolView


class Principal:
    """A shift and a projection fitted to all candidates and labelled rows.

    Args:
        view: The pool.
        seed: Of the order in which sums are taken.
        budget: Device and tile size.
        dims: Axes of largest variance to keep; 0, or at least h: all of h, not rotated.
    """

    def __init__(self, view: PoolView, seed: int, budget: Budget, dims: int) -> None:
        self._view, self._budget = view, budget
        orders = (view.candidates(seed), view.centres(seed))
        total_h, count = None, 0
        for rows in orders:
            for _, x_Th in view.space_tiles(rows, budget):
                part_h = x_Th.double().sum(dim=0)
                total_h = part_h if total_h is None else total_h + part_h
                count += len(x_Th)
        assert total_h is not None, "a view has candidates"
        self._mean_h = total_h / count
        self._basis_hr = None
        if 0 < dims < len(total_h):
            moment_hh = torch.zeros(len(total_h), len(total_h), dtype=torch.float64)
            moment_hh = moment_hh.to(total_h.device)
            for rows in orders:
                for _, x_Th in view.space_tiles(rows, budget):
                    centred_Th = x_Th.double() - self._mean_h
                    moment_hh += centred_Th.T @ centred_Th
            self._basis_hr = torch.linalg.eigh(moment_hh).eigenvectors[:, -dims:]

    @property
    def width(self) -> int:
        """Numbers per row of the result."""
        return len(self._mean_h) if self._basis_hr is None else self._basis_hr.shape[1]

    def __call__(self, x_Th: torch.Tensor) -> torch.Tensor:
        """Return a block centred and projected, (T, r) float64."""
        centred_Th = x_Th.double() - self._mean_h
        return centred_Th if self._basis_hr is None else centred_Th @ self._basis_hr

    def back(self, sides_rk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (h, k) and c (k,) with self(x) @ sides = x @ A - c."""
        sides_hk = sides_rk if self._basis_hr is None else self._basis_hr @ sides_rk
        return sides_hk, self._mean_h @ sides_hk

    def rows(self, rows_n: Int64Array) -> torch.Tensor:
        """Return pool rows centred and projected, (n, r) float64."""
        found = [self(x_Th) for _, x_Th in self._view.space_tiles(rows_n, self._budget)]
        if not found:
            return torch.zeros(0, self.width, dtype=torch.float64, device=self._budget.device)
        return torch.cat(found)
