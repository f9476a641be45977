"""A campaign judged by its own random labels: accuracy, labels saved, what more labels bring.

Shapes: R = rounds, n = labelled random items, K = draws.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from svp.errors import InputError
from svp.metrics.learning_curve import LearningCurve, summary
from svp.metrics.sampled import Estimate

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_DRAWS: Final = 4000
_LEAST_TRAINED: Final = 8
#: Far beyond this the power law is no more than a guess.
REACH: Final = 10.0

#: Standard deviation of the error over repetitions, as a share of the error. Runs of LabelBench on
#: CIFAR-10 (Zhang et al. 2024) with 2.4% errors differ by 0.06 to 0.12 points.
RETRAINING: Final = 0.03

Fit = Callable[[Int64Array, Int64Array], npt.NDArray[np.bool_] | None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CurveCounts:
    """Errors at growing sizes.

    Attributes:
        labels: Labels trained on.
        wrong: Errors; a mean over orders.
        tested: Items tested.
    """

    labels: tuple[float, ...]
    wrong: tuple[float, ...]
    tested: tuple[float, ...]


def progressive_counts(n: int, fit: Fit, rng: np.random.Generator, *, orders: int) -> CurveCounts:
    """Measure a learning curve on n labelled items: train on a beginning, test on what follows.

    The beginnings double, and every item is tested at most once in an order, so that counts of an
    order are independent; over `orders` random orders they are averaged and not added, because all
    orders see the same items.

    Args:
        n: Items, which are numbered from 0.
        fit: Trains on the first numbers and says which of the second are right; None if it cannot
            (such as with one class).
        rng: Draws the orders.
        orders: How many.
    """
    sizes: list[int] = []
    size = min(_LEAST_TRAINED, n // 2)
    while 0 < size < n:
        sizes.append(size)
        size *= 2
    share: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(orders):
        order = rng.permutation(n)
        for size in sizes:
            right = fit(order[:size], order[size : 2 * size])
            if right is not None:
                share[size].append(1.0 - float(np.mean(right)))
    kept = [size for size in sizes if share[size]]
    tested = [float(min(2 * size, n) - size) for size in kept]
    return CurveCounts(
        labels=tuple(map(float, kept)),
        wrong=tuple(t * float(np.mean(share[s])) for s, t in zip(kept, tested, strict=True)),
        tested=tuple(tested),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LabelsSaved:
    """What a campaign's labels are worth in random ones.

    Attributes:
        random_labels: Random labels that reach the same accuracy; a bound at `reach` or more.
        share: (random - own) / random, in (-inf, 1).
        reach: Most random labels that are told apart; more is "at least".
        bound: Whether the interval ends at the bound.
    """

    random_labels: Estimate
    share: Estimate
    reach: float
    bound: bool


def labels_saved(
    campaign: LearningCurve,
    random: LearningCurve,
    labels: float,
    rng: np.random.Generator,
    *,
    reach: float,
    least: float = 1.0,
    confidence: float = 0.9,
) -> LabelsSaved:
    """Estimate how many random labels reach what `labels` of the campaign reach.

    Both curves are drawn from, independently of each other, and random's is turned round.

    Args:
        campaign: Curve of the model on the campaign's labels.
        random: Curve of the model on random labels alone.
        labels: Labels of the campaign.
        rng: Draws.
        reach: Random labels beyond which nothing is told apart, such as ten times those measured.
        least: Random labels below which nothing is told apart, such as the fewest measured.
        confidence: Nominal coverage.
    """
    error_K = campaign.errors(labels)[campaign.draw(_DRAWS, rng)]
    needed_K = np.clip(random.labels_for(error_K, random.draw(_DRAWS, rng)), least, reach)
    equal_K = np.full(_DRAWS, 1.0 / _DRAWS)
    needed = summary(needed_K, equal_K, confidence)
    middle = float(np.median(needed_K))  # a mean would be pulled by the bound
    share = [(value - labels) / value for value in (middle, needed.low, needed.high)]
    return LabelsSaved(
        random_labels=dataclasses.replace(needed, value=middle),
        share=Estimate(value=share[0], low=share[1], high=share[2], confidence=confidence),
        reach=reach,
        bound=math.isclose(needed.high, reach),
    )


def forecast(
    curve: LearningCurve,
    labels: float,
    more: float,
    rng: np.random.Generator,
    *,
    confidence: float = 0.9,
) -> Estimate:
    """Estimate what `more` labels add to the accuracy of the model that has `labels`.

    What is not known of the curve, and besides how far a model lands from its curve by the luck of
    its labels: a normal deviation of `RETRAINING` of the error.

    Args:
        curve: Of the campaign.
        labels: Labels now.
        more: Further labels.
        rng: Draws.
        confidence: Nominal coverage.
    """
    points_K = curve.draw(_DRAWS, rng)
    now_K, then_K = curve.errors(labels)[points_K], curve.errors(labels + more)[points_K]
    luck_K = RETRAINING * now_K * rng.normal(size=_DRAWS)
    gain = summary(now_K - then_K + luck_K, np.full(_DRAWS, 1.0 / _DRAWS), confidence)
    return dataclasses.replace(gain, value=float(np.mean(now_K - then_K)))


Advice = Literal["stop", "continue", "undecided"]


def advise(gain: Estimate, least: float) -> Advice:
    """Return whether to go on: `stop` if even the upper end of the gain is below `least`.

    Args:
        gain: Of the next labels, as a share.
        least: Gain below which they are not worth it, as a share.
    """
    if gain.high < least:
        return "stop"
    return "continue" if gain.low >= least else "undecided"


def worthwhile_gain(more: int, price: float, worth: float) -> float:
    """Return the gain, as a share, at which `more` labels pay for themselves.

    Args:
        more: Labels.
        price: Of one label.
        worth: Of one point (1/100) of accuracy, in the same money.
    """
    if more < 1 or price < 0 or worth <= 0:
        raise InputError(
            f"Labels and worth must be positive, a price 0 or more. Got {more}, {worth}, {price}. "
            "Correct them."
        )
    return more * price / worth / 100


def whole_error(wrong_share: float, candidates: int, wrong_P: Sequence[bool], drawn: int) -> float:
    """Return the error on the whole pool, of which the strategy has taken a part.

    Random items stand for what is left. What the strategy took is harder or easier than that; it
    is judged by the predictions made when it was taken, the only ones that did not know its labels.

    Args:
        wrong_share: Error on the candidates, estimated by the random part of a round.
        candidates: Candidates of the round.
        wrong_P: Per item that the strategy took before, whether its prediction was wrong then.
        drawn: Labelled items that were drawn at random before; they are as the candidates are.
    """
    alike = candidates + drawn
    return (wrong_share * alike + float(np.sum(wrong_P))) / (alike + len(wrong_P))


def pool_shares(right_L: Sequence[bool], labelled: int, candidates: int) -> tuple[float, float]:
    """Return (shift, factor): the whole's share is shift + factor * the candidates' share."""
    whole = labelled + candidates
    return float(np.sum(right_L)) / whole, candidates / whole
