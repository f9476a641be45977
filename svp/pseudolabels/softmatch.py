"""SoftMatch: every pseudo-label counts, by how close its confidence is to the mean.

Source: Chen et al. 2023, "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised
Learning", section 3, equations 5 to 9: the truncated Gaussian with moving mean and variance, and
uniform alignment.

Shapes: M = unlabelled rows of one step, C = classes. With several networks everything has their
number in front.
"""

from typing import Final

import torch

from svp.pseudolabels.rule import Rule, Targets, probabilities, row_axis, to_rows

_FLOOR: Final = 1e-12  # under a division


class SoftMatch(Rule):
    """Moving averages: mean and variance of the confidence, and the mean prediction.

    Attributes:
        mean: mu_t, float32, one number per network; starts at 1/C.
        variance: v_t, float32 likewise; starts at 1.
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
        networks: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start at the published values.

        Args:
            num_classes: C.
            decay: Of the moving averages, in [0, 1).
            sigmas: n_sigma; the Gaussian has the variance v / n_sigma^2.
            align: Weigh by predictions scaled to a uniform mean.
            align_labels: Take labels from those as well (LabelBench).
            networks: How many train side by side; None for one, whose logits have two axes.
            device: Where the state lives.
        """
        self._decay, self._sigmas = decay, sigmas
        self._align, self._align_labels = align, align_labels
        front = () if networks is None else (networks,)
        self.mean = torch.full(front, 1 / num_classes, device=device)
        self.variance = torch.ones(front, device=device)
        self.probs_C = torch.full((*front, num_classes), 1 / num_classes, device=device)

    def targets(self, weak_logits_MC: torch.Tensor, rows_M: torch.Tensor) -> Targets:
        """Return labels and exp(-min(p_max - mu, 0)^2 n_sigma^2 / 2v). The averages move first."""
        del rows_M
        probs_MC = probabilities(weak_logits_MC)
        label_M = probs_MC.argmax(dim=1)
        self.probs_C.lerp_(probs_MC.mean(dim=row_axis(probs_MC)), 1 - self._decay)
        if self._align:
            ratio_C = self.probs_C * probs_MC.shape[1]
            probs_MC = probs_MC / to_rows(ratio_C.clamp(min=_FLOOR))
            probs_MC = probs_MC / probs_MC.sum(dim=1, keepdim=True)
        confidence_M, aligned_M = probs_MC.max(dim=1)
        if self._align and self._align_labels:
            label_M = aligned_M
        self.mean.lerp_(confidence_M.mean(dim=-1), 1 - self._decay)
        if confidence_M.shape[-1] > 1:
            self.variance.lerp_(confidence_M.var(dim=-1), 1 - self._decay)
        below_M = (confidence_M - self.mean[..., None]).clamp(max=0.0)
        width = (2.0 * self.variance).clamp(min=_FLOOR)[..., None]
        return Targets(
            label_M=label_M, weight_M=torch.exp(-below_M.square() * self._sigmas**2 / width)
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what `load_state_dict` needs to continue."""
        return {"mean": self.mean, "variance": self.variance, "probs": self.probs_C}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from `state`, made by a rule of the same C."""
        self.mean.copy_(state["mean"])
        self.variance.copy_(state["variance"])
        self.probs_C.copy_(state["probs"])
