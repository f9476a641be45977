"""FASS against entropy, and against greedy facility location over a full matrix."""

import numpy as np
import pytest
from linear_view import linear_view, normal

from svp.strategies.base import Budget
from svp.strategies.catalog import run_strategy
from svp.strategies.entropy import Entropy
from svp.strategies.fass import Fass


def test_as_many_candidates_as_picks_are_the_entropy_set() -> None:
    view = linear_view(normal(500, 6), normal(5, 6, seed=1))
    expected = run_strategy(Entropy(), view, 40, 0).rows_b
    chosen = run_strategy(Fass(top_n=1), view, 40, 0).rows_b
    assert set(chosen.tolist()) == set(expected.tolist())


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
@pytest.mark.parametrize("similarity", ["clipped", "shifted"])
def test_picks_equal_plain_greedy_over_the_most_uncertain(
    similarity: str, cache_bytes: int
) -> None:
    x = normal(600, 6)
    view = linear_view(x, normal(5, 6, seed=1))
    kept = run_strategy(Entropy(), view, 120, 2).rows_b
    unit = x[kept].double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    table = np.maximum(cosine, 0) if similarity == "clipped" else (1 + cosine) / 2
    reached = np.zeros(120)
    expected: list[int] = []
    for _ in range(24):
        gains = np.maximum(table - reached[:, None], 0).sum(axis=0)
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        reached = np.maximum(reached, table[:, expected[-1]])
    chosen = run_strategy(
        Fass(similarity=similarity),  # type: ignore[arg-type]
        view,
        24,
        2,
        budget=Budget(cache_bytes=cache_bytes),
    )
    assert chosen.rows_b.tolist() == kept[expected].tolist()
    assert np.all(np.diff(chosen.utility_b) <= 1e-5)
    assert chosen.counters["kept"] == 120


def test_copies_are_ties_with_and_without_a_stored_table() -> None:
    x = normal(40, 5)[np.random.default_rng(0).integers(0, 40, 600)]
    view = linear_view(x, normal(4, 5, seed=1))
    one = run_strategy(Fass(), view, 100, 3)
    two = run_strategy(Fass(), view, 100, 3, budget=Budget(cache_bytes=0))
    assert one.rows_b.tolist() == two.rows_b.tolist()
    np.testing.assert_allclose(one.utility_b, two.utility_b, atol=1e-6)
