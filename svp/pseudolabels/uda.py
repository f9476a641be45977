"""UDA: the strong view learns the weak view's sharpened distribution where that is confident.

Source: Xie et al. 2020, "Unsupervised Data Augmentation for Consistency Training", section 3.3:
confidence masking on the unsharpened prediction, sharpening by a temperature; its appendix for
training signal annealing (TSA).

Shapes: M = unlabelled rows of one step, B = labelled ones, C = classes.
"""

import math
from typing import Literal

import torch

from svp.pseudolabels.fixmatch import FixMatch
from svp.pseudolabels.rule import Targets, probabilities, sharpen


class UDA(FixMatch):
    """Soft targets under FixMatch's threshold; no state."""

    def __init__(
        self,
        num_classes: int,
        *,
        cutoff: float,
        temperature: float,
        annealing: Literal["none", "linear", "log", "exp"] = "none",
    ) -> None:
        """Keep the settings.

        Args:
            num_classes: C.
            cutoff: tau, in (0, 1].
            temperature: T of the targets; 1 leaves them as predicted.
            annealing: Curve of TSA.
        """
        super().__init__(cutoff)
        self._num_classes = num_classes
        self._temperature, self._annealing = temperature, annealing

    def targets(self, weak_logits_MC: torch.Tensor, rows_M: torch.Tensor) -> Targets:
        """Return sharpened weak predictions; those of unsharpened confidence tau or more count."""
        hard = super().targets(weak_logits_MC, rows_M)
        return Targets(
            label_M=hard.label_M,
            weight_M=hard.weight_M,
            probs_MC=sharpen(weak_logits_MC, self._temperature),
        )

    def bound(self, done: float) -> float:
        """Return TSA's bound on the probability of the true class, from 1/C to 1."""
        share = {
            "none": 1.0,
            "linear": done,
            "log": 1 - math.exp(-5 * done),
            "exp": math.exp(5 * (done - 1)),
        }[self._annealing]
        return share * (1 - 1 / self._num_classes) + 1 / self._num_classes

    def labelled_weights(
        self, logits_BC: torch.Tensor, y_B: torch.Tensor, done: float
    ) -> torch.Tensor | None:
        """Return zeros for labelled rows that are predicted better than the bound."""
        if self._annealing == "none":
            return None
        true_B = probabilities(logits_BC).gather(1, y_B[:, None])[:, 0]
        return (true_B < self.bound(done)).float()
