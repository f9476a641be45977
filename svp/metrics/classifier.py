"""How right a classifier is: on a test set, by class, and on a pool that people label in part.

Classes are integers in [0, C); a prediction outside the classes a truth can have is simply wrong.
Shapes: N = items, K = classes that occur.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from svp.errors import InputError

IntArray = npt.NDArray[np.int64]


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


def macro_f1(y_N: IntArray, predicted_N: IntArray, *, true_classes: bool = False) -> float:
    """Return the mean over classes of 2TP / (2TP + FP + FN), in [0, 1].

    A class that is neither true nor predicted anywhere has no F1 and is left out. The harmonic
    mean of precision and recall, as LabelBench's paper (Zhang et al. 2024) prints it, is the same
    number wherever it is defined; it divides by zero for a class without a hit, which counts 0.

    Args:
        y_N: True classes.
        predicted_N: Predicted classes.
        true_classes: Average over the classes that `y_N` holds, as balanced accuracy does. By
            default also over those that are only predicted, as LabelBench's code does.
    """
    _check_same_length(y_N, predicted_N)
    _, code_2N = np.unique(np.concatenate([y_N, predicted_N]), return_inverse=True)
    true_N, guess_N = code_2N[: len(y_N)], code_2N[len(y_N) :]
    size = int(code_2N.max()) + 1
    hit_K = np.bincount(true_N, weights=true_N == guess_N, minlength=size)
    # TP + FN counts the class among truths, TP + FP among predictions.
    both_K = np.bincount(true_N, minlength=size) + np.bincount(guess_N, minlength=size)
    f1_K = 2 * hit_K / both_K
    if true_classes:
        f1_K = f1_K[np.bincount(true_N, minlength=size) > 0]
    return float(np.mean(f1_K))


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
