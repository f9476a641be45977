"""Scores against their definitions in float64, and ranking against a full sort."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svp.errors import InputError
from svp.strategies.base import PoolView
from svp.strategies.catalog import run_strategy
from svp.strategies.entropy import Entropy, entropy
from svp.strategies.keys import hash_keys, keys_of, splitmix64
from svp.strategies.least_confidence import LeastConfidence, least_confidence
from svp.strategies.margin import Margin, margin
from svp.strategies.random import Random
from svp.strategies.rank import TopK


class _Identity:
    """A proxy whose logits are the embeddings."""

    def hidden(self, x_Bd: torch.Tensor) -> torch.Tensor:
        return x_Bd

    def logits(self, x_Bd: torch.Tensor) -> torch.Tensor:
        return x_Bd

    @property
    def head(self) -> None:
        raise AssertionError("scores need no head")


def _view(z: torch.Tensor) -> PoolView:
    n = len(z)
    return PoolView(
        embeddings_Nd=z,
        keys_N=keys_of(str(row) for row in range(n)),
        unlabelled_U=np.arange(n, dtype=np.int64),
        labelled_L=np.zeros(0, dtype=np.int64),
        y_L=np.zeros(0, dtype=np.int64),
        n_classes=z.shape[1],
        proxy=_Identity(),
    )


def _logits(n: int, c: int, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(n + c)) * scale


def test_scores_are_their_definitions() -> None:
    z = _logits(400, 6)
    p = z.double().softmax(dim=1)
    top = p.topk(2, dim=1).values
    log_p = z.double().log_softmax(dim=1)
    for got, expected in (
        (least_confidence(z, "prob"), 1 - top[:, 0]),
        (least_confidence(z, "logit"), -z.double().amax(dim=1)),
        (margin(z, "prob"), top[:, 1] - top[:, 0]),
        (margin(z, "logit"), -torch.diff(z.double().topk(2, dim=1).values.flip(1)).flatten()),
        (entropy(z), -(p * log_p).sum(dim=1)),
    ):
        torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-5)


def test_certain_items_keep_their_order() -> None:
    """With probabilities rounded to float32 all of these would tie."""
    z = torch.tensor([[40.0, 0.0, 0.0], [50.0, 0.0, 0.0], [60.0, 0.0, 0.0]])
    for score in (least_confidence(z, "prob"), entropy(z)):
        assert score[0] > score[1] > score[2] > 0


def test_probability_zero_is_no_trouble() -> None:
    z = torch.tensor([[0.0, -1e4, -1e4], [0.0, -torch.inf, -torch.inf], [0.0, 0.0, -1e4]])
    assert entropy(z).tolist() == pytest.approx([0.0, 0.0, np.log(2)])
    assert margin(z, "prob").tolist() == pytest.approx([-1.0, -1.0, 0.0])
    assert least_confidence(z, "prob").tolist() == pytest.approx([0.0, 0.0, 0.5])


def test_logits_and_probabilities_rank_differently() -> None:
    z = torch.tensor([[10.0, 9.0, 0.0], [1.2, 0.0, 0.0]])
    assert margin(z, "logit").tolist() == pytest.approx([-1.0, -1.2])
    gaps = margin(z, "prob")
    assert gaps[1] > gaps[0]
    np.testing.assert_allclose(gaps.numpy(), [-0.462, -0.437], atol=1e-3)


def test_with_two_classes_the_three_agree() -> None:
    view = _view(_logits(300, 2))
    orders = [
        run_strategy(strategy, view, 100, 0).rows_b.tolist()
        for strategy in (LeastConfidence(), Margin(), Entropy())
    ]
    assert orders[0] == orders[1] == orders[2]


def test_margin_and_the_others_disagree_where_they_should() -> None:
    z = torch.tensor([[0.5, 0.5, 1e-20, 1e-20], [0.4, 0.2, 0.2, 0.2]]).log()
    view = _view(z)
    assert run_strategy(Margin(), view, 1, 0).rows_b.tolist() == [0]
    assert run_strategy(LeastConfidence(), view, 1, 0).rows_b.tolist() == [1]
    assert run_strategy(Entropy(), view, 1, 0).rows_b.tolist() == [1]


def test_a_constant_added_to_a_row_changes_nothing() -> None:
    z = (_logits(200, 5) * 64).round() / 64
    shift = torch.randint(-50, 50, (200, 1), generator=torch.Generator().manual_seed(1)).float()
    for strategy in (LeastConfidence(), Margin(), Entropy(), Margin(space="logit")):
        one, two = (run_strategy(strategy, _view(x), 50, 0).rows_b for x in (z, z + shift))
        assert one.tolist() == two.tolist()


def test_one_class_is_a_tie_of_everything() -> None:
    view = _view(_logits(50, 1))
    for strategy in (LeastConfidence(), Margin(), Entropy()):
        selection = run_strategy(strategy, view, 10, 3)
        assert selection.rows_b.tolist() == view.candidates(3)[:10].tolist()


def test_logits_that_are_no_numbers_are_refused() -> None:
    class Broken(_Identity):
        def logits(self, x_Bd: torch.Tensor) -> torch.Tensor:
            return x_Bd * torch.nan

    view = _view(_logits(20, 3))
    broken = dataclasses.replace(view, proxy=Broken())
    for strategy in (LeastConfidence(), Margin(), Entropy()):
        with pytest.raises(InputError, match="Got NaN for 20 of 20"):
            run_strategy(strategy, broken, 2, 0)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.integers(-4, 4), min_size=1, max_size=200),
    k=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_streaming_equals_one_full_sort(scores: list[int], k: int, cuts: list[int]) -> None:
    values = np.asarray(scores, dtype=np.float32)
    places = np.arange(len(values), dtype=np.int64)
    expected = np.lexsort((places, -values))[:k]
    bounds = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = []
    whole = TopK(k)
    for start, stop in itertools.pairwise(bounds):
        whole.push(values[start:stop], places[start:stop])
        part = TopK(k)
        part.push(values[start:stop], places[start:stop])
        part.best()
        parts.append(part)
    merged = TopK(k)
    for part in reversed(parts):
        merged.merge(part)
    for top in (whole, merged):
        got, best = top.best()
        assert got.tolist() == expected.tolist()
        assert best.tolist() == values[expected].tolist()


def test_streaming_over_many_blocks_equals_one_full_sort() -> None:
    values = np.random.default_rng(0).integers(0, 50, 200_000).astype(np.float32)
    top = TopK(300)
    for start in range(0, len(values), 1024):
        part = values[start : start + 1024]
        top.push(part, np.arange(start, start + len(part), dtype=np.int64))
    places, _ = top.best()
    assert places.tolist() == np.lexsort((np.arange(len(values)), -values))[:300].tolist()


def test_random_draws_every_item_equally_often() -> None:
    view = _view(torch.zeros(20, 1))
    counts = np.zeros(20)
    runs = 2000
    for seed in range(runs):
        counts[run_strategy(Random(), view, 5, seed).rows_b] += 1
    expected = runs * 5 / 20
    # Draws without replacement vary less than the chi-square with 19 degrees assumes.
    assert ((counts - expected) ** 2 / expected).sum() < 43.8


def test_random_extends_a_smaller_draw() -> None:
    view = _view(torch.zeros(100, 1))
    small, large = (run_strategy(Random(), view, b, 7).rows_b.tolist() for b in (10, 60))
    assert large[:10] == small


def test_splitmix64_gives_the_published_sequence() -> None:
    """First outputs for seed 1234567 of the reference implementation (Vigna, splitmix64.c)."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + step * golden) % 2**64 for step in range(3)], dtype=np.uint64)
    assert splitmix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_hashes_are_bijective_and_seeds_unrelated() -> None:
    keys = np.arange(20_000, dtype=np.uint64)
    assert len(np.unique(hash_keys(keys, 3))) == len(keys)
    one, two = np.argsort(hash_keys(keys, 0)), np.argsort(hash_keys(keys, 1))
    assert abs(np.corrcoef(np.argsort(one), np.argsort(two))[0, 1]) < 0.03
