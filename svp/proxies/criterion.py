"""The loss on labelled rows, and its gradient in closed form.

Cross-entropy of a softmax has the gradient p - t with respect to the logits, t being the target;
label smoothing, mixup and class weights only change t and the row's weight. Writing it out spares
a recorded graph and a second pass over the logits in every step.

Shapes: M = members, B = rows of a step, C = classes.
"""

import torch
from torch.nn import functional

from svp.proxies.network import NetworkConfig


class Criterion:
    """Mean cross-entropy over a batch, with smoothing, mixup and class weights."""

    def __init__(self, y_L: torch.Tensor, n_classes: int, config: NetworkConfig) -> None:
        self._smoothing = config.label_smoothing
        self._minus = torch.tensor(self._smoothing - 1.0, device=y_L.device)
        self._weight_C: torch.Tensor | None = None
        if config.class_weights == "balanced":
            count_C = torch.zeros(n_classes, device=y_L.device)
            count_C.scatter_add_(0, y_L, torch.ones_like(y_L, dtype=torch.float32))
            # The mean weight over the rows is 1, so the learning rate keeps its meaning.
            seen = (count_C > 0).sum()
            self._weight_C = len(y_L) / (seen * count_C.clamp(min=1))

    def loss(
        self, z_MCB: torch.Tensor, y_MB: torch.Tensor, share_M1: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the mean over the batch, (M,).

        Args:
            z_MCB: Logits.
            y_MB: Classes.
            share_M1: With mixup, the share of each row's own target; the rest is its partner's.
                Cross-entropy is linear in the target, so this is the loss of the soft one.
        """
        loss_MB = self._rows(z_MCB, y_MB)
        if share_M1 is not None:
            loss_MB = share_M1 * loss_MB + (1.0 - share_M1) * self._rows(z_MCB, y_MB.flip(1))
        return loss_MB.mean(dim=1)

    def _rows(self, z_MCB: torch.Tensor, y_MB: torch.Tensor) -> torch.Tensor:
        loss_MB = functional.cross_entropy(
            z_MCB, y_MB, reduction="none", label_smoothing=self._smoothing
        )
        return loss_MB if self._weight_C is None else loss_MB * self._weight_C[y_MB]

    def residual_(
        self, p_MCB: torch.Tensor, y_MB: torch.Tensor, share_M1: torch.Tensor | None
    ) -> None:
        """Turn softmax probabilities into the gradient of `loss` by the logits, in place.

        Args:
            p_MCB: Probabilities.
            y_MB: Classes.
            share_M1: As in `loss`.
        """
        if self._smoothing:
            p_MCB.sub_(self._smoothing / p_MCB.shape[1])
        if share_M1 is None and self._weight_C is None:
            p_MCB.scatter_add_(1, y_MB[:, None], self._minus.expand(p_MCB[:, :1].shape))
        else:
            parts = [(y_MB, share_M1)]
            if share_M1 is not None:
                parts.append((y_MB.flip(1), 1.0 - share_M1))
            counts = [self._counts(y, share) for y, share in parts]
            p_MCB.mul_(sum(counts[1:], counts[0])[:, None])
            for (y, _), count_MB in zip(parts, counts, strict=True):
                p_MCB.scatter_add_(1, y[:, None], (self._minus * count_MB)[:, None])
        p_MCB.div_(p_MCB.shape[2])

    def _counts(self, y_MB: torch.Tensor, share_M1: torch.Tensor | None) -> torch.Tensor:
        """Return how much each row's target counts, (M, B)."""
        if self._weight_C is None:
            assert share_M1 is not None
            return share_M1.expand(y_MB.shape)
        weight_MB = self._weight_C[y_MB]
        return weight_MB if share_M1 is None else share_M1 * weight_MB
