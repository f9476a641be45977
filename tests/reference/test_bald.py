"""BALD against its definition in float64 on the same masks."""

import numpy as np
import pytest
import torch
from linear_view import linear_view, normal

from svp.errors import InputError
from svp.strategies.bald import Bald, disagreement, dropout_masks
from svp.strategies.catalog import build_strategy, run_strategy


def test_passes_that_contradict_each_other_score_ln_2() -> None:
    z = [torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])]
    assert float(disagreement(z)) == pytest.approx(np.log(2), abs=1e-6)
    far = [torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])]
    assert float(disagreement(far)) == pytest.approx(np.log(2), abs=1e-6)


def test_equal_passes_score_nothing() -> None:
    z = normal(50, 6)
    assert float(disagreement([z, z, z]).max()) < 1e-6
    view = linear_view(normal(200, 8), normal(4, 8, seed=1))
    assert run_strategy(Bald(rate=0.0), view, 200, 0).utility_b.max() < 1e-6


def test_a_score_is_at_most_the_entropy_of_the_mean() -> None:
    z = [5 * normal(300, 5, seed=seed) for seed in range(6)]
    mean = torch.stack([one.double().softmax(dim=1) for one in z]).mean(dim=0)
    entropy = -(mean * mean.log()).sum(dim=1)
    assert bool((disagreement(z).double() <= entropy + 1e-6).all())


def test_scores_equal_the_definition_in_float64_on_the_same_masks() -> None:
    x, weight, bias = normal(3000, 10), normal(5, 10, seed=1), normal(5, seed=2)
    selection = run_strategy(Bald(passes=7, rate=0.3), linear_view(x, weight, bias), 300, 11)
    p = torch.stack(
        [
            ((x * mask).double() @ weight.double().T + bias).softmax(dim=1)
            for mask in dropout_masks(7, 10, 0.3, 11)
        ]
    )
    mean = p.mean(dim=0)
    expected = -(mean * mean.log()).sum(dim=1) + (p * p.log()).sum(dim=2).mean(dim=0)
    order = np.argsort(-expected.numpy(), kind="stable")[:300]
    assert selection.rows_b.tolist() == order.tolist()
    np.testing.assert_allclose(selection.utility_b, expected[order].numpy(), atol=1e-5)


def test_masks_drop_the_stated_share_and_keep_the_mean() -> None:
    masks = dropout_masks(400, 500, 0.25, 3)
    assert float((masks == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(masks.mean()) == pytest.approx(1.0, abs=0.01)
    assert torch.equal(masks, dropout_masks(400, 500, 0.25, 3))
    assert not torch.equal(masks, dropout_masks(400, 500, 0.25, 4))


@pytest.mark.parametrize("rate", [1.0, -0.1])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(InputError, match=r"bald.rate must be in \[0.0, 1.0\)"):
        build_strategy("bald", {"rate": rate})
