"""GLISTER against explicit C (1 + h) gradients and a full recomputation at every pick."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch

from svp.proxies import LinearConfig, Standardiser, fit_proxy
from svp.strategies.base import PoolView
from svp.strategies.catalog import run_strategy
from svp.strategies.glister import Glister
from svp.strategies.keys import keys_of

Array = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def view() -> PoolView:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 300)
    x = torch.from_numpy((rng.normal(size=(4, 6))[y] + rng.normal(size=(300, 6))).astype("f4"))
    proxy = fit_proxy(
        x[:30],
        torch.from_numpy(y[:30]),
        4,
        LinearConfig(),
        standardiser=Standardiser.fit(x),
        seed=0,
    )
    return PoolView(
        embeddings_Nd=x,
        keys_N=keys_of(str(row) for row in range(300)),
        unlabelled_U=np.arange(30, 300),
        labelled_L=np.arange(30),
        y_L=y[:30],
        n_classes=4,
        proxy=proxy,
    )


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _plain(view: PoolView, b: int, eta: float, step: str, r: int = 1) -> tuple[list[int], Array]:
    """Parameters are moved, logits and gradients recomputed from nothing, in float64."""
    assert view.proxy is not None
    assert isinstance(view.embeddings_Nd, torch.Tensor)
    h = view.proxy.hidden(view.embeddings_Nd).double().numpy()
    x = np.concatenate([np.ones((len(h), 1)), h], axis=1)
    head = view.proxy.head
    theta = np.concatenate([head.bias_C[:, None].numpy(), head.weight_Cd.numpy()], axis=1)
    theta = theta.astype(np.float64)
    z = x @ theta.T
    y = z.argmax(axis=1)
    q = _softmax(z) - np.eye(4)[y]
    each = np.einsum("nc,nd->ncd", q, x)
    y[view.labelled_L] = view.y_L
    residual = _softmax(z) - np.eye(4)[y]
    of_labelled = np.einsum("nc,nd->cd", residual[view.labelled_L], x[view.labelled_L])
    theta = theta - eta * (of_labelled / (len(view.labelled_L) if step == "mean" else 1))
    picks: list[int] = []
    first: Array | None = None
    while len(picks) < b:
        gradient = (_softmax(x @ theta.T) - np.eye(4)[y]).T @ x / len(x)
        gains = np.einsum("ncd,cd->n", each, gradient)
        first = gains if first is None else first
        gains[view.labelled_L] = -np.inf
        gains[picks] = -np.inf
        best = np.argsort(-gains, kind="stable")[: min(r, b - len(picks))].tolist()
        picks += best
        theta = theta - eta * each[best].sum(axis=0)
    assert first is not None
    return picks, first


@pytest.mark.parametrize("step", ["mean", "sum"])
@pytest.mark.parametrize("eta", [0.01, 0.5])
def test_picks_equal_explicit_gradients(view: PoolView, eta: float, step: str) -> None:
    selection = run_strategy(Glister(eta=eta, labelled_step=step), view, 40, 0)
    picks, first = _plain(view, 40, eta, step)
    assert selection.rows_b.tolist() == picks
    np.testing.assert_allclose(selection.utility_b[0], first[picks[0]], rtol=1e-4)
    assert selection.exactness == "exact"


def test_several_picks_a_refresh_are_a_named_approximation(view: PoolView) -> None:
    selection = run_strategy(Glister(eta=0.5, refresh_every=8), view, 40, 0)
    assert selection.rows_b.tolist() == _plain(view, 40, 0.5, "mean", 8)[0]
    assert selection.exactness == "approx:refresh"
    assert selection.counters["refreshes"] == 5


def test_without_a_step_the_highest_first_gains_are_taken(view: PoolView) -> None:
    selection = run_strategy(Glister(eta=0.0), view, 30, 0)
    _, first = _plain(view, 1, 0.0, "mean")
    first[view.labelled_L] = -np.inf
    assert selection.rows_b.tolist() == np.argsort(-first)[:30].tolist()


def test_a_sample_of_everything_is_exact_and_a_smaller_one_says_so(view: PoolView) -> None:
    whole = run_strategy(Glister(), view, 20, 0)
    large = run_strategy(Glister(validation=1000), view, 20, 0)
    assert whole.rows_b.tolist() == large.rows_b.tolist()
    assert large.exactness == "exact"
    small = run_strategy(Glister(validation=150), view, 20, 0)
    assert small.exactness == "approx:validation-sample"
    assert len(set(small.rows_b.tolist()) & set(whole.rows_b.tolist())) >= 10


def test_the_order_of_the_validation_rows_does_not_matter(view: PoolView) -> None:
    order = np.random.default_rng(1).permutation(30)
    assert isinstance(view.embeddings_Nd, torch.Tensor)
    x = view.embeddings_Nd.clone()
    x[:30] = x[:30][torch.from_numpy(order)]
    keys = view.keys_N.copy()
    other = dataclasses.replace(view, embeddings_Nd=x, keys_N=keys, y_L=view.y_L[order])
    one, two = (run_strategy(Glister(eta=0.3), each, 30, 0) for each in (view, other))
    assert one.rows_b.tolist() == two.rows_b.tolist()
