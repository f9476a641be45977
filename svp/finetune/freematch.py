"""FreeMatch: thresholds that follow the confidence of the network, overall and per class.

Source: Wang et al. 2023, "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning",
section 4: self-adaptive thresholds, overall and per class, and self-adaptive fairness.

Shapes: M = unlabelled images of one step, C = classes.
"""

import torch
from torch.nn import functional

from svp.finetune.parallel import Group
from svp.finetune.rule import Rule, Targets, probabilities, shares

_FLOOR = 1e-12  # under a logarithm


class FreeMatch(Rule):
    """Three moving averages: mean confidence, mean prediction, histogram of predictions.

    Attributes:
        confidence: tau_t, float32 scalar; starts at 1/C.
        probs_C: p~_t, float32; starts uniform.
        histogram_C: h~_t, float32; starts uniform.
    """

    def __init__(
        self, num_classes: int, *, decay: float, fairness: float, device: torch.device | str = "cpu"
    ) -> None:
        """Start uniform.

        Args:
            num_classes: C.
            decay: Of the moving averages, in [0, 1).
            fairness: Weight of the fairness term.
            device: Where the state lives.
        """
        self._decay, self._fairness = decay, fairness
        uniform_C = torch.full((num_classes,), 1 / num_classes, device=device)
        self.confidence = uniform_C[0].clone()
        self.probs_C, self.histogram_C = uniform_C.clone(), uniform_C.clone()

    def thresholds(self) -> torch.Tensor:
        """Return tau_t(c) = tau_t p~_t(c) / max p~_t, float32 (C,)."""
        return self.confidence * self.probs_C / self.probs_C.max()

    def targets(self, weak_logits_MC: torch.Tensor, rows_M: torch.Tensor) -> Targets:
        """Return labels; those at their class's threshold count. The averages move first."""
        del rows_M
        probs_MC = probabilities(weak_logits_MC)
        confidence_M, label_M = probs_MC.max(dim=1)
        counts_C = torch.zeros_like(self.probs_C).scatter_add_(
            0, label_M, torch.ones_like(confidence_M)
        )
        self.confidence.lerp_(confidence_M.mean(), 1 - self._decay)
        self.probs_C.lerp_(probs_MC.mean(dim=0), 1 - self._decay)
        self.histogram_C.lerp_(counts_C / len(label_M), 1 - self._decay)
        weight_M = (confidence_M >= self.thresholds()[label_M]).float()
        return Targets(label_M=label_M, weight_M=weight_M)

    def regulariser(
        self, strong_logits_MC: torch.Tensor, targets: Targets, group: Group
    ) -> torch.Tensor | None:
        """Return fairness x sum_c mod(p~) log mod(p-bar), 0 where no pseudo-label counts.

        Both distributions are divided by their histograms of labels before they are compared, so
        that a class is not pushed up for being common.
        """
        if not self._fairness:
            return None
        probs_MC = strong_logits_MC.float().softmax(dim=1)
        counted_M1 = targets.weight_M[:, None]
        label_MC = functional.one_hot(probs_MC.argmax(dim=1), probs_MC.shape[1])
        sum_C = group.sum((counted_M1 * probs_MC).sum(dim=0))
        histogram_C = group.sum((counted_M1 * label_MC).sum(dim=0))
        ours_C = shares(_over(self.probs_C, self.histogram_C))
        batch_C = shares(_over(sum_C, histogram_C))
        term = (ours_C * (batch_C + _FLOOR).log()).sum()
        return self._fairness * torch.where(histogram_C.sum() > 0, term, 0.0)

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
    present_C = histogram_C > 0
    return torch.where(present_C, x_C / torch.where(present_C, histogram_C, 1.0), 0.0)
