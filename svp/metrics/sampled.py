"""What a random sample says of the whole it was drawn from: a share, with an interval.

Shapes: n = sampled items.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from svp.errors import InputError

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number that was estimated.

    Attributes:
        value: The estimate.
        low: Lower end of its interval.
        high: Upper end.
        confidence: Nominal coverage of the interval.
    """

    value: float
    low: float
    high: float
    confidence: float

    def scaled(self, factor: float, shift: float = 0.0) -> "Estimate":
        """Return the same for `shift + factor * value`; `factor` is not negative."""
        return Estimate(
            value=shift + factor * self.value,
            low=shift + factor * self.low,
            high=shift + factor * self.high,
            confidence=self.confidence,
        )


def sampled_share(
    correct_n: Sequence[bool],
    chance_n: Sequence[float],
    population: int,
    *,
    confidence: float = 0.9,
) -> Estimate:
    """Estimate the share of a population that is correct, from items drawn with known chances.

    The ratio of the two Horvitz-Thompson totals (Hajek 1971): sum(correct / chance) over
    sum(1 / chance); with equal chances the sample's mean, which is unbiased. The interval is
    Jeffreys' (Brown, Cai and DasGupta 2001) at the effective sample size of the weights (Kish
    1965), enlarged by (N - 1) / (N - n) because the n were drawn without replacement from N. Of
    the usual ones it holds a share between 60% and 97% most nearly as often as it says, for 10
    items as for 50.

    Args:
        correct_n: Whether each sampled item is.
        chance_n: Chance with which each was drawn, in (0, 1].
        population: N, items that could have been drawn.
        confidence: Nominal coverage, in (0, 1).

    Raises:
        InputError: There are no items, or a chance is none.
    """
    chance: FloatArray = np.asarray(chance_n, dtype=np.float64)
    if not len(chance) or len(chance) != len(correct_n) or len(chance) > population:
        raise InputError(
            "A sample must have items, a chance each, and at most as many as there are. Got "
            f"{len(correct_n)} items, {len(chance)} chances, of {population}. Draw at random."
        )
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be in (0, 1). Got {confidence}. Write 0.9.")
    if not ((chance > 0) & (chance <= 1)).all():
        raise InputError("Chances must be in (0, 1]. Got others. Use the recorded ones.")
    weight = 1.0 / chance
    share = float((weight * np.asarray(correct_n, dtype=np.float64)).sum() / weight.sum())
    size = float(weight.sum() ** 2 / (weight**2).sum())
    if len(chance) == population:
        return Estimate(value=share, low=share, high=share, confidence=confidence)
    size *= (population - 1) / (population - len(chance))
    from scipy.stats import beta

    tail, right, wrong = (1 - confidence) / 2, share * size, (1 - share) * size
    low = float(beta.ppf(tail, right + 0.5, wrong + 0.5)) if right > 0 else 0.0
    high = float(beta.ppf(1 - tail, right + 0.5, wrong + 0.5)) if wrong > 0 else 1.0
    return Estimate(value=share, low=low, high=high, confidence=confidence)
