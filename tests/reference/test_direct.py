"""DIRECT against steps in plain Python, and its thresholds on lines we know."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from svp.strategies.direct import Direct, Search, around, interval, plan, shrink, signs
from svp.strategies.lines import UNKNOWN, agreement

Ints = npt.NDArray[np.int64]


class _Draws:
    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def sample(self, places: Ints, size: int, n: int) -> Ints:
        return self._rng.choice(places, size, replace=False)

    def coins(self, most: int) -> Ints:
        return self._rng.integers(2, size=1)

    def order(self, classes: int) -> Ints:
        return self._rng.permutation(classes)


class _Known:
    def __init__(self, y: Ints, labelled: Ints) -> None:
        self._y, self.asked = y, 0
        self.class_n = np.full(len(y), UNKNOWN, dtype=np.int64)
        self.class_n[labelled] = y[labelled]

    def label(self, nodes: Ints) -> None:
        self.asked += len(nodes)
        self.class_n[nodes] = self._y[nodes]


def test_agreement_of_the_worked_example() -> None:
    found = agreement(np.array([1, 1, 0, -1, -1]))
    assert found.tolist() == [0, 2, 4, 4, 2, 0]
    assert int(np.argmax(found)) == 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("++0--", (1, 3)),
        ("0+0-+0-0-0", (1, 6)),
        ("00000", (0, 4)),
        ("0+0+0", (3, 4)),
        ("0-0-0", (0, 1)),
        ("-+-+", (0, 3)),
        ("+-+-", (0, 3)),
    ],
)
def test_the_interval_lies_between_the_clean_ends(line: str, expected: tuple[int, int]) -> None:
    sign = np.array([{"+": 1, "-": -1, "0": 0}[mark] for mark in line])
    assert interval(sign) == expected


def _plain_shrink(sign: Ints, low: int, high: int, target: int, draws: _Draws) -> tuple[int, int]:
    total = sign.sum()
    fit = [2 * sign[:t].sum() - total for t in range(len(sign) + 1)]
    while int((sign[low : high + 1] == 0).sum()) > target:
        move_low = fit[low] < fit[high]
        if fit[low] == fit[high]:
            move_low = draws.coins(1)[0] == 0
        low, high = (low + 1, high) if move_low else (low, high - 1)
    return low, high


@pytest.mark.parametrize("seed", range(60))
def test_shrinking_in_strides_equals_single_steps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 80))
    sign = np.where(rng.random(n) < 0.3, rng.choice([-1, 1], n), 0)
    low, high = sorted(rng.integers(0, n, 2).tolist())
    open_ = int((sign[low : high + 1] == 0).sum())
    if open_ < 2:
        pytest.skip("nothing to shrink")
    target = int(rng.integers(1, open_))
    got = shrink(sign, low, high, target, _Draws(seed))
    assert got == _plain_shrink(sign, low, high, target, _Draws(seed))
    assert int((sign[got[0] : got[1] + 1] == 0).sum()) == target


@pytest.mark.parametrize("seed", range(20))
def test_around_takes_turns_outward_from_the_left(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 30
    sign = np.where(rng.random(n) < 0.5, 1, 0)
    threshold, m = int(rng.integers(0, n + 1)), 9
    expected = []
    for step in range(n):
        for place in (threshold - 1 - step, threshold + step):
            if 0 <= place < n and sign[place] == 0 and len(expected) < m:
                expected.append(place)
    assert around(sign, threshold, m).tolist() == expected


def test_the_minimum_per_class_is_a_minimum_and_serves_the_rarest() -> None:
    counts = np.array([9, 1, 5, 7])
    few = plan(counts, 300, 60, "corrected")
    assert few.classes.tolist() == [1, 2]
    assert few.each == 60
    many = plan(counts, 4000, 60, "corrected")
    assert sorted(many.classes.tolist()) == [0, 1, 2, 3]
    assert many.each == 500
    # The published branches: every class gets five labels, or none more than sixty.
    assert plan(counts, 40, 60, "published").each == 5
    assert plan(counts, 4000, 60, "published").each == 60
    for b in range(1, 700, 13):
        for form in ("corrected", "published"):
            planned = plan(counts, b, 60, form)
            assert len(planned.classes) * planned.each <= b // 2


def _search(
    y: Ints, labelled: Ints, orders: list[Ints], b: int, strategy: Direct, seed: int = 0
) -> tuple[Search, _Known]:
    known = _Known(y, labelled)
    search = Search(strategy, known, len(orders), b, _Draws(seed))
    for k in search.first_half():
        search.narrow(k, orders[k])
    for k in search.second_half():
        search.surround(k, orders[k])
    return search, known


@pytest.mark.parametrize("form", ["corrected", "published"])
@pytest.mark.parametrize("b", [1, 7, 40, 190])
def test_labels_read_equal_picks_equal_budget(form: str, b: int) -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 4, 200)
    score = rng.normal(size=(200, 4))
    orders = [np.argsort(-score[:, k]) for k in range(4)]
    strategy = Direct(form=form, annotators=3, min_per_class=5)
    search, known = _search(y, np.arange(10), orders, b, strategy)
    assert known.asked == b == len(set(search.picks))
    assert not set(search.picks) & set(range(10))


@pytest.mark.parametrize("cut", [40, 300, 870])
def test_a_separable_line_without_noise_is_narrowed_onto_its_gap(cut: int) -> None:
    n, b = 1000, 200
    y = np.where(np.arange(n) < cut, 0, 1)
    orders = [np.arange(n), np.arange(n)[::-1]]
    strategy = Direct(annotators=10, min_per_class=50)
    search, known = _search(y, np.array([0, n - 1]), orders, b, strategy)
    sign = signs(known.class_n, orders[0], 0)
    threshold = int(np.argmax(agreement(sign)))
    labelled = np.flatnonzero(sign)
    assert labelled[labelled < cut].max() < threshold <= labelled[labelled >= cut].min()
    assert math.isclose(search.utilities[0], 1 / 998)
