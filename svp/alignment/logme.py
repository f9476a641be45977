"""LogME: how well labels can be explained by a linear model on features, as evidence per item.

For one class with targets y in {0, 1}^N, features F, weights w ~ N(0, I / alpha) and noise of
precision beta, the log evidence is

  E = 1/2 [ k ln alpha + N ln beta - N ln 2 pi - beta |F m - y|^2 - alpha |m|^2
            - sum_i ln(alpha + beta s_i) ],       s_i = the k squared singular values of F,

maximised over (alpha, beta) by the fixed point of MacKay 1992, and the score is the mean over
classes of max E / N.

Two readings exist. `corrected` is the evidence as above: k terms of ln alpha for k singular
values, rank cut relative to the largest one, residuals at the final (alpha, beta), and the mean
over classes that have labels. `official` is what the authors' code computes: D terms of ln alpha
whatever the rank (which grows as ln alpha (D - k) / 2N when labels are few), an absolute rank cut
at 1e-10 when N > D, residuals of the sweep before, and absent classes averaged in.

Sources: You, Liu, Wang and Long 2021, "LogME: practical assessment of pre-trained models for
transfer learning"; You et al. 2022, "Ranking and tuning pre-trained models" (the fixed point).
Shapes: N = items, D = features, K = classes, k = singular values kept.
"""

import dataclasses
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from svp.alignment.statistics import (
    ClassStatistics,
    Float64Array,
    Int64Array,
    checked_features,
    class_statistics,
)
from svp.errors import InputError

Mode = Literal["corrected", "official"]

_SWEEPS: Final = 11
_TOLERANCE: Final = 1e-3
_EPSILON: Final = 1e-5
_RANK_CUT: Final = 1e-7  # of singular values, relative to the largest


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LogMEScore:
    """A LogME score and what it is made of.

    Attributes:
        score: Mean over classes of the maximal log evidence per item.
        mode: Which reading.
        classes_K: Classes with labels, ascending.
        evidence_K: Maximal log evidence per item of each of them.
        alpha_K: Precision of the weights' prior at the maximum.
        beta_K: Precision of the noise.
        sweeps_K: Fixed-point sweeps taken, at most 11.
        rank: Singular values kept.
        items: N.
        absent: Classes below the number expected that have no label.
    """

    score: float
    mode: Mode
    classes_K: Int64Array
    evidence_K: Float64Array
    alpha_K: Float64Array
    beta_K: Float64Array
    sweeps_K: Int64Array
    rank: int
    items: int
    absent: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Spectrum:
    """The squared singular values of F and the squared projections of each class on them."""

    sigma_k: Float64Array
    square_kK: Float64Array


def logme(
    x_ND: npt.ArrayLike | None = None,
    y_N: npt.ArrayLike | None = None,
    *,
    statistics: ClassStatistics | None = None,
    mode: Mode = "corrected",
    n_classes: int | None = None,
) -> LogMEScore:
    """Score features against labels.

    Give features and labels, or the `statistics` of them. Scores are those of the raw features:
    there is no intercept, so centring or scaling changes them.

    Args:
        x_ND: Features.
        y_N: Integer classes.
        statistics: Instead of both; cheaper after `ClassStatistics.moved` or `joined`. Needs
            O(D^3); with N < D pass the features, which need O(N^2 D).
        mode: See the module's text.
        n_classes: How many classes there are; those without a label are counted in `absent` and,
            in `official` mode, averaged in. None: as many as the largest label says.

    Raises:
        InputError: The features or labels cannot be used, or neither form is given.
    """
    if mode not in ("corrected", "official"):
        raise InputError(f"mode must be corrected or official. Got {mode!r}. Choose one of them.")
    if statistics is None:
        if x_ND is None or y_N is None:
            raise InputError("logme must be given features and labels, or statistics. Got neither.")
        x, y = checked_features(x_ND, y_N)
        if x.shape[0] > x.shape[1]:
            statistics = class_statistics(x, y)
            spectrum = _of_statistics(statistics, mode)
            classes_K, count_K, dim = statistics.classes_K, statistics.count_K, statistics.dim
        else:
            classes_K, code_N, count_K = np.unique(y, return_inverse=True, return_counts=True)
            spectrum = _of_few(x.astype(np.float64), code_N, len(classes_K), mode)
            dim = x.shape[1]
    else:
        spectrum = _of_statistics(statistics, mode)
        classes_K, count_K, dim = statistics.classes_K, statistics.count_K, statistics.dim
    if classes_K[0] < 0:
        raise InputError(
            f"Labels must be 0 or more. Got {classes_K[0]}. Number the classes from 0."
        )
    expected = int(classes_K[-1]) + 1 if n_classes is None else n_classes
    if expected <= classes_K[-1]:
        raise InputError(
            f"n_classes must exceed the largest label, {classes_K[-1]}. Got {n_classes}. Raise it."
        )
    absent = expected - len(classes_K)
    found = _maximise(spectrum, count_K.astype(np.float64), int(count_K.sum()), dim, mode)
    total = float(found.evidence_K.sum())
    averaged = len(classes_K)
    if mode == "official" and absent:
        empty = _Spectrum(spectrum.sigma_k, np.zeros((len(spectrum.sigma_k), 1)))
        nothing = _maximise(empty, np.zeros(1), int(count_K.sum()), dim, mode)
        total += absent * float(nothing.evidence_K[0])
        averaged = expected
    return LogMEScore(
        score=total / averaged,
        mode=mode,
        classes_K=classes_K.astype(np.int64),
        evidence_K=found.evidence_K,
        alpha_K=found.alpha_K,
        beta_K=found.beta_K,
        sweeps_K=found.sweeps_K,
        rank=len(spectrum.sigma_k),
        items=int(count_K.sum()),
        absent=absent,
    )


class LogME:
    """LogME with scikit-learn's manners.

    Args:
        mode: `corrected` or `official`.

    Attributes:
        score_: The score after `fit`.
        result_: Everything `logme` returns.
    """

    def __init__(self, mode: Mode = "corrected") -> None:
        self.mode: Mode = mode

    def fit(self, x_ND: npt.ArrayLike, y_N: npt.ArrayLike) -> "LogME":
        """Score features (N, D) against integer labels (N,)."""
        self.result_ = logme(x_ND, y_N, mode=self.mode)
        self.score_ = self.result_.score
        return self


def _kept(eigenvalue_d: Float64Array, items: int, mode: Mode) -> npt.NDArray[np.bool_]:
    """Say which eigenvalues of a Gram matrix, ascending, are squared singular values."""
    if mode == "official":
        # As in the authors' code: an absolute cut of the root, which only exact zeros fail, or
        # the N largest when there are fewer items than dimensions.
        if items > len(eigenvalue_d):
            return np.sqrt(np.abs(eigenvalue_d)) > 1e-10
        return np.arange(len(eigenvalue_d)) >= len(eigenvalue_d) - items
    top = float(eigenvalue_d.max(initial=0.0))
    # For large matrices an eigenvalue's rounding is above the square of the cut.
    rounding = 8.0 * len(eigenvalue_d) * np.finfo(np.float64).eps
    return eigenvalue_d > max(_RANK_CUT**2, rounding) * top


def _of_statistics(statistics: ClassStatistics, mode: Mode) -> _Spectrum:
    eigenvalue_D, vector_DD = np.linalg.eigh(statistics.gram_DD)
    keep = _kept(eigenvalue_D, statistics.items, mode)
    sigma_k = np.abs(eigenvalue_D[keep])
    projected_kK = vector_DD[:, keep].T @ statistics.sum_KD.T
    return _Spectrum(sigma_k, projected_kK**2 / sigma_k[:, None])


def _of_few(x_ND: Float64Array, code_N: Int64Array, classes: int, mode: Mode) -> _Spectrum:
    """With N <= D the left singular vectors are the eigenvectors of the N x N Gram matrix."""
    eigenvalue_N, vector_NN = np.linalg.eigh(x_ND @ x_ND.T)
    keep = _kept(eigenvalue_N, len(code_N), mode)
    sigma_k = np.maximum(eigenvalue_N[keep], 0.0)
    one_hot_NK = np.zeros((len(code_N), classes))
    one_hot_NK[np.arange(len(code_N)), code_N] = 1.0
    return _Spectrum(sigma_k, (vector_NN[:, keep].T @ one_hot_NK) ** 2)


@dataclasses.dataclass(frozen=True, slots=True)
class _Maximum:
    evidence_K: Float64Array
    alpha_K: Float64Array
    beta_K: Float64Array
    sweeps_K: Int64Array


def _maximise(
    spectrum: _Spectrum, count_K: Float64Array, items: int, dim: int, mode: Mode
) -> _Maximum:
    """Run the fixed point for all classes at once; a class stops when its own test is met."""
    sigma_k1, square_kK = spectrum.sigma_k[:, None], spectrum.square_kK
    outside_K = np.maximum(count_K - square_kK.sum(axis=0), 0.0)
    if mode == "official":
        outside_K = count_K - square_kK.sum(axis=0)
    classes = square_kK.shape[1]
    alpha_K, beta_K = np.ones(classes), np.ones(classes)
    weight_K, residual_K = np.zeros(classes), np.zeros(classes)
    sweeps_K = np.zeros(classes, dtype=np.int64)
    open_K = np.ones(classes, dtype=bool)
    for _ in range(_SWEEPS):
        at = np.flatnonzero(open_K)
        if not len(at):
            break
        t = alpha_K[at] / beta_K[at]
        gamma, weight, residual = _moments(sigma_k1, square_kK[:, at], outside_K[at], t)
        alpha_K[at] = gamma / (weight + _EPSILON)
        beta_K[at] = (items - gamma) / (residual + _EPSILON)
        weight_K[at], residual_K[at] = weight, residual
        sweeps_K[at] += 1
        open_K[at] = np.abs(alpha_K[at] / beta_K[at] - t) / t > _TOLERANCE
    if mode == "corrected":
        _, weight_K, residual_K = _moments(sigma_k1, square_kK, outside_K, alpha_K / beta_K)
    terms = dim if mode == "official" else len(spectrum.sigma_k)
    evidence_K = 0.5 * (
        terms * np.log(alpha_K)
        + items * np.log(beta_K)
        - np.log(alpha_K + beta_K * sigma_k1).sum(axis=0)
        - beta_K * residual_K
        - alpha_K * weight_K
        - items * np.log(2.0 * np.pi)
    )
    return _Maximum(evidence_K / items, alpha_K, beta_K, sweeps_K)


def _moments(
    sigma_k1: Float64Array, square_kK: Float64Array, outside_K: Float64Array, t_K: Float64Array
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return effective parameters, |m|^2 and |F m - y|^2 at t = alpha / beta."""
    damped_kK = sigma_k1 + t_K
    gamma_K = (sigma_k1 / damped_kK).sum(axis=0)
    weight_K = (sigma_k1 * square_kK / damped_kK**2).sum(axis=0)
    residual_K = (square_kK * (t_K / damped_kK) ** 2).sum(axis=0) + outside_K
    return gamma_K, weight_K, residual_K
