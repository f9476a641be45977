"""Labelling efficiency: how many times more labels random needs for the same accuracy.

Source: Beck et al. 2021 (DISTIL), section 4.1. The text defines N_AL / N_RS but prints 1.3 to 4.5
times, which is N_RS / N_AL; so it is here. Shapes: R = recorded sizes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from svp.errors import InputError
from svp.metrics.saving import RandomCurve

Reading = Literal["recorded", "interpolated"]
Bound = Literal["measured", "at least", "at most", "unknown"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """Labels to reach an accuracy, by a strategy and by random.

    Attributes:
        target: The accuracy.
        labels: N_AL, the fewest labels of the strategy that reach it; its last size if none does.
        random_labels: N_RS, the same of random.
        ratio: N_RS / N_AL; NaN where even a bound cannot be said.
        bound: On which side of `ratio` the true one lies, where a curve does not cover `target`.
        reading: `recorded`: at recorded sizes; `interpolated`: linear between them.
    """

    target: float
    labels: float
    random_labels: float
    ratio: float
    bound: Bound
    reading: Reading


def labelling_efficiency(
    sizes_R: Sequence[float],
    accuracies_R: Sequence[float],
    random_sizes_R: Sequence[float],
    random_R: Sequence[float],
    target: float,
    *,
    reading: Reading = "interpolated",
) -> Efficiency:
    """Compare the fewest labels that reach `target`.

    Args:
        sizes_R: Recorded sizes of the strategy.
        accuracies_R: Its mean accuracies there.
        random_sizes_R: Recorded sizes of random.
        random_R: Its mean accuracies there.
        target: The accuracy, in their unit.
        reading: See `Efficiency`.
    """
    labels, late = _fewest(sizes_R, accuracies_R, target, reading)
    random_labels, random_late = _fewest(random_sizes_R, random_R, target, reading)
    bound = _bound(late, random_late)
    return Efficiency(
        target=target,
        labels=labels,
        random_labels=random_labels,
        ratio=math.nan if bound == "unknown" else random_labels / labels,
        bound=bound,
        reading=reading,
    )


def labels_to_match(
    sizes_R: Sequence[float], accuracies_R: Sequence[float], random_R: Sequence[float]
) -> tuple[float, str | None]:
    """Return the labels with which a strategy meets random's last recorded accuracy.

    That is where ASVP (Wen et al., section 6.2) reports the overall cost. The second value is the
    censoring, as in `RandomCurve.labels_for`.
    """
    if not len(random_R):
        raise InputError("Random must have a last round. Got no rounds. Run random too.")
    return RandomCurve(sizes_R, accuracies_R).labels_for(float(random_R[-1]))


def _fewest(
    sizes_R: Sequence[float], accuracies_R: Sequence[float], target: float, reading: Reading
) -> tuple[float, str | None]:
    labels, censored = RandomCurve(sizes_R, accuracies_R).labels_for(target)
    if reading == "recorded" and censored is None:
        # The first recorded size at or beyond the interpolated one.
        labels = float(min(size for size in sizes_R if size >= labels * (1 - 1e-12)))
    return labels, censored


def _bound(late: str | None, random_late: str | None) -> Bound:
    """Return on which side N_RS / N_AL lies, given which of the two are bounds themselves.

    A curve that never gets there (`right`) needs more labels than its last size; one that starts
    above (`left`) needs fewer than its first.
    """
    above = {"right": 1, "left": -1, None: 0}
    numerator, denominator = above[random_late], -above[late]
    if numerator * denominator < 0:
        return "unknown"
    side = numerator or denominator
    return {1: "at least", -1: "at most", 0: "measured"}[side]  # type: ignore[return-value]
