"""BIM: closed forms for two classes, and one row at a time against all rows in step."""

import numpy as np
import pytest
import torch
from linear_view import linear_view, normal

from svp.proxies import Head
from svp.strategies.bim import Bim, linf_margin, signed_walk
from svp.strategies.catalog import run_strategy
from svp.strategies.weights import FAR, weight_distances

_STEP = 0.05


def test_two_classes_take_as_many_steps_as_the_formula_says() -> None:
    x, weight, bias = normal(300, 16), normal(2, 16, seed=1), normal(2, seed=2)
    square = signed_walk(x, Head(weight_Cd=weight, bias_C=bias), step=_STEP, most_steps=1000)
    difference = (weight[0] - weight[1]).double()
    gap = (x.double() @ difference + bias[0] - bias[1]).abs()
    steps = torch.floor(gap / (_STEP * difference.abs().sum())) + 1
    torch.testing.assert_close(square.double(), 16 * (_STEP * steps) ** 2)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_surrogate_is_a_lower_bound_that_two_classes_reach_within_a_step(classes: int) -> None:
    x, weight, bias = normal(300, 16), normal(classes, 16, seed=1), normal(classes, seed=2)
    head = Head(weight_Cd=weight, bias_C=bias)
    square = signed_walk(x, head, step=_STEP, most_steps=1000)
    least = -linf_margin(x @ weight.T + bias, weight_distances(head, p=1.0))
    walked = (square / 16).sqrt()
    assert bool(torch.isfinite(square).all())
    if classes == 2:
        assert bool((walked > least - 1e-6).all())
        assert bool((walked <= least + _STEP + 1e-6).all())
    else:
        # Features may turn back on the way, so the longest way of one feature is what bounds.
        assert bool((square >= least.square() - 1e-6).all())


def _one_at_a_time(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> float:
    """The published loop, in float64."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    first = int((weight @ x + bias).argmax())
    eta = torch.zeros_like(x)
    for _ in range(1000):
        p = (weight @ (x + eta) + bias).softmax(dim=0)
        p[first] -= 1.0
        eta = eta + _STEP * (weight.T @ p).sign()
        if int((weight @ (x + eta) + bias).argmax()) != first:
            return float(eta.square().sum())
    return float("inf")


def test_walking_in_step_equals_walking_alone() -> None:
    x, weight, bias = normal(150, 10), normal(6, 10, seed=1), normal(6, seed=2)
    square = signed_walk(x, Head(weight_Cd=weight, bias_C=bias), step=_STEP, most_steps=1000)
    expected = [_one_at_a_time(row, weight, bias) for row in x]
    # A gradient of almost exactly 0 may take either sign.
    close = np.isclose(square.numpy(), expected, rtol=1e-5)
    assert close.mean() >= 0.98


def test_certain_items_still_move() -> None:
    """Their softmax is 1 in float32, so the gradient as published is exactly 0."""
    x = torch.tensor([[40.0, 0.0, 0.0]])
    square = signed_walk(
        x, Head(weight_Cd=10 * torch.eye(3), bias_C=torch.zeros(3)), step=1.0, most_steps=1000
    )
    # Feature 0 falls by one each step while the two others rise.
    assert float(square[0]) == 3 * 21.0**2


def test_items_that_never_flip_come_last() -> None:
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    view = linear_view(normal(50, 2), weight, torch.tensor([1.0, 0.0]))
    chosen = run_strategy(Bim(), view, 10, 0)
    assert chosen.counters["never_flipped"] == 50
    assert chosen.utility_b.tolist() == [pytest.approx(-FAR)] * 10
    assert chosen.rows_b.tolist() == view.candidates(0)[:10].tolist()
    far = linear_view(normal(50, 2), torch.eye(2), torch.tensor([40.0, 0.0]))
    assert run_strategy(Bim(most_steps=3), far, 10, 0).counters["never_flipped"] == 50


def test_ties_of_steps_are_ordered_by_the_surrogate() -> None:
    view = linear_view(normal(800, 6), normal(2, 6, seed=1))
    steps = run_strategy(Bim(step=0.5), view, 100, 0)
    smooth = run_strategy(Bim(form="surrogate"), view, 100, 0)
    assert len(set(steps.utility_b.tolist())) < 20
    assert steps.rows_b.tolist() == smooth.rows_b.tolist()
    assert smooth.exactness == "approx:linf-margin"
