"""ALBL: its bandit by hand, and its memory between rounds."""

import dataclasses
import json
import math

import numpy as np
import pytest
from linear_view import linear_view, normal

from svp.errors import InputError
from svp.strategies.albl import Albl, chances, rewarded
from svp.strategies.base import PoolView
from svp.strategies.catalog import build_strategy, run_strategy


def _pool() -> PoolView:
    x = normal(300, 5)
    return linear_view(x, y_L=x[:40].argmax(dim=1).numpy())


def test_one_arm_is_that_strategy() -> None:
    view = _pool()
    expected = run_strategy(build_strategy("margin"), view, 30, 5)
    assert run_strategy(Albl(arms="margin"), view, 30, 5).rows_b.tolist() == (
        expected.rows_b.tolist()
    )


def test_the_first_round_draws_uniformly() -> None:
    assert chances(np.ones(4) / 4).tolist() == [0.25] * 4
    view = _pool()
    drawn = [run_strategy(Albl(), view, 3, seed).counters["arm"] for seed in range(200)]
    assert 70 < sum(drawn) < 130


def test_every_chance_has_a_floor() -> None:
    for weights in ([1.0, 0.0], [1e-300, 1.0], [0.3, 0.7]):
        got = chances(np.array(weights))
        assert got.min() >= 1 / 20 - 1e-15
        assert got.sum() == pytest.approx(1.0)


def test_a_reward_multiplies_the_weight_of_its_arm() -> None:
    weights = rewarded(np.array([0.5, 0.5]), 1, 0.4, reward=0.8, delta=0.1)
    factor = math.exp(1 / 20 / 2 * (0.8 + math.sqrt(math.log(2 / 0.1) / 2) / 0.4))
    assert weights[1] / weights[0] == pytest.approx(factor)
    assert weights.sum() == pytest.approx(1.0)
    assert rewarded(weights, 0, 0.05, reward=1e6, delta=0.1).tolist() == pytest.approx([1, 0])


def test_it_remembers_by_keys_and_rewards_by_what_the_proxy_got_right() -> None:
    view = _pool()
    first = run_strategy(Albl(), view, 10, 1)
    state = json.loads(json.dumps(dict(first.state)))
    assert state["bought"][0]["chance"] == 0.5
    labelled = np.sort(np.concatenate([view.labelled_L, first.rows_b]))
    truth = normal(300, 5).argmax(dim=1).numpy()
    wrong = first.rows_b[:3]
    truth[wrong] = (truth[wrong] + 1) % 5
    after = dataclasses.replace(
        view,
        unlabelled_U=np.setdiff1d(view.unlabelled_U, first.rows_b),
        labelled_L=labelled,
        y_L=truth[labelled],
        state=state,
    )
    second = run_strategy(Albl(), after, 10, 2)
    # 40 free images are right and count 1; 7 of 10 bought ones are right and count 1 / 0.5.
    reward = (40 + 7 / 0.5) / 50
    arm = state["bought"][0]["arm"]
    expected = rewarded(np.array([0.5, 0.5]), arm, 0.5, reward, 0.1)
    assert second.state["weights"] == pytest.approx(expected.tolist())
    assert len(second.state["bought"]) == 2
    assert second.state["bought"][1]["chance"] == pytest.approx(
        chances(expected)[second.state["bought"][1]["arm"]]
    )


def test_a_change_of_arms_starts_anew() -> None:
    view = _pool()
    first = run_strategy(Albl(), view, 10, 1)
    moved = dataclasses.replace(view, state=first.state)
    second = run_strategy(Albl(arms="margin,random,entropy"), moved, 10, 2)
    assert second.state["weights"] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("margin,albl", "different strategies other than albl"),
        ("margin,margin", "different strategies"),
        ("margin,balanced_random", "Got balanced_random. Leave it out"),
        ("margn", "Did you mean margin"),
    ],
)
def test_arms_that_cannot_be_are_refused(arms: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Albl(arms=arms)
