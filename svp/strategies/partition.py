"""Random parts of a pool, for approximations that work on one part at a time.

Source: Citovsky et al. 2021 and Emam et al. 2021, appendix A.3 (ten random parts of the
candidates and of the labelled images, an equal share of the budget in each).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from svp.seed import numpy_generator
from svp.strategies.base import Int64Array, PoolView, Strategy
from svp.strategies.cost import Cost, PoolShape


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """One part of a pool.

    Attributes:
        rows: Its candidates, in the order that decides ties.
        centres: Its labelled rows, in the same order.
        quota: How many of its candidates to choose.
    """

    rows: Int64Array
    centres: Int64Array
    quota: int


def parts_of(
    view: PoolView,
    b: int,
    seed: int,
    *,
    parts: int,
    candidate_cap: int = 0,
    labelled_cap: int = 0,
) -> Iterator[Part]:
    """Yield random equal parts of candidates and labelled rows; one part is the whole pool.

    Args:
        view: The pool.
        b: Budget; quotas differ by at most one and sum to it.
        seed: Of the draw.
        parts: How many; at most b are used.
        candidate_cap: Candidates drawn before the split; 0: all. Never below b.
        labelled_cap: Labelled rows drawn before the split; 0: all.
    """
    parts = min(parts, b)
    generator = numpy_generator(seed, "partition")
    rows_U, centres_L = view.candidates(seed), view.centres(seed)
    candidates = _split(
        generator, len(rows_U), max(candidate_cap, b) if candidate_cap else 0, parts
    )
    labelled = _split(generator, len(centres_L), labelled_cap, parts)
    for index in range(parts):
        yield Part(
            rows=rows_U[candidates[index]],
            centres=centres_L[labelled[index]],
            quota=b // parts + (index < b % parts),
        )


def interleaved(chosen: list[Int64Array]) -> Int64Array:
    """Return positions in the concatenation of all parts' picks that take turns between them.

    Any first few picks are then spread over the parts.
    """
    turn = np.concatenate([np.arange(len(one)) for one in chosen])
    return np.argsort(turn, kind="stable")


def _split(generator: np.random.Generator, n: int, cap: int, parts: int) -> list[Int64Array]:
    drawn = generator.permutation(n)[: cap or n].astype(np.int64)
    # Ascending again, so that each part keeps the order that decides ties.
    return [np.sort(some) for some in np.array_split(drawn, parts)]


def partitioned_cost(
    inner: Strategy, shape: PoolShape, *, parts: int, candidate_cap: int, labelled_cap: int
) -> Cost:
    """Return the cost of `inner` run on parts, one after the other; arguments as in `parts_of`."""
    candidates = shape.candidates
    if candidate_cap:
        candidates = min(max(candidate_cap, shape.budget), candidates)
    labelled = min(labelled_cap or shape.labelled, shape.labelled)
    parts = min(parts, shape.budget)
    one = inner.cost(
        dataclasses.replace(
            shape,
            candidates=-(-candidates // parts),
            labelled=-(-labelled // parts),
            budget=-(-shape.budget // parts),
        )
    )
    return Cost(
        bytes=one.bytes + 48 * (shape.candidates + shape.labelled),
        flops=one.flops * parts,
        passes=one.passes,
    )
