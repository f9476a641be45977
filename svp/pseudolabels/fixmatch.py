"""FixMatch: the strong view learns the weak view's label where that is confident.

Source: Sohn et al. 2020, "FixMatch: Simplifying Semi-Supervised Learning with Consistency and
Confidence", section 2.2.
"""

import torch

from svp.pseudolabels.rule import Rule, Targets, probabilities


class FixMatch(Rule):
    """One fixed threshold and no state."""

    def __init__(self, cutoff: float) -> None:
        """Keep tau, in (0, 1]."""
        self._cutoff = cutoff

    def targets(self, weak_logits_MC: torch.Tensor, rows_M: torch.Tensor) -> Targets:
        """Return labels of the weak views; those of confidence tau or more count."""
        del rows_M
        confidence_M, label_M = probabilities(weak_logits_MC).max(dim=1)
        return Targets(label_M=label_M, weight_M=(confidence_M >= self._cutoff).float())
