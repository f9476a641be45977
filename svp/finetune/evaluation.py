"""How good predictions are: accuracy, balanced accuracy, macro F1, recalls, confusion matrix."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores of predictions against true classes, fractions in [0, 1].

    Attributes:
        examples: How many were scored.
        accuracy: Share predicted right.
        balanced_accuracy: Mean recall over the classes that have examples.
        balanced_accuracy_all: Mean recall over all classes, 0 for those without examples.
        macro_f1: Mean of 2TP/(2TP + FP + FN) over classes that occur as truth or prediction.
        recall: Per class; None where it has no examples.
        confusion: Counts, (true class, predicted class).
    """

    examples: int
    accuracy: float
    balanced_accuracy: float
    balanced_accuracy_all: float
    macro_f1: float
    recall: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, scores: Mapping[str, Any]) -> "Evaluation":
        """Return what `to_dict` was made from, also after a round through JSON."""
        recall, confusion = tuple(scores["recall"]), tuple(map(tuple, scores["confusion"]))
        return cls(**{**scores, "recall": recall, "confusion": confusion})


def evaluate(true_N: Int64Array, predicted_N: Int64Array, num_classes: int) -> Evaluation:
    """Score predictions; both arrays hold classes in [0, C) and are not empty."""
    cells = np.bincount(true_N * num_classes + predicted_N, minlength=num_classes**2)
    confusion_CC = cells.reshape(num_classes, num_classes)
    right_C = np.diag(confusion_CC)
    true_C, predicted_C = confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
    seen_C = true_C > 0
    recall_C = right_C / np.maximum(true_C, 1)
    occurs_C = true_C + predicted_C > 0
    f1_C = 2 * right_C / np.maximum(true_C + predicted_C, 1)
    return Evaluation(
        examples=len(true_N),
        accuracy=float(right_C.sum() / len(true_N)),
        balanced_accuracy=float(recall_C[seen_C].mean()),
        balanced_accuracy_all=float(recall_C.mean()),
        macro_f1=float(f1_C[occurs_C].mean()),
        recall=tuple(float(r) if seen else None for r, seen in zip(recall_C, seen_C, strict=True)),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion_CC),
    )


def pool_scores(
    truth_N: Int64Array, predicted_N: Int64Array, labelled_rows: Int64Array, labels_L: Int64Array
) -> dict[str, float] | None:
    """Score a whole pool against known truth; None if none is known.

    Args:
        truth_N: True classes, -1 where unknown.
        predicted_N: The model's.
        labelled_rows: Rows people labelled.
        labels_L: What they said.

    Returns:
        `examples`; `accuracy_model`, which takes the model's word everywhere; and
        `accuracy_hybrid`, which takes the human label where there is one. (LabelBench's paper
        means the latter, its code computes the former.)
    """
    known_N = truth_N >= 0
    if not known_N.any():
        return None
    hybrid_N = predicted_N.copy()
    hybrid_N[labelled_rows] = labels_L
    return {
        "examples": float(known_N.sum()),
        "accuracy_model": float((predicted_N == truth_N)[known_N].mean()),
        "accuracy_hybrid": float((hybrid_N == truth_N)[known_N].mean()),
    }
