"""SoftMatch: every pseudo-label counts, by how close its confidence is to the mean.

Source: Chen et al. 2023, "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised
Learning", section 3: the truncated Gaussian with moving mean and variance, and uniform alignment.

Shapes: M = unlabelled images of one step, C = classes.
"""

import torch

from svp.finetune.rule import Rule, Targets, probabilities

_FLOOR = 1e-6  # under a division; float32 keeps it apart from any share worth dividing by


class SoftMatch(Rule):
    """Moving averages: mean and variance of the confidence, and the mean prediction.

    Attributes:
        mean: mu_t, float32 scalar; starts at 1/C.
        variance: v_t, float32 scalar; starts at 1.
        probs_C: Mean prediction, float32; starts uniform.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        decay: float,
        sigmas: float = 2.0,
        align: bool = True,
        align_labels: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start at the published values.

        Args:
            num_classes: C.
            decay: Of the moving averages, in [0, 1).
            sigmas: n_sigma; the Gaussian has the variance v / n_sigma^2.
            align: Weigh by predictions scaled to a uniform mean.
            align_labels: Take labels from those as well (LabelBench).
            device: Where the state lives.
        """
        self._decay, self._sigmas = decay, sigmas
        self._align, self._align_labels = align, align_labels
        self.probs_C = torch.full((num_classes,), 1 / num_classes, device=device)
        self.mean = self.probs_C[0].clone()
        self.variance = torch.ones((), device=device)

    def targets(self, weak_logits_MC: torch.Tensor, rows_M: torch.Tensor) -> Targets:
        """Return labels and exp(-min(p_max - mu, 0)^2 n_sigma^2 / 2v). The averages move first."""
        del rows_M
        probs_MC = probabilities(weak_logits_MC)
        label_M = probs_MC.argmax(dim=1)
        self.probs_C.lerp_(probs_MC.mean(dim=0), 1 - self._decay)
        if self._align:
            probs_MC = probs_MC / self.probs_C.clamp(min=_FLOOR)
            probs_MC = probs_MC / probs_MC.sum(dim=1, keepdim=True)
        confidence_M, aligned_M = probs_MC.max(dim=1)
        if self._align and self._align_labels:
            label_M = aligned_M
        self.mean.lerp_(confidence_M.mean(), 1 - self._decay)
        if len(confidence_M) > 1:
            self.variance.lerp_(confidence_M.var(), 1 - self._decay)
        below_M = (confidence_M - self.mean).clamp(max=0)
        exponent_M = below_M.square() * self._sigmas**2 / (2 * self.variance).clamp(min=_FLOOR)
        return Targets(label_M=label_M, weight_M=(-exponent_M).exp())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what `load_state_dict` needs to continue."""
        return {"mean": self.mean, "variance": self.variance, "probs": self.probs_C}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from `state`, made by a rule of the same C."""
        self.mean.copy_(state["mean"])
        self.variance.copy_(state["variance"])
        self.probs_C.copy_(state["probs"])
