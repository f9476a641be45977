"""Rules that turn predictions on weak views into targets for strong ones, for several members.

Every rule keeps its state on the device and costs O(batch) a step, whatever the pool holds; none
waits for the device.

Sources: FixMatch (Sohn et al. 2020), FlexMatch (Zhang et al. 2021, equations 5 to 9 and 11),
FreeMatch (Wang et al. 2023, equations 5 to 11), SoftMatch (Chen et al. 2023, equations 5 to 9),
UDA (Xie et al. 2020, section 2.2), Pseudo-Label (Lee 2013, equations 15 and 16).

Shapes: M = members, U = unlabelled rows, u = unlabelled rows of a step, C = classes.
"""

import abc
from typing import Final

import torch
from torch.nn import functional

from svp.proxies.network import NetworkConfig

_EMA: Final = 0.999
_SIGMAS: Final = 2.0
_TEMPERATURE: Final = 0.4
_FAIRNESS: Final = 0.001
_RAMP: Final = 0.4
_TINY: Final = 1e-12


class Rule(abc.ABC):
    """A semi-supervised method.

    Attributes:
        uses_strong: Whether the targets are for the strong views; otherwise for the weak ones.
    """

    uses_strong = True

    @abc.abstractmethod
    def targets(
        self, weak_MCu: torch.Tensor, rows_Mu: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return targets and the weight of each row, then move the state.

        Args:
            weak_MCu: Logits of the weak views, without gradient.
            rows_Mu: Which unlabelled rows they are, in [0, U).
            progress: Share of training that is done, in [0, 1).

        Returns:
            Classes (M, u) int64 or probabilities (M, C, u), and weights (M, u).
        """

    def further_loss(self, strong_MCu: torch.Tensor, weight_Mu: torch.Tensor) -> torch.Tensor:
        """Return what else a member minimises, (M,)."""
        del weight_Mu
        return strong_MCu.new_zeros(len(strong_MCu))


def unlabelled_loss(
    student_MCu: torch.Tensor, target: torch.Tensor, weight_Mu: torch.Tensor
) -> torch.Tensor:
    """Return mean(weight x cross-entropy) over all u rows, those of weight 0 included, (M,)."""
    loss_Mu = functional.cross_entropy(student_MCu, target, reduction="none")
    return (weight_Mu * loss_Mu).mean(dim=1)


class FlexMatch(Rule):
    """Thresholds that follow how many rows were confidently predicted as each class."""

    def __init__(
        self, members: int, rows: int, classes: int, cutoff: float, device: torch.device
    ) -> None:
        self._cutoff, self._rows, self._classes = cutoff, rows, classes
        # One slot more than rows: writes that must not happen are sent there.
        self._mark = torch.full((members, rows + 1), classes, device=device)
        self._last = torch.full((members, rows + 1), -1, device=device)
        self._counts = torch.zeros((members, classes + 1), dtype=torch.int64, device=device)
        self._counts[:, classes] = rows

    @property
    def counts(self) -> torch.Tensor:
        """Rows marked as each class, and last those never marked, int64 (M, C + 1)."""
        return self._counts.clone()

    def thresholds(self) -> torch.Tensor:
        """Return tau beta / (2 - beta) with beta = sigma / max(max sigma, unmarked), (M, C)."""
        beta_MC = self._counts[:, :-1] / self._counts.amax(dim=1, keepdim=True).clamp(min=1)
        return self._cutoff * beta_MC / (2.0 - beta_MC)

    def targets(
        self, weak_MCu: torch.Tensor, rows_Mu: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask by the thresholds from before this step; mark by the fixed cutoff."""
        del progress
        confidence_Mu, label_Mu = weak_MCu.softmax(dim=1).max(dim=1)
        weight_Mu = (confidence_Mu >= self.thresholds().gather(1, label_Mu)).float()
        confident_Mu = confidence_Mu >= self._cutoff
        # Of a row that occurs more than once the last confident occurrence decides.
        place_Mu = torch.arange(rows_Mu.shape[1], device=rows_Mu.device).expand_as(rows_Mu)
        self._last.scatter_reduce_(1, rows_Mu, torch.where(confident_Mu, place_Mu, -1), "amax")
        wins_Mu = confident_Mu & (self._last.gather(1, rows_Mu) == place_Mu)
        self._last.scatter_(1, rows_Mu, -1)
        one_Mu = wins_Mu.long()
        self._counts.scatter_add_(1, self._mark.gather(1, rows_Mu), -one_Mu)
        self._counts.scatter_add_(1, label_Mu, one_Mu)
        self._mark.scatter_(1, torch.where(wins_Mu, rows_Mu, self._rows), label_Mu)
        return label_Mu, weight_Mu


class FixMatch(Rule):
    """One fixed threshold."""

    def __init__(self, cutoff: float) -> None:
        self._cutoff = cutoff

    def targets(
        self, weak_MCu: torch.Tensor, rows_Mu: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep labels whose confidence is at least the cutoff."""
        del rows_Mu, progress
        confidence_Mu, label_Mu = weak_MCu.softmax(dim=1).max(dim=1)
        return label_Mu, (confidence_Mu >= self._cutoff).float()


class PseudoLabel(FixMatch):
    """The weak view against its own label, with a weight that rises over training."""

    uses_strong = False

    def targets(
        self, weak_MCu: torch.Tensor, rows_Mu: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep confident labels; their weight is 1 from 40 % of training on."""
        label_Mu, weight_Mu = super().targets(weak_MCu, rows_Mu, progress)
        return label_Mu, weight_Mu * min(1.0, progress / _RAMP)


class UDA(FixMatch):
    """Sharpened probabilities of confident rows."""

    def targets(
        self, weak_MCu: torch.Tensor, rows_Mu: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return soft targets at temperature 0.4; confidence is that of the unsharpened ones."""
        _, weight_Mu = super().targets(weak_MCu, rows_Mu, progress)
        return (weak_MCu / _TEMPERATURE).softmax(dim=1), weight_Mu


class FreeMatch(Rule):
    """A global threshold that follows the confidence, and class factors that follow the mean."""

    def __init__(self, members: int, classes: int, device: torch.device) -> None:
        self._global_M = torch.full((members,), 1.0 / classes, device=device)
        self._mean_MC = torch.full((members, classes), 1.0 / classes, device=device)
        self._share_MC = self._mean_MC.clone()

    def thresholds(self) -> torch.Tensor:
        """Return the thresholds of the classes, (M, C)."""
        factor_MC = self._mean_MC / self._mean_MC.amax(dim=1, keepdim=True)
        return self._global_M[:, None] * factor_MC

    def targets(
        self, weak_MCu: torch.Tensor, rows_Mu: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Move the averages by this batch, then mask by the thresholds."""
        del rows_Mu, progress
        p_MCu = weak_MCu.softmax(dim=1)
        confidence_Mu, label_Mu = p_MCu.max(dim=1)
        self._global_M.lerp_(confidence_Mu.mean(dim=1), 1.0 - _EMA)
        self._mean_MC.lerp_(p_MCu.mean(dim=2), 1.0 - _EMA)
        self._share_MC.lerp_(_shares(label_Mu, torch.ones_like(confidence_Mu), p_MCu), 1.0 - _EMA)
        weight_Mu = (confidence_Mu >= self.thresholds().gather(1, label_Mu)).float()
        return label_Mu, weight_Mu

    def further_loss(self, strong_MCu: torch.Tensor, weight_Mu: torch.Tensor) -> torch.Tensor:
        """Return 0.001 x the self-adaptive fairness term, (M,)."""
        p_MCu = strong_MCu.softmax(dim=1)
        label_Mu = p_MCu.detach().argmax(dim=1)
        mean_MC = (p_MCu * weight_Mu[:, None]).mean(dim=2)
        share_MC = _shares(label_Mu, weight_Mu, p_MCu)
        expected_MC = _normalised(self._mean_MC / self._share_MC.clamp(min=_TINY))
        # A class nobody is confidently predicted as has no share to divide by.
        seen_MC = _normalised(torch.where(share_MC > 0, mean_MC / share_MC.clamp(min=_TINY), 0.0))
        fairness_M = (expected_MC * torch.log(seen_MC + _TINY)).sum(dim=1)
        return _FAIRNESS * torch.where(weight_Mu.sum(dim=1) > 0, fairness_M, 0.0)


class SoftMatch(Rule):
    """Weights from a truncated Gaussian of the confidence, after uniform alignment."""

    def __init__(self, members: int, classes: int, device: torch.device) -> None:
        self._mean_M = torch.full((members,), 1.0 / classes, device=device)
        self._var_M = torch.ones(members, device=device)
        self._p_MC = torch.full((members, classes), 1.0 / classes, device=device)

    def targets(
        self, weak_MCu: torch.Tensor, rows_Mu: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels come from the unaligned predictions, weights from the aligned ones."""
        del rows_Mu, progress
        p_MCu = weak_MCu.softmax(dim=1)
        self._p_MC.lerp_(p_MCu.mean(dim=2), 1.0 - _EMA)
        aligned_MCu = p_MCu / (self._p_MC * p_MCu.shape[1])[:, :, None]
        aligned_MCu = aligned_MCu / aligned_MCu.sum(dim=1, keepdim=True)
        confidence_Mu = aligned_MCu.amax(dim=1)
        self._mean_M.lerp_(confidence_Mu.mean(dim=1), 1.0 - _EMA)
        correction = 1 if confidence_Mu.shape[1] > 1 else 0
        self._var_M.lerp_(confidence_Mu.var(dim=1, correction=correction), 1.0 - _EMA)
        below_Mu = (confidence_Mu - self._mean_M[:, None]).clamp(max=0.0)
        weight_Mu = torch.exp(-below_Mu.square() * _SIGMAS**2 / (2.0 * self._var_M[:, None]))
        return p_MCu.argmax(dim=1), weight_Mu


def _shares(label_Mu: torch.Tensor, weight_Mu: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the weighted share of each class among labels, (M, C)."""
    counts_MC = like.new_zeros(like.shape[:2]).scatter_add_(1, label_Mu, weight_Mu)
    return counts_MC / counts_MC.sum(dim=1, keepdim=True).clamp(min=_TINY)


def _normalised(x_MC: torch.Tensor) -> torch.Tensor:
    return x_MC / x_MC.sum(dim=1, keepdim=True).clamp(min=_TINY)


def make_rule(
    config: NetworkConfig, *, members: int, rows: int, classes: int, device: torch.device
) -> Rule | None:
    """Return the rule of `config`, with nothing seen yet; None for supervised training."""
    if config.trainer == "flexmatch":
        return FlexMatch(members, rows, classes, config.cutoff or 0.95, device)
    if config.trainer == "fixmatch":
        return FixMatch(config.cutoff or 0.95)
    if config.trainer == "pseudolabel":
        return PseudoLabel(config.cutoff or 0.95)
    if config.trainer == "uda":
        return UDA(config.cutoff or 0.8)
    if config.trainer == "freematch":
        return FreeMatch(members, classes, device)
    if config.trainer == "softmatch":
        return SoftMatch(members, classes, device)
    return None
