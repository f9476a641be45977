"""BAIT against explicit Fisher matrices, and its regression form against plain greedy."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch

from svp.errors import InputError
from svp.proxies import LinearConfig, Standardiser, fit_proxy
from svp.strategies.bait import Bait
from svp.strategies.bait_regression import BaitRegression
from svp.strategies.base import Budget, PoolView
from svp.strategies.catalog import run_strategy
from svp.strategies.information import Design, Items, contrasts
from svp.strategies.keys import keys_of
from svp.strategies.principal import Principal

Array = npt.NDArray[np.float64]


def _view(n: int = 120, classes: int = 3, dim: int = 4) -> PoolView:
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, n)
    x = rng.normal(size=(classes, dim))[y] * 1.5 + rng.normal(size=(n, dim))
    x_Nd = torch.from_numpy(x.astype("f4"))
    proxy = fit_proxy(
        x_Nd[:20],
        torch.from_numpy(y[:20]),
        classes,
        LinearConfig(),
        standardiser=Standardiser.fit(x_Nd),
        seed=0,
    )
    return PoolView(
        embeddings_Nd=x_Nd,
        keys_N=keys_of(str(row) for row in range(n)),
        unlabelled_U=np.arange(20, n),
        labelled_L=np.arange(20),
        y_L=y[:20],
        n_classes=classes,
        proxy=proxy,
    )


@pytest.fixture(scope="module")
def view() -> PoolView:
    return _view()


def _fisher(view: PoolView) -> tuple[Array, Array]:
    """Every item's information on the contrasts, explicitly, and its centred representation."""
    assert view.proxy is not None
    assert isinstance(view.embeddings_Nd, torch.Tensor)
    x = view.proxy.hidden(view.embeddings_Nd).double().numpy()
    x = x - x.mean(axis=0)
    p = view.proxy.logits(view.embeddings_Nd).double().softmax(dim=1).numpy()
    basis = contrasts(p.shape[1]).numpy()
    spread = np.stack([basis.T @ (np.diag(row) - np.outer(row, row)) @ basis for row in p])
    return np.stack([np.kron(s, np.outer(r, r)) for s, r in zip(spread, x, strict=True)]), x


def _trace(matrices: Array, view: PoolView, batch: list[int], ridge: float) -> float:
    total = matrices[[*view.labelled_L.tolist(), *batch]].sum(axis=0)
    total += ridge * np.eye(len(total))
    return float(np.trace(np.linalg.solve(total, matrices.mean(axis=0))))


def test_the_null_direction_is_removed_and_nothing_else() -> None:
    for classes in (2, 3, 7):
        basis = contrasts(classes)
        torch.testing.assert_close(basis.T @ basis, torch.eye(classes - 1, dtype=torch.float64))
        assert float(basis.sum(dim=0).abs().max()) < 1e-14
    p = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    _, a = Items(x, p).take(np.arange(2))
    for row in range(2):
        spread = torch.diag(p[row]) - torch.outer(p[row], p[row])
        torch.testing.assert_close(a[row] @ a[row].T, contrasts(4).T @ spread @ contrasts(4))


def test_information_is_the_sum_of_kronecker_products(view: PoolView) -> None:
    matrices, x = _fisher(view)
    assert view.proxy is not None
    p = view.proxy.logits(view.embeddings_Nd).double().softmax(dim=1)
    found = Items(torch.from_numpy(x), p).information()
    np.testing.assert_allclose(found.numpy(), matrices.sum(axis=0), rtol=1e-9, atol=1e-12)


def test_low_rank_moves_equal_recomputation(view: PoolView) -> None:
    matrices, x = _fisher(view)
    assert view.proxy is not None
    p = view.proxy.logits(view.embeddings_Nd).double().softmax(dim=1)
    items = Items(torch.from_numpy(x), p)
    target = torch.from_numpy(matrices.mean(axis=0))
    total = torch.from_numpy(matrices[:20].sum(axis=0)) + torch.eye(len(target))
    design = Design(total, target)
    for place, sign in ((30, 1.0), (31, 1.0), (30, -1.0), (40, 1.0), (3, -1.0)):
        one_x, one_a = items.take(np.array([place]))
        expected = design.trace - sign * float(design.gains(one_x, one_a, sign)[0])
        design.move(one_x[0], one_a[0], sign)
        total = total + sign * torch.from_numpy(matrices[place])
        again = Design(total, target)
        assert design.trace == pytest.approx(again.trace, rel=1e-9)
        assert expected == pytest.approx(again.trace, rel=1e-9)


def test_any_orthonormal_basis_gives_the_same_trace(view: PoolView) -> None:
    matrices, x = _fisher(view)
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(2, 2)))
    big = np.kron(turn, np.eye(x.shape[1]))
    turned = big @ matrices @ big.T
    assert _trace(turned, view, [50, 60], 1.0) == pytest.approx(
        _trace(matrices, view, [50, 60], 1.0)
    )


def test_a_copy_is_worth_less_than_the_first(view: PoolView) -> None:
    matrices, _ = _fisher(view)
    before, one, two = (_trace(matrices, view, [33] * k, 1.0) for k in (0, 1, 2))
    assert before - one > one - two > 0


@pytest.mark.parametrize("ridge", [0.0, 0.1, 1.0])
def test_every_sweep_of_swaps_lowers_the_trace(view: PoolView, ridge: float) -> None:
    matrices, _ = _fisher(view)
    found = []
    for sweeps in (1, 2, 4):
        strategy = Bait(dims=0, ridge=ridge, sweeps=sweeps)
        batch = run_strategy(strategy, view, 15, 3)
        found.append(_trace(matrices, view, batch.rows_b.tolist(), ridge))
        assert batch.counters["trace_micro"] / 1e6 == pytest.approx(found[-1], abs=2e-6)
    start = run_strategy(Bait(dims=0, ridge=ridge, proposals=1), view, 15, 3)
    assert found[0] < _trace(matrices, view, start.rows_b.tolist(), ridge)
    assert found[0] >= found[1] >= found[2]


def _plain_greedy(matrices: Array, view: PoolView, b: int, rows: list[int]) -> list[int]:
    batch: list[int] = []
    for _ in range(2 * b):
        rest = [row for row in rows if row not in batch]
        batch.append(min(rest, key=lambda row: _trace(matrices, view, [*batch, row], 1.0)))
    while len(batch) > b:
        least = min(
            batch,
            key=lambda row: _trace(matrices, view, [one for one in batch if one != row], 1.0),
        )
        batch.remove(least)
    return batch


def test_greedy_equals_every_trace_computed() -> None:
    view = _view(n=60)
    matrices, _ = _fisher(view)
    expected = _plain_greedy(matrices, view, 6, view.unlabelled_U.tolist())
    got = run_strategy(Bait(form="greedy", dims=0), view, 6, 0)
    assert sorted(got.rows_b.tolist()) == sorted(expected)
    assert got.exactness == "exact"
    swapped = run_strategy(Bait(dims=0), view, 6, 0)
    assert got.counters["trace_micro"] <= swapped.counters["trace_micro"]
    few = run_strategy(Bait(form="greedy", dims=0, candidates=20), view, 6, 0)
    assert few.exactness == "approx:candidates"


def test_the_published_weights_scale_picks_up() -> None:
    view = _view(n=60)
    got = run_strategy(Bait(form="greedy", dims=0, weights="published"), view, 6, 0)
    matrices, _ = _fisher(view)
    scaled = matrices * (6 / 26)
    scaled[view.labelled_L] = matrices[view.labelled_L] / 26

    # The target keeps the unscaled mean; only its scale would differ, so greedy is the same on
    # matrices whose mean is restored.
    def trace(batch: list[int]) -> float:
        total = scaled[[*view.labelled_L.tolist(), *batch]].sum(axis=0)
        total += np.eye(len(total))
        return float(np.trace(np.linalg.solve(total, matrices.mean(axis=0))))

    assert got.counters["trace_micro"] / 1e6 == pytest.approx(trace(got.rows_b.tolist()), abs=2e-6)


def test_without_a_ridge_a_class_without_labels_is_explained(view: PoolView) -> None:
    flat = dataclasses.replace(view, embeddings_Nd=torch.ones(120, 4))
    with pytest.raises(InputError, match=r"Raise bait\.ridge"):
        run_strategy(Bait(ridge=0.0), flat, 5, 0)


def _plain_regression(x: Array, view: PoolView, b: int) -> list[int]:
    matrices = np.einsum("ni,nj->nij", x, x)
    return _plain_greedy(matrices, view, b, view.unlabelled_U.tolist())


@pytest.mark.parametrize("dims", [0, 2])
def test_regression_equals_plain_greedy_on_moments(dims: int) -> None:
    view = _view(n=80, dim=5)
    principal = Principal(view, 0, Budget(), dims)
    x = principal.rows(np.arange(80)).numpy()
    got = run_strategy(BaitRegression(dims=dims), view, 6, 0)
    assert sorted(got.rows_b.tolist()) == sorted(_plain_regression(x, view, 6))


def _one_move_at_a_time(x: Array, b: int) -> set[int]:
    """Add 2 b rows and remove b, with both quadratic forms computed anew after every move."""
    batch: list[int] = []
    target = x.T @ x / len(x)
    for turn in range(3 * b):
        sign = 1.0 if turn < 2 * b else -1.0
        inverse = np.linalg.inv(np.eye(x.shape[1]) + x[batch].T @ x[batch])
        a = ((x @ inverse) * x).sum(axis=1)
        c = ((x @ inverse @ target @ inverse) * x).sum(axis=1)
        worth = sign * c / (1.0 + sign * a)
        taken = np.isin(np.arange(len(x)), batch)
        worth[taken if sign > 0 else ~taken] = -np.inf
        best = int(worth.argmax())
        batch = [*batch, best] if sign > 0 else [one for one in batch if one != best]
    return set(batch)


@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("copies", [0, 300])
def test_regression_chooses_what_one_move_at_a_time_chooses(decay: float, copies: int) -> None:
    """Many picks: guesses in rows of 32, wrong ones where few directions matter most."""
    rng = np.random.default_rng(int(decay))
    x = rng.normal(size=(2500, 12)) * np.arange(1, 13) ** -decay
    x[:copies] = x[copies : 2 * copies]
    x_Nd = torch.from_numpy(x.astype("f4"))
    none = np.zeros(0, dtype=np.int64)
    view = PoolView(
        embeddings_Nd=x_Nd,
        keys_N=keys_of(str(row) for row in range(2500)),
        unlabelled_U=np.arange(2500),
        labelled_L=none,
        y_L=none,
        n_classes=0,
    )
    got = run_strategy(BaitRegression(), view, 70, 0)
    seen: Array = x_Nd.double().numpy()
    expected = _one_move_at_a_time(seen - seen.mean(axis=0), 70)
    if copies:  # of equal rows either may be the one
        same = np.concatenate([np.arange(copies, 2 * copies), np.arange(copies, 2500)])
        assert sorted(same[got.rows_b]) == sorted(same[list(expected)])
    else:
        assert set(got.rows_b.tolist()) == expected
    assert got.counters["readings"] < 140


def test_regression_needs_no_labels_and_stays_accurate_over_many_picks() -> None:
    view = _view(n=2000, dim=6)
    none = np.zeros(0, dtype=np.int64)
    view = dataclasses.replace(
        view,
        unlabelled_U=np.arange(2000),
        labelled_L=none,
        y_L=none,
        n_classes=0,
        proxy=None,
    )
    got = run_strategy(BaitRegression(), view, 400, 0)
    assert isinstance(view.embeddings_Nd, torch.Tensor)
    x = view.embeddings_Nd.double().numpy()
    x = x - x.mean(axis=0)

    def trace(rows: npt.NDArray[np.int64]) -> float:
        total = x[rows].T @ x[rows] + np.eye(6)
        return float(np.trace(np.linalg.solve(total, x.T @ x / len(x))))

    drawn = np.random.default_rng(0).choice(2000, 400, replace=False)
    assert trace(got.rows_b) < 0.6 * trace(drawn)
    worth = trace(got.rows_b[1:]) - trace(got.rows_b)
    assert got.utility_b[0] == pytest.approx(worth, rel=1e-4)
