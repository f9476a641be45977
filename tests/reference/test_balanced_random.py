"""BalancedRandom: the shares of classes, and that each class is a fair draw."""

import dataclasses

import numpy as np
import pytest
import torch
from linear_view import linear_view

from svp.errors import InputError
from svp.strategies.balanced_random import BalancedRandom, water_filling
from svp.strategies.base import Int64Array, PoolView
from svp.strategies.catalog import run_strategy


def test_water_fills_what_is_there() -> None:
    assert water_filling(np.array([5, 1, 9]), 9).tolist() == [4, 1, 4]
    assert water_filling(np.array([3, 0, 8]), 11).tolist() == [3, 0, 8]
    assert water_filling(np.array([4, 4, 4]), 3).tolist() == [1, 1, 1]
    assert water_filling(np.array([4, 4, 4]), 2).tolist() == [1, 1, 0]


@pytest.mark.parametrize("seed", range(30))
def test_classes_that_have_some_left_differ_by_at_most_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    supply = rng.integers(0, 30, 12)
    b = int(rng.integers(1, supply.sum() + 1))
    given = water_filling(supply, b, rng)
    assert given.sum() == b
    assert np.all(given <= supply)
    left = given[given < supply]
    assert len(left) == 0 or left.max() - left.min() <= 1
    assert len(left) == 0 or given.max() <= left.min() + 1


def _pool(sizes: tuple[int, ...]) -> tuple[PoolView, Int64Array]:
    y = np.repeat(np.arange(len(sizes)), sizes)
    x = torch.nn.functional.one_hot(torch.from_numpy(y), len(sizes)).float()
    return linear_view(x), y


def test_every_class_gets_its_share_and_every_item_its_chance() -> None:
    view, y = _pool((40, 5, 12))
    counts = np.zeros(len(y))
    for seed in range(600):
        rows = run_strategy(BalancedRandom(), view, 15, seed, oracle=lambda rows: y[rows]).rows_b
        assert np.bincount(y[rows], minlength=3).tolist() == [5, 5, 5]
        counts[rows] += 1
    for c, size in enumerate((40, 5, 12)):
        expected = 600 * 5 / size
        assert np.abs(counts[y == c] - expected).max() < 5 * np.sqrt(expected)


def test_the_labels_of_the_whole_pool_are_metered() -> None:
    view, y = _pool((10, 10))
    assert (
        run_strategy(BalancedRandom(), view, 4, 0, oracle=lambda rows: y[rows]).oracle_calls == 20
    )


def test_the_pseudo_form_balances_predictions_and_asks_nobody() -> None:
    view, y = _pool((40, 5, 12))
    selection = run_strategy(BalancedRandom(pseudo=True), view, 15, 0)
    assert np.bincount(y[selection.rows_b]).tolist() == [5, 5, 5]
    assert selection.oracle_calls == 0
    with pytest.raises(InputError, match="must have a trained proxy"):
        run_strategy(BalancedRandom(pseudo=True), dataclasses.replace(view, proxy=None), 5, 0)
    broken = torch.full((57, 3), torch.nan)
    with pytest.raises(InputError, match="Got NaN for 57 of 57"):
        run_strategy(
            BalancedRandom(pseudo=True), dataclasses.replace(view, embeddings_Nd=broken), 5, 0
        )
