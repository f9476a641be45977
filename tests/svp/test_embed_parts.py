"""Embedding on real Dask workers: the table of one process, also when a worker is killed."""

import collections
import dataclasses
import functools
import io
import os
import signal
import threading
import time
from pathlib import Path

import cluster_material
import distributed
import numpy as np
import pytest
from cluster_material import CountingView, OpenMoved, noted
from encoder_fixtures import photograph, small_folder

from feature_store import FeatureStore, Pool, open_store
from svp.cluster import InProcess
from svp.cluster.dask import DaskExecutor
from svp.data.opening import open_source
from svp.embed import DriftError, EmbedConfig, check_golden, embed
from svp.embed.parts import embed_in_parts, part_rows
from svp.encoders.encoder import Encoder, open_encoder
from svp.errors import FailureRateError, IdentityError, InputError
from svp.progress import Lines

CONFIG = EmbedConfig(batch_size=8, workers=1, chunk_rows=16, segment_rows=32, max_failure_rate=1)


@pytest.fixture(scope="module")
def cluster():
    with cluster_material.cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def executor(cluster):
    with distributed.Client(cluster) as client:
        yield DaskExecutor(client)


@dataclasses.dataclass
class Material:
    folder: Path
    spec: str
    encoder: Encoder
    pool: Pool

    def parts(self, executor, store, **options):
        opener = options.pop("opener", functools.partial(open_encoder, self.spec))
        return embed_in_parts(
            executor, opener, self.pool, open_source(self.folder), self.encoder, store,
            device="cpu", **{"config": CONFIG, **options},
        )  # fmt: skip

    def alone(self, store, **options):
        return embed(
            self.pool, open_source(self.folder), self.encoder, store,
            **{"config": CONFIG, **options},
        )  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    (root / "images").mkdir()
    for number in range(150):
        photograph(18, 18, seed=number).save(root / "images" / f"{number:04d}.png")
    (root / "images" / "0000copy.png").write_bytes((root / "images" / "0007.png").read_bytes())
    small_folder(root / "encoder")
    spec = str(root / "encoder")
    return Material(
        root / "images", spec, open_encoder(spec), open_source(root / "images").scan().pool
    )


def stored(store: FeatureStore, encoder: Encoder, view: str = "eval") -> dict[str, bytes]:
    """Return every byte that a table's rows are made of, by segment."""
    table = store.table(encoder.id, view)
    assert table.verify() == []
    return {
        manifest.id: b"".join(chunk.digest.encode() for chunk in manifest.embeddings)
        for manifest in table.segments()
    }


def test_the_table_of_one_process_bit_by_bit(executor, material, tmp_path):
    alone, apart = (open_store(tmp_path / name, create=True) for name in ("one", "many"))
    expected = material.alone(alone)
    result = material.parts(executor, apart)
    assert stored(apart, material.encoder) == stored(alone, material.encoder)
    for name in ("pool_id", "encoder_id", "view", "embedded", "reused", "failed", "failed_items"):
        assert getattr(result, name) == getattr(expected, name), name
    assert sorted(result.segments) == sorted(expected.segments)
    assert apart.pools() == alone.pools() == [material.pool.id]
    again = material.parts(executor, apart)
    assert (again.embedded, again.reused, again.segments) == (0, 150, ())


def test_broken_images_are_counted_once_for_the_whole_pool(executor, material, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(material.folder.iterdir())[:60]:
        (folder / path.name).write_bytes(path.read_bytes())
    pool = open_source(folder).scan().pool
    for name in ("0003.png", "0040.png", "0041.png"):
        (folder / name).write_bytes(b"changed since the scan")
    broken = dataclasses.replace(material, folder=folder, pool=pool)
    alone, apart = (open_store(tmp_path / name, create=True) for name in ("one", "many"))
    expected = broken.alone(alone)
    result = broken.parts(executor, apart)
    assert (
        (result.failed, result.failed_items) == (expected.failed, expected.failed_items) == (3, 3)
    )
    assert result.failures == expected.failures
    assert stored(apart, material.encoder) == stored(alone, material.encoder)
    strict = dataclasses.replace(CONFIG, max_failure_rate=0.01, retry=True)
    with pytest.raises(FailureRateError) as caught:
        broken.parts(executor, apart, config=strict)
    assert (caught.value.result.failed, caught.value.result.failed_now) == (3, 3)


def test_a_killed_worker_costs_at_most_a_chunk(cluster, executor, material, tmp_path):
    log = tmp_path / "computed"
    view = CountingView(log, pause_s=0.05)
    store = open_store(tmp_path / "store", create=True)
    killed: list[int] = []

    def kill() -> None:
        while len(noted(log)) < 50:
            time.sleep(0.01)
        pids = [worker.process.pid for worker in cluster.workers.values()]
        killed.append(pids[0])
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = material.parts(executor, store, view="plain", augment=view)
    killer.join()
    assert killed
    assert (result.embedded, result.failed) == (150, 0)
    times = collections.Counter(noted(log))
    assert len(times) == 150
    # The chunk in work; those before it are on disk.
    assert sum(times.values()) - 150 <= CONFIG.chunk_rows
    reference = open_store(tmp_path / "reference", create=True)
    material.alone(reference, view="plain", augment=CountingView(tmp_path / "other"))
    assert stored(store, material.encoder, "plain") == stored(reference, material.encoder, "plain")


def test_a_worker_with_other_weights_is_refused(executor, material, tmp_path):
    small_folder(tmp_path / "other", seed=5)
    store = open_store(tmp_path / "store", create=True)
    with pytest.raises(IdentityError, match="same weights"):
        material.parts(
            executor, store, opener=functools.partial(open_encoder, str(tmp_path / "other"))
        )
    assert store.table(material.encoder.id).segments() == ()


def written(folder: Path) -> list[str]:
    """Return every file below a store's tables that holds rows, published or not."""
    return [str(path) for path in folder.glob("encoders/*/*/**/*") if path.name.startswith("c.")]


def test_workers_whose_vectors_moved_write_nothing(executor, material, tmp_path):
    store = open_store(tmp_path / "store", create=True)
    check_golden(store, material.encoder)
    with pytest.raises(DriftError, match=r"On worker .*:\d+: .*--accept-drift") as caught:
        material.parts(executor, store, opener=OpenMoved(material.spec, 1.5))
    assert caught.value.exit_code == 4
    assert caught.value.report.relative_error > 0.01
    assert written(tmp_path / "store") == []


def test_one_moved_worker_of_two_spoils_no_row(executor, material, tmp_path):
    store, reference = (open_store(tmp_path / name, create=True) for name in ("one", "two"))
    check_golden(store, material.encoder)
    with pytest.raises(DriftError):
        material.parts(executor, store, opener=OpenMoved(material.spec, 1.5, tmp_path / "moved"))
    # What the other worker wrote is continued, not computed again: a wrong row would show.
    material.alone(store)
    material.alone(reference)
    assert stored(store, material.encoder) == stored(reference, material.encoder)


@pytest.mark.parametrize(("factor", "status"), [(1.002, "drifted"), (1.5, "accepted")])
def test_what_moved_on_workers_is_told(executor, material, tmp_path, factor, status):
    store, log = open_store(tmp_path / "store", create=True), io.StringIO()
    check_golden(store, material.encoder)
    result = material.parts(
        executor, store, opener=OpenMoved(material.spec, factor),
        accept_drift=status == "accepted", progress=Lines(log),
    )  # fmt: skip
    assert result.embedded == 150
    assert {test.golden.status for test in result.workers} == {status}
    assert all(test.golden.relative_error > 1e-4 for test in result.workers)
    for test in result.workers:
        assert not test.worker.endswith(f":{os.getpid()}")
        assert f"Worker {test.worker}: Warning: the golden images" in log.getvalue()


def test_workers_that_did_not_move_say_so(executor, material, tmp_path):
    store, log = open_store(tmp_path / "store", create=True), io.StringIO()
    check_golden(store, material.encoder)
    result = material.parts(executor, store, progress=Lines(log))
    assert {test.golden.status for test in result.workers} == {"same"}
    assert "Warning" not in log.getvalue()


def test_shards_and_clusters_exclude_each_other(material, tmp_path):
    store = open_store(tmp_path / "store", create=True)
    with pytest.raises(InputError, match="--shard"):
        material.parts(InProcess(), store, config=dataclasses.replace(CONFIG, shard=(0, 2)))


def test_parts_follow_from_the_pool_alone():
    assert [part_rows(rows) for rows in (1, 10_000, 1_000_000, 10**8)] == [256, 256, 8192, 65_536]


def test_one_process_can_run_the_parts(material, tmp_path):
    one, other = (open_store(tmp_path / name, create=True) for name in ("one", "other"))
    material.alone(one)
    material.parts(InProcess(), other)
    assert stored(one, material.encoder) == stored(other, material.encoder)
    x = other.table(material.encoder.id).read(material.pool.digests)
    assert np.isfinite(x).all()
    assert len(x) == 151
