"""What a method makes of the weak views of unlabelled rows: labels, and how much each counts.

The class axis is always axis 1, as in PyTorch's cross-entropy: logits of one network are (M, C),
those of several networks side by side (K, C, M). What is said of one network below holds for each
of several; their states and results have K in front. All work stays on the device, nothing waits
for it, and a step costs O(M) whatever the pool holds.

Shapes: K = networks, M = unlabelled rows of one step, B = labelled ones, C = classes.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch.nn import functional

Total = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over the processes of a training."""


def alone(x: torch.Tensor) -> torch.Tensor:
    """Return `x`: the sum over a single process."""
    return x


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Targets:
    """What the other view of each unlabelled row should be predicted as.

    Attributes:
        label_M: Pseudo-labels, int64.
        weight_M: How much each counts, float32, at least 0.
        probs_MC: Soft targets instead of the labels, float32.
    """

    label_M: torch.Tensor
    weight_M: torch.Tensor
    probs_MC: torch.Tensor | None = None

    def losses(self, logits_MC: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of each row, unweighted, (M,)."""
        target = self.label_M if self.probs_MC is None else self.probs_MC
        return functional.cross_entropy(logits_MC.float(), target, reduction="none")

    def loss_sum(self, logits_MC: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of cross-entropies over everything, 0 where nothing counts."""
        return (self.weight_M * self.losses(logits_MC)).sum()


class Method:
    """What learning from unlabelled rows keeps between steps, and how much it counts when."""

    def weight(self, done: float) -> float:
        """Return the factor on lambda_u after a share `done` of the unlabelled steps."""
        del done
        return 1.0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what `load_state_dict` needs to continue."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from `state`, made by a method of the same settings."""
        del state


class Rule(Method, abc.ABC):
    """A method that labels each row by one weak view of it.

    Every process of a training calls it with the weak logits of all of them, and so keeps the
    same state.

    Attributes:
        uses_strong: Whether the targets are for strong views; otherwise for the weak ones.
    """

    uses_strong: ClassVar[bool] = True

    @abc.abstractmethod
    def targets(self, weak_logits_MC: torch.Tensor, rows_M: torch.Tensor) -> Targets:
        """Return targets from logits of weak views, and update the state.

        Args:
            weak_logits_MC: No gradient flows through them.
            rows_M: Positions of the rows among the unlabelled ones, int64.
        """

    def regulariser(
        self, strong_logits_MC: torch.Tensor, targets: Targets, total: Total = alone
    ) -> torch.Tensor | None:
        """Return what is added to the loss, one number per network, once for all processes."""
        del strong_logits_MC, targets, total
        return None

    def labelled_weights(
        self, logits_BC: torch.Tensor, y_B: torch.Tensor, done: float
    ) -> torch.Tensor | None:
        """Return how much labelled rows count, float32 (B,); None = all of them alike."""
        del logits_BC, y_B, done
        return None


def probabilities(logits_MC: torch.Tensor) -> torch.Tensor:
    """Return softmax probabilities in float32, detached."""
    return logits_MC.detach().float().softmax(dim=1)


def sharpen(logits_MC: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return softmax(logits / T) in float32, detached."""
    return (logits_MC.detach().float() / temperature).softmax(dim=1)


def ramp(done: float, share: float) -> float:
    """Return min(1, done / share); 1 for a share of 0."""
    return 1.0 if done >= share else done / share


def row_axis(x_MC: torch.Tensor) -> int:
    """Return the axis of the rows in something with classes: 0 for one network, 2 for several."""
    return 0 if x_MC.ndim == 2 else 2


def to_rows(x_C: torch.Tensor) -> torch.Tensor:
    """Return one number per class (C,) or (K, C), ready to meet rows (M, C) or (K, C, M)."""
    return x_C if x_C.ndim == 1 else x_C[..., None]


def shares(x_C: torch.Tensor) -> torch.Tensor:
    """Return non-negative numbers per class scaled to sum 1; zeros where all are 0."""
    return x_C / x_C.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(x_C.dtype).tiny)


def counts(label_M: torch.Tensor, weight_M: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the sum of weights per label, float32 (C,)."""
    zero_C = weight_M.new_zeros((*weight_M.shape[:-1], classes))
    return zero_C.scatter_add_(-1, label_M, weight_M)
