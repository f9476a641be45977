"""ActiveFT: its gradient, its fixed centroids and what it chooses."""

import numpy as np
import pytest
import torch

from svp.strategies.base import PoolView
from svp.strategies.catalog import build_strategy, run_strategy
from svp.strategies.centroids import Schedule, learn_centroids, loss_and_gradient, match
from svp.strategies.keys import keys_of
from svp.strategies.points import Factors, Points


def _unit(n: int, h: int, seed: int) -> torch.Tensor:
    x = torch.randn(n, h, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


def _view(x_Nd: torch.Tensor, labelled: int = 0) -> PoolView:
    return PoolView(
        embeddings_Nd=x_Nd,
        keys_N=keys_of(str(row) for row in range(len(x_Nd))),
        unlabelled_U=np.arange(labelled, len(x_Nd)),
        labelled_L=np.arange(labelled),
        y_L=np.zeros(labelled, dtype=np.int64),
        n_classes=1,
    )


@pytest.mark.parametrize("include_self", [True, False])
def test_gradient_is_that_of_the_loss_as_written(include_self: bool) -> None:
    f, theta = _unit(1500, 6, 0), _unit(20, 6, 1).double().requires_grad_()
    tau = 0.07
    cosine = f.double() @ theta.T
    nearest = cosine.argmax(dim=1)
    pull = cosine.gather(1, nearest[:, None])[:, 0] / tau
    push = theta.detach() @ theta.T / tau
    if not include_self:
        push = push.masked_fill(torch.eye(20, dtype=torch.bool), -torch.inf)
    push = torch.logsumexp(push, dim=0)[nearest]
    loss = -(pull - torch.logaddexp(pull, push)).mean()
    (expected,) = torch.autograd.grad(loss, [theta])
    schedule = Schedule(iterations=1, include_self=include_self)
    found, gradient = loss_and_gradient(Points(Factors(f)), theta.detach().float(), schedule)
    assert found == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-5)


def test_fixed_centroids_do_not_move_and_the_loss_falls() -> None:
    points, start = Points(Factors(_unit(800, 8, 2))), _unit(30, 8, 3)
    schedule = Schedule(iterations=40, rate=1e-2)
    learned = learn_centroids(points, start, 12, schedule, np.random.default_rng(0))
    assert torch.equal(learned.theta_kh[:12], start[:12])
    assert not torch.equal(learned.theta_kh[12:], start[12:])
    assert learned.last_loss < learned.first_loss
    torch.testing.assert_close(learned.theta_kh.norm(dim=1), torch.ones(30))


def test_without_steps_the_random_start_is_chosen() -> None:
    view = _view(_unit(300, 8, 4))
    chosen = run_strategy(build_strategy("activeft_pre", {"iterations": 0}), view, 20, 7)
    assert chosen.rows_b.tolist() == view.candidates(7)[:20].tolist()


def test_each_centroid_takes_the_nearest_free_point() -> None:
    x, theta = _unit(400, 3, 5), _unit(1, 3, 6).repeat(60, 1) + 0.05 * _unit(60, 3, 7)
    theta = torch.nn.functional.normalize(theta, dim=1)
    places, cosine = match(Points(Factors(x)), theta)
    taken: list[int] = []
    for one in theta:
        value = (x @ one).clone()
        value[taken] = -torch.inf
        taken.append(int(value.argmax()))
    assert places.tolist() == taken
    assert float(cosine.min()) > -1.0


def test_labelled_clumps_are_left_alone() -> None:
    """Six tight orthogonal clumps, three with labels: the picks are in the other three."""
    clump = torch.arange(240) % 6
    x = torch.nn.functional.normalize(torch.eye(6)[clump] + 0.02 * _unit(240, 6, 8), dim=1)
    order = torch.cat([torch.arange(3), torch.arange(3, 240)])
    view = _view(x[order], labelled=3)
    params = {"iterations": 300, "rate": 0.02}
    chosen = run_strategy(build_strategy("activeft_al", params), view, 3, 0)
    picked = clump[order][torch.from_numpy(chosen.rows_b)].tolist()
    assert len(set(picked)) >= 2
    learned = run_strategy(build_strategy("activeft_al", params), view, 3, 0)
    assert learned.rows_b.tolist() == chosen.rows_b.tolist()


def test_a_spread_start_gives_one_per_clump() -> None:
    clump = torch.arange(240) % 6
    x = torch.nn.functional.normalize(torch.eye(6)[clump] + 0.02 * _unit(240, 6, 9), dim=1)
    points = Points(Factors(x))
    learned = learn_centroids(points, x[:6], 0, Schedule(iterations=50), np.random.default_rng(0))
    places, _ = match(points, learned.theta_kh)
    assert sorted(clump[torch.from_numpy(places)].tolist()) == list(range(6))
