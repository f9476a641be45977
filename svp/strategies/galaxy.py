"""GALAXY: bisection between opposite labels along the lines of the classes.

Of a class drawn at random, the shortest stretch of unlabelled items between a label of the class
and one of another is halved. On a separable line that finds the boundary in log2 of its length;
it then grows outward from the boundaries it knows.

Source: Zhang, Katz-Samuels and Nowak 2022, "GALAXY: graph-based active learning at the extreme",
algorithm 2; LabelBench (Zhang et al. 2024) for classes drawn at random instead of in turn.
Shapes: n = nodes, C = classes, m = labelled nodes.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

import numpy as np

from svp.seed import numpy_generator
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.lines import UNKNOWN, Nodes, line_orders, line_ranks
from svp.strategies.parameters import check_choice

Fallback = Literal["galaxy", "labelbench"]
Int32Array = np.ndarray[tuple[int], np.dtype[np.int32]]


class Draws(Protocol):
    """The two random choices of the method."""

    def line(self) -> int:
        """Return which line to query next."""

    def unlabelled(
        self, rank_n: Int32Array, free_n: np.ndarray[tuple[int], np.dtype[np.bool_]]
    ) -> int:
        """Return a node that is free, each with the same chance."""


class _Seeded:
    """Lines drawn before the walk begins, so that only those that are needed are sorted."""

    def __init__(self, lines: int, b: int, seed: int) -> None:
        self.drawn_b = numpy_generator(seed, "galaxy", "lines").integers(lines, size=b)
        self._next = iter(self.drawn_b.tolist())
        self._generator = numpy_generator(seed, "galaxy", "unlabelled")

    def line(self) -> int:
        return int(next(self._next))

    def unlabelled(
        self, rank_n: Int32Array, free_n: np.ndarray[tuple[int], np.dtype[np.bool_]]
    ) -> int:
        del rank_n
        free = np.flatnonzero(free_n)
        return int(free[self._generator.integers(len(free))])


class _Line:
    """One line and the labels on it, kept sorted by position."""

    def __init__(self, rank_n: Int32Array, k: int) -> None:
        self.rank_n, self.k = rank_n, k
        self._known = 0
        self._stretch = max(1, -(-len(rank_n) // 256))
        self._stretch_n: np.ndarray[tuple[int], np.dtype[np.uint8]] | None = None
        self.place_m = np.zeros(0, dtype=np.int32)
        self.is_k_m = np.zeros(0, dtype=bool)

    def learn(self, labelled: Int64Array, class_n: Int64Array) -> None:
        """Take in the nodes labelled since the last time."""
        new = labelled[self._known :]
        self._known = len(labelled)
        if not len(new):
            return
        place = self.rank_n[new]
        order = np.argsort(place, kind="stable")
        place, is_k = place[order], (class_n[new] == self.k)[order]
        at = np.searchsorted(self.place_m, place)
        self.place_m = np.insert(self.place_m, at, place)
        self.is_k_m = np.insert(self.is_k_m, at, is_k)

    def shortest(self) -> tuple[int, int] | None:
        """Return the middle and length of the shortest stretch between opposite labels."""
        gap = np.diff(self.place_m) - 1
        open_ = (self.is_k_m[1:] != self.is_k_m[:-1]) & (gap > 0)
        if not open_.any():
            return None
        index = int(np.argmin(np.where(open_, gap, np.iinfo(np.int32).max)))
        low, high = int(self.place_m[index]) + 1, int(self.place_m[index + 1]) - 1
        return (low + high) // 2, high - low + 1

    def nearest(self, fallback: Fallback) -> int | None:
        """Return the unlabelled place nearest a known boundary, or None without one.

        The distance is counted from the label on the same side. On ties the left side wins, and
        on one side the boundary farther right.
        """
        place_m, is_k_m = self.place_m, self.is_k_m
        touching = place_m[1:] - place_m[:-1] == 1
        if fallback == "galaxy":
            cut = touching & (is_k_m[1:] != is_k_m[:-1])
        else:
            # Labels of the class behind others: inversions of the line, not its boundary.
            cut = touching & ~is_k_m[:-1] & is_k_m[1:]
        left = np.flatnonzero(cut)
        if not len(left):
            return None
        # Runs of labels without a gap: the first place before and behind each run is unlabelled.
        starts = np.concatenate([[True], ~touching])
        run_m = np.cumsum(starts) - 1
        first = place_m[starts]
        last = place_m[np.concatenate([~touching, [True]])]
        before, behind = first[run_m[left]] - 1, last[run_m[left]] + 1
        left_gap = np.where(before >= 0, place_m[left] - before, np.iinfo(np.int32).max)
        right_gap = np.where(
            behind < len(self.rank_n), behind - place_m[left + 1], np.iinfo(np.int32).max
        )
        best_left = len(left) - 1 - int(np.argmin(left_gap[::-1]))
        best_right = len(left) - 1 - int(np.argmin(right_gap[::-1]))
        if left_gap[best_left] <= right_gap[best_right]:
            return int(before[best_left]) if before[best_left] >= 0 else None
        return int(behind[best_right])

    def node(self, place: int) -> int:
        """Return the node at a place."""
        if self._stretch_n is None:
            # A byte per place says among which 256th of the nodes to look.
            self._stretch_n = np.empty(len(self.rank_n), dtype=np.uint8)
            for number, start in enumerate(range(0, len(self.rank_n), self._stretch)):
                self._stretch_n[self.rank_n[start : start + self._stretch]] = number
        start = int(self._stretch_n[place]) * self._stretch
        return start + int((self.rank_n[start : start + self._stretch] == place).argmax())


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """What a walk along the lines chose.

    Attributes:
        nodes_b: Nodes in the order they were queried.
        length_b: Length of the stretch that was halved; 0 for a fallback.
        nearest: Picks nearest a known boundary.
        drawn: Picks drawn at random, because their line had no boundary.
    """

    nodes_b: Int64Array
    length_b: Int64Array
    nearest: int
    drawn: int


def walk(
    ranks: Sequence[Int32Array],
    classes: Sequence[int],
    nodes: Nodes,
    b: int,
    fallback: Fallback,
    draws: Draws,
) -> Walk:
    """Query `b` nodes and label each before the next.

    Args:
        ranks: Position of every node on each line.
        classes: Class of each line.
        nodes: What is known; at least one label.
        b: How many.
        fallback: What to do on a line without an open stretch between opposite labels.
        draws: Source of the random choices.
    """
    lines = [_Line(rank_n, k) for rank_n, k in zip(ranks, classes, strict=True)]
    first = np.flatnonzero(nodes.class_n != UNKNOWN)
    labelled = np.concatenate([first, np.zeros(b, dtype=np.int64)])
    picks: list[int] = []
    lengths: list[int] = []
    nearest = drawn = 0
    for _ in range(b):
        line = lines[draws.line()]
        line.learn(labelled[: len(first) + len(picks)], nodes.class_n)
        stretch = line.shortest()
        if stretch is not None:
            node, length = line.node(stretch[0]), stretch[1]
        else:
            length = 0
            place = line.nearest(fallback)
            if place is not None:
                node = line.node(place)
                nearest += 1
            else:
                node = draws.unlabelled(line.rank_n, nodes.class_n == UNKNOWN)
                drawn += 1
        nodes.label(np.array([node]))
        labelled[len(first) + len(picks)] = node
        picks.append(node)
        lengths.append(length)
    return Walk(
        nodes_b=np.asarray(picks, dtype=np.int64),
        length_b=np.asarray(lengths, dtype=np.int64),
        nearest=nearest,
        drawn=drawn,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Galaxy:
    """Halves the shortest stretch between opposite labels on the line of a random class.

    With two classes there is one line: the other is its mirror image. A line without any boundary
    (no label of its class, or nothing else) gets an item drawn at random.

    Attributes:
        fallback: What a line without an open stretch gets. `galaxy`: the unlabelled item nearest
            a known boundary, on either side, like the authors' growing neighbourhoods.
            `labelbench`: the published program of LabelBench, which reversed the order of the
            line but not this search. It sees only inversions (a label of the class right behind
            another label), never the boundary of a separable line, and then draws at random.
        pseudo: Assume the proxy's prediction of each pick instead of reading its label.
    """

    name: ClassVar[str] = "galaxy"
    family: ClassVar[str] = "graph"
    summary: ClassVar[str] = "images that pin down where one class ends; good for rare classes"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "labelled"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Zhang, Katz-Samuels and Nowak 2022, algorithm 2"
    scaling: ClassVar[str] = "N h C + C N log N + b (L + b)"
    instead: ClassVar[str] = "direct"

    fallback: Fallback = "galaxy"
    pseudo: bool = False

    def __post_init__(self) -> None:
        check_choice("galaxy.fallback", self.fallback, ("galaxy", "labelbench"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        nodes = shape.candidates + shape.labelled
        lines = min(shape.classes, shape.budget)
        labels = 16 * (shape.labelled + shape.budget)
        return Cost(
            # Position and index of every node on every line drawn; one line's scores being sorted.
            bytes=shape.tile_bytes
            + 8 * shape.tile_rows * shape.classes * 4
            + (5 * lines + 128) * nodes
            + lines * labels,
            flops=shape.logits_flops + lines * nodes * 20.0,
            passes=1.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates by bisection; see `Strategy.select`."""
        nodes = Nodes(view, seed, budget, None if self.pseudo else oracle)
        lines = view.n_classes if view.n_classes > 2 else 1
        draws = _Seeded(lines, b, seed)
        needed = np.unique(draws.drawn_b).tolist()
        unused = np.zeros(0, dtype=np.int32)
        ranks = [unused] * lines
        for k, order_n in line_orders(view, nodes.rows_n, budget, needed):
            ranks[k] = line_ranks(order_n)
        found = walk(ranks, range(lines), nodes, b, self.fallback, draws)
        return Selection(
            rows_b=nodes.rows_n[found.nodes_b],
            utility_b=(1.0 / np.where(found.length_b > 0, found.length_b, np.inf)).astype(
                np.float32
            ),
            reason=(
                "Lies where the labels of one class change to others, halfway in a stretch without "
                "labels ({utility} is 1 over its length; 0: the boundary is known or missing)."
            ),
            exactness=self.exactness,
            counters={"nearest": found.nearest, "drawn": found.drawn},
        )
