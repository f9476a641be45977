"""The seam: what every storage must do, on a directory and on objects without files."""

import os
import threading
import time

import numpy as np
import pytest
from storage_contract import StorageContract

from feature_store import FeatureStore, FeatureStoreError, LocalStorage, layout
from feature_store.compaction import compact_table
from feature_store.export import export_table
from feature_store.garbage import delete_garbage, find_garbage
from feature_store.storage import Entry, Found
from feature_store.transfer import copy_store


class MemoryStorage:
    """Stands for a bucket: objects without files."""

    url = "memory://"
    parallel = 3
    waits = True

    def __init__(self):
        self.objects = {}
        self.lock = threading.Lock()

    def get(self, key):
        try:
            return self.objects[key]
        except KeyError:
            raise FileNotFoundError(key) from None

    def get_range(self, key, start, length):
        return self.get(key)[start : start + length]

    def get_ranges(self, key, ranges):
        return [self.get_range(key, start, length) for start, length in ranges]

    def create(self, key, *parts):
        with self.lock:
            return self.objects.setdefault(key, data := b"".join(parts)) is data

    def size(self, key):
        return len(self.objects[key]) if key in self.objects else None

    def list(self, prefix):
        start = f"{prefix}/" if prefix else ""
        below = [key.removeprefix(start) for key in self.objects if key.startswith(start)]
        names = {name.split("/")[0] for name in below}
        return [Entry(name, self.size(f"{start}{name}")) for name in sorted(names)]

    def delete(self, key):
        self.objects.pop(key, None)

    def tidy(self, prefix):
        pass

    def walk(self, prefix):
        start = f"{prefix}/" if prefix else ""
        for key in [key for key in self.objects if key.startswith(start)]:
            yield Found(key, self.size(key), time.time(), unfinished=False)

    def local_path(self, key):
        return None


class TestStorageContract(StorageContract):
    @pytest.fixture(params=["local", "memory"])
    def storage(self, request, tmp_path):
        return LocalStorage(tmp_path / "root") if request.param == "local" else MemoryStorage()


def test_storage_without_hard_links_is_refused_at_the_first_write(tmp_path, monkeypatch):
    def forbidden(*_args, **_options):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", forbidden)
    with pytest.raises(FeatureStoreError, match="hard links"):
        LocalStorage(tmp_path).create("x", b"1")
    monkeypatch.setattr(os, "link", os.replace)
    with pytest.raises(FeatureStoreError, match="refuses to create a file twice"):
        LocalStorage(tmp_path).create("x", b"1")
    assert list(tmp_path.iterdir()) == []


def test_debris_is_neither_listed_nor_kept(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.create("a/b", b"1")
    for name in (".b.123.tmp", ".c.123.tmp"):
        (tmp_path / "a" / name).write_bytes(b"half")
    assert storage.list("a") == [Entry("b", 1)]
    storage.tidy("a/b")  # the other one may be in use
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".c.123.tmp", "b"]
    storage.tidy("a/")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_upkeep_needs_no_files(store, table, samples, tmp_path):
    digests = samples.digests(60)
    for start in range(0, 60, 20):
        samples.fill(table, digests[start : start + 20])
    bucket = MemoryStorage()
    bucket.create(layout.STORE_KEY, store.storage.get(layout.STORE_KEY))
    remote = FeatureStore(bucket)
    assert copy_store(store, remote).segments == 3
    held = remote.table(table.encoder_id)
    merged = compact_table(bucket, held)
    assert len(merged.sources) == 3
    found = find_garbage(remote, older_than_s=-60)  # all is written just now
    assert {item.kind for item in found} == {"superseded"}
    assert len(delete_garbage(remote, found, older_than_s=-60)) == 3
    assert [segment.id for segment in held.segments()] == list(merged.merged)
    export_table(held, tmp_path / "out", form="npy")
    x = np.load(tmp_path / "out" / "embeddings.npy", allow_pickle=False)
    assert sorted(x.tolist()) == sorted(samples.embed(digests).tolist())
    assert copy_store(remote, store).segments == 1
    np.testing.assert_array_equal(table.read(digests), samples.embed(digests))
    assert table.verify() == held.verify() == []
