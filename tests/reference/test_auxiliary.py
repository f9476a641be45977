"""Strategies that train a small network: what the network learns, and what is done with it."""

import dataclasses

import numpy as np
import pytest
import torch

from svp.errors import InputError
from svp.proxies import LinearConfig, Standardiser, fit_proxy
from svp.strategies.base import Budget, PoolView
from svp.strategies.catalog import build_strategy, run_strategy
from svp.strategies.core_gcn import CoreGCN
from svp.strategies.coreset import CoreSet
from svp.strategies.gcn import Graph, Network, Settings, Similarity
from svp.strategies.keys import keys_of
from svp.strategies.learning_loss import Head, LearningLoss, ranking_loss
from svp.strategies.points import Factors, Points
from svp.strategies.rank import TopK
from svp.strategies.uncertain_gcn import UncertainGCN
from svp.strategies.vaal import Game, Vaal
from svp.strategies.waal import Critic, Waal, surprise


def _view(apart: float = 0.0, n: int = 300, labelled: int = 60) -> PoolView:
    """Labelled rows first; the unlabelled ones are moved by `apart` along the first feature."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    x = rng.normal(size=(3, 6))[y] + rng.normal(size=(n, 6))
    x[labelled:, 0] += apart
    x_Nd = torch.from_numpy(x.astype("f4"))
    proxy = fit_proxy(
        x_Nd[:labelled],
        torch.from_numpy(y[:labelled]),
        3,
        LinearConfig(),
        standardiser=Standardiser.fit(x_Nd),
        seed=0,
    )
    return PoolView(
        embeddings_Nd=x_Nd,
        keys_N=keys_of(str(row) for row in range(n)),
        unlabelled_U=np.arange(labelled, n),
        labelled_L=np.arange(labelled),
        y_L=y[:labelled],
        n_classes=3,
        proxy=proxy,
    )


def _x(view: PoolView) -> torch.Tensor:
    assert isinstance(view.embeddings_Nd, torch.Tensor)
    return view.embeddings_Nd


def test_ranking_loss_is_zero_only_in_the_right_order_and_far_enough_apart() -> None:
    loss = torch.tensor([3.0, 1.0, 0.5, 2.0])
    assert float(ranking_loss(torch.tensor([5.0, 1.0, -1.0, 4.0]), loss, 1.0)) == 0.0
    # Pair (3, 2) in the wrong order by 1, pair (1, 0.5) right but only half the margin apart.
    assert float(ranking_loss(torch.tensor([3.0, 1.0, 0.5, 4.0]), loss, 1.0)) == 1.25
    assert float(ranking_loss(torch.tensor([1.0, 9.0]), torch.tensor([2.0, 2.0]), 1.0)) == 0.0


def test_learning_loss_finds_planted_losses_and_keeps_scores_with_their_items() -> None:
    view = _view(n=600, labelled=300)
    strategy = LearningLoss(steps=300, batch=64)
    head = Head(strategy, view, 0, Budget())
    planted = _x(view)[:, 2]
    # The loss of a row is its third feature, instead of the proxy's.
    rows_L = view.centres(0)
    head._loss_L = planted[torch.from_numpy(rows_L)]
    losses = head.train()
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    assert view.proxy is not None
    both = torch.cat([_x(view), view.proxy.hidden(_x(view))], dim=1)
    with torch.no_grad():
        guess = head(both)[300:]
    assert float(torch.corrcoef(torch.stack([guess, planted[300:]]))[0, 1]) > 0.8


def test_learning_loss_takes_the_largest_predictions() -> None:
    view = _view()
    strategy = LearningLoss(steps=20)
    selection = run_strategy(strategy, view, 30, 1)
    head = Head(strategy, view, 1, Budget())
    head.train()
    assert view.proxy is not None
    both = torch.cat([_x(view), view.proxy.hidden(_x(view))], dim=1)
    with torch.no_grad():
        guess = head(both).numpy()
    rest = np.setdiff1d(view.unlabelled_U, selection.rows_b)
    assert guess[selection.rows_b].min() >= guess[rest].max() - 1e-6
    np.testing.assert_allclose(selection.utility_b, guess[selection.rows_b], rtol=1e-4, atol=1e-6)


def test_vaal_tells_separable_groups_apart() -> None:
    view = _view(apart=12.0)
    game = Game(Vaal(adversarial=0.0, steps=150, width=64), view, 0, Budget())
    game.train()
    with torch.no_grad():
        logit = game.judge(_x(view))
    assert float(logit[60:].max()) < float(logit[:60].min())


@pytest.mark.parametrize("kl", ["elbo", "published"])
def test_vaal_never_looks_at_labels(kl: str) -> None:
    view = _view()
    strategy = build_strategy("vaal", {"steps": 5, "width": 32, "kl": kl})
    other = dataclasses.replace(view, y_L=view.y_L[::-1].copy(), proxy=None)
    one, two = (run_strategy(strategy, each, 20, 0).rows_b.tolist() for each in (view, other))
    assert one == two


def test_vaal_without_training_leaves_the_order_to_the_hash() -> None:
    view = _view()
    selection = run_strategy(Vaal(steps=0, adversarial=0.0), view, 20, 3)
    assert selection.rows_b.tolist() == view.candidates(3)[:20].tolist()


def test_waal_without_a_critic_takes_uniform_predictions_first() -> None:
    z = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    assert surprise(z).argsort().tolist() == [0, 2, 1]
    log_p = z.double().log_softmax(dim=1)
    expected = (log_p.norm(dim=1) + log_p.abs().sum(dim=1)) / 2
    torch.testing.assert_close(surprise(z), expected)
    view = _view()
    selection = run_strategy(Waal(steps=0), view, 30, 0)
    assert view.proxy is not None
    value = surprise(view.proxy.logits(_x(view)))[60:]
    assert set(selection.rows_b.tolist()) == set((value.argsort()[:30] + 60).tolist())


def test_waal_only_the_differences_of_the_critic_matter() -> None:
    rng = np.random.default_rng(0)
    value, critic = rng.normal(size=(2, 500))
    chosen = []
    for shift in (0.0, 3.0):
        top = TopK(40)
        top.push((10 * (critic + shift) - value).astype(np.float32), np.arange(500))
        chosen.append(set(top.best()[0].tolist()))
    assert chosen[0] == chosen[1]


def test_waal_penalty_keeps_gradients_near_one_and_its_published_sign_does_not() -> None:
    view = _view(apart=4.0)
    found = {}
    for sign in ("correct", "published"):
        strategy = build_strategy("waal", {"gp_sign": sign, "steps": 300, "width": 64})
        assert isinstance(strategy, Waal)
        critic = Critic(strategy, view, 0, Budget())
        found[sign] = critic.train()
        if sign == "correct":
            with torch.no_grad():
                value = critic(_x(view))
    assert abs(found["correct"] - 1.0) < 0.35
    # Rewarded for being far from 1, gradients vanish or explode.
    assert abs(found["published"] - 1.0) > 0.9
    assert float(value[60:].mean()) > float(value[:60].mean())


def _unit(n: int, d: int, *, positive: bool) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(4))
    x = x.abs() if positive else x
    return x / x.norm(dim=1, keepdim=True)


def _dense(x: torch.Tensor, similarity: Similarity) -> torch.Tensor:
    s = x.double() @ x.double().T
    s = (1.0 + s) / 2.0 if similarity == "shifted" else s
    s = s - torch.diag(s.diagonal())
    return s / s.sum(dim=1)[None, :] + torch.eye(len(x), dtype=torch.float64)


@pytest.mark.parametrize("similarity", ["shifted", "cosine"])
@pytest.mark.parametrize("keep", [0, 2**30])
def test_factored_propagation_is_the_dense_one(similarity: Similarity, keep: int) -> None:
    x = _unit(70, 5, positive=similarity == "cosine")
    graph = Graph(Points(Factors(x[:50])), Points(Factors(x[50:])), similarity, keep)
    dense = _dense(x, similarity)
    u = torch.randn(70, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(graph.times(u), dense @ u, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(graph.times_transposed(u), dense.T @ u, rtol=1e-5, atol=1e-5)
    smooth = torch.cat([rows for _, rows in graph.smoothed()]).double()
    torch.testing.assert_close(smooth, dense @ x.double(), rtol=1e-5, atol=1e-5)


def test_gradients_of_the_graph_network_equal_automatic_ones() -> None:
    x = _unit(40, 5, positive=False)
    graph = Graph(Points(Factors(x[:30])), Points(Factors(x[30:])), "shifted", 0)
    settings = Settings(epochs=0, unlabelled_weight=1.2, similarity="shifted")
    network = Network(graph, settings, 0, "test")
    gradients, loss = network._gradients(network.forward(dropout=False))
    weights = [
        each.detach().double().requires_grad_(True)
        for each in (network._weight_dw, network._bias_w, network._last_w, network._last)
    ]
    dense = _dense(x, "shifted")
    hidden = torch.relu(dense @ x.double() @ weights[0] + weights[1])
    s = torch.sigmoid(dense @ (hidden @ weights[2]) + weights[3])
    expected = -s[30:].log().mean() - 1.2 * (1 - s[:30]).log().mean()
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    # Without dropout the gradient carries its constant scale on the first layer only.
    for index, (got, weight) in enumerate(zip(gradients, weights, strict=True)):
        assert weight.grad is not None
        scale = 0.7 if index < 2 else 1.0
        torch.testing.assert_close(got.double() * scale, weight.grad, rtol=1e-3, atol=1e-6)


def test_without_unlabelled_loss_everything_looks_labelled() -> None:
    x = _unit(200, 6, positive=False)
    graph = Graph(Points(Factors(x[:150])), Points(Factors(x[150:])), "shifted", 2**30)
    settings = Settings(epochs=300, unlabelled_weight=0.0, similarity="shifted", lr=1e-2)
    network = Network(graph, settings, 0, "test")
    losses = network.train()
    assert losses[-1] < losses[0]
    assert float(torch.sigmoid(network.forward(dropout=False)).min()) > 0.9


def test_a_random_subset_is_not_the_first_rows_of_the_pool() -> None:
    view = _view()
    selection = run_strategy(UncertainGCN(nodes=50, epochs=3), view, 50, 0)
    assert sorted(selection.rows_b.tolist()) == sorted(view.candidates(0)[:50].tolist())
    assert selection.rows_b.max() > 200


def test_core_gcn_on_raw_features_is_coreset() -> None:
    view = _view()
    raw = run_strategy(CoreGCN(features="raw"), view, 30, 0)
    assert raw.rows_b.tolist() == run_strategy(CoreSet(space="input"), view, 30, 0).rows_b.tolist()
    hidden = run_strategy(CoreGCN(epochs=20), view, 30, 0)
    assert hidden.rows_b.tolist() != raw.rows_b.tolist()
    assert np.all(np.diff(hidden.utility_b) <= 0)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("learning_loss", {"batch": 7}),
        ("vaal", {"beta": -1.0}),
        ("waal", {"penalty": -1.0}),
        ("uncertain_gcn", {"score_margin": 2.0}),
    ],
)
def test_impossible_parameters_are_refused(name: str, params: dict[str, object]) -> None:
    with pytest.raises(InputError):
        build_strategy(name, params)
