"""What a step minimises, as its slope by the logits: of labelled rows, and of unlabelled ones.

Shapes: M = members, R = rows of a step, B = labelled ones, u = unlabelled ones, l = rows that are
learnt from, C = classes.
"""

import torch

from svp.proxies.criterion import Criterion
from svp.proxies.network import NetworkConfig
from svp.pseudolabels.rule import Rule, Targets


class Objective:
    """Loss on labelled rows and, by a semi-supervised rule, on unlabelled ones."""

    def __init__(self, criterion: Criterion, rule: Rule | None, config: NetworkConfig) -> None:
        self._criterion, self._rule = criterion, rule
        self._unlabelled_weight = config.unlabelled_weight
        self._larger = config.mixup_targets == "larger"
        self._last: _Step | None = None

    def labelled(
        self, z_MCB: torch.Tensor, y_MB: torch.Tensor, share_M1: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the slope of a supervised step, (M, C, B).

        Args:
            z_MCB: Logits.
            y_MB: Classes.
            share_M1: With mixup, each row's own share; the rest is its partner's from the other
                end of the batch.
        """
        if share_M1 is not None and self._larger:
            share_M1 = share_M1.round()
        self._last = (z_MCB, y_MB, share_M1, None, 0.0)
        slope_MCB = z_MCB.softmax(dim=1)
        self._criterion.residual_(slope_MCB, y_MB, share_M1)
        return slope_MCB

    def with_unlabelled(
        self, z_MCR: torch.Tensor, y_MB: torch.Tensor, rows_Mu: torch.Tensor, done: float
    ) -> torch.Tensor:
        """Return the slope of a semi-supervised step for the rows that are learnt from, (M, C, l).

        Args:
            z_MCR: Logits of labelled rows, of strong views if the rule uses them, of weak views.
            y_MB: Classes of the labelled rows.
            rows_Mu: Which unlabelled rows the views are of.
            done: Share of training that is done, in [0, 1).
        """
        assert self._rule is not None
        known, unknown = y_MB.shape[1], rows_Mu.shape[1]
        targets = self._rule.targets(z_MCR[:, :, -unknown:], rows_Mu)
        factor = self._unlabelled_weight * self._rule.weight(done)
        self._last = (z_MCR, y_MB, None, targets, factor)
        slope_MCl = z_MCR[:, :, : known + unknown].softmax(dim=1)
        self._criterion.residual_(slope_MCl[:, :, :known], y_MB, None)
        slope_MCu = slope_MCl[:, :, known:]
        if targets.probs_MC is None:
            minus = slope_MCl.new_tensor(-1.0).expand(slope_MCu[:, :1].shape)
            slope_MCu.scatter_add_(1, targets.label_M[:, None], minus)
        else:
            slope_MCu.sub_(targets.probs_MC)
        # The mean over all u rows, those of weight 0 included.
        slope_MCu.mul_((targets.weight_M * (factor / unknown))[:, None])
        with torch.enable_grad():
            student_MCu = z_MCR[:, :, known : known + unknown].detach().requires_grad_(True)
            further_M = self._rule.regulariser(student_MCu, targets)
            if further_M is not None:
                slope_MCu.add_(torch.autograd.grad(further_M.sum(), student_MCu)[0])
        return slope_MCl

    def loss(self) -> torch.Tensor:
        """Return the value at the last step, (M,)."""
        assert self._last is not None
        z_MCR, y_MB, share_M1, targets, factor = self._last
        known = y_MB.shape[1]
        loss_M = self._criterion.loss(z_MCR[:, :, :known], y_MB, share_M1)
        if targets is None:
            return loss_M
        assert self._rule is not None
        student_MCu = z_MCR[:, :, known : known + targets.label_M.shape[1]]
        loss_M = loss_M + factor * (targets.weight_M * targets.losses(student_MCu)).mean(dim=1)
        further_M = self._rule.regulariser(student_MCu, targets)
        return loss_M if further_M is None else loss_M + further_M


_Step = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Targets | None, float]
