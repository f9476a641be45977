"""MixMatch: guessed labels from two weak views, and every image mixed with another.

Source: Berthelot et al. 2019, "MixMatch: A Holistic Approach to Semi-Supervised Learning",
section 3 and algorithm 1. Mixing ratios are drawn per image, as in the authors' code.

Shapes: A = all images of a step (labelled, first views, second views), B = labelled, M =
unlabelled, S = side in pixels, C = classes.
"""

import numpy as np
import torch

from svp.pseudolabels.rule import Method, Targets, probabilities, ramp
from svp.seed import numpy_generator


class MixMatch(Method):
    """Sharpened mean predictions, all of them used, at a weight that grows from 0; no state.

    It labels by two views, where a `Rule` labels by one.
    """

    def __init__(self, temperature: float, ramp_share: float) -> None:
        """Keep T, and the share of the steps over which the weight grows."""
        self._temperature, self._ramp_share = temperature, ramp_share

    def guess(self, first_logits_MC: torch.Tensor, second_logits_MC: torch.Tensor) -> Targets:
        """Return p^(1/T) / sum p^(1/T) of the mean p of both views' predictions."""
        mean_MC = (probabilities(first_logits_MC) + probabilities(second_logits_MC)) / 2
        # By logarithms, so that small probabilities do not vanish under a power.
        sharp_MC = (mean_MC.clamp(min=1e-30).log() / self._temperature).softmax(dim=1)
        label_M = sharp_MC.argmax(dim=1)
        return Targets(label_M=label_M, weight_M=torch.ones_like(sharp_MC[:, 0]), probs_MC=sharp_MC)

    def weight(self, done: float) -> float:
        """Return min(1, done / ramp share)."""
        return ramp(done, self._ramp_share)


def mix(
    x_A3SS: torch.Tensor, target_AC: torch.Tensor, *, alpha: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and targets mixed with those of a random partner, never more than half.

    The ratio of an image itself is max(r, 1 - r) with r ~ Beta(alpha, alpha).

    Args:
        x_A3SS: Floating images.
        target_AC: Distributions over classes.
        alpha: Above 0; the larger, the more is mixed.
        seed: Decides partners and ratios.
    """
    rng, count = numpy_generator(seed, "mixup"), len(x_A3SS)
    ratio = rng.beta(alpha, alpha, size=count).astype(np.float32)
    own_A = torch.from_numpy(np.maximum(ratio, 1 - ratio)).to(x_A3SS.device, non_blocking=True)
    partner_A = torch.from_numpy(rng.permutation(count)).to(x_A3SS.device, non_blocking=True)
    mixed_A3SS = torch.lerp(x_A3SS[partner_A], x_A3SS, own_A[:, None, None, None])
    return mixed_A3SS, torch.lerp(target_AC[partner_A], target_AC, own_A[:, None])


def squared_error_sum(logits_MC: torch.Tensor, target_MC: torch.Tensor) -> torch.Tensor:
    """Return the sum over images of the mean over classes of (softmax - target)^2."""
    difference_MC = logits_MC.float().softmax(dim=1) - target_MC
    return difference_MC.square().sum() / logits_MC.shape[1]
