"""DIRECT: one threshold per class on its line, found under label noise and imbalance.

Half of the budget narrows, class by class, the interval in which the best threshold of the line
lies, by labels drawn uniformly inside it. The other half is spent around the best thresholds.

Source: Nuggehalli, Zhang, Jain and Nowak 2023, "DIRECT: deep active learning under imbalance and
label noise", algorithms 1 and 2; LabelBench (Zhang et al. 2024) for their program.
Shapes: n = nodes, C = classes.
"""

import dataclasses
import math
from bisect import bisect_left
from typing import ClassVar, Literal, Protocol

import numpy as np

from svp.seed import numpy_generator
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.lines import UNKNOWN, Nodes, agreement, line_orders
from svp.strategies.parameters import check_choice, check_range

Form = Literal["corrected", "published"]
_COINS = 4096


class Draws(Protocol):
    """The random choices of the method."""

    def sample(self, places: Int64Array, size: int, n: int) -> Int64Array:
        """Return `size` of these places of a line of length n, without replacement."""

    def coins(self, most: int) -> Int64Array:
        """Return at least one and at most `most` zeros and ones."""

    def order(self, classes: int) -> Int64Array:
        """Return the classes in random order."""


class _Seeded:
    def __init__(self, seed: int) -> None:
        self._order = numpy_generator(seed, "direct", "order")
        self._sample = numpy_generator(seed, "direct", "sample")
        self._coins = numpy_generator(seed, "direct", "coins")

    def sample(self, places: Int64Array, size: int, n: int) -> Int64Array:
        del n
        return self._sample.choice(places, size=size, replace=False)

    def coins(self, most: int) -> Int64Array:
        return self._coins.integers(2, size=min(most, _COINS))

    def order(self, classes: int) -> Int64Array:
        return self._order.permutation(classes)


def signs(class_n: Int64Array, order_n: Int64Array, k: int) -> Int64Array:
    """Return along a line +1 for labels of class k, -1 for others, 0 for none."""
    along_n = class_n[order_n]
    return np.where(along_n == UNKNOWN, 0, np.where(along_n == k, 1, -1)).astype(np.int64)


def interval(sign_n: Int64Array) -> tuple[int, int]:
    """Return the first and last place at which the labels leave the threshold open.

    The last label of the leading run of the class (0 without one), and the first label of the
    closing run of others (the end without one).
    """
    places = np.flatnonzero(sign_n)
    low, high = 0, len(sign_n) - 1
    if len(places):
        ours = sign_n[places] > 0
        leading = len(places) if ours.all() else int(np.argmin(ours))
        closing = len(places) if not ours.any() else int(np.argmax(ours[::-1]))
        low = int(places[leading - 1]) if leading else 0
        high = int(places[len(places) - closing]) if closing else high
    return low, high


def shrink(sign_n: Int64Array, low: int, high: int, target: int, draws: Draws) -> tuple[int, int]:
    """Return the interval after moving its worse end inward until few unlabelled places are left.

    One step moves the end at which a threshold fits the labels less, either one if both fit
    equally. Fits change only where there is a label, so steps between labels are taken at once.

    Args:
        sign_n: As from `signs`.
        low: First place.
        high: Last place.
        target: Unlabelled places to leave.
        draws: Source of the choices between equals.
    """
    fit = agreement(sign_n)
    free_n = sign_n == 0
    frees, labelled = np.flatnonzero(free_n), np.flatnonzero(~free_n).tolist()
    before_n = np.concatenate([[0], np.cumsum(free_n)])  # unlabelled places before each
    open_ = int(before_n[high + 1] - before_n[low])
    right, left = bisect_left(labelled, low), bisect_left(labelled, high) - 1
    while open_ > target:
        if fit[low] == fit[high]:
            for coin in draws.coins(max(1, open_ - target)).tolist():
                open_ -= int(free_n[high if coin else low])
                low, high = (low, high - 1) if coin else (low + 1, high)
                if open_ == target or fit[low] != fit[high]:
                    break
            continue
        # Until the fit changes, past the next label, or until few enough are left.
        if fit[low] < fit[high]:
            while right < len(labelled) and labelled[right] < low:
                right += 1
            end = min(labelled[right] if right < len(labelled) else high, high)
            passed = int(before_n[end + 1] - before_n[low])
            if passed >= open_ - target:
                passed = open_ - target
                end = int(frees[before_n[low] + passed - 1])
            low = end + 1
        else:
            while left >= 0 and labelled[left] >= high:
                left -= 1
            # The fit at `high` counts what lies before it, so it changes on passing the label
            # there.
            end = max(labelled[left] + 1 if left >= 0 else low, low)
            passed = int(before_n[high + 1] - before_n[end])
            if passed >= open_ - target:
                passed = open_ - target
                end = int(frees[before_n[high + 1] - passed])
            high = end - 1
        open_ -= passed
    return low, high


def around(sign_n: Int64Array, threshold: int, m: int) -> Int64Array:
    """Return the m unlabelled places nearest a threshold, alternating outward, left first.

    The threshold t separates the places t - 1 and t.
    """
    free = np.flatnonzero(sign_n == 0)
    cut = int(np.searchsorted(free, threshold))
    left, right = free[max(0, cut - m) : cut][::-1], free[cut : cut + m]
    turns = np.concatenate([2 * (threshold - 1 - left), 2 * (right - threshold) + 1])
    return np.concatenate([left, right])[np.argsort(turns)][:m]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How the first half of a budget is divided.

    Attributes:
        classes: Whose thresholds are searched, in this order.
        each: Labels for each of them.
    """

    classes: Int64Array
    each: int


def plan(counts_C: Int64Array, b: int, min_per_class: int, form: Form) -> Plan:
    """Return which classes get labels in the first half of the budget, and how many.

    Args:
        counts_C: Labels per class.
        b: The budget.
        min_per_class: Fewest labels worth spending on one class.
        form: `corrected`: where an even share is smaller than that, only the rarest classes get
            any, and each gets the minimum. `published`: the branches of LabelBench's program,
            which give every class its share and use the minimum as a cap.
    """
    classes = len(counts_C)
    rank_C = np.argsort(-counts_C, kind="stable")
    share = b // classes // 2
    scarce = share < min_per_class
    if form == "published":
        each = share if scarce else min_per_class
        return Plan(classes=rank_C, each=each)
    if not scarce:
        return Plan(classes=rank_C[::-1], each=share)
    served = max(1, b // (2 * min_per_class))
    return Plan(classes=rank_C[::-1][:served], each=min(min_per_class, b // 2))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Direct:
    """Narrows a threshold per class by labels, then labels around the best thresholds.

    Attributes:
        form: `corrected`: the minimum per class is a minimum, the rarest classes come first, and
            every class may spend its own share. `published` repeats LabelBench's program: the
            two branches of the division are swapped (the minimum acts as a cap, so with many
            classes nothing is ever narrowed), a class with few unlabelled items lowers the share
            of all later ones, and with two classes the second line ranks its sure items
            backwards.
        annotators: Labels drawn at a time while narrowing (B1 of the paper).
        min_per_class: Fewest labels worth spending on narrowing one class.
        pseudo: Assume the proxy's prediction of each pick instead of reading its label.
    """

    name: ClassVar[str] = "direct"
    family: ClassVar[str] = "graph"
    summary: ClassVar[str] = "images around each class's threshold; for rare classes, noisy labels"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "labelled"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Nuggehalli et al. 2023, algorithms 1 and 2"
    scaling: ClassVar[str] = "N h C + C N log N"
    instead: ClassVar[str] = "margin"

    form: Form = "corrected"
    annotators: int = 20
    min_per_class: int = 60
    pseudo: bool = False

    def __post_init__(self) -> None:
        check_choice("direct.form", self.form, ("corrected", "published"))
        check_range("direct.annotators", self.annotators, 1)
        check_range("direct.min_per_class", self.min_per_class, 1)

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        nodes = shape.candidates + shape.labelled
        return Cost(
            bytes=shape.tile_bytes + 32 * shape.tile_rows * shape.classes + 160 * nodes,
            flops=2.0 * shape.logits_flops + shape.classes * nodes * 60.0,
            passes=2.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        nodes = Nodes(view, seed, budget, None if self.pseudo else oracle)
        search = Search(self, nodes, view.n_classes, b, _Seeded(seed))
        own = 0 if self.form == "published" and view.n_classes == 2 else None
        for k, order_n in line_orders(view, nodes.rows_n, budget, search.first_half(), own):
            search.narrow(k, order_n)
        narrowed = len(search.picks)
        for k, order_n in line_orders(view, nodes.rows_n, budget, search.second_half(), own):
            search.surround(k, order_n)
        return Selection(
            rows_b=nodes.rows_n[np.asarray(search.picks, dtype=np.int64)],
            utility_b=np.asarray(search.utilities, dtype=np.float32),
            reason=(
                "Near the threshold between one class and the rest ({utility}: 1 right at it, less "
                "farther away or while it was still being searched)."
            ),
            exactness=self.exactness,
            counters={"narrowing": narrowed, "around": b - narrowed},
        )


class Search:
    """One run of the method, fed with a line at a time.

    Args:
        strategy: Its parameters.
        nodes: What is known; labels are added to it.
        classes: C.
        b: The budget.
        draws: Source of the random choices.
    """

    def __init__(self, strategy: Direct, nodes: Nodes, classes: int, b: int, draws: Draws) -> None:
        self._strategy, self._nodes, self._classes, self._b = strategy, nodes, classes, b
        self._draws = draws
        known = nodes.class_n[nodes.class_n != UNKNOWN]
        counts_C = np.bincount(known, minlength=classes).astype(np.int64)
        self._plan = plan(counts_C, b, strategy.min_per_class, strategy.form)
        self._share = self._plan.each
        self._left, self._turn = b, 0
        self.picks: list[int] = []
        self.utilities: list[float] = []

    def first_half(self) -> list[int]:
        """Return the classes to narrow, in order."""
        return self._plan.classes.tolist() if self._plan.each else []

    def second_half(self) -> list[int]:
        """Return the classes to label around, in order; ends the first half."""
        self._left = self._b - len(self.picks)
        return [int(k) for k in self._draws.order(self._classes)]

    def narrow(self, k: int, order_n: Int64Array) -> None:
        """Spend a share on narrowing the interval of class k's threshold."""
        strategy, class_n = self._strategy, self._nodes.class_n
        sign_n = signs(class_n, order_n, k)
        low, high = interval(sign_n)
        left = min(self._share, int((sign_n == 0).sum()))
        if strategy.form == "published":
            self._share = left
        while left:
            places = np.flatnonzero(sign_n[low : high + 1] == 0) + low
            if not len(places):
                break
            size = min(strategy.annotators, left, len(places))
            sampled = self._draws.sample(places, size, len(order_n))
            self._take(order_n[sampled], np.full(size, 1.0 / len(places)))
            sign_n[sampled] = np.where(class_n[order_n[sampled]] == k, 1, -1)
            open_ = len(places) - size
            rounds = left // strategy.annotators
            if open_ and rounds > 1:
                target = math.ceil(open_ / open_ ** (1 / rounds))
                low, high = shrink(sign_n, low, high, target, self._draws)
            left -= min(strategy.annotators, left)

    def surround(self, k: int, order_n: Int64Array) -> None:
        """Spend an even part of the second half around the best threshold of class k."""
        sign_n = signs(self._nodes.class_n, order_n, k)
        turn, self._turn = self._turn, self._turn + 1
        share = self._left * (turn + 1) // self._classes - self._left * turn // self._classes
        threshold = int(np.argmax(agreement(sign_n)))
        places = around(sign_n, threshold, share)
        self._take(order_n[places], 1.0 / np.maximum(1, np.abs(2 * places + 1 - 2 * threshold)))

    def _take(
        self, nodes: Int64Array, utility: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> None:
        if len(nodes):
            self._nodes.label(nodes)
        self.picks.extend(nodes.tolist())
        self.utilities.extend(utility.tolist())
