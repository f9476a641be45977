"""How published tools draw their first batch and their seeds, number for number."""

import numpy as np
import numpy.typing as npt

from svp.errors import InputError

_LABELBENCH_FIRST, _LABELBENCH_LAST = 1234, 9_999_999


def labelbench_batch(seed: int, pool: int, count: int) -> npt.NDArray[np.int64]:
    """Return the rows of LabelBench's first batch, in the order drawn (Zhang et al. 2024, code).

    They are LabelBench's own where rows are in the order of its data set: ids of the source must
    sort as the items do there, such as `00017874.png`.

    Args:
        seed: Of the run.
        pool: Items of the pool, N.
        count: Labels to draw.
    """
    if not 0 <= count <= pool:
        raise InputError(f"A first batch must fit the pool of {pool}. Got {count}. Lower it.")
    # The legacy generator: its stream is frozen, and is what was published.
    generator = np.random.RandomState(seed + 42)
    return np.asarray(generator.choice(pool, size=count, replace=False), dtype=np.int64)


def labelbench_seeds(runs: int) -> tuple[int, ...]:
    """Return LabelBench's seeds: evenly spaced from 1234 to 9999999, cut to whole numbers."""
    if runs < 1:
        raise InputError(f"runs must be at least 1. Got {runs}. Correct it.")
    return tuple(int(seed) for seed in np.linspace(_LABELBENCH_FIRST, _LABELBENCH_LAST, runs))
