"""Distances between the weight vectors of a linear head, for distances to its boundaries.

The boundary between classes a and c lies at (z_a - z_c) / |w_a - w_c| from a point with logits z,
in the input space of the last layer, so a C x C table replaces all work with the weights.

Shapes: C = classes, h = width of the head's input, T = rows of one block.
"""

from typing import Final

import torch

from svp.strategies.base import LinearHead, PoolView

# A boundary that does not exist: beyond every distance, but finite, so that it can be a utility.
FAR: Final = 3.0e38


def weight_distances(head: LinearHead, *, p: float = 2.0) -> torch.Tensor:
    """Return |w_a - w_c| in the p-norm for every pair of classes, float32 (C, C).

    Taken from differences in float64, not from a Gram matrix, so that equal rows have exactly 0
    and nearly equal rows keep their digits.
    """
    weight_Ch = head.weight_Cd.double()
    return torch.cdist(
        weight_Ch, weight_Ch, p=p, compute_mode="donot_use_mm_for_euclid_dist"
    ).float()


def head_distances(view: PoolView, device: torch.device, *, p: float = 2.0) -> torch.Tensor:
    """Return `weight_distances` of the view's proxy on `device`."""
    return weight_distances(view.required_proxy().head, p=p).to(device)


def boundary_distances(z_TC: torch.Tensor, distance_CC: torch.Tensor) -> torch.Tensor:
    """Return the distance to the boundary between the predicted class and every class, (T, C).

    Args:
        z_TC: Logits.
        distance_CC: Distances between the classes' weights in some norm; the result is in its
            dual norm.

    Returns:
        (z_best - z_c) / |w_best - w_c|; `FAR` for the predicted class itself, and where two
        classes share their weights, since no move changes which of them is ahead.
    """
    best = z_TC.max(dim=1, keepdim=True)
    between_TC = distance_CC[best.indices[:, 0]]
    distance_TC = torch.where(between_TC > 0, (best.values - z_TC) / between_TC, FAR)
    return distance_TC.scatter_(1, best.indices, FAR).clamp_max_(FAR)
