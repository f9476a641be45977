"""Near-duplicate groups: exactly the pairs at the threshold, for any tile, any shape, any size."""

import numpy as np
import pytest
import torch

from svp.errors import InputError
from svp.strategies.base import Budget
from svp.strategies.duplicates import cosines, near_duplicate_groups


def groups_by_definition(x, threshold):
    x = x.double().numpy()
    norms = np.sqrt((x * x).sum(1))
    cosine = x @ x.T / np.maximum(norms[:, None] * norms, 1e-300)
    root = np.arange(len(x))
    for a, b in zip(*np.nonzero(np.triu(cosine >= threshold - 1e-12, 1)), strict=True):
        root[root == max(root[a], root[b])] = min(root[a], root[b])
    return np.unique(root, return_inverse=True)[1]


def cloud(seed, n, d, copies, spread=0.1, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) + mean
    chosen = torch.randint(0, n, (2, copies), generator=generator)
    noise = spread * torch.randn(copies, d, generator=generator)
    x[chosen[0]] = (x[chosen[1]] + noise) * (0.1 + torch.rand(copies, 1, generator=generator))
    return x


@pytest.mark.parametrize(
    ("d", "threshold"), [(3, 0.99999), (40, 0.95), (40, 0.996), (200, 0.95), (200, 0.996)]
)
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_groups_are_the_components_of_the_definition(d, threshold, mean):
    x = cloud(d, 300, d, 120, mean=mean)
    expected = groups_by_definition(x, threshold)
    assert 1 < expected.max() + 1 < 300
    for tile in (7, 64, 4096):
        found = near_duplicate_groups(x, threshold, Budget(tile_rows=tile))
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("d", [16, 256])
def test_a_pair_at_the_threshold_is_decided_in_float64(d):
    # Angles that float32 cannot tell from the threshold: one a hair inside, one a hair outside.
    threshold = 0.98
    x = torch.zeros(4, d, dtype=torch.float64)
    for row, cosine in enumerate((threshold + 1e-10, threshold - 1e-10)):
        x[2 * row, 2 * row] = 3.0
        x[2 * row + 1, 2 * row] = 5 * cosine
        x[2 * row + 1, 2 * row + 1] = 5 * (1 - cosine**2) ** 0.5
    assert near_duplicate_groups(x, threshold, Budget()).tolist() == [0, 0, 1, 2]


def test_equal_rows_are_duplicates_at_threshold_one_and_zeros_never():
    x = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)).half()
    x[30] = x[2]
    x[[5, 6]] = 0
    found = near_duplicate_groups(x, 1.0, Budget())
    assert found[30] == found[2]
    assert len(set(found.tolist())) == 49


def test_a_chain_is_one_group_and_numbers_follow_first_rows():
    angles = torch.tensor([2.0, 0.0, 0.1, 0.2, 0.3, 2.05])
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert near_duplicate_groups(x, 0.99, Budget(tile_rows=2)).tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("d", [8, 160])
def test_one_large_group_among_others(d):
    x = torch.randn(3000, d, generator=torch.Generator().manual_seed(1))
    x[500:2900] = x[0] + 1e-3 * x[500:2900]
    found = near_duplicate_groups(x.half(), 0.999, Budget(tile_rows=512))
    assert (found[500:2900] == found[0]).all()
    assert found.max() + 1 == 600


def test_the_order_of_rows_changes_only_the_numbers():
    x = cloud(9, 400, 150, 200)
    order = np.random.default_rng(0).permutation(400)
    one = near_duplicate_groups(x, 0.95, Budget())[order]
    other = near_duplicate_groups(x[torch.from_numpy(order)], 0.95, Budget())
    assert len(set(zip(one.tolist(), other.tolist(), strict=True))) == other.max() + 1


def test_few_rows():
    assert near_duplicate_groups(torch.zeros(0, 4), 0.9, Budget()).tolist() == []
    assert near_duplicate_groups(torch.ones(1, 200), 0.9, Budget()).tolist() == [0]


def test_cosines_do_not_depend_on_neighbours():
    x = cloud(3, 60, 33, 20)
    a, b = np.arange(0, 60), np.arange(59, -1, -1)
    together = cosines(x, a, b)
    alone = [cosines(x, a[i : i + 1], b[i : i + 1])[0] for i in range(60)]
    assert together.tolist() == alone


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan")])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(InputError, match="threshold"):
        near_duplicate_groups(torch.ones(2, 2), threshold, Budget())


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="finite"):
        near_duplicate_groups(torch.tensor([[1.0, float("inf")]]), 0.9, Budget())
