"""DeepFool: on a linear layer it is MASE, and what it pushes is pushed over the boundary."""

import numpy as np
import pytest
import torch
from linear_view import LinearOnInput, linear_view, normal

from svp.proxies import MLPConfig, Standardiser, fit_proxy
from svp.strategies.base import Budget
from svp.strategies.block import BLOCK_ROWS
from svp.strategies.catalog import run_strategy
from svp.strategies.deepfool import DeepFool, embedding_push
from svp.strategies.mase import Mase
from svp.strategies.weights import FAR


@pytest.mark.parametrize("space", ["hidden", "input"])
def test_under_a_linear_head_it_chooses_what_mase_chooses(space: str) -> None:
    view = linear_view(normal(1500, 8), normal(6, 8, seed=1), normal(6, seed=2))
    expected = run_strategy(Mase(), view, 150, 0)
    chosen = run_strategy(DeepFool(space=space), view, 150, 0)  # type: ignore[arg-type]
    assert chosen.rows_b.tolist() == expected.rows_b.tolist()
    assert chosen.exactness == "exact"
    length = (1.02 * (1e-4 - expected.utility_b.astype(np.float64))) ** 2
    np.testing.assert_allclose(-chosen.utility_b, length, rtol=1e-4)


def test_with_two_classes_it_is_the_margin_over_the_weights() -> None:
    x, weight, bias = normal(100, 5), normal(2, 5, seed=1), normal(2, seed=2)
    gap = (x @ (weight[0] - weight[1]) + bias[0] - bias[1]).abs()
    chosen = run_strategy(DeepFool(overshoot=0.0), linear_view(x, weight, bias), 100, 0)
    expected = (gap / (weight[0] - weight[1]).norm() + 1e-4)[chosen.rows_b].square()
    np.testing.assert_allclose(-chosen.utility_b, expected.numpy(), rtol=1e-4)


def test_pushes_through_an_mlp_flip_and_no_other_direction_is_as_short() -> None:
    x = normal(400, 12)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    proxy = fit_proxy(
        x, y, 4, MLPConfig(epochs=20, hidden=16), standardiser=Standardiser.fit(x), seed=0
    )
    square = -embedding_push(proxy, x, overshoot=0.02, classes=4, steps=50)[: len(x)]
    assert float((square < FAR).float().mean()) > 0.95
    # A shorter push in any of many random directions would contradict it by far.
    found = square < FAR
    before = proxy.logits(x).argmax(dim=1)
    direction = torch.nn.functional.normalize(normal(200, 12, seed=5), dim=1)
    for scale in (0.3, 0.6):
        moved = x[:, None] + scale * square.sqrt()[:, None, None] * direction
        after = proxy.logits(moved[found].reshape(-1, 12)).argmax(dim=1).reshape(-1, 200)
        assert float((after != before[found][:, None]).float().mean()) < 0.01


def test_fewer_classes_are_a_named_approximation() -> None:
    view = linear_view(normal(300, 8), normal(12, 8, seed=1))
    some = run_strategy(DeepFool(space="input", classes=3), view, 20, 0)
    assert some.exactness == "approx:top-3-classes"
    every = run_strategy(DeepFool(space="input", classes=0), view, 20, 0)
    assert every.exactness == "exact"
    # The nearest boundary is almost always that of a class with a large logit.
    assert len(set(some.rows_b.tolist()) & set(every.rows_b.tolist())) >= 17


def test_an_item_without_a_boundary_comes_last_and_one_class_breaks_nothing() -> None:
    proxy = LinearOnInput(torch.zeros(3, 4), torch.tensor([1.0, 0.0, 0.0]))
    square = embedding_push(proxy, normal(5, 4), overshoot=0.02, classes=3, steps=3)
    assert square.shape == (BLOCK_ROWS,)
    assert bool((square == -FAR).all())
    alone = linear_view(normal(20, 4), normal(1, 4))
    for space in ("hidden", "input"):
        chosen = run_strategy(DeepFool(space=space), alone, 6, 2)
        assert chosen.rows_b.tolist() == alone.candidates(2)[:6].tolist()


def test_tiles_and_neighbours_change_nothing() -> None:
    view = linear_view(normal(2100, 8), normal(12, 8, seed=1))
    one = run_strategy(DeepFool(space="input"), view, 60, 0)
    two = run_strategy(DeepFool(space="input"), view, 60, 0, budget=Budget(tile_rows=1))
    np.testing.assert_array_equal(one.rows_b, two.rows_b)
    np.testing.assert_array_equal(one.utility_b, two.utility_b)
