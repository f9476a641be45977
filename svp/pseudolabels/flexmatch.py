"""FlexMatch: pseudo-labels under thresholds that follow how well each class is learnt.

The state is a vector on the device, and a step costs O(batch) whatever the pool holds: counts
move by the difference of old and new marks instead of being recounted.

Source: Zhang et al. 2021, "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo
Labeling", equations 5 to 9 and 11, algorithm 1; the convex mapping x/(2-x) is its section 3.3.

Shapes: U = unlabelled rows, M = unlabelled rows of one step, C = classes. With several networks
everything has their number in front.
"""

import torch

from svp.pseudolabels.rule import Rule, Targets, probabilities


class FlexMatch(Rule):
    """Keeps which class each row was last confidently predicted as, and how many of each.

    Marks are never taken back to "none".

    Attributes:
        counts_C1: int64 (C + 1,): sigma per class, and last u, the rows never marked. They always
            sum to U.
    """

    def __init__(
        self,
        num_unlabelled: int,
        num_classes: int,
        *,
        cutoff: float = 0.95,
        warmup: bool = True,
        floor: float = 0.0,
        networks: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start with nothing marked.

        Args:
            num_unlabelled: U.
            num_classes: C.
            cutoff: tau, in (0, 1]: confidence that marks a row, and the largest threshold.
            warmup: Divide by max(max sigma, u) instead of max sigma.
            floor: Smallest threshold.
            networks: How many train side by side; None for one, whose logits have two axes.
            device: Where the state lives.
        """
        self._num_unlabelled, self._num_classes = num_unlabelled, num_classes
        self._cutoff, self._warmup, self._floor = cutoff, warmup, floor
        front = () if networks is None else (networks,)
        # One slot more than rows: writes that must not happen are sent there.
        self._mark_U1 = torch.full((*front, num_unlabelled + 1), num_classes, device=device)
        self._last_U1 = torch.full((*front, num_unlabelled + 1), -1, device=device)
        self.counts_C1 = torch.zeros((*front, num_classes + 1), dtype=torch.int64, device=device)
        self.counts_C1[..., num_classes] = num_unlabelled

    def marks(self) -> torch.Tensor:
        """Return the class each row is marked as, int64 (U,), -1 where none."""
        mark_U = self._mark_U1[..., : self._num_unlabelled]
        return torch.where(mark_U == self._num_classes, -1, mark_U)

    def thresholds(self) -> torch.Tensor:
        """Return T (C,) float32: tau beta/(2 - beta), at least the floor."""
        sigma_C = self.counts_C1[..., : self._num_classes]
        most = (self.counts_C1 if self._warmup else sigma_C).amax(dim=-1, keepdim=True)
        # Before the first mark sigma is 0 everywhere and so is beta, not 0/0.
        beta_C = sigma_C / most.clamp(min=1)
        return (self._cutoff * beta_C / (2 - beta_C)).clamp(min=self._floor)

    def targets(self, weak_logits_MC: torch.Tensor, rows_M: torch.Tensor) -> Targets:
        """Return labels; those at their class's threshold of before this batch count.

        Marking uses the fixed tau.
        """
        confidence_M, label_M = probabilities(weak_logits_MC).max(dim=1)
        mask_M = (confidence_M >= self.thresholds().gather(-1, label_M)).float()
        self.update(rows_M, label_M, confidence_M)
        return Targets(label_M=label_M, weight_M=mask_M)

    def update(
        self, rows_M: torch.Tensor, predicted_M: torch.Tensor, confidence_M: torch.Tensor
    ) -> None:
        """Mark the rows that were predicted with confidence of at least tau.

        A row that occurs more than once takes its last confident prediction.

        Args:
            rows_M: Positions in [0, U), int64; repeats are allowed.
            predicted_M: Predicted classes, int64.
            confidence_M: Their probabilities.
        """
        confident_M = confidence_M >= self._cutoff
        place_M = torch.arange(rows_M.shape[-1], device=rows_M.device).expand_as(rows_M)
        claim_M = torch.where(confident_M, place_M, -1)
        self._last_U1.scatter_reduce_(-1, rows_M, claim_M, "amax")
        wins_M = confident_M & (self._last_U1.gather(-1, rows_M) == place_M)
        self._last_U1.scatter_(-1, rows_M, -1)

        one_M = wins_M.long()
        self.counts_C1.scatter_add_(-1, self._mark_U1.gather(-1, rows_M), -one_M)
        self.counts_C1.scatter_add_(-1, predicted_M, one_M)
        target_M = torch.where(wins_M, rows_M, self._num_unlabelled)
        self._mark_U1.scatter_(-1, target_M, predicted_M)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what `load_state_dict` needs to continue."""
        return {"mark": self._mark_U1[..., : self._num_unlabelled], "counts": self.counts_C1}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from `state`, made by a rule of the same U and C."""
        self._mark_U1[..., : self._num_unlabelled] = state["mark"].to(self._mark_U1.device)
        self.counts_C1 = state["counts"].to(self.counts_C1.device).clone()
