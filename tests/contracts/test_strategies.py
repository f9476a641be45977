"""What every strategy of the catalogue must hold; a new one is tested by being listed.

Wrappers must hold it too, around a score, a strategy that spreads its picks and a random one.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch

from svp.errors import InputError
from svp.proxies import LinearConfig, MLPConfig, ProxyConfig, Standardiser, fit_proxy
from svp.strategies import catalog
from svp.strategies.base import Budget, Int64Array, PoolView, Selection, Strategy, gather
from svp.strategies.catalog import STRATEGIES, build_strategy, describe, names, reads_labels
from svp.strategies.keys import keys_of
from svp.strategies.wrapper import Wrapper
from svp.strategies.wrapping import Wrapping

_N, _D, _C = 1300, 16, 5
_WRAPPINGS = {
    "random_share": Wrapping(random_share=0.3),
    "collapse": Wrapping(collapse_duplicates=0.97),
    "equal": Wrapping(groups="equal"),
    "proportional": Wrapping(groups="proportional"),
    "class_balance": Wrapping(class_balance=True),
    "prefilter": Wrapping(prefilter="entropy:3"),
    "all": Wrapping(
        random_share=0.2,
        collapse_duplicates=0.97,
        groups="proportional",
        class_balance=True,
        prefilter="margin:4",
    ),
}
_WRAPPED = [f"{name}+{around}" for name in ("margin", "coreset", "random") for around in _WRAPPINGS]


def _pool(
    *,
    seed: int = 0,
    n: int = _N,
    config: ProxyConfig | None = None,
    missing_class: bool = False,
    copies: int = 0,
    one_class: bool = False,
    device: str = "cpu",
) -> PoolView:
    """A mixture of overlapping clumps; the last `copies` rows repeat the row before them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(_C, _D)) * 1.5
    y_N = rng.integers(0, _C, n)
    x = centres[y_N] + rng.normal(size=(n, _D))
    x = x.astype(np.float16).astype(np.float32)
    if copies:
        x[-copies:] = x[-copies - 1]
    rows = rng.permutation(n - copies - 1) if copies else rng.permutation(n)
    labelled = np.sort(rows[:60]).astype(np.int64)
    if missing_class:
        y_N[labelled[y_N[labelled] == _C - 1]] = 0
    if one_class:
        y_N[labelled] = 2
    x_Nd = torch.from_numpy(x)
    proxy = fit_proxy(
        x_Nd[torch.from_numpy(labelled)],
        torch.from_numpy(y_N[labelled]),
        _C,
        config if config is not None else LinearConfig(),
        standardiser=Standardiser.fit(x_Nd),
        seed=0,
        device=device,
    )
    return PoolView(
        embeddings_Nd=x_Nd,
        keys_N=keys_of(f"item-{row}" for row in range(n)),
        unlabelled_U=np.setdiff1d(np.arange(n, dtype=np.int64), labelled),
        labelled_L=labelled,
        y_L=y_N[labelled].astype(np.int64),
        n_classes=_C,
        proxy=proxy,
        views=tuple(
            torch.from_numpy(
                (x + 0.3 * rng.normal(size=x.shape)).astype(np.float16).astype(np.float32)
            )
            for _ in range(2)
        ),
        groups_N=rng.integers(0, 4, n) * 7,
    )


def run_strategy(
    strategy: Strategy, view: PoolView, b: int, seed: int, budget: Budget | None = None
) -> Selection:
    """Run it with an oracle if it reads labels; an item's class follows from its key alone."""

    def oracle(rows: Int64Array) -> Int64Array:
        return (view.keys_N[rows] % np.uint64(max(view.n_classes, 1))).astype(np.int64)

    known = oracle if reads_labels(strategy) else None
    return catalog.run_strategy(strategy, view, b, seed, budget=budget, oracle=known)


def _dense(view: PoolView) -> torch.Tensor:
    assert isinstance(view.embeddings_Nd, torch.Tensor)
    return view.embeddings_Nd


def _permuted(view: PoolView, seed: int) -> PoolView:
    """The same pool in another order."""
    order = np.random.default_rng(seed).permutation(len(view.keys_N))
    place = np.argsort(order)
    labelled = place[view.labelled_L]
    by_row = np.argsort(labelled)
    return dataclasses.replace(
        view,
        embeddings_Nd=_dense(view)[torch.from_numpy(order)],
        views=tuple(gather(other, order) for other in view.views),
        keys_N=view.keys_N[order],
        unlabelled_U=np.sort(place[view.unlabelled_U]),
        labelled_L=labelled[by_row],
        y_L=view.y_L[by_row],
        groups_N=None if view.groups_N is None else view.groups_N[order],
    )


def _keys(view: PoolView, selection: Selection) -> list[int]:
    return view.keys_N[selection.rows_b].tolist()


@pytest.fixture(scope="module")
def pool() -> PoolView:
    return _pool()


@pytest.fixture(scope="module")
def mlp_pool() -> PoolView:
    return _pool(config=MLPConfig(epochs=5, hidden=24))


# What must hold does not depend on how long a strategy trains; how well it chooses does, and that
# is for the reference tests.
_FEW_STEPS: dict[str, dict[str, object]] = {
    "uncertain_gcn": {"epochs": 8},
    "core_gcn": {"epochs": 8},
    "vaal": {"steps": 6, "width": 64},
    "waal": {"steps": 8, "width": 64},
    "learning_loss": {"steps": 12},
    "activeft_pre": {"iterations": 10},
    "activeft_al": {"iterations": 10},
}


@pytest.fixture(params=[*names(), *_WRAPPED])
def strategy(request: pytest.FixtureRequest) -> Strategy:
    name, _, around = request.param.partition("+")
    params = _FEW_STEPS.get(name, {})
    return build_strategy(name, params, wrapping=_WRAPPINGS[around] if around else None)


def test_it_chooses_the_budget_in_distinct_candidates(strategy: Strategy, pool: PoolView) -> None:
    selection = run_strategy(strategy, pool, 37, 1)
    assert len(selection.rows_b) == 37 == len(set(selection.rows_b.tolist()))
    assert set(selection.rows_b.tolist()) <= set(pool.unlabelled_U.tolist())
    assert selection.rows_b.dtype == np.int64
    assert selection.utility_b.dtype == np.float32
    assert selection.reason.count("{utility}") == 1
    assert selection.exactness == strategy.exactness
    assert (selection.oracle_calls > 0) == reads_labels(strategy)
    # A yardstick that knows all labels reads them all.
    assert selection.oracle_calls <= (len(pool.unlabelled_U) if strategy.family == "oracle" else 37)
    json.dumps(dict(selection.state), allow_nan=False)


def test_the_same_seed_chooses_the_same(strategy: Strategy, pool: PoolView) -> None:
    first, second = (run_strategy(strategy, pool, 25, 4) for _ in range(2))
    np.testing.assert_array_equal(first.rows_b, second.rows_b)
    np.testing.assert_array_equal(first.utility_b, second.utility_b)


def test_another_seed_chooses_otherwise_only_if_it_draws(
    strategy: Strategy, pool: PoolView
) -> None:
    first, second = (run_strategy(strategy, pool, 25, seed) for seed in (4, 5))
    assert strategy.stochastic == (first.rows_b.tolist() != second.rows_b.tolist())


@pytest.mark.parametrize("tile_rows", [1, 7, 64, 1024, _N])
@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_tile_and_cache_size_change_nothing(
    strategy: Strategy, mlp_pool: PoolView, tile_rows: int, cache_bytes: int
) -> None:
    expected = run_strategy(strategy, mlp_pool, 40, 2)
    budget = Budget(tile_rows=tile_rows, cache_bytes=cache_bytes)
    got = run_strategy(strategy, mlp_pool, 40, 2, budget)
    np.testing.assert_array_equal(expected.rows_b, got.rows_b)
    np.testing.assert_array_equal(expected.utility_b, got.utility_b)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("order", [11, 12, 13])
def test_the_order_of_the_pool_changes_nothing(
    strategy: Strategy, pool: PoolView, mlp_pool: PoolView, head: str, order: int
) -> None:
    view = pool if head == "linear" else mlp_pool
    other = _permuted(view, order)
    expected, got = run_strategy(strategy, view, 40, 3), run_strategy(strategy, other, 40, 3)
    assert _keys(view, expected) == _keys(other, got)
    np.testing.assert_array_equal(expected.utility_b, got.utility_b)


def test_copies_of_one_item_neither_break_it_nor_depend_on_order(strategy: Strategy) -> None:
    view = _pool(copies=900)
    other = _permuted(view, 5)
    for b in (50, 700):
        expected, got = run_strategy(strategy, view, b, 6), run_strategy(strategy, other, b, 6)
        assert _keys(view, expected) == _keys(other, got)
        assert len(set(expected.rows_b.tolist())) == b


def test_identical_items_are_all_ties(strategy: Strategy) -> None:
    view = _pool(n=200)
    view = dataclasses.replace(
        view, embeddings_Nd=torch.ones(200, _D), views=(torch.ones(200, _D), torch.ones(200, _D))
    )
    other = _permuted(view, 8)
    expected, got = run_strategy(strategy, view, 30, 1), run_strategy(strategy, other, 30, 1)
    assert _keys(view, expected) == _keys(other, got)
    # Ties must not follow position: labels would start with the first folder of the source.
    assert expected.rows_b.tolist() != sorted(expected.rows_b.tolist())


def test_a_budget_of_everything_takes_everything(strategy: Strategy) -> None:
    view = _pool(n=150)
    selection = run_strategy(strategy, view, len(view.unlabelled_U), 0)
    np.testing.assert_array_equal(np.sort(selection.rows_b), view.unlabelled_U)


@pytest.mark.parametrize("b", [0, -1, 1241])
def test_an_impossible_budget_is_refused(strategy: Strategy, pool: PoolView, b: int) -> None:
    with pytest.raises(InputError, match="budget of a round must be in"):
        run_strategy(strategy, pool, b, 0)


@pytest.mark.parametrize("kind", [LinearConfig(), MLPConfig(epochs=3)])
@pytest.mark.parametrize("case", ["missing_class", "one_class"])
def test_missing_classes_do_not_matter(strategy: Strategy, kind: ProxyConfig, case: str) -> None:
    view = _pool(config=kind, n=200, **{case: True})
    other = _permuted(view, 3)
    expected, got = run_strategy(strategy, view, 20, 0), run_strategy(strategy, other, 20, 0)
    assert _keys(view, expected) == _keys(other, got)


def test_inputs_are_left_alone(strategy: Strategy) -> None:
    view = _pool(n=200)
    before = [
        _dense(view).clone(),
        *(
            torch.from_numpy(array.astype(np.int64))
            for array in (view.keys_N, view.unlabelled_U, view.labelled_L, view.y_L)
        ),
    ]
    run_strategy(strategy, view, 20, 0)
    after = [
        _dense(view),
        *(
            torch.from_numpy(array.astype(np.int64))
            for array in (view.keys_N, view.unlabelled_U, view.labelled_L, view.y_L)
        ),
    ]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_float16_embeddings_choose_like_their_float32_values(
    strategy: Strategy, pool: PoolView
) -> None:
    half = dataclasses.replace(pool, embeddings_Nd=_dense(pool).half())
    np.testing.assert_array_equal(
        run_strategy(strategy, pool, 30, 9).rows_b, run_strategy(strategy, half, 30, 9).rows_b
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_refused(
    strategy: Strategy, pool: PoolView, value: float
) -> None:
    if not strategy.needs:
        pytest.skip("reads no embeddings")
    broken = _dense(pool).clone()
    broken[int(pool.unlabelled_U[5]), 3] = value
    with pytest.raises(InputError, match="NaN or infinity in 1 of"):
        run_strategy(strategy, dataclasses.replace(pool, embeddings_Nd=broken), 10, 0)


def test_a_round_without_labels(strategy: Strategy, pool: PoolView) -> None:
    none = np.zeros(0, dtype=np.int64)
    view = dataclasses.replace(
        pool,
        unlabelled_U=np.arange(_N, dtype=np.int64),
        labelled_L=none,
        y_L=none,
        n_classes=0,
        proxy=None,
    )
    if not strategy.needs & {"logits", "linear_head", "labelled"}:
        assert len(run_strategy(strategy, view, 12, 0).rows_b) == 12
    else:
        with pytest.raises(InputError, match="must have"):
            run_strategy(strategy, view, 12, 0)


class _Fetched:
    """Embeddings that are handed out in pieces only, like those of a store."""

    def __init__(self, x_Nd: torch.Tensor) -> None:
        self._x_Nd = x_Nd
        self.largest = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self._x_Nd.shape[0], self._x_Nd.shape[1]

    @property
    def device(self) -> torch.device:
        return self._x_Nd.device

    def gather(self, rows_M: Int64Array) -> torch.Tensor:
        self.largest = max(self.largest, len(rows_M))
        return gather(self._x_Nd, rows_M)


def test_a_pool_that_is_fetched_piece_by_piece_gives_the_same(
    strategy: Strategy, pool: PoolView
) -> None:
    fetched = _Fetched(_dense(pool))
    views = tuple(_Fetched(gather(view, np.arange(_N))) for view in pool.views)
    lazy = dataclasses.replace(pool, embeddings_Nd=fetched, views=views)
    expected = run_strategy(strategy, pool, 40, 2)
    got = run_strategy(strategy, lazy, 40, 2, Budget(tile_rows=64, cache_bytes=0))
    np.testing.assert_array_equal(expected.rows_b, got.rows_b)
    # Near-duplicates are compared in tiles and pairs of their own size.
    assert fetched.largest <= (4096 if isinstance(strategy, Wrapper) else 1024)


def test_a_memory_cap_is_kept_or_refused_before_anything_runs(
    strategy: Strategy, pool: PoolView
) -> None:
    needed = strategy.cost(pool.shape(40, Budget())).bytes
    assert needed > 0
    capped = Budget(memory_bytes=needed)
    np.testing.assert_array_equal(
        run_strategy(strategy, pool, 40, 2, capped).rows_b,
        run_strategy(strategy, pool, 40, 2).rows_b,
    )
    with pytest.raises(InputError, match="must fit in the memory cap"):
        run_strategy(strategy, pool, 40, 2, Budget(memory_bytes=needed - 1))


def test_a_strategy_that_reads_labels_refuses_a_campaign_with_people(
    strategy: Strategy, pool: PoolView
) -> None:
    if reads_labels(strategy):
        with pytest.raises(InputError, match="must be given known labels"):
            catalog.run_strategy(strategy, pool, 10, 0)
    else:
        assert catalog.run_strategy(strategy, pool, 10, 0).oracle_calls == 0


def test_descriptions_are_complete() -> None:
    assert len({one.name for one in describe()}) == len(STRATEGIES) == len(names())
    for one in describe():
        assert one.summary
        assert one.family
        assert one.source
        assert one.scaling
        assert build_strategy(one.name, one.params) == build_strategy(one.name)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("marginn", {}, "Did you mean margin"),
        ("margin", {"spce": "prob"}, "margin.spce .* Did you mean space"),
        ("margin", {"space": "probs"}, "margin.space .* Did you mean prob"),
        ("kmeans", {"iterations": 0}, "kmeans.iterations must be at least 1"),
        ("kmeans", {"iterations": "20"}, "kmeans.iterations must be of type int"),
        ("badge", {"include_labelled": 1}, "badge.include_labelled must be of type bool"),
        ("random", {"space": "prob"}, "random has no parameters"),
    ],
)
def test_misspellings_are_answered_with_what_was_meant(
    name: str, params: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_strategy(name, params)


@pytest.mark.parametrize("name", ["coreset", "kmeans"])
@pytest.mark.parametrize("norm", ["l2", "zscore"])
@pytest.mark.parametrize("space", ["input", "hidden"])
def test_other_spaces_and_norms_hold_the_rules_too(
    name: str, norm: str, space: str, mlp_pool: PoolView
) -> None:
    chosen = build_strategy(name, {"norm": norm, "space": space})
    other = _permuted(mlp_pool, 21)
    expected = run_strategy(chosen, mlp_pool, 30, 3)
    got = run_strategy(chosen, other, 30, 3, Budget(tile_rows=1, cache_bytes=0))
    assert _keys(mlp_pool, expected) == _keys(other, got)


def test_views_that_contradict_themselves_are_refused(pool: PoolView) -> None:
    strategy = build_strategy("random")
    for change in (
        {"keys_N": pool.keys_N[1:]},
        {"unlabelled_U": pool.unlabelled_U[::-1]},
        {"unlabelled_U": np.arange(_N, dtype=np.int64)},
        {"y_L": pool.y_L[1:]},
        {"y_L": pool.y_L + _C},
        {"embeddings_Nd": _dense(pool)[:, None, :]},
    ):
        with pytest.raises(InputError):
            run_strategy(strategy, dataclasses.replace(pool, **change), 5, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_rules_hold_on_a_gpu(strategy: Strategy) -> None:
    pool = _pool(device="cuda")
    cuda = torch.device("cuda")
    other = _permuted(pool, 31)
    expected = run_strategy(strategy, pool, 40, 3, Budget(device=cuda))
    got = run_strategy(
        strategy, other, 40, 3, budget=Budget(device=cuda, tile_rows=1, cache_bytes=0)
    )
    assert _keys(pool, expected) == _keys(other, got)
    on_cpu = run_strategy(strategy, _pool(), 40, 3)
    if strategy.name in ("random", "coreset"):
        np.testing.assert_array_equal(expected.rows_b, on_cpu.rows_b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", [LinearConfig(), MLPConfig(epochs=5, hidden=24)])
def test_proxies_on_a_gpu_predict_like_those_on_the_cpu(config: ProxyConfig) -> None:
    here, there = (_pool(config=config, device=device) for device in ("cpu", "cuda"))
    assert here.proxy is not None
    assert there.proxy is not None
    one = here.proxy.logits(_dense(here)).argmax(dim=1)
    two = there.proxy.logits(_dense(there).cuda()).argmax(dim=1).cpu()
    assert (one == two).float().mean() > 0.95
