"""Everything LogME and PED need of features and labels: class sums and one Gram matrix.

With them a class can be moved, labels added and scores computed without another pass over the
features.

Shapes: N = labelled items, D = features, K = classes with at least one label.
"""

import dataclasses
from typing import Final

import numpy as np
import numpy.typing as npt

from svp.errors import InputError

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_BLOCK_ROWS: Final = 16_384  # a float64 copy of this many rows is made at a time


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClassStatistics:
    """Sums over labelled features, in float64.

    Attributes:
        classes_K: The classes that have labels, ascending.
        count_K: Items per class.
        sum_KD: Sum of each class's features.
        square_KD: Sum of their squares.
        gram_DD: F^T F over all items, not centred.
    """

    classes_K: Int64Array
    count_K: Int64Array
    sum_KD: Float64Array
    square_KD: Float64Array
    gram_DD: Float64Array

    @property
    def items(self) -> int:
        """N."""
        return int(self.count_K.sum())

    @property
    def dim(self) -> int:
        """D."""
        return int(self.sum_KD.shape[1])

    @property
    def mean_KD(self) -> Float64Array:
        """Mean of each class."""
        return self.sum_KD / self.count_K[:, None]

    @property
    def variance_KD(self) -> Float64Array:
        """Variance of each class in each dimension (ddof 0)."""
        spread_KD = self.square_KD / self.count_K[:, None] - self.mean_KD**2
        return np.maximum(spread_KD, 0.0)

    def moved(self, shift_KD: Float64Array) -> "ClassStatistics":
        """Return the statistics after adding `shift_KD[k]` to every item of class k.

        G' = G + sum_k (s_k d_k^T + d_k s_k^T + n_k d_k d_k^T), O(K D^2).
        """
        if shift_KD.shape != self.sum_KD.shape:
            raise InputError(
                f"Shifts must be one vector per class, {self.sum_KD.shape}. Got {shift_KD.shape}. "
                "Give a row of zeros to classes that stay."
            )
        count_K1 = self.count_K[:, None].astype(np.float64)
        cross_DD = self.sum_KD.T @ shift_KD
        moved_KD = count_K1 * shift_KD
        return ClassStatistics(
            classes_K=self.classes_K,
            count_K=self.count_K,
            sum_KD=self.sum_KD + moved_KD,
            square_KD=self.square_KD + 2.0 * shift_KD * self.sum_KD + moved_KD * shift_KD,
            gram_DD=self.gram_DD + cross_DD + cross_DD.T + moved_KD.T @ shift_KD,
        )

    def joined(self, other: "ClassStatistics") -> "ClassStatistics":
        """Return the statistics of the items of both; new labels cost O(new D^2)."""
        if other.dim != self.dim:
            raise InputError(
                f"Features must have {self.dim} dimensions. Got {other.dim}. "
                "Take both from the same encoder."
            )
        classes_K = np.union1d(self.classes_K, other.classes_K)
        count_K = np.zeros(len(classes_K), dtype=np.int64)
        sum_KD = np.zeros((len(classes_K), self.dim))
        square_KD = np.zeros_like(sum_KD)
        for part in (self, other):
            place = np.searchsorted(classes_K, part.classes_K)
            count_K[place] += part.count_K
            sum_KD[place] += part.sum_KD
            square_KD[place] += part.square_KD
        return ClassStatistics(
            classes_K=classes_K,
            count_K=count_K,
            sum_KD=sum_KD,
            square_KD=square_KD,
            gram_DD=self.gram_DD + other.gram_DD,
        )


def checked_features(
    x_ND: npt.ArrayLike, y_N: npt.ArrayLike
) -> tuple[npt.NDArray[np.generic], Int64Array]:
    """Return features and labels as arrays after refusing what cannot be scored.

    Raises:
        InputError: Shapes do not fit, there are no items, labels are not integers, or a feature
            is not finite.
    """
    x, y = np.asarray(x_ND), np.asarray(y_N)
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y) or not len(x):
        raise InputError(
            "Features must be (N, D) with one label each, N >= 1. Got features "
            f"{x.shape} and labels {y.shape}. Pass one row per labelled item."
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"Labels must be integers. Got {y.dtype}. Number the classes from 0.")
    if not np.issubdtype(x.dtype, np.floating):
        raise InputError(f"Features must be floating point. Got {x.dtype}. Convert them.")
    if not np.isfinite(x).all():
        raise InputError("Features must be finite. Got NaN or infinity. Embed these items again.")
    return x, y.astype(np.int64)


def class_statistics(x_ND: npt.ArrayLike, y_N: npt.ArrayLike) -> ClassStatistics:
    """Sum labelled features once.

    Args:
        x_ND: Features, any floating type; summed in float64, a block at a time.
        y_N: Integer classes; gaps in the numbering are classes without labels.

    Raises:
        InputError: See `checked_features`.
    """
    x, y = checked_features(x_ND, y_N)
    classes_K, code_N = np.unique(y, return_inverse=True)
    dim = x.shape[1]
    sum_KD = np.zeros((len(classes_K), dim))
    square_KD = np.zeros_like(sum_KD)
    gram_DD = np.zeros((dim, dim))
    for start in range(0, len(x), _BLOCK_ROWS):
        block_TD = x[start : start + _BLOCK_ROWS].astype(np.float64)
        code_T = code_N[start : start + _BLOCK_ROWS]
        # Rows of one class side by side: its sum is one reduction, not one addition an item.
        order = np.argsort(code_T, kind="stable")
        sorted_TD = block_TD[order]
        here, first = np.unique(code_T[order], return_index=True)
        sum_KD[here] += np.add.reduceat(sorted_TD, first, axis=0)
        square_KD[here] += np.add.reduceat(np.square(sorted_TD), first, axis=0)
        gram_DD += block_TD.T @ block_TD
    return ClassStatistics(
        classes_K=classes_K.astype(np.int64),
        count_K=np.bincount(code_N, minlength=len(classes_K)).astype(np.int64),
        sum_KD=sum_KD,
        square_KD=square_KD,
        gram_DD=gram_DD,
    )
