"""Metrics of classifiers, of label sets, and of what a strategy saves against random labels.

Classes are integers in [0, C); a prediction outside the classes a truth can have is simply wrong.
Sources are named at each function. Shapes: N = items, C = classes, R = recorded sizes, S = seeds.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from svp.errors import InputError

# Means of the same counts summed in another order differ in their last bits; shares of fewer than
# a thousand million items that really differ, differ by more.
_SAME: Final = 1e-9

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def _check_same_length(y_N: IntArray, predicted_N: IntArray) -> None:
    if y_N.shape != predicted_N.shape or y_N.ndim != 1:
        raise InputError(
            f"Labels and predictions must be two vectors of one length. Got {y_N.shape} and "
            f"{predicted_N.shape}. Pass one prediction per item."
        )
    if not len(y_N):
        raise InputError("A metric must have at least one item. Got none. Check the split.")


def accuracy(y_N: IntArray, predicted_N: IntArray) -> float:
    """Return the share of items predicted right, in [0, 1]."""
    _check_same_length(y_N, predicted_N)
    return float(np.mean(y_N == predicted_N))


def balanced_accuracy(
    y_N: IntArray, predicted_N: IntArray, *, n_classes: int | None = None
) -> float:
    """Return the mean recall per class, in [0, 1].

    Args:
        y_N: True classes.
        predicted_N: Predicted classes.
        n_classes: None averages over the classes that `y_N` holds; a number C counts the
            classes without items as recall 0, as LabelBench (Zhang et al. 2024) does.
    """
    _check_same_length(y_N, predicted_N)
    classes, item_class_N = np.unique(y_N, return_inverse=True)
    right_K = np.bincount(item_class_N, weights=y_N == predicted_N, minlength=len(classes))
    recall_K = right_K / np.bincount(item_class_N, minlength=len(classes))
    return float(recall_K.sum() / (len(classes) if n_classes is None else n_classes))


def macro_f1(y_N: IntArray, predicted_N: IntArray) -> float:
    """Return the mean over classes of 2TP / (2TP + FP + FN), in [0, 1].

    A class that is neither true nor predicted anywhere has no F1 and is left out.
    """
    _check_same_length(y_N, predicted_N)
    _, code_2N = np.unique(np.concatenate([y_N, predicted_N]), return_inverse=True)
    true_N, guess_N = code_2N[: len(y_N)], code_2N[len(y_N) :]
    size = int(code_2N.max()) + 1
    hit_K = np.bincount(true_N, weights=true_N == guess_N, minlength=size)
    # TP + FN counts the class among truths, TP + FP among predictions.
    both_K = np.bincount(true_N, minlength=size) + np.bincount(guess_N, minlength=size)
    return float(np.mean(2 * hit_K / both_K))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Imbalance:
    """How evenly labels fall on classes.

    Attributes:
        ratio: Largest count over the smallest, an unseen class counted as 1; 1 = even.
        unseen: Classes without a label.
        entropy: -sum p ln p of the label distribution, in nats.
        entropy_share: The same over ln C; 1 = even. 1 when there is one class.
    """

    ratio: float
    unseen: int
    entropy: float
    entropy_share: float


def imbalance(counts_C: npt.ArrayLike) -> Imbalance:
    """Measure the labels per class, `counts_C`, with a zero for each unseen class."""
    count_C = np.asarray(counts_C, dtype=np.float64)
    if not count_C.size or count_C.sum() <= 0 or count_C.min() < 0:
        raise InputError("Class counts must hold at least one label. Got none. Import labels.")
    p_C = count_C[count_C > 0] / count_C.sum()
    entropy = float(-(p_C * np.log(p_C)).sum()) + 0.0
    return Imbalance(
        ratio=float(count_C.max() / max(count_C.min(), 1.0)),
        unseen=int((count_C == 0).sum()),
        entropy=entropy,
        entropy_share=entropy / math.log(len(count_C)) if len(count_C) > 1 else 1.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PoolAccuracy:
    """How right the labels of a whole pool are.

    Attributes:
        hybrid: People's labels where they are, the model's elsewhere: what a team ends up with.
        model: The model's everywhere, which LabelBench's code reports.
    """

    hybrid: float
    model: float


def pool_accuracy(
    y_N: IntArray,
    predicted_N: IntArray,
    labelled: IntArray,
    *,
    labels: IntArray | None = None,
) -> PoolAccuracy:
    """Measure a pool against the truth.

    Args:
        y_N: True classes of the pool.
        predicted_N: The model's.
        labelled: Rows with a human label.
        labels: The human labels of those rows; default: the true ones.
    """
    _check_same_length(y_N, predicted_N)
    hybrid_N = predicted_N.copy()
    hybrid_N[labelled] = y_N[labelled] if labels is None else labels
    return PoolAccuracy(hybrid=accuracy(y_N, hybrid_N), model=accuracy(y_N, predicted_N))


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (ddof 1; NaN for one value)."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan


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

    labels: int
    accuracy: float
    random_labels: float
    ratio: float
    censored: str | None


class RandomCurve:
    """Random labelling as a function: how many random labels reach an accuracy.

    Runs are averaged per size; the running maximum makes the curve monotone, and it is linear in
    the number of labels between recorded sizes. On a plateau the left end counts.
    """

    def __init__(self, sizes_R: Sequence[int], accuracies_R: Sequence[float]) -> None:
        """Take the mean accuracy of random at each recorded size."""
        if not sizes_R or len(sizes_R) != len(accuracies_R):
            raise InputError(
                f"A random curve must have one accuracy per size. Got {len(sizes_R)} sizes and "
                f"{len(accuracies_R)} accuracies. Run random too."
            )
        order = np.argsort(np.asarray(sizes_R), kind="stable")
        self._size_R: FloatArray = np.asarray(sizes_R, dtype=np.float64)[order]
        if (np.diff(self._size_R) <= 0).any() or self._size_R[0] <= 0:
            raise InputError("Sizes of a random curve must be positive and distinct. Average runs.")
        self._best_R: FloatArray = np.maximum.accumulate(
            np.asarray(accuracies_R, dtype=np.float64)[order]
        )
        if not np.isfinite(self._best_R).all():
            raise InputError("Accuracies of a random curve must be numbers. Got NaN. Check runs.")

    def labels_for(self, target: float) -> tuple[float, str | None]:
        """Return (N2, censoring) for an accuracy; see `Saving`."""
        if target > self._best_R[-1] + _SAME:
            return float(self._size_R[-1]), "right"
        if target < self._best_R[0] - _SAME:
            return float(self._size_R[0]), "left"
        reached = int(np.searchsorted(self._best_R, target - _SAME, side="left"))
        if self._best_R[reached] <= target + _SAME:
            return float(self._size_R[reached]), None
        low, high = self._best_R[reached - 1], self._best_R[reached]
        start, stop = self._size_R[reached - 1], self._size_R[reached]
        return float(start + (target - low) / (high - low) * (stop - start)), None

    def saving(self, labels: int, target: float) -> Saving:
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


# Two-tailed 5% points of Student's t by number of runs; more runs are looked up in scipy.
_CRITICAL_T: Final[Mapping[int, float]] = {2: 12.706205, 3: 4.302653, 4: 3.182446, 5: 2.776445}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """Differences of two strategies over the same seeds.

    Attributes:
        mean: Mean difference.
        sd: Sample standard deviation of the differences; NaN for one seed.
        half_width: Half the 95% interval of the mean, t * sd / sqrt(S); NaN for one seed.
        significant: Whether the interval leaves out 0; False where it cannot be said.
        constant: Whether all differences are the same number other than 0: significant by the
            letter of the test, but on a variance that was not seen.
    """

    mean: float
    sd: float
    half_width: float
    significant: bool
    constant: bool


def paired_difference(a_S: Sequence[float], b_S: Sequence[float]) -> Paired:
    """Compare `a_S` with `b_S`, entry by entry the same seed (paired t, two-tailed 5%)."""
    if len(a_S) != len(b_S) or not len(a_S):
        raise InputError(f"Runs must be paired by seed. Got {len(a_S)} and {len(b_S)}.")
    difference_S = np.asarray(a_S, dtype=np.float64) - np.asarray(b_S, dtype=np.float64)
    difference_S = np.round(difference_S, 12)  # equal differences of counts are equal
    mean, sd = mean_sd(difference_S.tolist())
    half = _critical_t(len(difference_S)) * sd / math.sqrt(len(difference_S))
    return Paired(
        mean=mean,
        sd=sd,
        half_width=half,
        significant=abs(mean) > half,  # never for one seed, whose half width is NaN
        constant=sd == 0 and mean != 0,
    )


def _critical_t(runs: int) -> float:
    if runs < 2:
        return math.nan
    if runs in _CRITICAL_T:
        return _CRITICAL_T[runs]
    from scipy.stats import t

    return float(t.ppf(0.975, runs - 1))


def penalty_matrix(runs: Mapping[str, npt.ArrayLike]) -> tuple[tuple[str, ...], FloatArray]:
    """Count how often each strategy is significantly worse.

    Source: Ash et al. 2020 (BADGE), as used by Beck et al. 2021 (DISTIL), appendix G.

    Args:
        runs: Per strategy an array (S seeds, R rounds), seeds in the same order everywhere.

    Returns:
        The names and P: P[i, j] is the share of rounds in which i beats j, so a good strategy
        has a small column mean. No correction for many comparisons.
    """
    names = tuple(runs)
    accuracy_KSR = {name: np.asarray(runs[name], dtype=np.float64) for name in names}
    share_KK: FloatArray = np.zeros((len(names), len(names)))
    for (i, a), (j, b) in itertools.permutations(enumerate(names), 2):
        first_SR, second_SR = accuracy_KSR[a], accuracy_KSR[b]
        if first_SR.shape != second_SR.shape:
            raise InputError(f"Runs must have equal seeds and rounds. Got {a} and {b} that differ.")
        for column in range(first_SR.shape[1]):
            pair = paired_difference(first_SR[:, column].tolist(), second_SR[:, column].tolist())
            if pair.significant and pair.mean > 0:
                share_KK[i, j] += 1 / first_SR.shape[1]
    return names, share_KK
