import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svp.errors import InputError
from svp.metrics import (
    RandomCurve,
    accuracy,
    balanced_accuracy,
    imbalance,
    macro_f1,
    mean_saving,
    mean_sd,
    paired_difference,
    penalty_matrix,
    pool_accuracy,
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
