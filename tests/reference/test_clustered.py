"""DBAL, TypiClust and ClusterMargin: what the clusters decide, against plain computations."""

import dataclasses
import json

import numpy as np
import numpy.typing as npt
import pytest
import torch

from svp.proxies import LinearConfig, Standardiser, fit_proxy
from svp.strategies.base import PoolView
from svp.strategies.catalog import build_strategy, run_strategy
from svp.strategies.cluster_margin import round_robin
from svp.strategies.keys import keys_of
from svp.strategies.linkage import average_linkage
from svp.strategies.lloyd import lloyd
from svp.strategies.points import Factors, Points
from svp.strategies.seeding import d2_seeding
from svp.strategies.typiclust import _Cluster, visiting_order


@pytest.fixture(scope="module")
def pool() -> PoolView:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 600)
    x = rng.normal(size=(4, 12))[y] * 2 + rng.normal(size=(600, 12))
    x_Nd = torch.from_numpy(x.astype(np.float32))
    proxy = fit_proxy(
        x_Nd[:40],
        torch.from_numpy(y[:40]),
        4,
        LinearConfig(),
        standardiser=Standardiser.fit(x_Nd),
        seed=0,
        device="cpu",
    )
    return PoolView(
        embeddings_Nd=x_Nd,
        keys_N=keys_of(str(row) for row in range(600)),
        unlabelled_U=np.arange(40, 600),
        labelled_L=np.arange(40),
        y_L=y[:40].astype(np.int64),
        n_classes=4,
        proxy=proxy,
    )


def _margin(view: PoolView, b: int) -> list[int]:
    return [int(row) for row in run_strategy(build_strategy("margin"), view, b, 1).rows_b]


def test_equal_weights_are_no_weights() -> None:
    points = Points(Factors(torch.randn(900, 5, generator=torch.Generator().manual_seed(0))))
    plain = lloyd(points, 12, np.random.default_rng(0), 20)
    ones = np.ones(900)
    seeds = d2_seeding(points, 12, np.random.default_rng(0), first=3, share_n=ones)
    bare = d2_seeding(points, 12, np.random.default_rng(0), first=3)
    assert seeds.places_b.tolist() == bare.places_b.tolist()
    weighted = lloyd(points, 12, np.random.default_rng(0), 20, share_n=ones)
    assert weighted.inertia == pytest.approx(plain.inertia, rel=0.1)


def test_weights_pull_centroids() -> None:
    x = torch.tensor([[0.0], [1.0]])
    found = lloyd(
        Points(Factors(x)), 1, np.random.default_rng(0), 5, share_n=np.array([0.25, 0.75])
    )
    assert float(found.centroids_kh + found.origin_h) == pytest.approx(0.75)


def test_weighted_first_and_second_draws_follow_the_law() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]])
    share = np.array([1.0, 0.5, 0.25])
    counts = np.zeros((3, 3))
    for seed in range(1500):
        found = d2_seeding(Points(Factors(x)), 2, np.random.default_rng(seed), share_n=share)
        counts[tuple(found.places_b)] += 1
    expected = np.zeros((3, 3))
    for one in range(3):
        weight = share * (x[:, 0].numpy() - x[one, 0].item()) ** 2
        expected[one] = share[one] / share.sum() * weight / weight.sum() * 1500
    keep = expected > 0
    # 5 degrees of freedom: the 99.9 % quantile is 20.5.
    assert (((counts - expected) ** 2)[keep] / expected[keep]).sum() < 20.5


def test_dbal_chooses_among_the_most_uncertain(pool: PoolView) -> None:
    chosen = run_strategy(build_strategy("dbal", {"beta": 4}), pool, 20, 1).rows_b.tolist()
    assert set(chosen) <= set(_margin(pool, 80))
    only = run_strategy(build_strategy("dbal", {"beta": 1}), pool, 20, 1).rows_b.tolist()
    assert set(only) == set(_margin(pool, 20))
    flat = run_strategy(build_strategy("dbal", {"weighted": False}), pool, 20, 1).rows_b.tolist()
    assert flat != run_strategy(build_strategy("dbal"), pool, 20, 1).rows_b.tolist()


def _typicality(x: npt.NDArray[np.float64], neighbours: int) -> npt.NDArray[np.float64]:
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    used = min(neighbours, len(x) // 2)
    return np.asarray(1 / (np.sort(distance, axis=1)[:, :used].mean(axis=1) + 1e-5))


@pytest.mark.parametrize(("size", "neighbours"), [(120, 5), (120, 20), (30, 20), (8, 20)])
def test_typicality_after_removals_is_computed_anew(size: int, neighbours: int) -> None:
    x = np.random.default_rng(1).normal(size=(size, 4)).astype(np.float32)
    chosen, typical = _Cluster(torch.from_numpy(x), neighbours, "l2").most_typical(size - 2)
    left = np.arange(size)
    for place, value in zip(chosen.tolist(), typical, strict=True):
        expected = _typicality(x[left].astype(np.float64), neighbours)
        assert left[int(expected.argmax())] == place
        assert value == pytest.approx(expected.max(), rel=1e-4)
        left = left[left != place]


def test_clusters_with_labels_come_after_those_without() -> None:
    labels_U = np.repeat([0, 1, 2, 3], [10, 30, 20, 4])
    # Cluster 1 is the largest but holds a label; cluster 3 is too small.
    visits = visiting_order(labels_U, np.array([1]), 4, 64)
    assert visits[:6].tolist() == [2, 0, 1, 2, 0, 1]
    assert visits[-4:].tolist() == [3, 3, 3, 3]
    assert np.bincount(visits).tolist() == [10, 30, 20, 4]


def test_typiclust_takes_one_image_of_each_clump_and_the_denser_first() -> None:
    rng = np.random.default_rng(2)
    centres = np.eye(6) * 10
    x = np.concatenate([centre + rng.normal(size=(40, 6)) * 0.1 for centre in centres])
    view = PoolView(
        embeddings_Nd=torch.from_numpy(x.astype(np.float32)),
        keys_N=keys_of(str(row) for row in range(240)),
        unlabelled_U=np.arange(240),
        labelled_L=np.zeros(0, dtype=np.int64),
        y_L=np.zeros(0, dtype=np.int64),
        n_classes=0,
    )
    chosen = run_strategy(build_strategy("typiclust"), view, 6, 0)
    assert sorted((chosen.rows_b // 40).tolist()) == list(range(6))
    dense = _Cluster(torch.from_numpy((x[:40] / 5).astype(np.float32)), 20, "l2")
    loose = _Cluster(torch.from_numpy(x[:40].astype(np.float32)), 20, "l2")
    assert dense.most_typical(1)[1] > loose.most_typical(1)[1]


def test_average_linkage_is_scipys_for_unit_weights() -> None:
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist, squareform

    x = np.random.default_rng(0).normal(size=(150, 4))
    pairs = pdist(x)
    for clusters in (1, 2, 7, 40, 150):
        ours = average_linkage(
            squareform(pairs).astype(np.float32), np.ones(150, dtype=np.int64), clusters
        )
        theirs = fcluster(linkage(pairs, "average"), clusters, "maxclust")
        assert len(set(ours.tolist())) == clusters
        assert len(set(zip(ours.tolist(), theirs.tolist(), strict=True))) == clusters


def test_weights_stand_for_copies() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(25, 3))
    weights = rng.integers(1, 6, 25)
    copies = np.repeat(np.arange(25), weights)

    def distances(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        return np.asarray(np.linalg.norm(points[:, None] - points[None], axis=2), dtype=np.float32)

    light = average_linkage(distances(x), weights, 6)
    heavy = average_linkage(distances(x[copies]), np.ones(len(copies), dtype=np.int64), 6)
    assert len(set(zip(light[copies].tolist(), heavy.tolist(), strict=True))) == 6


def test_turns_start_with_the_smallest_cluster() -> None:
    clusters = np.array([2] * 9 + [1] * 2 + [0])
    chosen = round_robin(clusters, 6)
    assert np.bincount(clusters[chosen]).tolist() == [1, 2, 3]
    assert clusters[chosen].tolist() == [0, 1, 2, 1, 2, 2]
    assert chosen[clusters[chosen] == 2].tolist() == [0, 1, 2]


def test_one_cluster_or_no_spare_candidates_is_margin(pool: PoolView) -> None:
    one = run_strategy(build_strategy("cluster_margin", {"clusters": 1}), pool, 25, 1)
    assert one.rows_b.tolist() == _margin(pool, 25)
    tight = run_strategy(build_strategy("cluster_margin", {"candidates_ratio": 1.0}), pool, 25, 1)
    assert set(tight.rows_b.tolist()) == set(_margin(pool, 25))


def test_clusters_are_found_once_and_kept(pool: PoolView) -> None:
    chosen = build_strategy("cluster_margin", {"micro_clusters": 100})
    first = run_strategy(chosen, pool, 25, 1)
    assert first.exactness == "approx:hac-microclusters"
    assert first.counters["clusterings"] == 1
    state = json.loads(json.dumps(dict(first.state)))
    labelled = np.sort(np.concatenate([pool.labelled_L, first.rows_b]))
    later = dataclasses.replace(
        pool,
        unlabelled_U=np.setdiff1d(pool.unlabelled_U, first.rows_b),
        labelled_L=labelled,
        y_L=np.zeros(len(labelled), dtype=np.int64),
    )
    kept = run_strategy(chosen, dataclasses.replace(later, state=state), 25, 1)
    again = run_strategy(chosen, later, 25, 1)
    assert kept.counters["clusterings"] == 0
    assert again.counters["clusterings"] == 1
    assert kept.rows_b.tolist() == again.rows_b.tolist()
