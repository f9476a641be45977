"""The one way to run a strategy: what goes in is checked, and what comes out."""

import contextlib
import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from svp.errors import InputError
from svp.strategies.base import Budget, Int64Array, Oracle, PoolView, Selection, Strategy
from svp.strategies.block import BLOCK_ROWS
from svp.strategies.heap import freed_memory_returned
from svp.strategies.wrapper import innermost

BoolArray = npt.NDArray[np.bool_]


def reads_labels(strategy: Strategy) -> bool:
    """Return whether the strategy, as set up, reads labels inside the batch."""
    inner = innermost(strategy)  # what is around it reads none
    if getattr(inner, "oracle_strata", False):
        return True
    return inner.uses_oracle and not getattr(inner, "pseudo", False)


def run_strategy(
    strategy: Strategy,
    view: PoolView,
    b: int,
    seed: int,
    *,
    budget: Budget | None = None,
    oracle: Oracle | None = None,
) -> Selection:
    """Check what goes in, let the strategy choose, and check what comes out.

    Args:
        strategy: What chooses.
        view: The pool.
        b: How many to choose, in [1, U].
        seed: Decides ties and draws.
        budget: Device, tile size and memory; by default the CPU without a cap.
        oracle: Labels of rows, for strategies that declare `uses_oracle`. Each row asked for is
            metered and must be a candidate.

    Returns:
        The selection: `b` distinct unlabelled rows.

    Raises:
        InputError: If the budget, the view or an embedding cannot be used.
        RuntimeError: If the strategy broke its contract, which is a bug.
    """
    budget = budget if budget is not None else Budget()
    _check_view(view)
    candidates = len(view.unlabelled_U)
    if not 1 <= b <= candidates:
        raise InputError(
            f"The budget of a round must be in [1, {candidates}], the images left to label. "
            f"Got {b}. {'Lower it.' if b > candidates else 'Ask for at least one.'}"
        )
    _check_needs(strategy, view, oracle)
    budget = _capped(strategy, view, b, budget)
    meter = None if oracle is None or not reads_labels(strategy) else _Meter(oracle, view)
    with contextlib.nullcontext() if budget.memory_bytes is None else freed_memory_returned():
        if strategy.needs and not view.finite:
            _check_finite(view, budget)
        selection = strategy.select(view, b, seed, budget=budget, oracle=meter)
    _check_selection(strategy, view, b, selection)
    if meter is not None:
        selection = dataclasses.replace(selection, oracle_calls=len(meter.asked))
    return selection


class _Meter:
    """An oracle that counts what it is asked."""

    def __init__(self, oracle: Oracle, view: PoolView) -> None:
        self._oracle, self._view = oracle, view
        self.asked: set[int] = set()

    def __call__(self, rows: Int64Array) -> Int64Array:
        if not _inside(rows, self._view.unlabelled_U).all():
            raise RuntimeError("A strategy asked for the label of an item that is no candidate.")
        self.asked.update(rows.tolist())
        return self._oracle(rows)


def _capped(strategy: Strategy, view: PoolView, b: int, budget: Budget) -> Budget:
    """Refuse a strategy that does not fit the memory cap; give the cache what is left."""
    if budget.memory_bytes is None:
        return budget
    needed = strategy.cost(view.shape(b, budget)).bytes
    if needed > budget.memory_bytes:
        step = (
            f"Use {strategy.instead}, or raise the cap."
            if strategy.instead
            else "Raise the cap, or lower the budget."
        )
        raise InputError(
            f"{strategy.name} must fit in the memory cap of {budget.memory_bytes / 2**20:,.0f} "
            f"MiB. It needs {needed / 2**20:,.0f} MiB for {b} of {len(view.unlabelled_U)} "
            f"candidates. {step}"
        )
    left = budget.memory_bytes - needed
    return dataclasses.replace(budget, cache_bytes=min(budget.cache_bytes, left))


def _check_view(view: PoolView) -> None:
    if len(view.embeddings_Nd.shape) != 2:
        raise InputError(
            "Embeddings must be one vector per item, (N, d). Got shape "
            f"{tuple(view.embeddings_Nd.shape)}. Flatten each item to one vector."
        )
    total = view.embeddings_Nd.shape[0]
    if any(tuple(other.shape) != tuple(view.embeddings_Nd.shape) for other in view.views):
        raise InputError(
            f"Views must have the shape of the embeddings, {tuple(view.embeddings_Nd.shape)}. Got "
            f"{[tuple(other.shape) for other in view.views]}. Embed every view of the same pool."
        )
    if view.groups_N is not None and len(view.groups_N) != total:
        raise InputError(
            f"groups_N must give each of {total} items a group. Got {len(view.groups_N)}. "
            "Derive both from the same pool."
        )
    if len(view.keys_N) != total:
        raise InputError(
            f"keys_N must have one key per embedding, {total}. Got {len(view.keys_N)}. "
            "Derive both from the same pool."
        )
    for what, rows in (("unlabelled_U", view.unlabelled_U), ("labelled_L", view.labelled_L)):
        if len(rows) and (rows[0] < 0 or rows[-1] >= total or np.any(np.diff(rows) <= 0)):
            raise InputError(
                f"{what} must be distinct ascending rows in [0, {total}). Got others. "
                "Sort the rows and drop repeats."
            )
    if _inside(view.labelled_L, view.unlabelled_U).any():
        raise InputError(
            "unlabelled_U must not contain labelled rows. Got rows in both. "
            "Take the labelled ones out."
        )
    if len(view.y_L) != len(view.labelled_L) or (
        len(view.y_L) and not (view.y_L.min() >= 0 and view.y_L.max() < view.n_classes)
    ):
        raise InputError(
            f"y_L must give each of {len(view.labelled_L)} labelled rows a class in "
            f"[0, {view.n_classes}). Got {len(view.y_L)} values or one out of range. "
            "Number the classes from 0."
        )


def _check_needs(strategy: Strategy, view: PoolView, oracle: Oracle | None) -> None:
    if strategy.needs & {"logits", "linear_head"}:
        view.required_proxy()
    if "labelled" in strategy.needs and not len(view.labelled_L):
        raise InputError(
            f"{strategy.name} must have labelled images. Got none. "
            "Use random or kmeans for the first round, or import labels first."
        )
    if "views" in strategy.needs and not view.views:
        raise InputError(
            f"{strategy.name} must have stored views of the pool. Got none. "
            "Embed them first: svp embed STUDY --views eval,weak:2"
        )
    if reads_labels(strategy) and oracle is None:
        step = (
            f"Set {strategy.name}.pseudo = true to assume the proxy's predictions instead."
            if hasattr(innermost(strategy), "pseudo")
            else "Use it in a simulation only, or choose another strategy."
        )
        raise InputError(
            f"{strategy.name} must be given known labels, because it reads them inside the batch. "
            f"Got none. {step}"
        )


def _check_finite(view: PoolView, budget: Budget) -> None:
    # One fast pass: NaN and infinities survive a sum. Only then are the rows that matter examined.
    # In parts, because the sum of float16 in float32 makes a float32 copy first.
    source = view.embeddings_Nd
    if isinstance(source, torch.Tensor):
        step = max(budget.tile_rows, BLOCK_ROWS)
        sums = torch.stack(
            [
                source[start : start + step].sum(dtype=torch.float32)
                for start in range(0, len(source), step)
            ]
        )
        if bool(torch.isfinite(sums).all()):
            return
    bad = 0
    for rows in (view.unlabelled_U, view.labelled_L):
        for _, tile_Td in view.tiles(rows, dataclasses.replace(budget, device=source.device)):
            bad += int((~torch.isfinite(tile_Td).all(dim=1)).sum())
    if bad:
        raise InputError(
            f"Embeddings must be finite. Got NaN or infinity in {bad} of "
            f"{len(view.unlabelled_U) + len(view.labelled_L)} rows. "
            "Verify the store, or embed these images again."
        )


def _inside(rows: Int64Array, ascending_U: Int64Array) -> BoolArray:
    """Return which rows are among others, by halving: they are few among a million."""
    if not len(ascending_U):
        return np.zeros(len(rows), np.bool_)
    places = np.searchsorted(ascending_U, rows).clip(max=len(ascending_U) - 1)
    found: BoolArray = ascending_U[places] == rows
    return found


def _check_selection(strategy: Strategy, view: PoolView, b: int, selection: Selection) -> None:
    rows_b: Int64Array = selection.rows_b
    broken = (
        "another number of rows"
        if len(rows_b) != b or len(selection.utility_b) != b
        else "a row twice"
        if len(np.unique(rows_b)) != b
        else "a row that is not a candidate"
        if not _inside(rows_b, view.unlabelled_U).all()
        else "a utility that is not finite"
        if not np.isfinite(selection.utility_b).all()
        else "another number of reasons"
        if selection.reasons_b and len(selection.reasons_b) != b
        else "chances that do not fit"
        if selection.probability_b is not None and len(selection.probability_b) != b
        else None
    )
    if broken is not None:
        raise RuntimeError(f"{strategy.name} returned {broken} for a budget of {b}.")
