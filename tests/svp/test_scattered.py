"""Choosing from the store on Dask workers: the choice of one process, bit for bit."""

import dataclasses
import os
import signal
from pathlib import Path

import cluster_material
import distributed
import numpy as np
import pytest
import torch
from cluster_material import note, noted

from feature_store import FeatureStore, open_store
from svp.cluster import InProcess
from svp.cluster.dask import DaskExecutor
from svp.errors import InputError
from svp.progress import Silent
from svp.proxies import LinearConfig, MLPConfig, Proxy, Standardiser, fit_proxy
from svp.strategies.base import PoolView
from svp.strategies.catalog import build_strategy, run_strategy
from svp.strategies.keys import hash_keys, keys_of
from svp.study import hierarchy, moments, scoring
from svp.study.located import Located, RowReader, TableAddress, locate

ROWS, DIM, CLASSES, LABELLED = 5000, 24, 5, 60
IDENTITY = {"made": "for this test"}


@pytest.fixture(scope="module")
def executor():
    with cluster_material.cluster() as cluster, distributed.Client(cluster) as client:
        yield DaskExecutor(client)


def write_table(store: FeatureStore, digests: np.ndarray, x: np.ndarray, **sizes: int) -> None:
    encoder_id = store.put_encoder(IDENTITY)
    table = store.table(encoder_id)
    for plan in table.plan(digests, dim=x.shape[1], dtype=x.dtype, **sizes):
        writer = table.writer(plan)
        for chunk in writer.pending():
            writer.write(chunk, x[plan.positions[chunk.start : chunk.stop]])
        writer.seal()


@dataclasses.dataclass
class Pool:
    x: np.ndarray
    keys: np.ndarray
    address: TableAddress
    located: Located
    proxy: Proxy
    classes: np.ndarray

    @property
    def candidates(self) -> np.ndarray:
        return np.arange(LABELLED, len(self.x))

    def view(self) -> PoolView:
        return PoolView(
            embeddings_Nd=torch.from_numpy(self.x),
            keys_N=self.keys,
            unlabelled_U=self.candidates,
            labelled_L=np.arange(LABELLED),
            y_L=self.classes[:LABELLED],
            n_classes=CLASSES,
            proxy=self.proxy,
        )

    def places(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(hash_keys(self.keys[self.candidates], seed), kind="stable")
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        return order, places


def make_pool(folder: Path, dtype: str = "float16", proxy: str = "linear") -> Pool:
    rng = np.random.default_rng(3)
    centres = rng.normal(0, 1.2, (CLASSES, DIM))
    classes = rng.integers(0, CLASSES, ROWS)
    x = (centres[classes] + rng.normal(0, 1, (ROWS, DIM))).astype(dtype)
    x[2000:2600] = x[100]  # many ties, which only places decide
    digests = rng.integers(0, 256, (ROWS, 32)).astype(np.uint8)
    store = open_store(folder / "store", create=True)
    stored = rng.permutation(ROWS)  # the store has its own order
    write_table(store, digests[stored], x[stored], chunk_rows=100, segment_rows=700)
    table = store.table(store.put_encoder(IDENTITY))
    address = TableAddress(
        store_url=str(folder / "store"), encoder_id=table.encoder_id, view="eval", dim=DIM,
        dtype=dtype,
    )  # fmt: skip
    tensor = torch.from_numpy(x)
    config = LinearConfig() if proxy == "linear" else MLPConfig(epochs=2)
    trained = fit_proxy(
        tensor[:LABELLED].float(), torch.from_numpy(classes[:LABELLED]), CLASSES, config,
        standardiser=Standardiser.fit(tensor), seed=0,
    )  # fmt: skip
    keys = keys_of(f"item-{row}" for row in range(ROWS))
    return Pool(x, keys, address, locate(table, digests), trained, classes)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("pool"))


def scattered(pool: Pool, executor, strategy, budget: int, seed: int, part_rows: int = 900):
    order, places = pool.places(seed)
    chosen, utility = scoring.best_places(
        executor, pool.address, pool.located.take(pool.candidates), places,
        strategy=strategy, proxy=pool.proxy, keep=budget, seed=seed, device="cpu",
        progress=Silent(), part_rows=part_rows,
    )  # fmt: skip
    return pool.candidates[order[chosen]], utility


def assert_same(pool: Pool, executor, strategy, budget: int, seed: int, **options) -> None:
    expected = run_strategy(strategy, pool.view(), budget, seed)
    rows, utility = scattered(pool, executor, strategy, budget, seed, **options)
    assert rows.tolist() == expected.rows_b.tolist()
    assert utility.tobytes() == expected.utility_b.tobytes()


SCORES = [
    build_strategy(name, params)
    for name in ("margin", "entropy", "least_confidence")
    for params in ({}, {"space": "logit"})
    if name != "entropy" or not params
]


@pytest.mark.parametrize("strategy", SCORES, ids=lambda s: f"{s.name}-{getattr(s, 'space', '')}")
def test_scores_on_workers_are_those_of_one_process(executor, pool, strategy):
    assert_same(pool, executor, strategy, 300, seed=11)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("part_rows", [37, 1024, 10_000])
def test_neither_parts_nor_seeds_matter(pool, seed, part_rows):
    assert_same(pool, InProcess(), SCORES[0], 700, seed, part_rows=part_rows)


def test_every_utility_has_the_bits_of_one_process(pool):
    assert_same(pool, InProcess(), build_strategy("entropy"), ROWS - LABELLED, seed=5)


@pytest.mark.parametrize(("dtype", "proxy"), [("float32", "linear"), ("float16", "mlp")])
def test_other_types_and_proxies(tmp_path, dtype, proxy):
    other = make_pool(tmp_path, dtype, proxy)
    assert_same(other, InProcess(), SCORES[0], 200, seed=1, part_rows=500)


def test_a_row_keeps_its_bits_among_other_neighbours(pool):
    # What placing rows relies on: the same row at the same place of an equally high block.
    rng = np.random.default_rng(0)
    tensor = torch.from_numpy(pool.x)
    for _ in range(5):
        rows, others = rng.permutation(ROWS)[:1024], rng.permutation(ROWS)[:1024]
        kept = rng.random(1024) < 0.5
        mixed = np.where(kept, rows, others)
        one = pool.proxy.logits(tensor[torch.from_numpy(rows)].float())
        other = pool.proxy.logits(tensor[torch.from_numpy(mixed)].float())
        assert torch.equal(one[torch.from_numpy(kept)], other[torch.from_numpy(kept)])


def test_the_standardiser_is_that_of_one_process(executor, pool, monkeypatch):
    monkeypatch.setattr(scoring, "PART_ROWS", 8192)
    expected = Standardiser.fit(torch.from_numpy(pool.x))
    for runs_on in (executor, InProcess()):
        found = moments.standardise(
            runs_on, pool.address, pool.located, device="cpu", progress=Silent()
        )
        assert torch.equal(found.mean_d, expected.mean_d)
        assert torch.equal(found.std_d, expected.std_d)


def test_rows_are_read_in_any_order(pool):
    rows = np.random.default_rng(1).integers(0, ROWS, 3000)
    assert np.array_equal(RowReader(pool.address).read(pool.located.take(rows)), pool.x[rows])


@dataclasses.dataclass(frozen=True)
class Murderous(scoring.ScoreJob):
    log: Path = Path("log")

    def run(self, state, part, advance):
        note(self.log, "part")
        if len(noted(self.log)) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(state, part, advance)


def test_a_worker_killed_while_scoring_changes_nothing(executor, pool, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setattr(scoring, "ScoreJob", lambda **fields: Murderous(log=log, **fields))
    assert_same(pool, executor, SCORES[0], 300, seed=11, part_rows=400)
    # The part in work, and those whose results the worker still held.
    assert 1 <= len(noted(log)) - -(-(ROWS - LABELLED) // 400) <= 4


def in_two(pool: Pool, executor, strategy, budget: int, part_rows: int):
    return hierarchy.choose_in_two(
        executor, pool.address, pool.located.take(pool.candidates), pool.keys[pool.candidates],
        strategy=strategy,
        labelled=hierarchy.Labelled(
            x_Ld=pool.x[:LABELLED], keys_L=pool.keys[:LABELLED], y_L=pool.classes[:LABELLED],
            n_classes=CLASSES,
        ),
        proxy=pool.proxy, budget=budget, seed=4, device="cpu", progress=Silent(),
        part_rows=part_rows,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["coreset", "badge"])
def test_two_rounds_are_named_and_repeatable(executor, pool, name):
    strategy = build_strategy(name)
    selection = in_two(pool, executor, strategy, 20, 1500)
    assert selection.exactness == "approx:hierarchical"
    assert (selection.counters["parts"], selection.counters["proposed"]) == (4, 80)
    assert len(set(selection.rows_b.tolist())) == 20
    again = in_two(pool, InProcess(), strategy, 20, 1500)
    assert again.rows_b.tolist() == selection.rows_b.tolist()
    assert again.utility_b.tobytes() == selection.utility_b.tobytes()


def test_two_rounds_cover_almost_as_well_as_one(pool):
    strategy = build_strategy("coreset", {"space": "input"})
    x = torch.from_numpy(pool.x).double()
    exact = run_strategy(strategy, pool.view(), 40, 4).rows_b
    apart = pool.candidates[in_two(pool, InProcess(), strategy, 40, 1000).rows_b]

    def radius(rows):
        centres = torch.cat([x[:LABELLED], x[torch.from_numpy(rows)]])
        return float(torch.cdist(x, centres).min(dim=1).values.max())

    # Greedy covers within 2 of the best radius, two rounds of it within 4.
    assert radius(apart) <= 2 * radius(exact)


def test_one_part_is_the_exact_choice(pool):
    strategy = build_strategy("coreset")
    selection = in_two(pool, InProcess(), strategy, 30, 10_000)
    expected = run_strategy(strategy, pool.view(), 30, 4)
    assert selection.exactness == "exact"
    assert pool.candidates[selection.rows_b].tolist() == expected.rows_b.tolist()


def test_a_segment_that_is_gone_is_explained(pool):
    lost = dataclasses.replace(pool.located, segments=("0" * 16, *pool.located.segments[1:]))
    with pytest.raises(Exception, match="Run the same command again"):
        RowReader(pool.address).read(lost)
    with pytest.raises(InputError, match="rows"):
        moments.standardise(
            InProcess(), pool.address, pool.located.take(slice(0, 0)), device="cpu",
            progress=Silent(),
        )  # fmt: skip
