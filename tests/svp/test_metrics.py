import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svp.errors import InputError
from svp.metrics import (
    Price,
    RandomCurve,
    StageSeconds,
    accuracy,
    average_improvement,
    balanced_accuracy,
    bill,
    imbalance,
    improvement_rounds,
    labelling_efficiency,
    labels_to_match,
    macro_f1,
    mean_saving,
    mean_sd,
    overall_cost,
    paired_difference,
    penalties,
    penalty_matrix,
    pool_accuracy,
    proxy_seconds,
    running_maximum,
    standard_error,
    standard_seconds,
)


def _ints(*values):
    return np.asarray(values, dtype=np.int64)


pairs = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 5), min_size=n, max_size=n),
        st.lists(st.integers(0, 6), min_size=n, max_size=n),
    )
)


def test_classifier_metrics_by_hand():
    y = _ints(0, 0, 0, 1, 1, 2)
    predicted = _ints(0, 0, 1, 1, 0, 3)  # 3 is no class of the truth
    assert accuracy(y, predicted) == 3 / 6
    assert balanced_accuracy(y, predicted) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert balanced_accuracy(y, predicted, n_classes=4) == pytest.approx((2 / 3 + 1 / 2) / 4)
    # F1: class 0 2*2/(3+3), class 1 2*1/(2+2), classes 2 and 3 have no hit.
    assert macro_f1(y, predicted) == pytest.approx((4 / 6 + 2 / 4 + 0 + 0) / 4)


@settings(deadline=None)
@given(pairs)
def test_metrics_agree_with_scikit_learn(pair):
    from sklearn.metrics import f1_score, recall_score

    y, predicted = (_ints(*values) for values in pair)
    assert accuracy(y, predicted) == pytest.approx(np.mean(y == predicted))
    recall = recall_score(y, predicted, labels=np.unique(y), average="macro", zero_division=0)
    assert balanced_accuracy(y, predicted) == pytest.approx(recall)
    assert macro_f1(y, predicted) == pytest.approx(
        f1_score(y, predicted, average="macro", zero_division=0)
    )


@settings(deadline=None)
@given(pairs, st.permutations(range(7)))
def test_metrics_do_not_depend_on_the_numbering_of_classes(pair, order):
    y, predicted = (_ints(*values) for values in pair)
    renamed = np.asarray(order, dtype=np.int64)
    for metric in (accuracy, balanced_accuracy, macro_f1):
        assert metric(renamed[y], renamed[predicted]) == pytest.approx(metric(y, predicted))
        assert 0 <= metric(y, predicted) <= 1
        assert metric(y, y) == 1


def test_metrics_refuse_nothing_and_unequal_lengths():
    with pytest.raises(InputError, match="at least one item"):
        accuracy(_ints(), _ints())
    with pytest.raises(InputError, match="one length"):
        macro_f1(_ints(1, 2), _ints(1))


def test_imbalance_by_hand():
    even = imbalance([5, 5, 5, 5])
    assert (even.ratio, even.unseen) == (1.0, 0)
    assert even.entropy == pytest.approx(math.log(4))
    assert even.entropy_share == pytest.approx(1.0)
    skewed = imbalance([8, 2, 0])
    assert (skewed.ratio, skewed.unseen) == (8.0, 1)
    assert skewed.entropy == pytest.approx(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)))
    assert imbalance([3]).entropy_share == 1.0
    with pytest.raises(InputError, match="at least one label"):
        imbalance([0, 0])


def test_pool_accuracy_substitutes_human_labels():
    y, predicted = _ints(0, 1, 2, 0), _ints(1, 1, 0, 0)
    found = pool_accuracy(y, predicted, _ints(0))
    assert (found.hybrid, found.model) == (3 / 4, 2 / 4)
    wrong_human = pool_accuracy(y, predicted, _ints(0), labels=_ints(2))
    assert wrong_human.hybrid == 2 / 4
    assert predicted.tolist() == [1, 1, 0, 0]


SIZES = (200, 400, 600, 800, 1000)
WORKED = RandomCurve(SIZES, (60.0, 70.0, 76.0, 80.0, 82.0))


def test_saving_worked_examples():
    inside = WORKED.saving(400, 75.0)
    assert inside.random_labels == pytest.approx(566.7, abs=0.05)
    assert inside.ratio == pytest.approx(0.294, abs=0.0005)
    assert inside.censored is None
    beyond = WORKED.saving(600, 82.5)
    assert (beyond.random_labels, beyond.ratio, beyond.censored) == (1000, 0.4, "right")
    below = WORKED.saving(200, 55.0)
    assert (below.random_labels, below.ratio, below.censored) == (200, 0.0, "left")


def test_saving_is_asymmetric():
    assert WORKED.saving(400, 82.0).ratio == pytest.approx(0.6)
    assert WORKED.saving(400, 60.0).ratio == -1.0  # twice the labels
    assert WORKED.saving(100, 60.0).ratio == 0.5  # half of them


def test_rounding_noise_is_no_censoring():
    curve = RandomCurve((100, 200), (0.1 + 0.2, 0.9))
    assert curve.labels_for(0.3) == (100.0, None)
    assert curve.labels_for(np.nextafter(0.9, 1)) == (200.0, None)
    assert paired_difference([0.3, 0.4], [0.2, 0.3]).constant


def test_plateaus_and_dips_of_random():
    flat = RandomCurve((100, 200, 300), (50.0, 60.0, 60.0))
    assert flat.labels_for(60.0) == (200.0, None)
    dipped = RandomCurve((100, 200, 300), (50.0, 60.0, 55.0))
    assert dipped.labels_for(60.0) == (200.0, None)
    assert dipped.saving(300, 55.0).ratio < 0
    with pytest.raises(InputError, match="distinct"):
        RandomCurve((100, 100), (1.0, 2.0))
    with pytest.raises(InputError, match="one accuracy per size"):
        RandomCurve((), ())


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=12, unique=True),
    st.lists(st.integers(0, 10_000), min_size=12, max_size=12, unique=True),
)
def test_an_increasing_curve_saves_nothing_against_itself(sizes, values):
    sizes = sorted(sizes)
    accuracies = [value / 10_000 for value in sorted(values)[: len(sizes)]]
    curve = RandomCurve(sizes, accuracies)
    for size, value in zip(sizes, accuracies, strict=True):
        saving = curve.saving(size, value)
        assert saving.ratio == 0
        assert saving.censored is None


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_a_better_accuracy_never_saves_less(one, other):
    curve = RandomCurve((10, 20, 40), (0.2, 0.5, 0.8))
    low, high = sorted((one, other))
    assert curve.saving(20, low).ratio <= curve.saving(20, high).ratio
    assert 10 <= curve.labels_for(one)[0] <= 40


def test_mean_saving_with_and_without_bounds():
    mean = mean_saving([WORKED.saving(400, 75.0), WORKED.saving(600, 82.5)])
    assert mean.every == pytest.approx((0.2941 + 0.4) / 2, abs=1e-4)
    assert mean.uncensored == pytest.approx(0.2941, abs=1e-4)
    assert mean.censored == 1
    assert math.isnan(mean_saving([WORKED.saving(600, 82.5)]).uncensored)


def test_mean_sd_is_of_the_sample():
    assert mean_sd([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert math.isnan(mean_sd([1.0])[1])


def test_paired_difference():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    for runs in (3, 5, 8):
        for shift in (0.0, 0.5, 1.5):
            a, b = rng.normal(shift, 1, runs).tolist(), rng.normal(0, 1, runs).tolist()
            pair = paired_difference(a, b)
            test = ttest_rel(a, b)
            low, high = test.confidence_interval(0.95)
            assert pair.half_width == pytest.approx((high - low) / 2, rel=1e-5)
            assert pair.significant == (test.pvalue < 0.05)
    assert not paired_difference([2.0], [1.0]).significant
    assert not paired_difference([1.0, 2.0], [1.0, 2.0]).significant
    constant = paired_difference([2.0, 3.0], [1.0, 2.0])
    assert constant.significant
    assert constant.constant
    with pytest.raises(InputError, match="paired by seed"):
        paired_difference([1.0], [1.0, 2.0])


def test_penalty_matrix():
    good = [[0.9, 0.91], [0.92, 0.5], [0.91, 0.7]]
    bad = [[0.5, 0.9], [0.51, 0.52], [0.5, 0.71]]
    names, share = penalty_matrix({"good": good, "bad": bad})
    assert names == ("good", "bad")
    assert share.tolist() == [[0.0, 0.5], [0.0, 0.0]]


def test_macro_f1_over_true_classes_only():
    y, predicted = _ints(0, 0, 1, 1), _ints(0, 2, 1, 1)
    assert macro_f1(y, predicted) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert macro_f1(y, predicted, true_classes=True) == pytest.approx((2 / 3 + 1) / 2)
    precision, recall = 1.0, 0.5  # of class 0, by the harmonic form
    assert 2 / (1 / precision + 1 / recall) == pytest.approx(2 / 3)


def test_pool_accuracy_of_the_published_random_run():
    # 10,000 of 50,000 labelled, the model right on 77.28% of the others: 81.8% by substitution.
    labelled, right = 10_000, round(40_000 * 0.7728)
    y = np.zeros(50_000, dtype=np.int64)
    predicted = np.ones_like(y)
    predicted[labelled : labelled + right] = 0
    predicted[: round(50_000 * 0.7966) - right] = 0
    found = pool_accuracy(y, predicted, np.arange(labelled))
    assert found.model == pytest.approx(0.7966)
    assert found.hybrid == pytest.approx(0.818, abs=5e-4)


def test_standard_error_is_the_deviation_over_the_root_of_seeds():
    # The published pairs: 0.12 against 0.06 of four seeds, 0.13 against 0.09 of two.
    four = [0.0, 0.12 * math.sqrt(3), 0.0, 0.12 * math.sqrt(3)]
    two = [0.0, 0.13 * math.sqrt(2)]
    assert mean_sd(four)[1] == pytest.approx(0.12)
    assert standard_error(four) == pytest.approx(0.06)
    assert standard_error(two) == pytest.approx(0.09, abs=0.005)
    assert math.isnan(standard_error([1.0]))


def test_smoothing_stays_inside_the_inverse():
    measured = (0.9750, 0.9775, 0.9760)
    assert running_maximum(measured) == [0.9750, 0.9775, 0.9775]
    curve = RandomCurve((8_000, 9_000, 10_000), measured)
    assert curve.labels_for(0.9775) == (9_000.0, None)
    assert curve.labels_for(0.9776)[1] == "right"


def test_without_smoothing_the_segment_starts_where_it_was_measured():
    sizes, dipped = (100, 200, 300, 400), (50.0, 60.0, 55.0, 70.0)
    assert RandomCurve(sizes, dipped).labels_for(65.0) == (pytest.approx(350.0), None)
    raw = RandomCurve(sizes, dipped, smoothing="none")
    assert raw.labels_for(65.0) == (pytest.approx(300 + 100 * 10 / 15), None)
    for target in (40.0, 50.0, 57.0, 60.0, 70.0, 71.0):
        assert raw.labels_for(target) == RandomCurve(sizes, dipped).labels_for(target)


@settings(deadline=None)
@given(st.floats(0.05, 0.9), st.integers(2, 8))
def test_a_curve_shifted_to_fewer_labels_saves_that_share(share, rounds):
    random_sizes = [1000.0 * place for place in range(1, rounds + 1)]
    accuracies = [0.5 + 0.05 * place for place in range(rounds)]
    curve = RandomCurve(random_sizes, accuracies)
    savings = [
        curve.saving((1 - share) * size, value)
        for size, value in zip(random_sizes, accuracies, strict=True)
    ]
    mean = mean_saving(savings)
    assert mean.every == pytest.approx(share)
    assert mean.censored == 0
    # Saving = 1 - 1/E with the labelling efficiency E.
    found = labelling_efficiency(
        [(1 - share) * size for size in random_sizes],
        accuracies, random_sizes, accuracies, accuracies[-1],
    )  # fmt: skip
    assert 1 - 1 / found.ratio == pytest.approx(share)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=10),
    st.lists(st.floats(0, 1), min_size=1, max_size=10),
)
def test_savings_of_any_curves_are_bounded_and_flagged(random, own):
    sizes = [100 * (place + 1) for place in range(len(random))]
    curve = RandomCurve(sizes, random)
    for place, value in enumerate(own):
        saving = curve.saving(100 * (place + 1), value)
        assert sizes[0] <= saving.random_labels <= sizes[-1]
        assert saving.ratio < 1
        # Accuracies closer than rounding count as equal, so nothing is asked of those.
        if value > max(random) + 1e-6:
            assert saving.censored == "right"
        elif value < random[0] - 1e-6:
            assert saving.censored == "left"
        elif random[0] <= value <= max(random):
            assert saving.censored is None


def test_a_dip_in_a_curve_against_itself_counts_against_it():
    accuracies = (0.5, 0.7, 0.6, 0.8)
    curve = RandomCurve((100, 200, 300, 400), accuracies)
    ratios = [
        curve.saving(100 * (place + 1), value).ratio for place, value in enumerate(accuracies)
    ]
    assert ratios[:2] == [0, 0]
    assert ratios[2] == pytest.approx((150 - 300) / 150)
    assert ratios[3] == 0


def test_labelling_efficiency_on_recorded_rounds_and_between_them():
    random = ((200, 400, 600, 800, 1000), (60.0, 70.0, 76.0, 80.0, 82.0))
    own = ((200, 400, 600), (60.0, 75.0, 82.5))
    between = labelling_efficiency(*own, *random, 75.0)
    assert (between.labels, between.bound) == (400, "measured")
    assert between.ratio == pytest.approx(566.667 / 400, abs=1e-4)
    recorded = labelling_efficiency(*own, *random, 75.0, reading="recorded")
    assert (recorded.labels, recorded.random_labels, recorded.ratio) == (400, 600, 1.5)
    beyond = labelling_efficiency(*own, *random, 82.5)
    assert (beyond.random_labels, beyond.bound) == (1000, "at least")
    assert beyond.ratio == pytest.approx(1000 / 600)
    behind = labelling_efficiency(*random, *own, 82.5, reading="recorded")
    assert (behind.ratio, behind.bound) == (0.6, "at most")
    nowhere = labelling_efficiency(*own, *random, 99.0)
    assert math.isnan(nowhere.ratio)
    assert nowhere.bound == "unknown"
    early = labelling_efficiency((200,), (75.0,), *random, 70.0)
    assert (early.ratio, early.bound) == (2.0, "at least")


def test_average_improvement_rounds_instead_of_cutting():
    assert int(1 + (0.7 - 0.1) / 0.05) == 12  # the trap
    assert improvement_rounds(0.1, 0.7, 0.05) == 13
    assert improvement_rounds(0.02, 0.2, 0.02) == 10
    assert improvement_rounds(1000, 1000, 500) == 1
    own, random = [50.0, 62.0, 73.0], [50.0, 60.0, 70.0]
    assert average_improvement(own, random) == pytest.approx(5 / 3)  # the shared start dilutes
    assert average_improvement(own, random, skip=1) == pytest.approx(5 / 2)
    with pytest.raises(InputError, match="13 rounds"):
        average_improvement(own, random, rounds=13)
    with pytest.raises(InputError, match="positive step"):
        improvement_rounds(0.7, 0.1, 0.05)


def test_penalties_flag_unseen_variance_and_ignore_equality():
    base = [[0.5, 0.6, 0.7], [0.5, 0.6, 0.7]]
    found = penalties({"a": [[0.6, 0.6, 0.9], [0.6, 0.6, 0.7]], "b": base, "c": base})
    assert found.rounds == 3
    assert found.share_KK[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3])
    assert found.constant_KK[0].tolist() == [0, 1, 1]
    assert found.share_KK[1:].tolist() == [[0, 0, 0], [0, 0, 0]]
    single = penalties({"a": [[0.9]], "b": [[0.1]]})
    assert single.share_KK.tolist() == [[0, 0], [0, 0]]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_penalties_are_multiples_of_one_round_and_never_above_one_together(seed):
    rng = np.random.default_rng(seed)
    runs = {name: rng.normal(level, 0.2, (3, 9)) for name, level in (("a", 0), ("b", 0.4))}
    share = penalties(runs).share_KK
    assert np.allclose(share * 9, np.round(share * 9))
    assert share[0, 1] + share[1, 0] <= 1 + 1e-12
    assert np.diag(share).tolist() == [0, 0]


@pytest.mark.parametrize(("runs", "critical"), [(3, 4.303), (4, 3.182), (5, 2.776)])
def test_critical_values_of_t(runs, critical):
    sample = np.arange(runs, dtype=float)
    pair = paired_difference(sample.tolist(), [0.0] * runs)
    assert pair.half_width * math.sqrt(runs) / pair.sd == pytest.approx(critical, abs=1e-3)


def test_time_of_a_campaign_worked_example():
    assert standard_seconds(10, train_s=600, forward_s=60) == 6600
    proxy = {"train_s": 5, "forward_s": 1, "precompute_s": 60}
    assert proxy_seconds(10, **proxy) == 120
    assert proxy_seconds(10, **proxy, passes=2, full_train_s=600) == 780
    assert proxy_seconds(10, **proxy, passes=1, full_train_s=600) == proxy_seconds(10, **proxy)
    with pytest.raises(InputError, match="count the first"):
        proxy_seconds(10, **proxy, passes=0)


def test_money_at_dated_prices():
    label = Price(amount=0.036, per="label", date="2024-05-01", source="triple reviews")
    hour = Price(amount=3.0, per="hour", date="2024-05-02")
    assert bill(
        labels=400_000, label_price=label, seconds=0, hour_price=hour
    ).labels == pytest.approx(14_400)
    # The published table of ImageNet: 2,000 hours against 162 hours for $495.
    whole = bill(labels=0, label_price=label, seconds=2000 * 3600, hour_price=hour)
    dear = Price(amount=495 / 162, per="hour", date="2024-05-02")
    proxy = bill(labels=0, label_price=label, seconds=162 * 3600, hour_price=dear)
    assert (whole.total, round(proxy.total, 6)) == (6000, 495)
    assert 12.1 < whole.compute / proxy.compute < 12.3
    assert whole.dates == ("2024-05-01", "2024-05-02")
    two = bill(labels=10, label_price=label, seconds=1800, hour_price=hour, devices=2)
    assert two.total == pytest.approx(0.36 + 3.0)
    with pytest.raises(InputError, match="date it was looked up"):
        Price(amount=1.0, per="hour", date="May")
    with pytest.raises(InputError, match="Swap them"):
        bill(labels=1, label_price=hour, seconds=1, hour_price=label)
    euro = Price(amount=3.0, per="hour", date="2024-05-02", currency="EUR")
    with pytest.raises(InputError, match="one currency"):
        bill(labels=1, label_price=label, seconds=1, hour_price=euro)


def test_overall_cost_where_a_strategy_meets_random():
    labels, censored = labels_to_match((200, 400, 600), (60.0, 80.0, 84.0), (60.0, 70.0, 82.0))
    assert (labels, censored) == (500.0, None)
    assert overall_cost(labels, 0.04, 12.5) == pytest.approx(32.5)
    assert labels_to_match((200, 400), (60.0, 65.0), (60.0, 82.0))[1] == "right"


def test_seconds_add_stage_by_stage():
    one = StageSeconds(proxy=2.0, select=1.0)
    both = one + StageSeconds(select=3.0, final=10.0)
    assert (both.proxy, both.select, both.final, both.total) == (2.0, 4.0, 10.0, 16.0)
    with pytest.raises(InputError, match="select"):
        StageSeconds(select=-1.0)
