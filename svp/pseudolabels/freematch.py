"""FreeMatch: thresholds that follow the confidence of the network, overall and per class.

Source: Wang et al. 2023, "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning",
section 4, equations 5 to 11: self-adaptive thresholds, overall and per class, and self-adaptive
fairness.

Shapes: M = unlabelled rows of one step, C = classes. With several networks everything has their
number in front.
"""

from typing import Final

import torch

from svp.pseudolabels.rule import (
    Rule,
    Targets,
    Total,
    alone,
    counts,
    probabilities,
    row_axis,
    shares,
)

_FLOOR: Final = 1e-12  # under a logarithm or a division


class FreeMatch(Rule):
    """Three moving averages: mean confidence, mean prediction, histogram of predictions.

    Attributes:
        confidence: tau_t, float32, one number per network; starts at 1/C.
        probs_C: p~_t, float32; starts uniform.
        histogram_C: h~_t, float32; starts uniform.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        decay: float,
        fairness: float,
        networks: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start uniform.

        Args:
            num_classes: C.
            decay: Of the moving averages, in [0, 1).
            fairness: Weight of the fairness term.
            networks: How many train side by side; None for one, whose logits have two axes.
            device: Where the state lives.
        """
        self._decay, self._fairness = decay, fairness
        front = () if networks is None else (networks,)
        self.confidence = torch.full(front, 1 / num_classes, device=device)
        self.probs_C = torch.full((*front, num_classes), 1 / num_classes, device=device)
        self.histogram_C = self.probs_C.clone()

    def thresholds(self) -> torch.Tensor:
        """Return tau_t(c) = tau_t p~_t(c) / max p~_t, float32 (C,)."""
        return self.confidence[..., None] * (self.probs_C / self.probs_C.amax(-1, keepdim=True))

    def targets(self, weak_logits_MC: torch.Tensor, rows_M: torch.Tensor) -> Targets:
        """Return labels; those at their class's threshold count. The averages move first."""
        del rows_M
        probs_MC = probabilities(weak_logits_MC)
        confidence_M, label_M = probs_MC.max(dim=1)
        every_C = counts(label_M, torch.ones_like(confidence_M), probs_MC.shape[1])
        self.confidence.lerp_(confidence_M.mean(dim=-1), 1 - self._decay)
        self.probs_C.lerp_(probs_MC.mean(dim=row_axis(probs_MC)), 1 - self._decay)
        self.histogram_C.lerp_(every_C / label_M.shape[-1], 1 - self._decay)
        weight_M = (confidence_M >= self.thresholds().gather(-1, label_M)).float()
        return Targets(label_M=label_M, weight_M=weight_M)

    def regulariser(
        self, strong_logits_MC: torch.Tensor, targets: Targets, total: Total = alone
    ) -> torch.Tensor | None:
        """Return fairness x sum_c mod(p~) log mod(p-bar), 0 where no pseudo-label counts.

        Both distributions are divided by their histograms of labels before they are compared, so
        that a class is not pushed up for being common.
        """
        if not self._fairness:
            return None
        probs_MC = strong_logits_MC.float().softmax(dim=1)
        label_M, weight_M = probs_MC.detach().argmax(dim=1), targets.weight_M
        # Sums over processes, not means: their shares of a step differ by a row.
        sum_C = total((probs_MC * weight_M[:, None]).sum(dim=row_axis(probs_MC)))
        counted_C = total(counts(label_M, weight_M, probs_MC.shape[1]))
        ours_C = shares(_over(self.probs_C, self.histogram_C))
        batch_C = shares(_over(sum_C / weight_M.shape[-1], shares(counted_C)))
        term = (ours_C * torch.log(batch_C + _FLOOR)).sum(dim=-1)
        return self._fairness * torch.where(counted_C.sum(dim=-1) > 0, term, 0.0)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what `load_state_dict` needs to continue."""
        return {
            "confidence": self.confidence,
            "probs": self.probs_C,
            "histogram": self.histogram_C,
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from `state`, made by a rule of the same C."""
        self.confidence.copy_(state["confidence"])
        self.probs_C.copy_(state["probs"])
        self.histogram_C.copy_(state["histogram"])


def _over(x_C: torch.Tensor, histogram_C: torch.Tensor) -> torch.Tensor:
    """Return x / histogram, 0 for classes that the histogram has none of."""
    return torch.where(histogram_C > 0, x_C / histogram_C.clamp(min=_FLOOR), 0.0)
