"""API, the average performance improvement over random (evaluation of 19 methods, equation 1).

Shapes: R = recorded rounds.
"""

from collections.abc import Sequence

import numpy as np

from svp.errors import InputError


def improvement_rounds(start: float, end: float, step: float) -> int:
    """Return N = 1 + (end - start) / step, the rounds of equation 1, the initial one included.

    The quotient is rounded: cut off as it is printed, shares 0.1 to 0.7 by 0.05 would give 12
    rounds, because 0.6 / 0.05 is 11.999… in floating point.
    """
    if step <= 0 or end < start:
        raise InputError(
            f"Rounds must go up from start to end by a positive step. Got {start} to {end} by "
            f"{step}. Correct them."
        )
    return 1 + round((end - start) / step)


def average_improvement(
    accuracies_R: Sequence[float],
    random_R: Sequence[float],
    *,
    rounds: int | None = None,
    skip: int = 0,
) -> float:
    """Return the mean over rounds of accuracy minus random's, in the unit given.

    Args:
        accuracies_R: The strategy's mean accuracy per round.
        random_R: Random's.
        rounds: How many rounds there must be, such as `improvement_rounds` says; None = any.
        skip: Rounds to leave out at the start. 0 is the paper's reading: the initial batch, the
            same for both, counts, and takes the mean down by 1 / N.
    """
    if len(accuracies_R) != len(random_R) or not 0 <= skip < len(accuracies_R):
        raise InputError(
            "Curves must have one accuracy per round each, and more rounds than are skipped. Got "
            f"{len(accuracies_R)} and {len(random_R)} rounds, {skip} skipped. Record equal rounds."
        )
    if rounds is not None and rounds != len(accuracies_R):
        raise InputError(
            f"Curves must have {rounds} rounds. Got {len(accuracies_R)}. Record the others."
        )
    a_R = np.asarray(accuracies_R, dtype=np.float64)[skip:]
    return float(np.mean(a_R - np.asarray(random_R, dtype=np.float64)[skip:]))
