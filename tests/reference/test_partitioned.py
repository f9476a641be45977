"""Partitioned CoreSet and BADGE: parts, quotas, and one part is the method itself."""

import dataclasses

import numpy as np
import pytest
import torch

from svp.proxies import LinearConfig, Standardiser, fit_proxy
from svp.strategies.base import PoolView
from svp.strategies.catalog import build_strategy, run_strategy
from svp.strategies.gradients import pooled_gradients
from svp.strategies.keys import keys_of
from svp.strategies.partition import interleaved, parts_of
from svp.strategies.points import Factors, Points


@pytest.fixture(scope="module")
def pool() -> PoolView:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(603, 12)).astype(np.float32))
    y = rng.integers(0, 4, 603)
    proxy = fit_proxy(
        x[:40],
        torch.from_numpy(y[:40]),
        4,
        LinearConfig(),
        standardiser=Standardiser.fit(x),
        seed=0,
        device="cpu",
    )
    return PoolView(
        embeddings_Nd=x,
        keys_N=keys_of(str(row) for row in range(603)),
        unlabelled_U=np.arange(40, 603),
        labelled_L=np.arange(40),
        y_L=y[:40].astype(np.int64),
        n_classes=4,
        proxy=proxy,
    )


@pytest.mark.parametrize("name", ["coreset", "badge"])
def test_one_part_is_the_method_itself(name: str, pool: PoolView) -> None:
    whole = run_strategy(build_strategy(name), pool, 30, 5)
    part = run_strategy(build_strategy(f"partitioned_{name}", {"parts": 1}), pool, 30, 5)
    assert part.rows_b.tolist() == whole.rows_b.tolist()
    np.testing.assert_array_equal(part.utility_b, whole.utility_b)


@pytest.mark.parametrize(("b", "parts"), [(30, 10), (37, 10), (3, 10), (563, 10), (563, 563)])
def test_parts_are_equal_disjoint_and_share_the_budget(b: int, parts: int, pool: PoolView) -> None:
    found = list(parts_of(pool, b, 1, parts=parts))
    assert sum(part.quota for part in found) == b
    assert max(part.quota for part in found) - min(part.quota for part in found) <= 1
    assert all(part.quota <= len(part.rows) for part in found)
    rows = np.concatenate([part.rows for part in found])
    centres = np.concatenate([part.centres for part in found])
    np.testing.assert_array_equal(np.sort(rows), pool.unlabelled_U)
    np.testing.assert_array_equal(np.sort(centres), pool.labelled_L)
    sizes = [len(part.rows) for part in found]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("name", ["coreset", "badge"])
def test_picks_stay_in_their_part_and_take_turns(name: str, pool: PoolView) -> None:
    chosen = run_strategy(build_strategy(f"partitioned_{name}", {"parts": 7}), pool, 30, 2).rows_b
    found = list(parts_of(pool, 30, 2, parts=7))
    part_of = {row: index for index, part in enumerate(found) for row in part.rows.tolist()}
    order = [part_of[row] for row in chosen.tolist()]
    assert order[:28] == list(range(7)) * 4
    assert order[28:] == [0, 1]


def test_parts_do_not_follow_position(pool: PoolView) -> None:
    first = next(iter(parts_of(pool, 30, 0, parts=10)))
    assert first.rows.max() - first.rows.min() > 300


def test_caps_draw_first(pool: PoolView) -> None:
    found = list(parts_of(pool, 30, 0, parts=5, candidate_cap=100, labelled_cap=20))
    assert sum(len(part.rows) for part in found) == 100
    assert sum(len(part.centres) for part in found) == 20
    small = list(parts_of(pool, 30, 0, parts=5, candidate_cap=10))
    assert sum(len(part.rows) for part in small) == 30


def test_turns() -> None:
    assert interleaved([np.array([5, 6]), np.array([7]), np.array([8, 9])]).tolist() == [
        0,
        2,
        3,
        1,
        4,
    ]


@pytest.mark.parametrize("classes", [3, 40])
def test_pooled_gradients_are_the_pooled_outer_products(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, q = torch.randn(9, 70, generator=generator), torch.randn(9, classes, generator=generator)
    pooled = pooled_gradients(Points(Factors(x, q)), 0)
    _, factors = next(pooled.blocks())
    assert factors.q_MC is not None
    height, width = (3, 70) if classes == 3 else (16, 32)
    explicit = torch.nn.functional.adaptive_avg_pool2d(
        q[:, :, None] * x[:, None, :], (height, width)
    )
    torch.testing.assert_close(factors.q_MC[:, :, None] * factors.x_Mh[:, None, :], explicit)
    taken = pooled.take(np.array([4, 2]))
    torch.testing.assert_close(taken.x_Mh, factors.x_Mh[[4, 2]])


@pytest.mark.parametrize(
    "params",
    [
        {"first": "uniform"},
        {"include_labelled": True},
    ],
)
@pytest.mark.parametrize("name", ["badge", "partitioned_badge"])
def test_published_forms_draw_other_batches_of_the_same_kind(
    name: str, params: dict[str, bool | str], pool: PoolView
) -> None:
    published = run_strategy(build_strategy(name, params), pool, 30, 5).rows_b.tolist()
    assert len(set(published)) == 30
    assert published != run_strategy(build_strategy(name), pool, 30, 5).rows_b.tolist()


def test_first_centres_of_coreset(pool: PoolView) -> None:
    none = np.zeros(0, dtype=np.int64)
    view = dataclasses.replace(
        pool, unlabelled_U=np.arange(603), labelled_L=none, y_L=none, n_classes=0, proxy=None
    )
    assert isinstance(view.embeddings_Nd, torch.Tensor)
    pairs = torch.cdist(view.embeddings_Nd.double(), view.embeddings_Nd.double())
    first = {
        kind: run_strategy(build_strategy("coreset", {"first": kind}), view, 5, 3).rows_b
        for kind in ("mean", "one_center", "random")
    }
    assert first["one_center"][0] == int(pairs.amax(dim=1).argmin())
    mean = view.embeddings_Nd.double().mean(dim=0)
    assert first["mean"][0] == int((view.embeddings_Nd - mean).norm(dim=1).argmin())
    starts = {
        int(run_strategy(build_strategy("coreset", {"first": "random"}), view, 1, s).rows_b[0])
        for s in range(8)
    }
    assert len(starts) > 4


@pytest.mark.parametrize("name", ["badge", "partitioned_badge"])
def test_pooling_leaves_small_gradients_alone(name: str, pool: PoolView) -> None:
    """4 classes and 12 features fit into 512 entries as they are."""
    pooled = run_strategy(build_strategy(name, {"pooled": True}), pool, 30, 5)
    assert pooled.rows_b.tolist() == run_strategy(build_strategy(name), pool, 30, 5).rows_b.tolist()
