"""The seam: what every storage must do, and the whole store on one that is not a directory."""

import os
import threading

import numpy as np
import pytest

from feature_store import CorruptChunkError, Failure, FeatureStore, FeatureStoreError, LocalStorage
from feature_store.storage import Entry


class MemoryStorage:
    """Stands for a bucket: objects without files."""

    url = "memory://"

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

    def create(self, key, *parts):
        with self.lock:
            return self.objects.setdefault(key, data := b"".join(parts)) is data

    def size(self, key):
        return len(self.objects[key]) if key in self.objects else None

    def list(self, prefix):
        below = [
            key.removeprefix(f"{prefix}/") for key in self.objects if key.startswith(f"{prefix}/")
        ]
        names = {name.split("/")[0] for name in below}
        return [Entry(name, self.size(f"{prefix}/{name}")) for name in sorted(names)]

    def delete(self, key):
        self.objects.pop(key, None)

    def tidy(self, prefix):
        pass

    def local_path(self, key):
        return None


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    return LocalStorage(tmp_path / "root") if request.param == "local" else MemoryStorage()


def test_objects_are_created_once(storage):
    assert storage.size("a/b.json") is None
    assert storage.list("a") == []
    with pytest.raises(FileNotFoundError):
        storage.get("a/b.json")
    assert storage.create("a/b.json", b"12", memoryview(b"345"))
    assert not storage.create("a/b.json", b"other")
    assert storage.get("a/b.json") == b"12345"
    assert storage.get_range("a/b.json", 1, 2) == b"23"
    assert storage.get_range("a/b.json", 3, 9) == b"45"
    assert storage.size("a/b.json") == 5
    assert storage.create("a/c/d", b"")
    assert storage.list("a") == [Entry("b.json", 5), Entry("c", None)]
    storage.delete("a/b.json")
    storage.delete("a/b.json")
    assert storage.size("a/b.json") is None
    assert storage.create("a/b.json", b"new")


def test_one_of_many_creators_wins(storage):
    won = []
    threads = [
        threading.Thread(target=lambda i=i: won.append(i) if storage.create("x", b"%d" % i) else 0)
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.get("x") == b"%d" % won[0]


def test_the_whole_store_works_without_files(samples):
    storage = MemoryStorage()
    storage.create("store.json", b'{"format":1,"kind":"svp feature store"}\n')
    store = FeatureStore(storage)
    table = store.table(store.put_encoder(samples.identity))
    digests = samples.digests(100)
    bad = {digests[9].tobytes(): Failure("missing", "x")}
    samples.fill(table, digests, failures=bad, chunk_rows=16)
    assert samples.fill(table, digests, retry=True) == 1
    order = np.random.default_rng(0).permutation(100)
    for rows in (np.arange(100), order):
        for verify in (True, False):
            np.testing.assert_array_equal(
                table.read(digests[rows], verify=verify), samples.embed(digests[rows])
            )
    assert table.verify() == []
    key = next(key for key in storage.objects if key.endswith("embeddings/c.0.0"))
    storage.objects[key] = storage.objects[key][:-1]
    fresh = store.table(table.encoder_id)
    for rows in (np.arange(100), order):
        with pytest.raises(CorruptChunkError, match=r"c\.0\.0"):
            fresh.read(digests[rows])


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
