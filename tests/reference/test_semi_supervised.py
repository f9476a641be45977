"""The selectors that go with semi-supervised training, against their definitions."""

import numpy as np
import pytest
import torch
from linear_view import linear_view, normal

from svp.errors import InputError
from svp.strategies.catalog import run_strategy
from svp.strategies.margin import Margin
from svp.strategies.random import Random
from svp.strategies.ssl_consistency import SSLConsistency, inconsistency
from svp.strategies.ssl_diff2aug_direct import SSLDiff2AugDirect, mean_margin
from svp.strategies.ssl_diff2aug_kmeans import SSLDiff2AugKmeans, proportional_quotas
from svp.strategies.ssl_random import SSLRandom


def test_ssl_random_draws_what_random_draws() -> None:
    view = linear_view(normal(200, 4))
    one, two = run_strategy(SSLRandom(), view, 50, 3), run_strategy(Random(), view, 50, 3)
    assert one.rows_b.tolist() == two.rows_b.tolist()


def test_equal_views_agree_and_opposite_ones_have_variance_one_half() -> None:
    z = normal(40, 5)
    assert inconsistency([z, z, z]).tolist() == [0.0] * 40
    opposite = [torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])]
    assert float(inconsistency(opposite)) == pytest.approx(0.5)


def test_inconsistency_is_the_population_variance() -> None:
    views = tuple(2 * normal(500, 6, seed=seed) for seed in range(1, 6))
    view = linear_view(normal(500, 6), views=views)
    chosen = run_strategy(SSLConsistency(), view, 100, 0)
    p = torch.stack([one.double().softmax(dim=1) for one in views])
    expected = p.var(dim=0, correction=0).sum(dim=1).numpy()
    assert chosen.rows_b.tolist() == np.argsort(-expected, kind="stable")[:100].tolist()
    np.testing.assert_allclose(chosen.utility_b, expected[chosen.rows_b], atol=1e-6)
    assert chosen.counters["views"] == 5


def test_the_margin_of_equal_views_is_the_margin() -> None:
    x = normal(600, 5)
    view = linear_view(x, views=(normal(600, 5, seed=1), x))
    expected = run_strategy(Margin(), view, 120, 0)
    chosen = run_strategy(SSLDiff2AugDirect(view=1), view, 120, 0)
    assert chosen.rows_b.tolist() == expected.rows_b.tolist()
    np.testing.assert_allclose(chosen.utility_b, expected.utility_b, atol=1e-6)


def test_probabilities_are_averaged_not_logits() -> None:
    clean, augmented = torch.tensor([[60.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 0.0]])
    p = (clean.double().softmax(dim=1) + augmented.double().softmax(dim=1))[0] / 2
    assert float(mean_margin(clean, augmented)) == pytest.approx(float(p[1] - p[0]))


def test_a_view_that_is_not_stored_is_refused() -> None:
    view = linear_view(normal(20, 3), views=(normal(20, 3, seed=1),))
    for strategy in (SSLDiff2AugDirect(view=1), SSLDiff2AugKmeans(view=1)):
        with pytest.raises(InputError, match=r"must be a stored view, in \[0, 1\). Got 1"):
            run_strategy(strategy, view, 3, 0)


def test_one_cluster_is_the_direct_form() -> None:
    view = linear_view(normal(400, 5), views=(normal(400, 5, seed=1),))
    one = run_strategy(SSLDiff2AugKmeans(clusters=1), view, 60, 0)
    two = run_strategy(SSLDiff2AugDirect(), view, 60, 0)
    assert one.rows_b.tolist() == two.rows_b.tolist()


def test_every_cluster_gives_its_share_of_its_smallest_margins() -> None:
    group = np.repeat([0, 1, 2], [300, 90, 30])
    x = 100.0 * torch.eye(3)[torch.from_numpy(group)] + normal(420, 3)
    weight = normal(4, 3, seed=2) / 100
    view = linear_view(x, weight, views=(x + normal(420, 3, seed=1),), y_L=np.array([0, 1]))
    chosen = run_strategy(SSLDiff2AugKmeans(clusters=3), view, 42, 0).rows_b
    counts = np.bincount(group[chosen], minlength=3)
    sizes = np.bincount(group[2:], minlength=3)
    assert np.abs(counts - 42 * sizes / 418).max() < 1
    score = mean_margin(x @ weight.T, view.views[0] @ weight.T).numpy()  # type: ignore[operator]
    for which in range(3):
        rows = np.flatnonzero(group == which)
        rows = rows[rows >= 2]
        best = rows[np.argsort(-score[rows], kind="stable")][: counts[which]]
        assert set(best.tolist()) == set(chosen[group[chosen] == which].tolist())


@pytest.mark.parametrize("seed", range(20))
def test_quotas_are_proportional(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 40, 9)
    b = int(rng.integers(1, sizes.sum() + 1))
    quotas = proportional_quotas(sizes, b)
    assert quotas.sum() == b
    assert np.all(quotas <= sizes)
    assert np.abs(quotas - b * sizes / sizes.sum()).max() <= 1
