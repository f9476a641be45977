"""What a method makes of the weak views of unlabelled images: labels, and how much each counts.

Shapes: M = unlabelled images of one step, B = labelled ones, C = classes.
"""

import dataclasses

import torch
from torch.nn import functional

from svp.finetune.parallel import Group


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Targets:
    """What the other view of each unlabelled image should be predicted as.

    Attributes:
        label_M: Pseudo-labels, int64.
        weight_M: How much each counts, float32, at least 0.
        probs_MC: Soft targets instead of the labels, float32.
    """

    label_M: torch.Tensor
    weight_M: torch.Tensor
    probs_MC: torch.Tensor | None = None

    def part(self, rows: slice) -> "Targets":
        """Return those of some rows."""
        probs_MC = None if self.probs_MC is None else self.probs_MC[rows]
        return Targets(label_M=self.label_M[rows], weight_M=self.weight_M[rows], probs_MC=probs_MC)

    def loss_sum(self, logits_MC: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of cross-entropies, 0 where nothing counts."""
        target = self.label_M if self.probs_MC is None else self.probs_MC
        loss_M = functional.cross_entropy(logits_MC.float(), target, reduction="none")
        return (self.weight_M * loss_M).sum()


class Rule:
    """One method. All work stays on the device; the state does not grow with the batch.

    Every process of a training calls it with the weak logits of all of them, and so keeps the
    same state.
    """

    def targets(self, weak_logits_MC: torch.Tensor, rows_M: torch.Tensor) -> Targets:
        """Return targets from logits of weak views, and update the state.

        Args:
            weak_logits_MC: No gradient flows through them.
            rows_M: Positions of the images among the unlabelled ones, int64.
        """
        raise NotImplementedError

    def weight(self, done: float) -> float:
        """Return the factor on lambda_u after a share `done` of the unlabelled steps."""
        del done
        return 1.0

    def regulariser(
        self, strong_logits_MC: torch.Tensor, targets: Targets, group: Group
    ) -> torch.Tensor | None:
        """Return what is added to the loss of the strong views, once for all processes."""
        del strong_logits_MC, targets, group
        return None

    def labelled_weights(
        self, logits_BC: torch.Tensor, y_B: torch.Tensor, done: float
    ) -> torch.Tensor | None:
        """Return how much labelled images count, float32 (B,); None = all of them alike."""
        del logits_BC, y_B, done
        return None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what `load_state_dict` needs to continue."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from `state`, made by a rule of the same settings."""
        del state


def probabilities(logits_MC: torch.Tensor) -> torch.Tensor:
    """Return softmax probabilities in float32, detached."""
    return logits_MC.detach().float().softmax(dim=1)


def sharpen(logits_MC: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return softmax(logits / T) in float32, detached."""
    return (logits_MC.detach().float() / temperature).softmax(dim=1)


def shares(probs_C: torch.Tensor) -> torch.Tensor:
    """Return non-negative numbers scaled to sum 1; zeros where all are 0."""
    return probs_C / probs_C.sum().clamp(min=torch.finfo(probs_C.dtype).tiny)
