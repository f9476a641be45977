"""Embedding: each image once, rows in place, failures apart, any kill survived bit for bit."""

import dataclasses
import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import embed_worker
import numpy as np
import pytest
import torch
from encoder_fixtures import photograph, small_folder

from feature_store import FeatureStore, MissingRowsError, Pool, open_store
from svp.data.opening import open_source
from svp.embed import EmbedConfig, embed, load_features
from svp.encoders.encoder import Encoder, open_encoder
from svp.encoders.images import decode_pool, read_batches
from svp.errors import FailureRateError, InputError, TemporaryError
from svp.progress import Lines

CONFIG = embed_worker.CONFIG


def write_images(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        photograph(20, 18, seed=number).save(folder / f"{number:04d}.png")


@dataclasses.dataclass
class Bench:
    folder: Path
    encoder: Encoder
    store: FeatureStore

    def pool(self) -> Pool:
        return open_source(self.folder).scan().pool

    def embed(self, **changes: Any) -> Any:
        pool = changes.pop("pool") if "pool" in changes else self.pool()
        source = changes.pop("source") if "source" in changes else open_source(self.folder)
        config = dataclasses.replace(CONFIG, **changes)
        return embed(pool, source, self.encoder, self.store, config=config)

    def reference(self, pool: Pool) -> np.ndarray:
        source = open_source(self.folder)
        images, _, _ = decode_pool(source, pool.uris, self.encoder.preprocessing)
        return self.encoder.encode(images).numpy()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    write_images(tmp_path / "images", range(70))
    small_folder(tmp_path / "encoder")
    return Bench(
        tmp_path / "images",
        open_encoder(str(tmp_path / "encoder")),
        open_store(tmp_path / "store", create=True),
    )


def test_embeds_everything_once_and_in_place(bench: Bench) -> None:
    pool = bench.pool()
    result = bench.embed()
    assert (result.embedded, result.reused, result.failed) == (70, 0, 0)
    assert len(result.segments) == 2
    rows, x = load_features(bench.store, pool, bench.encoder.id)
    assert rows.tolist() == list(range(70))
    np.testing.assert_allclose(x, bench.reference(pool), rtol=1e-4, atol=1e-5)
    assert bench.store.encoder(bench.encoder.id) == bench.encoder.identity
    again = bench.embed()
    assert (again.embedded, again.reused, again.segments) == (0, 70, ())
    assert bench.store.table(bench.encoder.id).verify() == []


def test_overlap_and_copies_are_computed_once(bench: Bench) -> None:
    bench.embed()
    write_images(bench.folder, range(60, 80))
    (bench.folder / "copy.png").write_bytes((bench.folder / "0003.png").read_bytes())
    result = bench.embed()
    assert (result.embedded, result.reused) == (10, 70)
    pool = bench.pool()
    _, x = load_features(bench.store, pool, bench.encoder.id)
    assert np.array_equal(x[pool.index_of(["copy.png"])], x[pool.index_of(["0003.png"])])
    np.testing.assert_allclose(x, bench.reference(pool), rtol=1e-4, atol=1e-5)


def test_broken_images_move_no_other(bench: Bench) -> None:
    sound = bench.pool()
    for number in (0, 7, 8, 33, 69):
        path = bench.folder / f"{number:04d}.png"
        path.write_bytes(path.read_bytes()[: 200 + number])
    result = bench.embed()
    assert (result.embedded, result.failed, result.failed_now) == (65, 5, 5)
    pool = bench.pool()
    rows, x = load_features(bench.store, pool, bench.encoder.id)
    assert sorted(set(range(70)) - set(rows.tolist())) == [0, 7, 8, 33, 69]
    write_images(bench.folder, range(70))
    np.testing.assert_allclose(x, bench.reference(sound)[rows], rtol=1e-4, atol=1e-5)
    failures = bench.store.table(bench.encoder.id).failures()
    assert {failure.kind for failure in failures.values()} == {"corrupt"}
    # Known failures are not tried again unless asked, and never read as data.
    again = bench.embed(pool=pool)
    assert (again.embedded, again.failed, again.failed_now) == (0, 5, 0)
    with pytest.raises(MissingRowsError):
        bench.store.table(bench.encoder.id).read(pool.digests)


def test_too_many_failures_is_an_error_every_time(bench: Bench) -> None:
    for number in range(3):
        (bench.folder / f"{number:04d}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes([number]))
    for _ in range(2):
        with pytest.raises(FailureRateError, match="3 of 70"):
            bench.embed(max_failure_rate=0.02)
    assert len(load_features(bench.store, bench.pool(), bench.encoder.id)[0]) == 67
    assert bench.embed(max_failure_rate=0.05).failed == 3


def test_changed_and_missing_files_are_retried_when_asked(bench: Bench) -> None:
    pool = bench.pool()
    changed, missing = bench.folder / "0005.png", bench.folder / "0006.png"
    before = changed.read_bytes(), missing.read_bytes()
    photograph(20, 18, seed=999).save(changed)
    missing.unlink()
    assert bench.embed(pool=pool).failed == 2
    failures = bench.store.table(bench.encoder.id).failures()
    kinds = [failures[pool.digests[row].tobytes()].kind for row in (5, 6)]
    assert kinds == ["transient", "missing"]
    changed.write_bytes(before[0])
    missing.write_bytes(before[1])
    assert bench.embed(pool=pool).failed == 2
    result = bench.embed(pool=pool, retry=True)
    assert (result.embedded, result.failed) == (2, 0)
    _, x = load_features(bench.store, pool, bench.encoder.id)
    np.testing.assert_allclose(x, bench.reference(pool), rtol=1e-4, atol=1e-5)


def test_a_source_that_vanished_is_no_failure_of_its_items(bench: Bench) -> None:
    pool, source = bench.pool(), open_source(bench.folder)
    bench.folder.rename(bench.folder.with_name("gone"))
    with pytest.raises(TemporaryError, match="readable"):
        bench.embed(pool=pool, source=source)
    bench.folder.with_name("gone").rename(bench.folder)
    assert bench.embed(pool=pool, source=source).embedded == 70
    assert not bench.store.table(bench.encoder.id).failures()


@pytest.mark.parametrize("changes", [{"workers": 1}, {"workers": 7}])
def test_bits_do_not_depend_on_threads(bench: Bench, tmp_path: Path, changes: Any) -> None:
    pool = bench.pool()
    bench.embed()
    other = dataclasses.replace(bench, store=open_store(tmp_path / "other", create=True))
    other.embed(**changes)
    mine = load_features(bench.store, pool, bench.encoder.id)[1]
    assert mine.tobytes() == load_features(other.store, pool, bench.encoder.id)[1].tobytes()


def test_batch_size_is_noise(bench: Bench, tmp_path: Path) -> None:
    pool = bench.pool()
    bench.embed()
    other = dataclasses.replace(bench, store=open_store(tmp_path / "other", create=True))
    other.embed(batch_size=64, chunk_rows=None, segment_rows=None)
    mine = load_features(bench.store, pool, bench.encoder.id)[1]
    theirs = load_features(other.store, pool, bench.encoder.id)[1]
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_shards_partition_the_pool(bench: Bench) -> None:
    parts = [bench.embed(shard=(index, 3)).embedded for index in range(3)]
    assert sum(parts) == 70
    assert min(parts) > 5
    assert bench.embed().embedded == 0


class Interrupting:
    """A source during which the user presses Ctrl-C."""

    def __init__(self, folder: Path, after: int) -> None:
        self._source, self._left, self._lock = open_source(folder), after, threading.Lock()

    def read(self, uri: str) -> bytes:
        with self._lock:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
        return self._source.read(uri)


def test_interrupt_keeps_finished_chunks(bench: Bench, tmp_path: Path) -> None:
    pool = bench.pool()
    with pytest.raises(KeyboardInterrupt):
        bench.embed(pool=pool, source=Interrupting(bench.folder, after=60), workers=1)
    assert not [t for t in threading.enumerate() if t.name.startswith("svp-decode")]
    assert len(list((tmp_path / "store").rglob("embeddings/c.*"))) >= 2
    bench.embed(pool=pool)
    other = dataclasses.replace(bench, store=open_store(tmp_path / "other", create=True))
    other.embed(pool=pool)
    mine = load_features(bench.store, pool, bench.encoder.id)[1]
    assert mine.tobytes() == load_features(other.store, pool, bench.encoder.id)[1].tobytes()


@pytest.fixture(scope="module")
def spawn() -> Callable[..., Any]:
    # The server imports once; its children are forks and start at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["embed_worker"])
    # The server of Python 3.11 drops the path it is given and reads the environment only.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        warm = context.Process(target=embed_worker.nothing)
        warm.start()
        warm.join()
    return lambda *arguments: context.Process(target=embed_worker.embed_slowly, args=arguments)


def _chunks(store: Path) -> int:
    return len(list(store.rglob("embeddings/c.*")))


def test_kill_at_any_instant(bench: Bench, tmp_path: Path, spawn: Callable[..., Any]) -> None:
    # One image in ten is broken: failures must survive the kills, too.
    for number in range(0, 70, 10):
        path = bench.folder / f"{number:04d}.png"
        path.write_bytes(path.read_bytes()[: 150 + number])
    pool = bench.pool()
    whole = open_store(tmp_path / "whole", create=True)
    arguments = bench.folder, tmp_path / "encoder"
    undisturbed = spawn(*arguments, tmp_path / "whole")
    undisturbed.start()
    undisturbed.join()
    assert undisturbed.exitcode == 0
    rng = random.Random(0)
    killed = 0
    for _ in range(6):
        process = spawn(*arguments, tmp_path / "store")
        before = _chunks(tmp_path / "store")
        process.start()
        # Progress, not the clock, says when: on a busy machine a fixed delay hits nothing.
        while process.is_alive() and _chunks(tmp_path / "store") == before:
            time.sleep(0.002)
        process.join(rng.uniform(0.0, 0.05))
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
    assert killed >= 1
    final = spawn(*arguments, tmp_path / "store")
    final.start()
    final.join()
    assert final.exitcode == 0
    rows, x = load_features(bench.store, pool, bench.encoder.id)
    rows_whole, x_whole = load_features(whole, pool, bench.encoder.id)
    assert rows.tolist() == rows_whole.tolist()
    assert x.tobytes() == x_whole.tobytes()
    table, table_whole = bench.store.table(bench.encoder.id), whole.table(bench.encoder.id)
    assert [s.id for s in table.segments()] == [s.id for s in table_whole.segments()]
    assert table.failures() == table_whole.failures()
    assert len(table.failures()) == 7
    assert table.verify() == []


def test_other_views(bench: Bench) -> None:
    pool = bench.pool()

    def darken(x: torch.Tensor, digests: np.ndarray) -> torch.Tensor:
        assert 0 <= float(x.min()) <= float(x.max()) <= 1
        share = torch.from_numpy(digests[:, 0].copy()).to(x) / 255
        return x * share.view(-1, 1, 1, 1)

    source = open_source(bench.folder)
    for view, augment in (("dark", None), ("eval", darken)):
        with pytest.raises(InputError, match="view"):
            embed(pool, source, bench.encoder, bench.store, view=view, augment=augment)
    embed(pool, source, bench.encoder, bench.store, view="dark", augment=darken, config=CONFIG)
    bench.embed()
    _, x_dark = load_features(bench.store, pool, bench.encoder.id, "dark")
    images, _, _ = decode_pool(source, pool.uris, bench.encoder.preprocessing)
    x = bench.encoder.normalise_float(darken(images / 255, pool.digests))
    np.testing.assert_allclose(x_dark, bench.encoder.features_of(x), rtol=1e-4, atol=1e-5)
    # On the untouched image both ways of normalising agree.
    plain = bench.encoder.features_of(bench.encoder.normalise_float(images / 255))
    torch.testing.assert_close(plain, bench.encoder.encode(images), rtol=1e-4, atol=1e-5)


def test_half_precision_is_stored_as_such(bench: Bench, tmp_path: Path) -> None:
    encoder = open_encoder(str(tmp_path / "encoder"), precision="bf16")
    half = dataclasses.replace(bench, encoder=encoder)
    half.embed()
    assert half.store.table(encoder.id).dtype == np.float16
    assert encoder.id != bench.encoder.id


def test_not_finite_is_refused_before_it_is_stored(bench: Bench) -> None:
    pool = bench.pool()
    with torch.no_grad():
        next(bench.encoder.module.parameters()).fill_(float("inf"))
    with pytest.raises(InputError, match="finite"):
        bench.embed(pool=pool)
    assert bench.store.table(bench.encoder.id).segments() == ()


def test_progress_says_what_bounds_it(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(bench.folder)
    progress = Lines(interval_s=0)
    embed(bench.pool(), source, bench.encoder, bench.store, config=CONFIG, progress=progress)
    err = capsys.readouterr().err
    assert "embedding: 70/70 images" in err
    assert "bound by" in err


def test_decode_pool_keeps_positions(bench: Bench) -> None:
    (bench.folder / "0004.png").write_bytes(b"no image")
    source = open_source(bench.folder)
    uris = [f"{number:04d}.png" for number in (1, 4, 2, 99, 3)]
    images, kept, failures = decode_pool(source, uris, bench.encoder.preprocessing, workers=2)
    assert kept.tolist() == [0, 2, 4]
    assert {position: failure.kind for position, failure in failures.items()} == {
        1: "corrupt",
        3: "missing",
    }
    assert images.shape == (3, 3, 16, 16)
    for image, number in zip(images, (1, 2, 3), strict=True):
        assert torch.equal(image, bench.encoder.preprocessing(photograph(20, 18, seed=number)))
    none, kept, _ = decode_pool(source, [], bench.encoder.preprocessing)
    assert none.shape == (0, 3, 16, 16)
    assert len(kept) == 0


def test_batches_are_read_only_a_little_ahead(bench: Bench) -> None:
    pool = bench.pool()
    asked = []

    def batches() -> Any:
        for first in range(0, 70, 7):
            asked.append(first)
            rows = range(first, first + 7)
            yield [pool.uris[row] for row in rows], pool.digests[first : first + 7]

    reader = read_batches(
        open_source(bench.folder), batches(), bench.encoder.preprocessing, workers=2
    )
    next(reader)
    assert len(asked) <= 3
    reader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("svp-decode")]


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"workers": 0}, {"max_failure_rate": 2.0}, {"shard": (3, 3)}],
)
def test_wrong_configuration(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be"):
        EmbedConfig(**wrong)


def test_empty_pool(bench: Bench) -> None:
    pool = bench.pool().subset([])
    result = bench.embed(pool=pool)
    assert (result.embedded, result.reused, result.failed, result.segments) == (0, 0, 0, ())
