"""MASE against the geometry it stands for, and against all differences of weights written out."""

import numpy as np
import pytest
import torch
from linear_view import linear_view, normal

from svp.proxies import Head
from svp.strategies.base import LinearHead
from svp.strategies.catalog import run_strategy
from svp.strategies.margin import Margin
from svp.strategies.mase import Mase, mase
from svp.strategies.weights import FAR, weight_distances


def _head(weight: torch.Tensor) -> LinearHead:
    return Head(weight_Cd=weight, bias_C=torch.zeros(len(weight)))


def _written_out(z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """All B x C x d differences, as the published code forms them, in float64."""
    z, weight = z.double(), weight.double()
    best = z.argmax(dim=1)
    norms = (weight[best][:, None, :] - weight[None]).norm(dim=2)
    gaps = z.gather(1, best[:, None]) - z
    distance = torch.where(norms > 0, gaps / norms, torch.inf)
    return distance.amin(dim=1)


def test_a_point_between_two_axes() -> None:
    z = torch.tensor([[2.0, 1.0]])
    assert mase(z, weight_distances(_head(torch.eye(2)))).tolist() == pytest.approx([-(0.5**0.5)])


def test_picks_equal_those_of_all_differences_written_out() -> None:
    x, weight, bias = normal(2000, 12), normal(7, 12, seed=1), normal(7, seed=2)
    view = linear_view(x, weight, bias)
    selection = run_strategy(Mase(), view, 200, 0)
    expected = _written_out(x @ weight.T + bias, weight).numpy()
    assert selection.rows_b.tolist() == np.argsort(expected, kind="stable")[:200].tolist()
    np.testing.assert_allclose(-selection.utility_b, np.sort(expected)[:200], rtol=2e-5, atol=1e-6)


def test_a_step_of_the_distance_reaches_the_boundary() -> None:
    x, weight, bias = normal(300, 9).double(), normal(5, 9, seed=1), normal(5, seed=2)
    z = x @ weight.double().T + bias.double()
    distance = -mase(z.float(), weight_distances(_head(weight))).double()
    best = z.argmax(dim=1)
    normal_to = weight.double()[None] - weight.double()[best][:, None]
    lead = z.gather(1, best[:, None]) - z
    away = lead / normal_to.norm(dim=2).clamp_min(1e-30)
    away.scatter_(1, best[:, None], torch.inf)
    nearest = away.argmin(dim=1)
    direction = normal_to[torch.arange(len(x)), nearest]
    moved = x + distance[:, None] * direction / direction.norm(dim=1, keepdim=True)
    top = (moved @ weight.double().T + bias.double()).topk(2, dim=1).values
    assert float((top[:, 0] - top[:, 1]).max()) < 1e-4


def test_orthogonal_weights_of_one_length_order_like_the_logit_margin() -> None:
    view = linear_view(normal(500, 6))
    expected = run_strategy(Margin(space="logit"), view, 100, 3).rows_b
    assert run_strategy(Mase(), view, 100, 3).rows_b.tolist() == expected.tolist()


def test_classes_with_the_same_weights_have_no_boundary() -> None:
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    z = torch.tensor([[3.0, 3.0, 1.0]])
    assert mase(z, weight_distances(_head(weight))).tolist() == pytest.approx([-(2.0**0.5)])
    alone = mase(z[:, :2], weight_distances(_head(weight[:2])))
    assert alone.tolist() == [pytest.approx(-FAR)]


def test_nearly_equal_weights_keep_their_digits() -> None:
    """A Gram matrix in float32 would call them equal, or worse."""
    weight = 100.0 * torch.ones(2, 64)
    weight[1, 0] += 1e-4
    expected = float(weight[1, 0].double() - weight[0, 0].double())
    assert float(weight_distances(_head(weight))[0, 1]) == pytest.approx(expected, rel=1e-6)
