"""Wrappers against worked examples, and the law of the random share."""

import dataclasses

import numpy as np
import pytest
import torch

from svp.errors import InputError
from svp.proxies import LinearConfig, Standardiser, fit_proxy
from svp.strategies.base import PoolView
from svp.strategies.catalog import build_strategy, run_strategy
from svp.strategies.keys import keys_of
from svp.strategies.quotas import equal, levelled, proportional
from svp.strategies.wrapper import interleaved
from svp.strategies.wrapping import Wrapping, wrapping_of

_N = 300


@pytest.fixture(scope="module")
def view():
    rng = np.random.default_rng(3)
    y_N = rng.integers(0, 3, _N)
    x_Nd = torch.from_numpy((rng.normal(size=(_N, 8)) + 2 * np.eye(8)[y_N]).astype(np.float32))
    labelled = np.arange(0, _N, 10)
    proxy = fit_proxy(
        x_Nd[torch.from_numpy(labelled)],
        torch.from_numpy(y_N[labelled]),
        3,
        LinearConfig(),
        standardiser=Standardiser.fit(x_Nd),
        seed=0,
        device="cpu",
    )
    return PoolView(
        embeddings_Nd=x_Nd,
        keys_N=keys_of(f"i{row}" for row in range(_N)),
        unlabelled_U=np.setdiff1d(np.arange(_N), labelled),
        labelled_L=labelled,
        y_L=y_N[labelled],
        n_classes=3,
        proxy=proxy,
        groups_N=np.repeat([4, 9, 1], [200, 80, 20]),
    )


def _choose(view, name, b, seed=0, **wrapping):
    return run_strategy(build_strategy(name, wrapping=Wrapping(**wrapping)), view, b, seed)


@pytest.mark.parametrize(
    ("divide", "free", "labelled", "b", "expected"),
    [
        # 10 * (6, 3, 1) / 10 without remainders, and 7 * ... = 4.2, 2.1, 0.7: the 0.7 rounds up.
        (proportional, [6, 3, 1], [0, 0, 0], 10, [6, 3, 1]),
        (proportional, [60, 30, 10], [0, 0, 0], 7, [4, 2, 1]),
        # Equal remainders: fewer labels first.
        (proportional, [5, 5], [3, 1], 3, [1, 2]),
        # One part has no more to give; the others share what it leaves.
        (equal, [1, 10, 10], [0, 0, 0], 9, [1, 4, 4]),
        (equal, [5, 5, 5], [2, 1, 0], 1, [0, 0, 1]),
        # Labels 10, 2, 0 and 7 more: the two low ones are filled to 5 and 4, or 4 and 5.
        (levelled, [99, 99, 99], [10, 3, 0], 7, [0, 2, 5]),
        (levelled, [99, 99, 2], [10, 3, 0], 7, [0, 5, 2]),
        (levelled, [4, 4], [0, 0], 8, [4, 4]),
    ],
)
def test_quotas_by_hand(divide, free, labelled, b, expected):
    assert divide(np.asarray(free), np.asarray(labelled), b).tolist() == expected


def test_quotas_add_up_and_are_never_more_than_there_is():
    rng = np.random.default_rng(0)
    for _ in range(300):
        parts = int(rng.integers(1, 8))
        free, labelled = rng.integers(0, 12, parts), rng.integers(0, 9, parts)
        free[0] += 1
        b = int(rng.integers(1, free.sum() + 1))
        for divide in (proportional, equal, levelled):
            quota = divide(free, labelled, b)
            assert quota.sum() == b
            assert (quota >= 0).all()
            assert (quota <= free).all()
        # No label moved from a part to a lower one could make the levels more even.
        quota = levelled(free, labelled, b)
        given, open_ = quota > 0, quota < free
        if given.any() and open_.any():
            assert (labelled + quota)[given].max() <= (labelled + quota)[open_].min() + 1


def test_parts_are_spread_over_the_order():
    assert interleaved([4, 2]).tolist() == [0, 4, 1, 2, 5, 3]
    assert interleaved([0, 3]).tolist() == [0, 1, 2]


def test_groups_get_their_quota(view):
    counts = {}
    for mode in ("proportional", "equal"):
        rows = _choose(view, "margin", 27, groups=mode).rows_b
        counts[mode] = [int((view.groups_N[rows] == group).sum()) for group in (4, 9, 1)]
    assert counts["proportional"] == [18, 7, 2]
    assert counts["equal"] == [9, 9, 9]


def test_in_a_group_the_strategy_chooses_as_if_it_were_the_pool(view):
    rows = _choose(view, "margin", 27, groups="equal").rows_b
    own = view.unlabelled_U[view.groups_N[view.unlabelled_U] == 9]
    alone = _choose(dataclasses.replace(view, unlabelled_U=own), "margin", 9).rows_b
    assert [row for row in rows.tolist() if row in own] == alone.tolist()


def test_groups_that_are_not_there_are_asked_for(view):
    with pytest.raises(InputError, match='column "group"'):
        _choose(dataclasses.replace(view, groups_N=None), "margin", 5, groups="equal")


def test_class_balance_levels_labels_and_batch(view):
    # Two classes are far ahead; everything predicted as the third is wanted.
    few = np.flatnonzero((view.y_L != 2) | (np.cumsum(view.y_L == 2) <= 2))
    scarce = dataclasses.replace(
        view,
        labelled_L=view.labelled_L[few],
        y_L=view.y_L[few],
    )
    rows = _choose(scarce, "random", 6, class_balance=True).rows_b
    predicted = view.proxy.logits(view.embeddings_Nd[torch.from_numpy(rows)]).argmax(dim=1)
    assert (predicted == 2).sum() >= 5
    counts = np.bincount(scarce.y_L, minlength=3)
    assert counts[2] == 2 < counts[0] - 4


def test_a_prefilter_keeps_the_best_by_its_score(view):
    best = set(_choose(view, "entropy", 40).rows_b.tolist())
    chosen = _choose(view, "coreset", 10, prefilter="entropy:4")
    assert set(chosen.rows_b.tolist()) <= best
    assert chosen.exactness == "approx:prefilter"
    assert all("Among the 40 best by entropy." in reason for reason in chosen.reasons_b)
    # One candidate per pick leaves nothing to choose.
    one = _choose(view, "coreset", 10, prefilter="margin:1")
    assert set(one.rows_b.tolist()) == set(_choose(view, "margin", 10).rows_b.tolist())


@pytest.mark.parametrize("text", ["margin", "margin:0", "margin:x", "coreset:10", "margn:10"])
def test_a_prefilter_must_be_a_score_and_a_number(text):
    with pytest.raises(InputError):
        Wrapping(prefilter=text)


def test_a_group_of_near_duplicates_counts_once(view):
    x_Nd = view.embeddings_Nd.clone()
    x_Nd[1:5] = x_Nd[5] * torch.tensor([[1.0], [2.0], [0.5], [3.0]])  # rows 1 to 5 show the same
    x_Nd[11] = x_Nd[10] * 2  # 10 is labelled
    copies = dataclasses.replace(view, embeddings_Nd=x_Nd)
    everything = _choose(copies, "random", 265, collapse_duplicates=0.9999)
    assert everything.counters["representatives"] == 270 - 4 - 1
    rows = everything.rows_b.tolist()
    assert sum(row in rows for row in range(1, 6)) == 1
    assert 11 not in rows
    assert sum("Stands for 5 near-duplicates." in one for one in everything.reasons_b) == 1
    # What has no other use comes last, and is said to be a near-duplicate.
    more = _choose(copies, "random", 270, collapse_duplicates=0.9999)
    assert more.rows_b[:265].tolist() == rows
    assert set(more.rows_b[265:].tolist()) < {1, 2, 3, 4, 5, 11}
    assert more.counters["near_duplicates_chosen"] == 5


def test_a_random_pick_and_its_near_duplicate_are_not_both_chosen(view):
    x_Nd = view.embeddings_Nd.clone()
    x_Nd[1::2] = x_Nd[0::2]  # pairs
    pairs = dataclasses.replace(view, embeddings_Nd=x_Nd)
    chosen = _choose(pairs, "margin", 40, random_share=0.5, collapse_duplicates=0.9999)
    random = ~np.isnan(chosen.probability_b)
    assert not set(chosen.rows_b[random] // 2) & set(chosen.rows_b[~random] // 2)


def test_the_random_share_and_what_is_left(view):
    chosen = _choose(view, "margin", 20, random_share=0.25)
    random = ~np.isnan(chosen.probability_b)
    assert random.sum() == 5
    np.testing.assert_array_equal(chosen.probability_b[random], 5 / 270)
    assert np.flatnonzero(random).tolist() == [2, 6, 10, 14, 18] or np.diff(
        np.flatnonzero(random)
    ).tolist() == [4, 4, 4, 4]
    # The rest is what the strategy chooses from what is left.
    drawn = chosen.rows_b[random]
    left = dataclasses.replace(view, unlabelled_U=np.setdiff1d(view.unlabelled_U, drawn))
    np.testing.assert_array_equal(chosen.rows_b[~random], _choose(left, "margin", 15).rows_b)
    # Nothing but the key and the seed decides the draw: another strategy has the same.
    other = _choose(view, "coreset", 20, random_share=0.25)
    np.testing.assert_array_equal(other.rows_b[~np.isnan(other.probability_b)], drawn)


@pytest.mark.parametrize(("share", "drawn"), [(0.0, 0), (0.02, 0), (0.05, 1), (0.5, 10), (1.0, 20)])
def test_shares_are_rounded_half_up(view, share, drawn):
    chosen = _choose(view, "margin", 20, random_share=share)
    chances = chosen.probability_b
    assert drawn == (0 if chances is None else int((~np.isnan(chances)).sum()))


def test_the_random_part_estimates_the_pool_without_bias(view):
    # Accuracy of a model on the candidates, which margin's picks alone get wrong by far.
    predicted = view.proxy.logits(view.embeddings_Nd).argmax(dim=1).numpy()
    margins = view.proxy.logits(view.embeddings_Nd).softmax(dim=1).sort(dim=1).values
    right_N = ((margins[:, 2] - margins[:, 1]).numpy() > 0.35).astype(float)
    assert len(predicted) == _N
    truth = right_N[view.unlabelled_U].mean()
    estimates, naive = [], []
    for seed in range(300):
        chosen = _choose(view, "margin", 40, seed, random_share=0.25)
        known = ~np.isnan(chosen.probability_b)
        total = (right_N[chosen.rows_b[known]] / chosen.probability_b[known]).sum()
        estimates.append(total / len(view.unlabelled_U))
        naive.append(right_N[chosen.rows_b].mean())
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) < 4 * error
    assert abs(np.mean(naive) - truth) > 0.2
    # Every candidate is drawn about equally often.
    counts = np.zeros(_N)
    for seed in range(300):
        chosen = _choose(view, "margin", 40, seed, random_share=0.25)
        counts[chosen.rows_b[~np.isnan(chosen.probability_b)]] += 1
    assert counts.sum() == 3000
    assert counts.max() <= 300 * 10 / 270 + 5 * np.sqrt(300 * 10 / 270)


def test_a_wrapping_reads_back(view):
    wrapping = Wrapping(random_share=0.1, groups="equal", prefilter="margin:10")
    assert wrapping_of(wrapping.table()) == wrapping
    assert Wrapping().table() == {}
    assert wrapping.without_proxy().table() == {"random_share": 0.1, "groups": "equal"}


def test_state_passes_through_wrappers(view):
    strategy = build_strategy("albl", wrapping=Wrapping(random_share=0.2, prefilter="margin:5"))
    first = run_strategy(strategy, view, 10, 0)
    assert len(first.state["bought"]) == 1
    second = run_strategy(strategy, dataclasses.replace(view, state=first.state), 10, 1)
    assert len(second.state["bought"]) == 2
    grouped = build_strategy("albl", wrapping=Wrapping(groups="equal"))
    first = run_strategy(grouped, view, 9, 0)
    second = run_strategy(grouped, dataclasses.replace(view, state=first.state), 9, 1)
    assert [len(one["bought"]) for one in second.state["parts"].values()] == [2, 2, 2]
