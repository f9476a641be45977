"""Numbers over seeds: mean, standard deviation, paired differences, and who beats whom.

Shapes: S = seeds, R = rounds, K = strategies.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from svp.errors import InputError

FloatArray = npt.NDArray[np.float64]


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (ddof 1; NaN for one value)."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean, SD / sqrt(S); NaN for one value.

    Captions often say standard error where the tables hold the standard deviation (LabelBench,
    Zhang et al. 2024); the two differ by sqrt(S).
    """
    return mean_sd(values)[1] / math.sqrt(len(values))


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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Penalties:
    """How often each strategy is significantly worse than each other.

    Attributes:
        names: Strategies, in the order of rows and columns.
        share_KK: [i, j] is the share of rounds in which i beats j, so a good strategy has a small
            column mean. [i, j] + [j, i] <= 1, the diagonal is 0.
        constant_KK: [i, j] counts those of these rounds in which all seeds differ by the same
            number, so that the test rests on a variance that was not seen.
        rounds: R; shares are multiples of 1 / R.
    """

    names: tuple[str, ...]
    share_KK: FloatArray
    constant_KK: npt.NDArray[np.int64]
    rounds: int


def penalties(runs: Mapping[str, npt.ArrayLike]) -> Penalties:
    """Compare all strategies pairwise, round by round, by the paired t test at 5%, two-tailed.

    Source: Ash et al. 2020 (BADGE), as used by Beck et al. 2021 (DISTIL), appendix G. There is no
    correction for many comparisons. Equal runs add nothing.

    Args:
        runs: Per strategy an array (S seeds, R rounds), seeds in the same order everywhere.
    """
    names = tuple(runs)
    accuracy_KSR = [np.atleast_2d(np.asarray(runs[name], dtype=np.float64)) for name in names]
    rounds = accuracy_KSR[0].shape[1] if names else 0
    won_KK: npt.NDArray[np.int64] = np.zeros((len(names), len(names)), dtype=np.int64)
    constant_KK: npt.NDArray[np.int64] = np.zeros_like(won_KK)
    for i, j in itertools.permutations(range(len(names)), 2):
        first_SR, second_SR = accuracy_KSR[i], accuracy_KSR[j]
        if first_SR.shape != second_SR.shape:
            raise InputError(
                f"Runs must have equal seeds and rounds. Got {names[i]} and {names[j]} that differ."
            )
        for column in range(rounds):
            pair = paired_difference(first_SR[:, column].tolist(), second_SR[:, column].tolist())
            if pair.significant and pair.mean > 0:
                won_KK[i, j] += 1
                constant_KK[i, j] += pair.constant
    share_KK: FloatArray = won_KK / max(rounds, 1)
    return Penalties(names=names, share_KK=share_KK, constant_KK=constant_KK, rounds=rounds)


def penalty_matrix(runs: Mapping[str, npt.ArrayLike]) -> tuple[tuple[str, ...], FloatArray]:
    """Return names and shares of `penalties`."""
    found = penalties(runs)
    return found.names, found.share_KK
