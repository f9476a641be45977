"""Softmax quantities that keep their precision where the proxy is almost certain.

Rounding p to float32 makes every item with 1 - p below 6e-8 tie. Everything here is computed from
the exponentials of the *other* classes relative to the best one, so such items keep their order.

Shapes: T = rows, C = classes.
"""

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Others:
    """The classes other than the most likely one.

    Attributes:
        gap_TC: z_best - z_c >= 0; 0 for the best class.
        exp_TC: exp(-gap), and exactly 0 for the best class.
        mass_T: Sum of `exp_TC`; p_best = 1 / (1 + mass).
    """

    gap_TC: torch.Tensor
    exp_TC: torch.Tensor
    mass_T: torch.Tensor


def others(z_TC: torch.Tensor) -> Others:
    """Return what the softmax of logits gives to the classes that are not the best."""
    best = z_TC.max(dim=1, keepdim=True)
    gap_TC = best.values - z_TC
    exp_TC = torch.exp(-gap_TC).scatter_(1, best.indices, 0.0)
    return Others(gap_TC=gap_TC, exp_TC=exp_TC, mass_T=exp_TC.sum(dim=1))


def residual(z_TC: torch.Tensor) -> torch.Tensor:
    """Return q = softmax(z) - onehot(argmax z), (T, C): the loss gradient on the logits."""
    other = others(z_TC)
    best_T1 = z_TC.argmax(dim=1, keepdim=True)
    scale_T1 = 1.0 / (1.0 + other.mass_T[:, None])
    q_TC = other.exp_TC * scale_T1
    return q_TC.scatter_(1, best_T1, -other.mass_T[:, None] * scale_T1)
