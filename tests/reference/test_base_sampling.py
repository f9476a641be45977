"""BASE against its algorithm written out, and its exact distance against a general solver."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from linear_view import linear_view, normal
from scipy.optimize import minimize

from svp.errors import InputError
from svp.strategies.base import Budget, PoolView
from svp.strategies.base_sampling import Base, class_distances, region_bounds
from svp.strategies.catalog import run_strategy
from svp.strategies.mase import mase
from svp.strategies.polyhedron import region_distances
from svp.strategies.weights import weight_distances


def _pool(n: int = 1500, dim: int = 8, classes: int = 6, seed: int = 0) -> PoolView:
    return linear_view(
        normal(n, dim, seed=seed),
        normal(classes, dim, seed=seed + 1),
        normal(classes, seed=seed + 2),
    )


def _logits(view: PoolView) -> torch.Tensor:
    assert view.proxy is not None
    assert isinstance(view.embeddings_Nd, torch.Tensor)
    return view.proxy.logits(view.embeddings_Nd)


def _by_hand(
    distance_NC: npt.NDArray[np.float64], place_N: npt.NDArray[np.int64], b: int, order: str
) -> list[int]:
    """The algorithm as it is written, over a full table."""
    classes = distance_NC.shape[1]
    quota = [b // classes + (c < b % classes) for c in range(classes)]
    turns = (
        [c for c in range(classes) for _ in range(quota[c])]
        if order == "sequential"
        else [c for turn in range(max(quota)) for c in range(classes) if turn < quota[c]]
    )
    ranked = [np.lexsort((place_N, distance_NC[:, c])).tolist() for c in range(classes)]
    chosen: dict[int, None] = {}
    for c in turns:
        chosen[next(row for row in ranked[c] if row not in chosen)] = None
    return list(chosen)


@pytest.mark.parametrize("order", ["roundrobin", "sequential"])
@pytest.mark.parametrize("b", [3, 6, 100, 1400])
def test_picks_equal_the_algorithm_written_out(order: str, b: int) -> None:
    view = _pool()
    place = np.argsort(view.candidates(4))
    assert view.proxy is not None
    table = class_distances(_logits(view), weight_distances(view.proxy.head))
    expected = _by_hand(table.double().numpy(), place, b, order)
    chosen = run_strategy(Base(order=order), view, b, 4)  # type: ignore[arg-type]
    assert chosen.rows_b.tolist() == expected


def test_a_class_that_lost_its_list_to_others_is_read_again() -> None:
    """All classes want the same items: everything lies on one line through all boundaries."""
    x = torch.linspace(-1, 1, 1500)[:, None]
    view = linear_view(x, torch.tensor([[1.0], [0.0], [-1.0], [0.5], [-0.5]]), torch.zeros(5))
    selection = run_strategy(Base(), view, 1000, 0)
    assert selection.counters["passes"] > 1
    assert len(set(selection.rows_b.tolist())) == 1000


def test_the_predicted_class_has_the_distance_of_mase() -> None:
    view = _pool()
    assert view.proxy is not None
    z = _logits(view)
    table = weight_distances(view.proxy.head)
    own = class_distances(z, table).gather(1, z.argmax(dim=1, keepdim=True))[:, 0]
    torch.testing.assert_close(own, -mase(z, table))


def test_fewer_picks_than_classes_serve_the_first_classes() -> None:
    view = _pool()
    three = run_strategy(Base(), view, 3, 0).rows_b.tolist()
    nine = run_strategy(Base(), view, 9, 0).rows_b.tolist()
    assert nine[:3] == three


def test_a_class_in_between_makes_the_published_distance_too_small() -> None:
    """Weights 1, 0, -1 with biases 0, 1/2, 0: from x = 2, class 2 begins at -1/2, not at 0."""
    weight, bias = torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([0.0, 0.5, 0.0])
    view = linear_view(torch.tensor([[2.0]]), weight, bias)
    assert view.proxy is not None
    z = _logits(view)
    table = weight_distances(view.proxy.head)
    assert float(class_distances(z, table)[0, 2]) == 2.0
    assert float(region_distances(z, weight, 2)[0]) == pytest.approx(2.5, abs=1e-9)


@pytest.mark.parametrize(("dim", "classes"), [(2, 4), (6, 5), (3, 8), (12, 10)])
def test_exact_distances_equal_a_general_solver(dim: int, classes: int) -> None:
    x, weight = normal(12, dim, seed=dim), normal(classes, dim, seed=1)
    bias = 0.3 * normal(classes, seed=2)
    z = x @ weight.T + bias
    for wanted in range(classes):
        got = region_distances(z, weight, wanted)
        edges = np.delete(weight.double().numpy() - weight[wanted].double().numpy(), wanted, axis=0)
        for row in range(len(x)):
            slack = np.delete((z[row, wanted] - z[row]).double().numpy(), wanted)
            solved = minimize(
                lambda e: 0.5 * e @ e,
                np.zeros(dim),
                jac=lambda e: e,
                constraints={
                    "type": "ineq",
                    "fun": lambda e, s=slack, a=edges: s - a @ e,
                    "jac": lambda e, a=edges: -a,
                },
                method="SLSQP",
                options={"maxiter": 500, "ftol": 1e-14},
            )
            if np.isinf(float(got[row])):
                assert not solved.success or np.min(slack - edges @ solved.x) < -1e-7
            else:
                assert float(got[row]) == pytest.approx(np.linalg.norm(solved.x), abs=2e-6)


def test_a_class_that_is_never_ahead_is_infinitely_far() -> None:
    weight = torch.tensor([[1.0], [-1.0], [0.0], [1.0]])
    bias = torch.tensor([0.0, 0.0, -1.0, -1.0])
    z = normal(20, 1) @ weight.T + bias
    assert torch.isinf(region_distances(z, weight, 2)).all()
    assert torch.isinf(region_distances(z, weight, 3)).all()


def test_bounds_lie_between_the_published_and_the_exact_distance() -> None:
    view = _pool(200)
    assert view.proxy is not None
    z = _logits(view)
    table = weight_distances(view.proxy.head)
    away = torch.ones_like(z, dtype=torch.bool).scatter(1, z.argmax(dim=1, keepdim=True), False)
    exact = torch.stack(
        [region_distances(z, view.proxy.head.weight_Cd, c) for c in range(z.shape[1])], dim=1
    )
    bounds, published = region_bounds(z, table).double(), class_distances(z, table).double()
    assert bool(((published <= bounds * (1 + 1e-5) + 1e-6) | ~away).all())
    assert bool(((bounds <= exact * (1 + 1e-5) + 1e-6) | ~away).all())
    # Inside its region a point is at distance 0 from it.
    assert float(exact[~away].max()) == 0.0


@pytest.mark.parametrize("order", ["roundrobin", "sequential"])
def test_picks_by_exact_distance_equal_the_algorithm_over_a_full_table(order: str) -> None:
    view = _pool(2500, dim=5, classes=4, seed=7)
    assert view.proxy is not None
    z = _logits(view)
    published = class_distances(z, weight_distances(view.proxy.head)).double()
    exact = torch.stack(
        [region_distances(z, view.proxy.head.weight_Cd, c) for c in range(4)], dim=1
    )
    best = z.argmax(dim=1, keepdim=True)
    table = exact.float().double().scatter(1, best, published.gather(1, best))
    place = np.argsort(view.candidates(1))
    expected = _by_hand(table.numpy(), place, 90, order)
    chosen = run_strategy(
        Base(distance="polyhedral", order=order),  # type: ignore[arg-type]
        view,
        90,
        1,
        budget=Budget(tile_rows=1),
    )
    assert chosen.rows_b.tolist() == expected
    assert 0 < chosen.counters["programmes"] < 2500 * 4


def test_many_classes_refuse_the_exact_distance() -> None:
    view = _pool(100, classes=33)
    with pytest.raises(InputError, match="at most 32 classes"):
        run_strategy(Base(distance="polyhedral"), view, 5, 0)
