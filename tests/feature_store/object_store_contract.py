"""What a store in a bucket has to do, whoever serves the bucket.

Subclasses bring a `service` fixture, in use, and a `url` below one of its buckets.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from storage_contract import StorageContract, make_store

from feature_store import (
    ObjectStorage,
    StorageUnavailableError,
    StoreInputError,
    StoreNotFoundError,
    object_storage,
    open_store,
)
from feature_store.garbage import delete_garbage, find_garbage
from feature_store.transfer import copy_store
from tests.buckets.service import Service

WRITER = Path(__file__).with_name("killed_writer.py")
ROWS = 100


def start_writer(environment, *arguments):
    """Start a process that embeds all rows; `environment` is what finds this checkout."""
    return subprocess.Popen(
        [sys.executable, WRITER, "run", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def _lines(log):
    return log.read_text().splitlines() if log.exists() else []


class ObjectStoreContract(StorageContract):
    @pytest.fixture
    def storage(self, url):
        return ObjectStorage(url)

    @pytest.fixture
    def impatient(self, monkeypatch):
        monkeypatch.setattr(object_storage, "RETRIES", 2)
        monkeypatch.setattr(object_storage, "PATIENCE_S", 1.0)

    def test_a_store_is_made_only_when_asked(self, url, service):
        with pytest.raises(StoreNotFoundError, match=r"store\.json"):
            open_store(url)
        assert service.answered("PUT", service.created) == []
        store = open_store(f"{url}/", create=True)
        assert store.url == url
        assert open_store(url).pools() == []

    def test_a_killed_writer_loses_one_chunk_at_most(
        self, tmp_path, url, samples, child_environment, service
    ):
        del service
        log, kills = tmp_path / "log", 2
        digests = samples.digests(ROWS)
        for kill in range(kills):
            published, before = set(), len(_lines(log))
            if before:
                store = open_store(url)
                published = {s.id for s in store.table(store.encoders()[0]).segments()}
            with start_writer(child_environment, url, log, 0.01) as child:
                assert child.stdout.readline() == "ready\n"
                while len(_lines(log)) < before + 3 + kill and child.poll() is None:
                    time.sleep(0.001)
                child.send_signal(signal.SIGKILL)
            store = open_store(url)
            table = store.table(store.encoders()[0])
            assert table.verify() == []
            missing = set(table.missing(digests).tolist())
            there = digests[[row for row in range(ROWS) if row not in missing]]
            assert table.read(there).tobytes() == samples.embed(there).tobytes()
            assert not {line.split()[0] for line in _lines(log)[before:]} & published
        with start_writer(child_environment, url, log, 0) as child:
            assert child.wait() == 0
        lines = Counter(_lines(log))
        assert len(lines) == 13  # 5 + 5 + 3 chunks of 8 rows in segments of 40
        assert sum(lines.values()) - len(lines) <= kills, "a kill costs at most one chunk"
        table = store.table(store.encoders()[0])
        np.testing.assert_array_equal(table.read(digests), samples.embed(digests))
        assert (len(table.segments()), table.verify()) == (3, [])

    def test_one_of_two_writers_publishes(self, tmp_path, url, samples, child_environment, service):
        children = [
            start_writer(child_environment, url, tmp_path / f"log-{i}", 0.002) for i in range(2)
        ]
        for child in children:
            with child:
                child.stdout.read()
                assert child.wait() == 0
        created = Counter(service.answered("PUT", service.created))
        assert set(created.values()) == {1}, "an object is created once"
        manifests = [path for path in created if "/segments/" in path and path.endswith(".json")]
        assert len([path for path in manifests if not path.endswith("zarr.json")]) == 3
        store = open_store(url)
        table = store.table(store.encoders()[0])
        digests = samples.digests(ROWS)
        np.testing.assert_array_equal(table.read(digests), samples.embed(digests))
        assert (table.rows, table.verify()) == (ROWS, [])

    @pytest.mark.parametrize("status", [503, 429])
    def test_throttling_is_waited_out(self, url, samples, service, status):
        counter = itertools.count(1)
        service.misbehave = lambda *_: status if next(counter) % 10 == 0 else None
        store = open_store(url, create=True)
        table = store.table(store.put_encoder(samples.identity))
        digests = samples.digests(48)
        samples.fill(table, digests)
        np.testing.assert_array_equal(table.read(digests), samples.embed(digests))
        assert len([line for line in service.log if line[2] == status]) >= 3

    def test_an_answer_that_got_lost_is_no_failure(self, url, service):
        lost = {"left": 2}

        def drop(method, path, headers):
            if method == "PUT" and path.endswith("/x") and lost["left"]:
                lost["left"] -= 1
                return Service.DROP
            return None

        storage = ObjectStorage(url)
        service.misbehave = drop
        storage.create("x", b"content")  # True or False: what counts is what is stored
        assert storage.get("x") == b"content"
        assert lost["left"] < 2

    def test_a_service_that_stays_away_is_a_passing_failure(self, url, service, samples, impatient):
        store = open_store(url, create=True)
        table = store.table(store.put_encoder(samples.identity))
        samples.fill(table, samples.digests(32))
        service.misbehave = lambda *_: 503
        fresh = store.table
        for ask in (
            store.pools, lambda: fresh(table.encoder_id), lambda: store.put_encoder({"a": 1}),
        ):  # fmt: skip
            with pytest.raises(StorageUnavailableError, match=r"503.*Run the same command"):
                ask()
        with pytest.raises(StorageUnavailableError, match="SlowDown"):  # the service's own word
            store.pools()
        with pytest.raises(StorageUnavailableError):
            table.read(samples.digests(32))
        service.reset()
        np.testing.assert_array_equal(
            table.read(samples.digests(32)), samples.embed(samples.digests(32))
        )

    def test_a_service_that_is_not_there_is_a_passing_failure(
        self, url, service, impatient, monkeypatch
    ):
        for name, value in service.environment.items():
            if service.url in value:
                monkeypatch.setenv(name, value.replace(service.url, "http://127.0.0.1:9"))
        with pytest.raises(StorageUnavailableError, match="must answer"):
            open_store(url, create=True)

    def test_a_missing_bucket_is_named(self, service):
        for create in (True, False):
            with pytest.raises(
                StoreInputError, match=r"(bucket|container) of a store must exist.*'absent'"
            ):
                open_store(f"{service.scheme}://absent/store", create=create)
        with pytest.raises(StoreInputError, match="of a store must exist"):
            ObjectStorage(f"{service.scheme}://absent").create("x", b"1")

    @pytest.mark.parametrize("status", [401, 403])
    def test_refused_credentials_are_named(self, url, service, status):
        service.misbehave = lambda *_: status
        with pytest.raises(StoreInputError, match=r"Credentials must allow") as caught:
            open_store(url)
        assert service.credentials in str(caught.value)

    def test_keys_are_kept_as_they_are(self, storage):
        """Names of images end up in keys of some sources, not only our own."""
        for key in ("a b/c+d.json", "ü/ä%20.bin", "x=1&y/~z'.txt"):
            assert storage.create(key, key.encode())
            assert storage.get(key) == key.encode()
        assert [entry.name for entry in storage.list("")] == ["a b", "x=1&y", "ü"]
        assert [entry.name for entry in storage.list("a b")] == ["c+d.json"]
        assert {one.key for one in storage.walk("ü")} == {"ü/ä%20.bin"}

    def test_a_store_is_copied_to_a_bucket_and_tidied_there(self, url, store, table, samples):
        digests = samples.digests(64)
        samples.fill(table, digests)
        bucket = open_store(url, create=True)
        assert copy_store(store, bucket).segments == 1
        assert copy_store(store, bucket).present == 1
        held = bucket.table(table.encoder_id)
        np.testing.assert_array_equal(held.read(digests), samples.embed(digests))
        (plan,) = held.plan(samples.digests(16, start=64), dim=8, dtype="float16")
        writer = held.writer(plan)
        writer.write(next(writer.pending()), samples.embed(plan.digests))
        time.sleep(1.1)  # the service's clock counts seconds
        (unfinished,) = find_garbage(bucket, older_than_s=0)
        assert (unfinished.kind, unfinished.name.endswith(plan.id)) == ("unfinished", True)
        assert delete_garbage(bucket, [unfinished], older_than_s=0) == (unfinished,)
        assert find_garbage(bucket, older_than_s=0) == ()
        assert held.verify() == []

    def test_requests_follow_the_need(self, url, samples, service):
        table_store = make_store(ObjectStorage(url))
        table = table_store.table(table_store.put_encoder(samples.identity))
        # 2 chunks of 2 MiB: near rows are fetched together, far ones apart.
        digests, dim = samples.digests(4096), 512
        wide = np.repeat(samples.embed(digests), dim // 8, axis=1)
        (plan,) = table.plan(digests, dim=dim, dtype="float16", chunk_rows=2048, segment_rows=4096)
        writer = table.writer(plan)
        for chunk in writer.pending():
            writer.write(chunk, wide[chunk.start : chunk.stop])
        writer.seal()
        table.missing(digests)  # opens the segment

        def fetched(rows, **options):
            service.log.clear()
            np.testing.assert_array_equal(table.read(digests[rows], **options), wide[rows])
            return len([path for path in service.answered("GET", 206) if "/embeddings/" in path])

        assert fetched(np.arange(4096)) == 2
        assert fetched(np.arange(100, 4000), verify=False) == 2
        fresh = table_store.table(table.encoder_id)
        fresh.missing(digests)
        table = fresh
        assert fetched([5, 4000]) == 2  # whole chunks, checked
        assert fetched([6, 7, 9]) == 1
        assert fetched([6, 2000]) == 2
        assert fetched(np.random.default_rng(0).permutation(4096)) == 2

    def test_the_command_line_says_whether_to_come_back(self, url, service, impatient, capsys):
        from svp.cli import run

        open_store(url, create=True)
        assert run(["store", "ls", url]) == 0
        service.misbehave = lambda *_: 503
        assert run(["store", "ls", url]) == 75
        assert "Run the same command again later" in capsys.readouterr().err
        service.reset()
        assert run(["store", "ls", f"{service.scheme}://absent/store"]) == 3
        assert "of a store must exist" in capsys.readouterr().err
