"""Balancing against the rule carried out with every centre and distance taken anew."""

import dataclasses

import numpy as np
import pytest
import torch

from svp.strategies.base import Int64Array, PoolView
from svp.strategies.catalog import build_strategy, run_strategy
from svp.strategies.keys import keys_of

_RNG = np.random.default_rng(0)
_Y = _RNG.integers(0, 4, 700)
_X = (_RNG.normal(size=(4, 6))[_Y] * 2 + _RNG.normal(size=(700, 6))).astype(np.float32)


def _view(counts: list[int]) -> PoolView:
    labelled = np.sort(
        np.concatenate([np.flatnonzero(one == _Y)[:count] for one, count in enumerate(counts)])
    )
    return PoolView(
        embeddings_Nd=torch.from_numpy(_X),
        keys_N=keys_of(str(row) for row in range(700)),
        unlabelled_U=np.setdiff1d(np.arange(700), labelled),
        labelled_L=labelled,
        y_L=_Y[labelled].astype(np.int64),
        n_classes=4,
    )


def _oracle(rows: Int64Array) -> Int64Array:
    return _Y[rows].astype(np.int64)


def _plain(view: PoolView, b: int, seed: int) -> list[int]:
    order = view.candidates(seed)
    labelled, chosen = view.labelled_L.tolist(), []
    x = _X.astype(np.float64)
    for left in range(b, 0, -1):
        counts = np.bincount(_Y[labelled], minlength=4)
        major = counts > counts.mean()
        rest = [row for row in order.tolist() if row not in chosen]
        pick = rest[0]
        if major.any():
            gap = counts[major].mean() - counts[~major].mean()
            if left <= (~major).sum() * gap:
                rarest = int(counts.argmin())
                means = [
                    x[[r for r in labelled if _Y[r] == one]].mean(axis=0) if counts[one] else x[0]
                    for one in range(4)
                ]
                far = np.max(
                    [((x[rest] - means[one]) ** 2).sum(axis=1) for one in np.flatnonzero(major)],
                    axis=0,
                )
                near = (
                    ((x[rest] - means[rarest]) ** 2).sum(axis=1)
                    if counts[rarest]
                    else np.ones(len(rest))
                )
                pick = rest[int((near / far).argmin())]
        chosen.append(pick)
        labelled.append(pick)
    return chosen


@pytest.mark.parametrize("counts", [[40, 30, 3, 2], [20, 20, 20, 1], [30, 10, 10, 0], [5, 5, 5, 6]])
def test_picks_are_those_of_the_plain_rule(counts: list[int]) -> None:
    view = _view(counts)
    found = run_strategy(build_strategy("balancing"), view, 40, 3, oracle=_oracle)
    assert found.rows_b.tolist() == _plain(view, 40, 3)
    assert found.oracle_calls == 39


def test_balanced_counts_are_random() -> None:
    view = _view([10, 10, 10, 10])
    found = run_strategy(build_strategy("balancing"), view, 1, 3, oracle=_oracle)
    plain = run_strategy(build_strategy("random"), view, 1, 3)
    assert found.rows_b.tolist() == plain.rows_b.tolist()


def test_counts_converge() -> None:
    view = _view([40, 40, 40, 2])
    found = run_strategy(build_strategy("balancing"), view, 60, 0, oracle=_oracle)
    counts = np.bincount(_Y[np.concatenate([view.labelled_L, found.rows_b])], minlength=4)
    assert counts.max() - counts.min() <= 10


def test_predictions_can_stand_for_labels() -> None:
    from svp.proxies import LinearConfig, Standardiser, fit_proxy

    view = _view([40, 30, 10, 10])
    x = torch.from_numpy(_X)
    rows = torch.from_numpy(view.labelled_L)
    proxy = fit_proxy(
        x[rows],
        torch.from_numpy(view.y_L),
        4,
        LinearConfig(),
        standardiser=Standardiser.fit(x),
        seed=0,
        device="cpu",
    )
    view = dataclasses.replace(view, proxy=proxy)
    found = run_strategy(build_strategy("balancing", {"pseudo": True}), view, 40, 3)
    assert found.oracle_calls == 0

    def predicted(asked: Int64Array) -> Int64Array:
        return proxy.logits(x[torch.from_numpy(asked)]).argmax(dim=1).numpy()

    same = run_strategy(build_strategy("balancing"), view, 40, 3, oracle=predicted)
    assert same.rows_b.tolist() == found.rows_b.tolist()
