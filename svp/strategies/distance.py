"""Squared distances: float32 matrix products that prune, float64 that decides.

A float32 product of two blocks is fast but its last bits depend on the shapes; used alone, near
ties would fall differently for other tile sizes. So products only bound a distance, with a
rigorous error bound, and whatever the bound leaves open is computed in float64, always by the
same kernel on the same shape.

Source of the bound: Higham 2002, "Accuracy and stability of numerical algorithms", section 3.1
(|fl(x.y) - x.y| <= n u / (1 - n u) |x|.|y|), and the Cauchy-Schwarz inequality.
Shapes: M, K = rows, h = width.
"""

from typing import Final

import torch

from svp.strategies.points import Factors

_PAIR_ROWS: Final = 64
# Below this share of the norms, a float64 distance of outer products is rounding noise.
_SAME: Final = 1e-11


def relative_error(points: Factors) -> float:
    """Return r such that a float32 squared distance errs by at most r (|a|^2 + |b|^2)."""
    # A caller may have let float32 products run as TF32 (10 bits) or bfloat16 (7 bits).
    unit = {"highest": 2.0**-24, "high": 2.0**-11}.get(
        torch.get_float32_matmul_precision(), 2.0**-8
    )
    # Inner product and norms (h + C terms each), the three-term sum, the shift of the origin.
    return 2.0 * (points.width + 16) * unit


def square_distances(
    a: Factors, a_norms_M: torch.Tensor, b: Factors, b_norms_K: torch.Tensor
) -> torch.Tensor:
    """Return |a|^2 + |b|^2 - 2 a.b, (M, K), in the precision of the factors, not clamped."""
    product_MK = a.inner(b)
    return product_MK.mul_(-2.0).add_(a_norms_M[:, None]).add_(b_norms_K)


def exact_pairs(a: Factors, b: Factors) -> torch.Tensor:
    """Return the squared distance of every a[i] to b[i], float64 (M,).

    Chunks are padded to one fixed shape, so a pair's value never depends on its neighbours.
    """
    found = []
    for start in range(0, len(a), _PAIR_ROWS):
        part_a, part_b = a[start : start + _PAIR_ROWS], b[start : start + _PAIR_ROWS]
        rows = len(part_a)
        part_a, part_b = _padded(part_a).double(), _padded(part_b).double()
        if part_a.q_MC is None or part_b.q_MC is None:
            square = (part_a.x_Mh - part_b.x_Mh).square_().sum(dim=1)
        else:
            norms = part_a.square_norms() + part_b.square_norms()
            x_inner = (part_a.x_Mh * part_b.x_Mh).sum(dim=1)
            q_inner = (part_a.q_MC * part_b.q_MC).sum(dim=1)
            square = snapped(norms - 2.0 * x_inner * q_inner, norms)
        found.append(square[:rows])
    if not found:
        return torch.zeros(0, dtype=torch.float64, device=a.x_Mh.device)
    return torch.cat(found)


def snapped(square: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Return float64 squared distances with those that are only rounding noise set to 0."""
    return torch.where(square > _SAME * norms, square, 0.0)


def _padded(factors: Factors) -> Factors:
    missing = _PAIR_ROWS - len(factors)
    if not missing:
        return factors
    pad = torch.nn.functional.pad
    q_MC = factors.q_MC
    return Factors(
        pad(factors.x_Mh, (0, 0, 0, missing)),
        None if q_MC is None else pad(q_MC, (0, 0, 0, missing)),
    )
