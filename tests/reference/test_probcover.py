"""ProbCover against the plain greedy cover, its worked example and its guarantee."""

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch

from svp.strategies.balls import ball_cover, purity_radius
from svp.strategies.base import PoolView
from svp.strategies.catalog import run_strategy
from svp.strategies.keys import keys_of
from svp.strategies.points import Factors, Points
from svp.strategies.probcover import ProbCover

Array = npt.NDArray[np.float64]


def _points(x: npt.NDArray[np.generic]) -> Points:
    return Points(Factors(torch.from_numpy(np.asarray(x, dtype=np.float32))))


def _greedy(x: Array, centres: Array, b: int, delta: float) -> tuple[list[int], list[int]]:
    inside = ((x[:, None] - x[None]) ** 2).sum(axis=2) < delta**2 * (1 - 1e-12)
    left = np.ones(len(x), dtype=bool)
    if len(centres):
        near = ((x[:, None] - centres[None]) ** 2).sum(axis=2) < delta**2 * (1 - 1e-12)
        left = ~near.any(axis=1)
    places: list[int] = []
    gains: list[int] = []
    while len(places) < b:
        degree = (inside & left).sum(axis=1)
        if degree.max() == 0:
            break
        place = int(degree.argmax())
        places.append(place)
        gains.append(int(degree[place]))
        left &= ~inside[place]
    return places, gains


@pytest.mark.parametrize("kind", ["clumps", "sphere", "grid", "copies"])
@pytest.mark.parametrize("delta", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("labelled", [0, 7])
def test_picks_are_those_of_the_plain_cover(kind: str, delta: float, labelled: int) -> None:
    rng = np.random.default_rng(1)
    if kind == "clumps":
        x = rng.normal(size=(12, 5))[rng.integers(0, 12, 1300)] + rng.normal(size=(1300, 5)) * 0.2
    elif kind == "sphere":
        x = rng.normal(size=(1300, 5))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    elif kind == "grid":
        # Many pairs at exactly the radius, which is outside.
        x = rng.integers(0, 6, size=(1300, 3)).astype(float)
    else:
        x = rng.normal(size=(60, 5))[rng.integers(0, 60, 1300)]
    x = x.astype(np.float32).astype(np.float64)
    centres, rest = x[:labelled], x[labelled:]
    places, gains = _greedy(rest, centres, 80, delta)
    cover = ball_cover(_points(rest), _points(centres), 80, delta)
    assert cover.places_b.tolist() == places
    assert cover.gains_b.tolist() == gains
    assert np.all(np.diff(cover.gains_b) <= 0)


def _view(x: list[list[float]]) -> PoolView:
    none = np.zeros(0, dtype=np.int64)
    return PoolView(
        embeddings_Nd=torch.tensor(x),
        keys_N=keys_of(str(row) for row in range(len(x))),
        unlabelled_U=np.arange(len(x)),
        labelled_L=none,
        y_L=none,
        n_classes=0,
    )


def test_line_of_four() -> None:
    """Points 0, 0.5, 1, 5 with balls of 0.6: first 0.5, then 5; nothing is picked twice."""
    view = _view([[0.0], [0.5], [1.0], [5.0]])
    selection = run_strategy(ProbCover(delta=0.6, norm="none"), view, 4, 0)
    assert selection.rows_b[:2].tolist() == [1, 3]
    assert selection.utility_b.tolist() == [3.0, 1.0, 0.0, 0.0]
    assert selection.counters["fallback"] == 2
    assert selection.counters["covered"] == 4


def test_fallback_coreset_goes_far() -> None:
    view = _view([[0.0], [0.1], [0.5], [0.2], [5.0]])
    chosen = run_strategy(ProbCover(delta=0.6, norm="none", fallback="coreset"), view, 3, 0)
    covered = chosen.rows_b[:2].tolist()
    assert 4 in covered
    x = view.embeddings_Nd
    assert isinstance(x, torch.Tensor)
    rest = [row for row in range(5) if row not in covered]
    far = max(rest, key=lambda row: float((x[row] - x[covered]).abs().min()))
    assert chosen.rows_b[2] == far


def test_tiny_balls_hold_one_and_huge_ones_all() -> None:
    x = np.random.default_rng(0).normal(size=(200, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    none = _points(np.zeros((0, 4)))
    assert set(ball_cover(_points(x), none, 9, 1e-3).gains_b.tolist()) == {1}
    assert ball_cover(_points(x), none, 9, 2.1).gains_b.tolist() == [200]


@pytest.mark.parametrize("seed", range(10))
def test_cover_is_within_the_guarantee(seed: int) -> None:
    x = np.random.default_rng(seed).uniform(size=(14, 2))
    inside = np.linalg.norm(x[:, None] - x[None], axis=2) < 0.3
    best = max(
        inside[list(chosen)].any(axis=0).sum() for chosen in itertools.combinations(range(14), 3)
    )
    cover = ball_cover(_points(x), _points(np.zeros((0, 2))), 3, 0.3)
    assert cover.covered >= (1 - 1 / np.e) * best


def test_radius_is_the_largest_that_keeps_balls_pure() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 900)
    x = rng.normal(size=(4, 6))[labels] * 2 + rng.normal(size=(900, 6))
    radius = purity_radius(_points(x), labels, 0.95, 900)
    pairs = np.linalg.norm(x[:, None] - x[None], axis=2)

    def purity(delta: float) -> float:
        mixed = ((pairs < delta) & (labels[:, None] != labels[None])).any(axis=1)
        return float(1 - mixed.mean())

    assert purity(radius * (1 - 1e-5)) >= 0.95
    assert purity(radius * (1 + 1e-5)) < 0.95


def test_the_radius_is_kept_between_rounds() -> None:
    x = np.random.default_rng(5).normal(size=(300, 6)).tolist()
    view = _view(x)
    first = run_strategy(ProbCover(), view, 5, 0)
    assert first.state["delta"] > 0
    later = dataclasses.replace(view, state={"delta": 0.25})
    assert run_strategy(ProbCover(), later, 5, 0).state == {"delta": 0.25}
    assert run_strategy(ProbCover(sub_pool=100), view, 5, 0).exactness == "approx:sub-pool"
