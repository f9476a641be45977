"""Learning curves from few tested items: a power law that flattens out, and what is not known.

error(n) = level * (floor + (1 - floor) * (n / centre) ** -slope), with the error `level` in the
middle of the measured range and the share `floor` of it that no number of labels removes. The
posterior is computed on a grid: binomial counts, Jeffreys' prior on the level, a uniform one on the
floor, and for the slope a half-normal one of scale 0.5, because measured curves fall as power laws
of small exponents (Hestness et al. 2017, "Deep learning scaling is predictable, empirically"). A
few dozen tested items cannot tell a floor from a slope; the interval says so by its width.

Shapes: R = measured sizes, G = grid points, K = draws.
"""

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from svp.errors import InputError
from svp.metrics.sampled import Estimate

FloatArray = npt.NDArray[np.float64]

_LEVELS: Final = 121
_SLOPES: Final = 21
_FLOORS: Final = 11
_MOST_FLOOR: Final = 0.98
_MOST_SLOPE: Final = 1.5
_LEAST_ERROR: Final = 5e-4
_SLOPE_SCALE: Final = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LearningCurve:
    """What is known of a curve.

    Attributes:
        centre: Labels at which `level_G` is the error.
        level_G: Logarithm of the error there.
        slope_G: Exponent.
        floor_G: Share of that error that stays.
        weight_G: Probability of each grid point; sums to 1.
    """

    centre: float
    level_G: FloatArray
    slope_G: FloatArray
    floor_G: FloatArray
    weight_G: FloatArray

    def errors(self, labels: float) -> FloatArray:
        """Return the error of every grid point at a number of labels, (G,)."""
        fall_G = np.exp(-self.slope_G * np.log(labels / self.centre))
        shape_G = self.floor_G + (1.0 - self.floor_G) * fall_G
        error_G: FloatArray = np.minimum(np.exp(self.level_G) * shape_G, 1.0)
        return error_G

    def accuracy(self, labels: float, confidence: float = 0.9) -> Estimate:
        """Return the accuracy at a number of labels."""
        return summary(1.0 - self.errors(labels), self.weight_G, confidence)

    def draw(self, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Draw grid points from the posterior, (count,)."""
        return rng.choice(len(self.weight_G), size=count, p=self.weight_G)

    def labels_for(self, error_K: FloatArray, points_K: npt.NDArray[np.int64]) -> FloatArray:
        """Return the labels at which curves reach errors, (K,); infinite where they never do."""
        floor_K, slope_K = self.floor_G[points_K], self.slope_G[points_K]
        part_K = (error_K / np.exp(self.level_G[points_K]) - floor_K) / (1.0 - floor_K)
        with np.errstate(divide="ignore", invalid="ignore"):
            exponent_K = -np.log(np.maximum(part_K, 0.0)) / slope_K
        # 0 / 0: a flat curve at this very error, which it has at any number of labels.
        exponent_K = np.where(np.isnan(exponent_K), 0.0, exponent_K)
        found_K: FloatArray = self.centre * np.exp(np.clip(exponent_K, -700.0, 700.0))
        return found_K


def fit_learning_curve(
    labels_R: Sequence[float], wrong_R: Sequence[float], tested_R: Sequence[float]
) -> LearningCurve:
    """Return the posterior of a curve.

    Args:
        labels_R: Labels of each measurement.
        wrong_R: Items classified wrongly; means of several splits may be fractions.
        tested_R: Items tested, which must be no part of the labels.

    Raises:
        InputError: Nothing was tested.
    """
    labels, wrong, tested = (np.asarray(v, dtype=np.float64) for v in (labels_R, wrong_R, tested_R))
    if not len(labels) or not len(labels) == len(wrong) == len(tested) or tested.sum() <= 0:
        raise InputError(
            "A learning curve must have tested items. Got none. Label random items of a round."
        )
    if (labels <= 0).any() or (wrong < 0).any() or (wrong > tested).any():
        raise InputError("A learning curve must have labels, and 0 <= wrong <= tested. Count anew.")
    centre = float(np.exp(np.average(np.log(labels), weights=tested)))
    axes = (
        np.linspace(np.log(_LEAST_ERROR), np.log(0.995), _LEVELS),
        np.linspace(0.0, _MOST_SLOPE, _SLOPES),
        np.linspace(0.0, _MOST_FLOOR, _FLOORS),
    )
    level_G, slope_G, floor_G = (grid.ravel() for grid in np.meshgrid(*axes, indexing="ij"))
    fall_RG = np.exp(-slope_G[None, :] * np.log(labels / centre)[:, None])
    error_RG = np.exp(level_G) * (floor_G + (1.0 - floor_G) * fall_RG)
    error_RG = np.clip(error_RG, 1e-9, 1 - 1e-6)
    log_G = (wrong[:, None] * np.log(error_RG)).sum(axis=0)
    log_G += ((tested - wrong)[:, None] * np.log1p(-error_RG)).sum(axis=0)
    # Jeffreys' density of an error, in its logarithm: error ** 1/2 * (1 - error) ** -1/2.
    log_G += 0.5 * level_G - 0.5 * np.log1p(-np.exp(level_G))
    log_G -= 0.5 * (slope_G / _SLOPE_SCALE) ** 2
    weight_G = np.exp(log_G - log_G.max())
    return LearningCurve(
        centre=centre,
        level_G=level_G,
        slope_G=slope_G,
        floor_G=floor_G,
        weight_G=weight_G / weight_G.sum(),
    )


def summary(value_G: FloatArray, weight_G: FloatArray, confidence: float) -> Estimate:
    """Return mean and central interval of a weighted sample."""
    order = np.argsort(value_G, kind="stable")
    mass = np.cumsum(weight_G[order])
    tail = (1 - confidence) / 2
    low, high = (
        float(value_G[order[min(int(np.searchsorted(mass, q * mass[-1])), len(order) - 1)]])
        for q in (tail, 1 - tail)
    )
    mean = float((value_G * weight_G).sum() / weight_G.sum())
    return Estimate(value=mean, low=low, high=high, confidence=confidence)
