"""What labels are worth in random labels: the inverse of random's learning curve.

Source: the equivalent number of random labels of ASVP (Wen et al. 2024, section 6.2), whose
released code does not hold it. Shapes: R = recorded sizes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from svp.errors import InputError

# Means of the same counts summed in another order differ in their last bits; shares of fewer than
# a thousand million items that really differ, differ by more.
_SAME: Final = 1e-9

FloatArray = npt.NDArray[np.float64]
Smoothing = Literal["max", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """What a strategy's labels are worth in random labels, at one recorded size.

    Attributes:
        labels: N1, labels the strategy used.
        accuracy: What it reached, in the unit of the random curve.
        random_labels: N2, the fewest random labels that reach the same; a bound if censored.
        ratio: (N2 - N1) / N2, in (-inf, 1): halving is +0.5, doubling -1.
        censored: `right`: random never got there, so the true saving is at least `ratio`;
            `left`: random had it at its first point, so the true one is at most `ratio`.
    """

    labels: float
    accuracy: float
    random_labels: float
    ratio: float
    censored: str | None


def running_maximum(accuracies_R: Sequence[float]) -> list[float]:
    """Return the best accuracy up to each round.

    LabelBench's published curves are smoothed so (`--smoothing max`): its 97.75% with 10,000 random
    labels are 97.60% as measured. Publish what was measured; smooth only inside the inverse.
    """
    best_R: FloatArray = np.maximum.accumulate(np.asarray(accuracies_R, dtype=np.float64))
    return [float(value) for value in best_R]


class RandomCurve:
    """Random labelling as a function: how many random labels reach an accuracy.

    Runs are averaged per size; the running maximum makes the curve monotone, and it is linear in
    the number of labels between recorded sizes. On a plateau the left end counts.

    Args:
        sizes_R: Recorded sizes, in any order.
        accuracies_R: Mean accuracy of random at each.
        smoothing: `max`: the running maximum; `none`: the curve as it was measured, of which the
            first crossing counts. They differ only between a dip and the next record.
    """

    def __init__(
        self,
        sizes_R: Sequence[float],
        accuracies_R: Sequence[float],
        *,
        smoothing: Smoothing = "max",
    ) -> None:
        if not len(sizes_R) or len(sizes_R) != len(accuracies_R):
            raise InputError(
                f"A random curve must have one accuracy per size. Got {len(sizes_R)} sizes and "
                f"{len(accuracies_R)} accuracies. Run random too."
            )
        order = np.argsort(np.asarray(sizes_R), kind="stable")
        self._size_R: FloatArray = np.asarray(sizes_R, dtype=np.float64)[order]
        if (np.diff(self._size_R) <= 0).any() or self._size_R[0] <= 0:
            raise InputError("Sizes of a random curve must be positive and distinct. Average runs.")
        measured_R = np.asarray(accuracies_R, dtype=np.float64)[order]
        if not np.isfinite(measured_R).all():
            raise InputError("Accuracies of a random curve must be numbers. Got NaN. Check runs.")
        self._best_R: FloatArray = np.maximum.accumulate(measured_R)
        self._drawn_R = self._best_R if smoothing == "max" else measured_R

    def labels_for(self, target: float) -> tuple[float, str | None]:
        """Return (N2, censoring) for an accuracy; see `Saving`."""
        if target > self._best_R[-1] + _SAME:
            return float(self._size_R[-1]), "right"
        if target < self._best_R[0] - _SAME:
            return float(self._size_R[0]), "left"
        # The first size that reaches the target is the same with and without smoothing.
        reached = int(np.searchsorted(self._best_R, target - _SAME, side="left"))
        if self._best_R[reached] <= target + _SAME:
            return float(self._size_R[reached]), None
        low, high = self._drawn_R[reached - 1], self._drawn_R[reached]
        start, stop = self._size_R[reached - 1], self._size_R[reached]
        return float(start + (target - low) / (high - low) * (stop - start)), None

    def saving(self, labels: float, target: float) -> Saving:
        """Return what `labels` labels that reached `target` save against random ones."""
        random_labels, censored = self.labels_for(target)
        return Saving(
            labels=labels,
            accuracy=target,
            random_labels=random_labels,
            ratio=(random_labels - labels) / random_labels,
            censored=censored,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MeanSaving:
    """Savings averaged over recorded sizes.

    Attributes:
        every: Mean ratio over all sizes, bounds taken as they are.
        uncensored: Mean over the sizes that are no bounds; NaN if none.
        censored: How many sizes are bounds.
    """

    every: float
    uncensored: float
    censored: int


def mean_saving(savings: Sequence[Saving]) -> MeanSaving:
    """Average savings, with and without those that are only bounds."""
    exact = [saving.ratio for saving in savings if saving.censored is None]
    every = [saving.ratio for saving in savings]
    return MeanSaving(
        every=float(np.mean(every)) if every else math.nan,
        uncensored=float(np.mean(exact)) if exact else math.nan,
        censored=len(every) - len(exact),
    )
