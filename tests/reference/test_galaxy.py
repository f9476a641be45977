"""GALAXY against a walk in plain Python along lists, and its behaviour on lines we know."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from svp.strategies.base import Budget, PoolView
from svp.strategies.catalog import run_strategy
from svp.strategies.galaxy import Galaxy, walk
from svp.strategies.keys import keys_of
from svp.strategies.lines import UNKNOWN, line_orders, line_ranks, line_scores

Ints = npt.NDArray[np.int64]


class _Known:
    """Nodes whose classes are known to the test."""

    def __init__(self, y: Ints, labelled: list[int]) -> None:
        self._y = y
        self.class_n = np.full(len(y), UNKNOWN, dtype=np.int64)
        self.class_n[labelled] = y[labelled]

    def label(self, nodes: Ints) -> None:
        self.class_n[nodes] = self._y[nodes]


class _Fixed:
    """Lines in turn; of unlabelled nodes the first on the line."""

    def __init__(self, lines: int) -> None:
        self._lines, self._turn = lines, -1

    def line(self) -> int:
        self._turn += 1
        return self._turn % self._lines

    def unlabelled(self, rank_n: npt.NDArray[np.int32], free_n: npt.NDArray[np.bool_]) -> int:
        return int(next(node for node in np.argsort(rank_n) if free_n[node]))


def _plain(orders: list[Ints], y: Ints, labelled: list[int], b: int, fallback: str) -> list[int]:
    known = set(labelled)
    picks = []
    for turn in range(b):
        k = turn % len(orders)
        line = orders[k].tolist()
        n = len(line)
        labels = [(place, y[line[place]] == k) for place in range(n) if line[place] in known]
        runs = [
            (q - p, p)
            for (p, one), (q, two) in itertools.pairwise(labels)
            if one != two and q - p > 1
        ]
        if runs:
            gap, p = min(runs)
            node = line[(p + 1 + p + gap - 1) // 2]
        else:
            # (distance, side, minus place of the boundary, place)
            near = []
            for (p, one), (q, two) in itertools.pairwise(labels):
                inversion = not one and two
                if q - p == 1 and (inversion if fallback == "labelbench" else one != two):
                    near += [(p - u, 0, -p, u) for u in range(p) if line[u] not in known]
                    near += [(u - q, 1, -p, u) for u in range(q + 1, n) if line[u] not in known]
            free = [node for node in line if node not in known]
            node = line[min(near)[3]] if near else free[0]
        known.add(node)
        picks.append(node)
    return picks


@pytest.mark.parametrize("fallback", ["galaxy", "labelbench"])
@pytest.mark.parametrize("seed", range(12))
def test_picks_equal_a_walk_along_plain_lists(fallback: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, lines = 60, 3
    y = rng.integers(0, lines, n)
    score = rng.normal(size=(n, lines))
    score[np.arange(n), y] += 2.0
    orders = [np.argsort(-score[:, k]) for k in range(lines)]
    labelled = rng.choice(n, 5, replace=False).tolist()
    found = walk(
        [line_ranks(order) for order in orders],
        range(lines),
        _Known(y, labelled),
        n - 5,
        fallback,
        _Fixed(lines),
    )
    assert found.nodes_b.tolist() == _plain(orders, y, labelled, n - 5, fallback)


@pytest.mark.parametrize(("first", "expected"), [(1, 6), (0, 2)])
def test_nine_nodes_between_opposite_ends(first: int, expected: int) -> None:
    """The middle is asked first; its label decides which half comes next."""
    y = np.array([1, 9, 9, 9, first, 9, 9, 9, 0])
    found = walk([np.arange(9, dtype=np.int32)], [1], _Known(y, [0, 8]), 2, "galaxy", _Fixed(1))
    assert found.nodes_b.tolist() == [4, expected]
    assert found.length_b[0] == 7


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_a_separable_line_is_cut_in_log_many_labels(n: int) -> None:
    for cut in (1, n // 3, n - 1):
        y = np.where(np.arange(n) < cut, 0, 1)
        known = _Known(y, [0, n - 1])
        steps = math.ceil(math.log2(n))
        walk([np.arange(n, dtype=np.int32)], [0], known, steps, "galaxy", _Fixed(1))
        assert known.class_n[cut - 1] == 0
        assert known.class_n[cut] == 1


def test_after_the_cut_it_grows_outward_where_labelbench_draws_at_random() -> None:
    n, cut = 100, 50
    y = np.where(np.arange(n) < cut, 0, 1)
    line = [np.arange(n, dtype=np.int32)]
    ours = walk(line, [0], _Known(y, [cut - 1, cut]), 10, "galaxy", _Fixed(1))
    assert sorted(ours.nodes_b.tolist()) == [44, 45, 46, 47, 48, 51, 52, 53, 54, 55]
    assert (ours.nearest, ours.drawn) == (10, 0)
    theirs = walk(line, [0], _Known(y, [cut - 1, cut]), 10, "labelbench", _Fixed(1))
    assert (theirs.nearest, theirs.drawn) == (0, 10)


def test_line_scores_are_their_definition_and_keep_sure_items_apart() -> None:
    z = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) * 3
    p = z.double().softmax(dim=1)
    best = p.amax(dim=1, keepdim=True)
    torch.testing.assert_close(line_scores(z, range(4)), p - best + 1e-8 * best)
    sure = torch.tensor([[30.0, 0.0], [31.0, 0.0], [29.0, 0.0]])
    assert line_scores(sure, [0])[:, 0].argsort(descending=True).tolist() == [1, 0, 2]


class _Identity:
    def hidden(self, x_Bd: torch.Tensor) -> torch.Tensor:
        return x_Bd

    logits = hidden

    @property
    def head(self) -> None:
        raise AssertionError("lines need no head")


def _separable(n: int, classes: int) -> tuple[PoolView, Ints]:
    rng = np.random.default_rng(1)
    y = rng.integers(0, classes, n)
    z = rng.normal(size=(n, classes))
    z[np.arange(n), y] += rng.normal(size=n) + 2.0
    labelled = np.arange(4 * classes)
    view = PoolView(
        embeddings_Nd=torch.from_numpy(z.astype(np.float32)),
        keys_N=keys_of(str(row) for row in range(n)),
        unlabelled_U=np.arange(4 * classes, n),
        labelled_L=labelled,
        y_L=y[labelled],
        n_classes=classes,
        proxy=_Identity(),
    )
    return view, y


def test_lines_do_not_depend_on_how_many_fit_in_memory() -> None:
    view, _ = _separable(500, 5)
    rows = np.arange(500)
    whole = dict(line_orders(view, rows, Budget(), [3, 0, 4]))
    single = dict(line_orders(view, rows, Budget(cache_bytes=0, tile_rows=1), [3, 0, 4]))
    assert list(whole) == list(single) == [3, 0, 4]
    for k, order in whole.items():
        np.testing.assert_array_equal(order, single[k])


@pytest.mark.parametrize("classes", [2, 6])
def test_it_asks_where_the_proxy_is_unsure_and_reads_each_label_once(classes: int) -> None:
    view, y = _separable(3000, classes)
    asked: list[int] = []

    def oracle(rows: Ints) -> Ints:
        asked.extend(rows.tolist())
        return y[rows]

    selection = run_strategy(Galaxy(), view, 150, 0, oracle=oracle)
    assert asked == selection.rows_b.tolist()
    assert selection.oracle_calls == 150
    p = view.embeddings_Nd.softmax(dim=1).amax(dim=1)
    assert p[selection.rows_b].mean() < p.mean() - 0.1
    assumed = run_strategy(Galaxy(pseudo=True), view, 150, 0)
    assert assumed.oracle_calls == 0
    assert p[assumed.rows_b].mean() < p.mean() - 0.1
