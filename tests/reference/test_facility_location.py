"""Facility location: the lazy algorithm is the plain one, and keeps its guarantee."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch

from svp.errors import InputError
from svp.strategies.base import Budget, PoolView
from svp.strategies.catalog import run_strategy
from svp.strategies.facility import Similarity, facility_location
from svp.strategies.facility_location import FacilityLocation
from svp.strategies.keys import keys_of
from svp.strategies.points import Factors, Points, pool_points
from svp.strategies.wrapping import Wrapping, wrap

Array = npt.NDArray[np.float64]


def _unit(x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    x = np.asarray(x, dtype=np.float32)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(norm > 0, norm, 1), dtype=np.float32)


def _points(x: npt.NDArray[np.float32]) -> Points:
    return Points(Factors(torch.from_numpy(x)))


def _similarity(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], kind: str) -> Array:
    cosine = a.astype(np.float64) @ b.astype(np.float64).T
    return np.maximum(cosine, 0.0) if kind == "clipped" else (1.0 + cosine) / 2.0


def _greedy(s_Rn: Array, b: int, start_R: Array) -> tuple[list[int], list[float]]:
    """Every gain at every pick; gains equal to ten digits are ties, and the first one wins."""
    reached = start_R.copy()
    places: list[int] = []
    gains: list[float] = []
    for _ in range(b):
        gain_n = np.maximum(s_Rn - reached[:, None], 0.0).sum(axis=0)
        gain_n[places] = -np.inf
        best = gain_n.max()
        place = int(np.flatnonzero(gain_n >= best - 1e-11 * (1 + best))[0])
        places.append(place)
        gains.append(float(gain_n[place]))
        reached = np.maximum(reached, s_Rn[:, place])
    return places, gains


def _data(kind: str, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    if kind == "clumps":
        x = rng.normal(size=(9, 12))[rng.integers(0, 9, 1500)] * 3 + rng.normal(size=(1500, 12))
    elif kind == "narrow cone":
        x = rng.normal(size=(1500, 12)) + 8.0
    elif kind == "grid":
        x = rng.integers(-2, 3, size=(1500, 3)).astype(float)
    elif kind == "copies":
        x = rng.normal(size=(40, 6))[rng.integers(0, 40, 1200)]
    else:
        x = np.eye(100)[rng.integers(0, 100, 1200)]
    return _unit(x)


@pytest.mark.parametrize("similarity", ["clipped", "shifted"])
@pytest.mark.parametrize("kind", ["clumps", "narrow cone", "grid", "copies", "orthogonal"])
def test_lazy_picks_are_the_plain_ones(kind: str, similarity: Similarity) -> None:
    x = _data(kind, np.random.default_rng(1))
    points = _points(x)
    found = facility_location(points, points, 60, similarity=similarity)
    places, gains = _greedy(_similarity(x, x, similarity), 60, np.zeros(len(x)))
    distinct = int((np.array(gains) > 1e-8).sum())
    assert found.places_b[:distinct].tolist() == places[:distinct]
    assert len(set(found.places_b.tolist())) == 60
    np.testing.assert_allclose(found.gains_b, gains, rtol=1e-9, atol=1e-8)
    assert np.all(np.diff(found.gains_b) <= 1e-9 * found.gains_b[0])


def test_other_points_may_be_represented_and_some_covered_already() -> None:
    rng = np.random.default_rng(2)
    represented, candidates, covered = (_unit(rng.normal(size=(n, 8))) for n in (1300, 400, 30))
    found = facility_location(
        _points(represented), _points(candidates), 80, covered=_points(covered)
    )
    start = _similarity(represented, covered, "clipped").max(axis=1)
    places, gains = _greedy(_similarity(represented, candidates, "clipped"), 80, start)
    assert found.places_b.tolist() == places
    np.testing.assert_allclose(found.gains_b, gains, rtol=1e-9)


@pytest.mark.parametrize("similarity", ["clipped", "shifted"])
@pytest.mark.parametrize("seed", range(8))
def test_value_is_within_the_guarantee_and_the_first_pick_is_the_medoid(
    seed: int, similarity: Similarity
) -> None:
    x = _unit(np.random.default_rng(seed).normal(size=(11, 3)))
    s = _similarity(x, x, similarity)
    points = _points(x)
    found = facility_location(points, points, 3, similarity=similarity)
    best = max(
        s[:, list(chosen)].max(axis=1).sum() for chosen in itertools.combinations(range(11), 3)
    )
    value = s[:, found.places_b].max(axis=1).sum()
    assert value >= (1 - 1 / np.e) * best
    np.testing.assert_allclose(found.gains_b.sum(), value, rtol=1e-9)
    assert found.places_b[0] == int(s.sum(axis=0).argmax())


def test_everything_can_be_chosen_even_when_all_are_the_same() -> None:
    points = _points(_unit(np.ones((70, 5))))
    found = facility_location(points, points, 70)
    assert found.places_b.tolist() == list(range(70))
    assert found.gains_b[0] == pytest.approx(70)
    assert np.all(found.gains_b[1:] == 0)


def _pool(n: int, labelled: int) -> tuple[PoolView, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(4)
    y = rng.integers(0, 3, n)
    x = rng.normal(size=(3, 6))[y] * 2 + rng.normal(size=(n, 6))
    view = PoolView(
        embeddings_Nd=torch.from_numpy(x.astype(np.float32)),
        keys_N=keys_of(str(row) for row in range(n)),
        unlabelled_U=np.arange(labelled, n),
        labelled_L=np.arange(labelled),
        y_L=y[:labelled].astype(np.int64),
        n_classes=3,
    )
    return view, y


def test_labelled_images_count_as_chosen() -> None:
    view, _ = _pool(400, 30)
    order = view.candidates(0)
    # The very float32 unit vectors: images that only serve each other gain nearly the same.
    x, covered = (
        pool_points(view, rows, 0, Budget(), space="input", norm="l2")
        .take(np.arange(len(rows)))
        .x_Mh.numpy()
        for rows in (order, view.labelled_L)
    )
    s = _similarity(x, x, "clipped")
    for params, start in (
        (FacilityLocation(), _similarity(x, covered, "clipped").max(axis=1)),
        (FacilityLocation(include_labelled=False), np.zeros(370)),
    ):
        places, _ = _greedy(s, 25, start)
        assert run_strategy(params, view, 25, 0).rows_b.tolist() == order[places].tolist()


def test_a_sampled_sum_is_named_and_nearly_as_good() -> None:
    view, _ = _pool(1200, 0)
    assert isinstance(view.embeddings_Nd, torch.Tensor)
    x = _unit(view.embeddings_Nd.numpy())
    s = _similarity(x, x, "clipped")
    whole = run_strategy(FacilityLocation(), view, 20, 0)
    sampled = run_strategy(FacilityLocation(represented=300), view, 20, 0)
    assert (whole.exactness, sampled.exactness) == ("exact", "approx:sampled-represented")
    value = [s[:, found.rows_b].max(axis=1).sum() for found in (whole, sampled)]
    assert 0.97 * value[0] < value[1] <= value[0] * (1 + 1e-9)


def test_strata_read_all_labels_and_share_the_budget() -> None:
    view, y = _pool(300, 0)
    strata = FacilityLocation(oracle_strata=True)
    found = run_strategy(strata, view, 31, 0, oracle=lambda rows: y[rows])
    assert found.oracle_calls == 300
    assert sorted(np.bincount(y[found.rows_b]).tolist()) == [10, 10, 11]
    wrapped = wrap(strata, Wrapping(random_share=0.2))
    shared = run_strategy(wrapped, view, 31, 0, oracle=lambda rows: y[rows])
    assert shared.oracle_calls > 0
    for strategy in (strata, wrapped):
        with pytest.raises(InputError, match="must be given known labels"):
            run_strategy(strategy, view, 31, 0)
