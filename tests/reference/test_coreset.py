"""CoreSet against the plain greedy algorithm in float64, and its guarantee by brute force."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch

from svp.strategies.base import Budget, PoolView
from svp.strategies.catalog import run_strategy
from svp.strategies.coreset import CoreSet
from svp.strategies.cover import k_center
from svp.strategies.keys import keys_of
from svp.strategies.points import Factors, Points

Array = npt.NDArray[np.float64]


def _greedy(x: Array, centres: Array, b: int) -> tuple[list[int], list[float]]:
    """The algorithm as it is written: every distance, every pick, in float64."""
    least = np.full(len(x), np.inf)
    for centre in centres:
        least = np.minimum(least, ((x - centre) ** 2).sum(axis=1))
    places: list[int] = []
    radii: list[float] = []
    for _ in range(b):
        least[places] = -np.inf
        place = int(np.argmax(least))
        places.append(place)
        radii.append(float(np.sqrt(least[place])))
        least = np.minimum(least, ((x - x[place]) ** 2).sum(axis=1))
    return places, radii


def _points(x: npt.NDArray[np.generic]) -> Points:
    return Points(Factors(torch.from_numpy(np.asarray(x, dtype=np.float32))))


def _data(kind: str, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    if kind == "clumps":
        x = rng.normal(size=(8, 12))[rng.integers(0, 8, 3000)] * 3 + rng.normal(size=(3000, 12))
    elif kind == "far from the origin":
        x = rng.normal(size=(3000, 12)) + 1000.0
    elif kind == "flat":
        x = rng.uniform(size=(3000, 2))
    elif kind == "grid":
        # Nearly all comparisons are exact ties.
        x = rng.integers(0, 6, size=(3000, 3)).astype(float)
    elif kind == "copies":
        x = rng.normal(size=(40, 6))[rng.integers(0, 40, 3000)]
    elif kind == "equidistant":
        x = np.eye(300)[rng.integers(0, 300, 1200)]
    else:
        # Distances that differ by less than float32 resolves.
        x = np.ones((2000, 6)) + rng.normal(size=(2000, 6)) * 1e-5
    return x.astype(np.float32)


@pytest.mark.parametrize("frontier", [1, 16, 256, 4096])
@pytest.mark.parametrize(
    "kind",
    ["clumps", "far from the origin", "flat", "grid", "copies", "equidistant", "tight"],
)
def test_picks_equal_plain_greedy_in_float64(kind: str, frontier: int) -> None:
    x = _data(kind, np.random.default_rng(3))
    centres, rest = x[:20], x[20:]
    places, radii = _greedy(rest.astype(np.float64), centres.astype(np.float64), 120)
    cover = k_center(_points(rest), _points(centres), 120, frontier=frontier)
    assert cover.places_b.tolist() == places
    np.testing.assert_allclose(cover.radius_b, radii, rtol=1e-12)
    assert np.all(np.diff(cover.radius_b) <= 0)


def test_line_of_four() -> None:
    """Points 0, 1, 2, 10 with 0 labelled: 10, then 2."""
    view = PoolView(
        embeddings_Nd=torch.tensor([[0.0], [1.0], [2.0], [10.0]]),
        keys_N=keys_of("abcd"),
        unlabelled_U=np.array([1, 2, 3]),
        labelled_L=np.array([0]),
        y_L=np.array([0]),
        n_classes=1,
    )
    selection = run_strategy(CoreSet(), view, 2, 0, budget=Budget(tile_rows=1))
    assert selection.rows_b.tolist() == [3, 2]
    assert selection.utility_b.tolist() == [10.0, 2.0]


@pytest.mark.parametrize("seed", range(20))
def test_radius_is_within_twice_the_optimum(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(12, 2))
    b = 3
    cover = k_center(_points(x), _points(np.zeros((0, 2))), b)
    x = x.astype(np.float32).astype(np.float64)
    pairwise = np.sqrt(((x[:, None] - x[None]) ** 2).sum(axis=2))

    def radius(chosen: tuple[int, ...]) -> float:
        return float(pairwise[:, list(chosen)].min(axis=1).max())

    best = min(radius(chosen) for chosen in itertools.combinations(range(12), b))
    assert radius(tuple(cover.places_b)) <= 2 * best * (1 + 1e-9)


def test_without_labels_it_starts_nearest_the_mean() -> None:
    x = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [1.5, 1.5], [4.0, 4.0]])
    cover = k_center(_points(x), _points(np.zeros((0, 2))), 2)
    assert cover.places_b.tolist() == [3, 4]
    np.testing.assert_allclose(cover.radius_b, np.sqrt(12.5))


def test_copies_of_a_labelled_point_come_last() -> None:
    rng = np.random.default_rng(0)
    labelled = rng.normal(size=(5, 33)).astype(np.float32)
    rest = np.concatenate([np.repeat(labelled, 10, axis=0), rng.normal(size=(50, 33))])
    rest = rest.astype(np.float32)
    cover = k_center(_points(rest), _points(labelled), 100)
    assert set(cover.places_b[:50].tolist()) == set(range(50, 100))
    assert np.all(cover.radius_b[50:] == 0)
