"""Distance from a point to the region in which a linear head prefers one class to all others.

The region of class c is the polyhedron {x: (w_j - w_c).x <= s_j for all j}. The distance is the
least |e| with (w_j - w_c).e <= s_j where s_j = z_c - z_j: a small quadratic programme whose dual
is a linear complementarity problem, w = G u + s >= 0, u >= 0, u.w = 0, with G the Gram matrix of
the differences w_j - w_c. G depends on the class only, so all points of a class are solved at
once.

Source: Emam et al. 2021 (BASE), equation 3, for the distance; Judice and Pires 1994, "A block
principal pivoting algorithm for large-scale strictly monotone linear complementarity problems",
for the method; another one serves the few points at which constraints are nearly dependent.
Shapes: M = points, C = classes, m = C - 1 constraints, h = width.
"""

from typing import Final

import numpy as np
import torch

_BLOCK_PIVOTS: Final = 3  # full exchanges without progress before single pivots begin
_MOST_PIVOTS: Final = 200
_RIDGE: Final = 1e-11
_SLACK: Final = 1e-6
_EMPTY: Final = 1e-7  # residual below which a region is empty: it would be 10 million times as far
_LARGE: Final = 1e4
_ROWS: Final = 2048


def region_distances(z_MC: torch.Tensor, weight_Ch: torch.Tensor, wanted: int) -> torch.Tensor:
    """Return the distance of every point to the region of class `wanted`, float64 (M,).

    Args:
        z_MC: Logits of the points.
        weight_Ch: Weights of the head.
        wanted: The class.

    Returns:
        Distances, 0 inside the region and infinite where it is empty.
    """
    classes = len(weight_Ch)
    others = torch.tensor([c for c in range(classes) if c != wanted], device=z_MC.device)
    if not len(others):
        return torch.zeros(len(z_MC), dtype=torch.float64, device=z_MC.device)
    edge_mh = (weight_Ch[others] - weight_Ch[wanted]).double()
    norm_m = edge_mh.square().sum(dim=1).sqrt()
    # Constraints are scaled to unit normals; one without a direction is either void or hopeless.
    real_m = norm_m > 0
    unit_mh = torch.where(real_m[:, None], edge_mh / torch.where(real_m, norm_m, 1.0)[:, None], 0.0)
    gram_mm = unit_mh @ unit_mh.T
    gram_mm.fill_diagonal_(1.0 + _RIDGE)
    slack_Mm = z_MC[:, wanted : wanted + 1].double() - z_MC[:, others].double()
    hopeless_M = (slack_Mm[:, ~real_m] < 0).any(dim=1)
    slack_Mm = torch.where(real_m, slack_Mm / torch.where(real_m, norm_m, 1.0), 0.0)
    found = []
    for start in range(0, len(z_MC), _ROWS):
        some_Mm = slack_Mm[start : start + _ROWS]
        square_M, open_M = _solve(gram_mm, some_Mm)
        index = torch.nonzero(open_M).flatten()
        if len(index):
            square_M[index] = _least_moves(unit_mh, some_Mm[index])
        found.append(square_M)
    distance_M = torch.cat(found).sqrt()
    return torch.where(hopeless_M, torch.inf, distance_M)


def _least_moves(unit_mh: torch.Tensor, slack_Mm: torch.Tensor) -> torch.Tensor:
    """Return the squared norm of the least move, one point after another, (M,).

    For the few points whose constraints are nearly dependent. Non-negative least squares of
    (0, ..., 0, 1) by the columns (normal, slack) leaves a residual r with |r|^2 = 1 / (1 + d^2):
    Lawson and Hanson 1974, "Solving least squares problems", section 23.4.
    """
    from scipy.optimize import nnls

    normals_hm = unit_mh.T.cpu().numpy()
    target = np.zeros(len(normals_hm) + 1)
    target[-1] = 1.0
    squares = []
    for slack_m in slack_Mm.cpu().numpy():
        scale = max(float(np.abs(slack_m).max()), np.finfo(np.float64).tiny)
        _, residual = nnls(np.vstack([normals_hm, -slack_m / scale]), target)
        squares.append(
            np.inf if residual < _EMPTY else scale**2 * max(0.0, 1.0 / residual**2 - 1.0)
        )
    return torch.tensor(squares, dtype=torch.float64, device=slack_Mm.device)


def _solve(gram_mm: torch.Tensor, slack_Mm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the squared norm of the least move per point, and which points did not settle."""
    rows, m = slack_Mm.shape
    device = slack_Mm.device
    scale_M1 = slack_Mm.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    s_Mm = slack_Mm / scale_M1
    active_Mm = torch.zeros(rows, m, dtype=torch.bool, device=device)
    u_Mm = torch.zeros_like(s_Mm)
    w_Mm = s_Mm.clone()
    fewest_M = torch.full((rows,), m + 1, device=device)
    patience_M = torch.full((rows,), _BLOCK_PIVOTS, device=device)
    last_m = torch.arange(m, device=device)
    open_M = torch.ones(rows, dtype=torch.bool, device=device)
    identity_mm = torch.eye(m, dtype=torch.float64, device=device)
    for _ in range(_MOST_PIVOTS):
        wrong_Mm = torch.where(active_Mm, u_Mm < 0, w_Mm < -1e-12)
        count_M = wrong_Mm.sum(dim=1)
        open_M = count_M > 0
        index = torch.nonzero(open_M).flatten()
        if not len(index):
            break
        wrong_Km, count_K = wrong_Mm[index], count_M[index]
        better_K = count_K < fewest_M[index]
        patience_K = torch.where(better_K, _BLOCK_PIVOTS, patience_M[index] - 1)
        fewest_M[index] = torch.minimum(count_K, fewest_M[index])
        patience_M[index] = patience_K
        # Out of patience: only the last wrong one moves, a rule that cannot cycle.
        last_K = torch.where(wrong_Km, last_m, -1).amax(dim=1)
        single_Km = last_m == last_K[:, None]
        flip_Km = torch.where((patience_K >= 0)[:, None], wrong_Km, single_Km)
        active_Km = active_Mm[index] ^ flip_Km
        active_Mm[index] = active_Km
        both_Kmm = active_Km[:, :, None] & active_Km[:, None, :]
        matrix_Kmm = torch.where(both_Kmm, gram_mm, identity_mm)
        right_Km = torch.where(active_Km, -s_Mm[index], 0.0)
        u_Km = torch.linalg.solve_ex(matrix_Kmm, right_Km)[0]
        u_Mm[index] = u_Km
        # Summed by hand: a matrix product's last bits would depend on how many points are open.
        w_Mm[index] = s_Mm[index] + (gram_mm * u_Km[:, None, :]).sum(dim=2)
    u_Mm = u_Mm.clamp_min(0.0)
    move_Mm = (gram_mm * u_Mm[:, None, :]).sum(dim=2) - _RIDGE * u_Mm
    # An empty region shows in constraints that no multiplier mends.
    square_M = (u_Mm * move_Mm).sum(dim=1).clamp_min(0.0)
    broken_M = ((s_Mm + move_Mm) < -_SLACK).any(dim=1)
    # Multipliers this large come of nearly dependent constraints and have lost their digits.
    open_M |= broken_M | (u_Mm.amax(dim=1) > _LARGE)
    return square_M * scale_M1[:, 0].square(), open_M
