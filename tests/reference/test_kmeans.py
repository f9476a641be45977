"""KMeans against brute force and scikit-learn."""

import numpy as np
import pytest
import torch

from svp.strategies.lloyd import Clusters, lloyd, representatives
from svp.strategies.points import Factors, Points


def _clumps(k: int, each: int, seed: int, spread: float = 0.05) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, 8)) * 10
    x = np.repeat(centres, each, axis=0) + rng.normal(size=(k * each, 8)) * spread
    return torch.from_numpy(x.astype(np.float32))


def test_separated_clumps_give_one_item_each() -> None:
    points = Points(Factors(_clumps(12, 30, 0)))
    clusters = lloyd(points, 12, np.random.default_rng(1), 20)
    assert clusters.sizes_k.tolist() == [30] * 12
    places = representatives(points, clusters)
    assert sorted((places // 30).tolist()) == list(range(12))


def test_centroids_are_means_and_points_are_served_by_the_nearest() -> None:
    x = torch.randn(2500, 5, generator=torch.Generator().manual_seed(0))
    clusters = lloyd(Points(Factors(x)), 20, np.random.default_rng(0), 300)
    centroids = (clusters.centroids_kh + clusters.origin_h).double()
    labels = torch.cdist(x.double(), centroids).argmin(dim=1)
    means = torch.stack([x[labels == one].double().mean(dim=0) for one in range(20)])
    assert torch.bincount(labels, minlength=20).sum() == clusters.sizes_k.sum() == 2500
    assert (means - centroids).norm() < 0.3


def test_inertia_is_like_scikit_learns() -> None:
    from sklearn.cluster import KMeans as Reference

    x = torch.randn(3000, 6, generator=torch.Generator().manual_seed(5))
    ours = np.mean(
        [lloyd(Points(Factors(x)), 25, np.random.default_rng(s), 50).inertia for s in range(3)]
    )
    theirs = np.mean(
        [
            Reference(25, init="k-means++", n_init=1, max_iter=50, random_state=s)
            .fit(x.numpy())
            .inertia_
            for s in range(3)
        ]
    )
    assert ours == pytest.approx(theirs, rel=0.02)


def test_more_iterations_never_serve_worse() -> None:
    points = Points(Factors(torch.randn(1500, 4, generator=torch.Generator().manual_seed(2))))
    inertia = [
        lloyd(points, 30, np.random.default_rng(4), most).inertia for most in (1, 2, 4, 8, 16)
    ]
    assert inertia == sorted(inertia, reverse=True)


def test_sums_do_not_depend_on_the_order_of_addition() -> None:
    x = torch.randn(3000, 7, generator=torch.Generator().manual_seed(6)) * 1e3
    places = np.random.default_rng(0).permutation(3000)
    start = np.random.default_rng(1)
    one = lloyd(Points(Factors(x)), 1, start, 5)
    two = lloyd(Points(Factors(x[torch.from_numpy(places)])), 1, start, 5)
    torch.testing.assert_close(
        one.centroids_kh[0] + one.origin_h, x.double().mean(dim=0).float(), rtol=1e-5, atol=1e-3
    )
    torch.testing.assert_close(
        one.centroids_kh + one.origin_h, two.centroids_kh + two.origin_h, rtol=1e-5, atol=1e-3
    )


def test_empty_clusters_are_refilled() -> None:
    """More clusters than distinct places cannot be filled; all others must be."""
    x = torch.arange(10.0)[:, None].repeat(30, 1)
    clusters = lloyd(Points(Factors(x)), 15, np.random.default_rng(0), 20)
    assert int((clusters.sizes_k > 0).sum()) == 10
    places = representatives(Points(Factors(x)), clusters)
    assert len(set(places.tolist())) == 15
    assert set((places[:10] % 10).tolist()) == set(range(10))


def test_representatives_are_the_nearest_unused_points() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1200, 3, generator=generator)
    # Many centroids in one spot compete for the same points.
    centroids = torch.cat([torch.zeros(40, 3), torch.randn(10, 3, generator=generator)])
    sizes = np.random.default_rng(0).integers(1, 50, 50)
    clusters = Clusters(
        centroids_kh=centroids, origin_h=torch.zeros(3), sizes_k=sizes, inertia=0.0, iterations=0
    )
    squares = torch.cdist(x.double(), centroids.double()).numpy()
    order = np.argsort(-sizes, kind="stable").tolist()
    chosen: dict[int, int] = {}
    waiting, depth = order, 1
    while waiting:
        before = list(chosen.values())
        for cluster in waiting:
            column = squares[:, cluster].copy()
            column[before] = np.inf
            nearest = np.argsort(column, kind="stable")[:depth].tolist()
            free = [place for place in nearest if place not in chosen.values()]
            if free:
                chosen[cluster] = free[0]
        waiting, depth = [one for one in waiting if one not in chosen], 8 * depth
    expected = [chosen[cluster] for cluster in order]
    assert representatives(Points(Factors(x)), clusters).tolist() == expected
