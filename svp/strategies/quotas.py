"""Quotas: how many picks every part of a pool gets, and choosing that many in each.

Shapes: G = parts, U = candidates, b = budget.
"""

import dataclasses

import numpy as np

from svp.strategies.base import Budget, Int64Array, Oracle, PoolView, Selection, Strategy
from svp.strategies.keys import hash_keys
from svp.strategies.wrapper import interleaved, joined, reasons_of, restricted


def proportional(free_G: Int64Array, labelled_G: Int64Array, b: int) -> Int64Array:
    """Return quotas in proportion to the candidates, by largest remainder, (G,).

    Of equal remainders, the part with fewer labels goes first, then by a fixed hash, so that no
    part is favoured for its name's place in the alphabet.

    Args:
        free_G: Candidates of every part; their sum is at least `b`.
        labelled_G: Labelled items of every part.
        b: Sum of the quotas.
    """
    total = int(free_G.sum())
    # Whole numbers throughout: a float would round remainders that are equal to others.
    quota_G, remainder_G = np.divmod(free_G * b, total)
    order = np.lexsort((_tickets(len(free_G)), labelled_G, -remainder_G))
    quota_G[order[: b - int(quota_G.sum())]] += 1
    return quota_G.astype(np.int64)


def equal(free_G: Int64Array, labelled_G: Int64Array, b: int) -> Int64Array:
    """Return equal quotas, as far as parts have that many candidates, (G,); see `proportional`."""
    quota_G = _filled(np.zeros_like(free_G), free_G, b)
    open_G = np.flatnonzero(quota_G < free_G)
    order = np.lexsort((_tickets(len(free_G))[open_G], labelled_G[open_G]))
    quota_G[open_G[order[: b - int(quota_G.sum())]]] += 1
    return quota_G


def levelled(free_G: Int64Array, labelled_G: Int64Array, b: int) -> Int64Array:
    """Return the quotas that make labelled + quota as level as can be, (G,); see `proportional`.

    Water-filling: the parts with fewest labels are filled first, up to one common level.
    """
    quota_G = _filled(labelled_G, free_G, b)
    level_G = np.where(quota_G < free_G, labelled_G + quota_G, np.iinfo(np.int64).max)
    order = np.lexsort((_tickets(len(free_G)), level_G))
    quota_G[order[: b - int(quota_G.sum())]] += 1
    return quota_G


def _filled(base_G: Int64Array, free_G: Int64Array, b: int) -> Int64Array:
    """Return quotas up to the highest common level that costs at most `b`."""
    low, high = int(base_G.min()), int((base_G + free_G).max())
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.clip(middle - base_G, 0, free_G).sum()) <= b:
            low = middle
        else:
            high = middle - 1
    return np.clip(low - base_G, 0, free_G).astype(np.int64)


def _tickets(parts: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return hash_keys(np.arange(parts, dtype=np.uint64), 0)


def choose_by_quota(
    inner: Strategy,
    view: PoolView,
    part_U: Int64Array,
    quota_G: Int64Array,
    seed: int,
    budget: Budget,
    oracle: Oracle | None,
    what: str,
) -> Selection:
    """Let a strategy choose in every part by itself, and spread the parts over the order to label.

    A strategy that keeps state keeps one per part.

    Args:
        inner: What chooses.
        view: The pool.
        part_U: Part of every candidate of `view.unlabelled_U`.
        quota_G: Picks of every part.
        seed: Of the selection.
        budget: Device, tile size and memory.
        oracle: Labels of rows.
        what: What a part is called in reasons: `group`.
    """
    states = view.state.get("parts", {})
    parts: list[Selection] = []
    kept = dict(states)
    for part in np.flatnonzero(quota_G).tolist():
        rows = view.unlabelled_U[part_U == part]
        quota = int(quota_G[part])
        narrowed = restricted(view, rows, states.get(str(part), {}))
        chosen = inner.select(narrowed, quota, seed, budget=budget, oracle=oracle)
        note = f"One of the {quota} of its {what}."
        parts.append(dataclasses.replace(chosen, reasons_b=reasons_of(chosen, note)))
        if chosen.state:
            kept[str(part)] = dict(chosen.state)
    order_b = interleaved([len(chosen.rows_b) for chosen in parts])
    return joined(parts, order_b, {"parts": kept} if kept else {})
