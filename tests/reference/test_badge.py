"""BADGE: the factored gradients are the gradients, and draws follow the D-squared law."""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
import torch

from svp.strategies.badge import largest
from svp.strategies.distance import exact_pairs, relative_error, square_distances
from svp.strategies.points import Factors, Points
from svp.strategies.seeding import d2_seeding
from svp.strategies.softmax import residual


def _factors(n: int, h: int, c: int, seed: int, scale: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    x_nh = torch.randn(n, h, generator=generator)
    return Factors(x_nh, residual(torch.randn(n, c, generator=generator) * scale))


def _explicit(factors: Factors) -> npt.NDArray[np.float64]:
    """The outer products themselves, (n, C * h), float64."""
    assert factors.q_MC is not None
    outer = factors.q_MC.double()[:, :, None] * factors.x_Mh.double()[:, None, :]
    return outer.flatten(1).numpy()


def test_residual_is_the_gradient_of_the_loss_at_the_prediction() -> None:
    z = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(z, z.argmax(dim=1), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, [z])
    torch.testing.assert_close(residual(z.detach()), gradient, atol=1e-6, rtol=1e-5)


def test_factored_distances_equal_explicit_ones() -> None:
    a, b = _factors(80, 13, 5, 1), _factors(60, 13, 5, 2)
    left, right = _explicit(a), _explicit(b)
    expected = ((left[:, None] - right[None]) ** 2).sum(axis=2)
    norms_a, norms_b = a.square_norms(), b.square_norms()
    np.testing.assert_allclose(norms_a.numpy(), (left**2).sum(axis=1), rtol=1e-5)
    got = square_distances(a, norms_a, b, norms_b).numpy()
    bound = relative_error(a) * (norms_a[:, None] + norms_b).numpy()
    assert np.all(np.abs(got - expected) <= bound)
    pairs = exact_pairs(a[:60], b).numpy()
    np.testing.assert_allclose(pairs, np.diagonal(expected[:60]), rtol=1e-10)


def test_pairs_do_not_depend_on_their_neighbours() -> None:
    a, b = _factors(200, 29, 3, 3), _factors(200, 29, 3, 4)
    together = exact_pairs(a, b)
    alone = torch.cat([exact_pairs(a[row : row + 1], b[row : row + 1]) for row in range(200)])
    assert torch.equal(together, alone)


def test_the_first_pick_is_the_largest_gradient() -> None:
    factors = _factors(3000, 6, 4, 5)
    norms = (_explicit(factors) ** 2).sum(axis=1)
    assert largest(Points(factors)) == int(norms.argmax())


def _chi_square(counts: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> float:
    keep = expected > 0
    assert counts[~keep].sum() == 0
    return float(((counts[keep] - expected[keep]) ** 2 / expected[keep]).sum())


def test_second_and_third_picks_follow_the_law() -> None:
    """Joint frequencies of two draws, where every weight of the second one has changed."""
    factors = _factors(5, 3, 3, 6)
    g = _explicit(factors)
    pairwise = ((g[:, None] - g[None]) ** 2).sum(axis=2)
    expected = np.zeros((5, 5))
    for second in range(1, 5):
        p_second = pairwise[0, second] / pairwise[0].sum()
        least = np.minimum(pairwise[0], pairwise[second])
        expected[second] = p_second * least / least.sum()
    draws = 1500
    points = Points(factors)
    seen = Counter(
        tuple(d2_seeding(points, 3, np.random.default_rng(seed), first=0).places_b[1:].tolist())
        for seed in range(draws)
    )
    counts = np.zeros((5, 5))
    for pair, count in seen.items():
        counts[pair] = count
    # 11 degrees of freedom: the 99.9 % quantile is 31.3.
    assert _chi_square(counts, expected * draws) < 31.3


def test_late_picks_follow_the_law_across_passes() -> None:
    """After 300 given centres folded in several passes, one more draw."""
    factors = Factors(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
    centres = Factors(torch.randn(300, 4, generator=torch.Generator().manual_seed(2)))
    pairwise = ((factors.x_Mh[:, None] - centres.x_Mh[None]) ** 2).sum(dim=2).double().numpy()
    expected = pairwise.min(axis=1) / pairwise.min(axis=1).sum()
    points, covered = Points(factors), Points(centres)
    draws = 1000
    places = [
        int(d2_seeding(points, 1, np.random.default_rng(seed), centres=covered).places_b[0])
        for seed in range(draws)
    ]
    counts = np.bincount(places, minlength=6).astype(float)
    assert _chi_square(counts, expected * draws) < 20.6  # 5 degrees of freedom, 99.9 %


def test_weights_are_the_true_distances_when_drawn() -> None:
    factors = _factors(2500, 8, 4, 7)
    g = _explicit(factors)
    seeds = d2_seeding(Points(factors), 600, np.random.default_rng(0), first=3)
    assert seeds.counters["passes"] > 1
    assert len(set(seeds.places_b.tolist())) == 600
    least = np.full(len(g), np.inf)
    for place, weight in zip(seeds.places_b, seeds.weight_b, strict=True):
        expected = (g[place] ** 2).sum() if place == 3 else least[place]
        np.testing.assert_allclose(weight, expected, rtol=1e-6)
        least = np.minimum(least, ((g - g[place]) ** 2).sum(axis=1))


def test_points_that_coincide_are_drawn_once_while_others_are_left() -> None:
    """Certain items all have gradient 0; copies have the gradient of their original."""
    base = _factors(20, 6, 3, 8)
    assert base.q_MC is not None
    copies = torch.arange(20).repeat(40)
    x = torch.cat([base.x_Mh[copies], torch.ones(100, 6)])
    q = torch.cat([base.q_MC[copies], torch.zeros(100, 3)])
    seeds = d2_seeding(Points(Factors(x, q)), 400, np.random.default_rng(1), first=0)
    kind = np.where(seeds.places_b < 800, seeds.places_b % 20, 20)
    assert sorted(kind[:21].tolist()) == list(range(21))
    assert np.all(seeds.weight_b[1:21] > 0)
    assert np.all(seeds.weight_b[21:] == 0)
    assert len(set(seeds.places_b.tolist())) == 400


def test_undecided_two_class_proxy_gives_plain_seeding_on_scaled_embeddings() -> None:
    x = torch.randn(500, 5, generator=torch.Generator().manual_seed(9))
    q = residual(torch.zeros(500, 2))
    factored = d2_seeding(Points(Factors(x, q)), 40, np.random.default_rng(2), first=0)
    plain = d2_seeding(Points(Factors(x / 2**0.5)), 40, np.random.default_rng(2), first=0)
    assert factored.places_b.tolist() == plain.places_b.tolist()
    np.testing.assert_allclose(factored.weight_b, plain.weight_b, rtol=1e-4)


@pytest.mark.parametrize("first", [None, 4])
def test_everything_can_be_drawn(first: int | None) -> None:
    points = Points(_factors(30, 4, 3, 10))
    seeds = d2_seeding(points, 30, np.random.default_rng(3), first=first)
    assert sorted(seeds.places_b.tolist()) == list(range(30))
