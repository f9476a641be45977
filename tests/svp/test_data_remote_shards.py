"""Tar shards, archives and tables in a bucket of a real S3 server process, read by ranges."""

import io
import os
import pickle
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from encoder_fixtures import photograph, small_folder

from feature_store import object_storage, open_store
from svp.data import DigestCache, open_source
from svp.data.bucket import Buckets
from svp.data.remote_file import RemoteFile
from svp.embed import embed
from svp.encoders.encoder import open_encoder
from svp.errors import InputError, TemporaryError
from svp.progress import Silent

obstore = pytest.importorskip("obstore", reason="needs the extra objectstore")


def png(value):
    stream = io.BytesIO()
    photograph(18, 18, seed=value).save(stream, "PNG")
    return stream.getvalue()


def tar_of(members, **options):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def samples(first, count):
    members = {}
    for number in range(first, first + count):
        members[f"{number:04d}.png"] = png(number)
        members[f"{number:04d}.cls"] = f"{number % 3}\n".encode()
        members[f"{number:04d}.json"] = b'{"group": "g%d"}' % (number % 2)
    return members


@pytest.fixture
def service(s3, monkeypatch):
    monkeypatch.setattr(object_storage, "RETRIES", 3)
    monkeypatch.setattr(object_storage, "PATIENCE_S", 5.0)
    s3.make_bucket("shards")
    s3.reset()
    return s3


@pytest.fixture
def client(service):
    from obstore.store import S3Store

    return S3Store("shards", client_options={"allow_http": True})


@pytest.fixture
def put(client, service):
    def upload(key, data):
        obstore.put(client, key, data)
        service.log.clear()
        return f"s3://shards/{key}"

    return upload


@pytest.fixture
def train(put):
    """Put three shards of four samples under a prefix; return its URL."""
    prefix = put("train/notes.txt", b"x").removesuffix("/notes.txt")
    for number in range(3):
        put(f"train/{number:04d}.tar", tar_of(samples(10 * number, 4)))
    return prefix


def test_every_way_to_name_shards_gives_the_items_of_a_local_copy(train, client, tmp_path):
    for number in range(3):
        data = bytes(obstore.get(client, f"train/{number:04d}.tar").bytes())
        (tmp_path / f"{number:04d}.tar").write_bytes(data)
    local = open_source(tmp_path).scan().pool
    assert local.ids[:2] == ("0000/0000", "0000/0001")
    for url in (f"{train}/{{0000..0002}}.tar", f"{train}/*.tar", train, f"{train}/"):
        source = open_source(url)
        pool = source.scan().pool
        assert pool.id == local.id, url
        assert (pool.labels, pool.groups) == (local.labels, local.groups)
        # Whoever gets the source and a uri needs no index.
        fresh = pickle.loads(pickle.dumps(open_source(url)))
        assert [fresh.read(uri) for uri in pool.uris[:6]] == [
            png(number) for number in (0, 1, 2, 3, 10, 11)
        ]
    one = open_source(f"{train}/0001.tar").scan().pool
    assert (one.ids, one.labels) == (local.ids[4:8], local.labels[4:8])


def test_an_image_is_one_ranged_request(train, service):
    source = open_source(train)
    uri = source.scan().pool.uris[5]
    service.log.clear()
    source.read(uri)
    assert service.answered("GET", 206) == ["/shards/train/0001.tar"]
    assert len(service.log) == 1


def test_shards_that_did_not_change_are_not_walked_again(train, put, service, monkeypatch):
    def scanned():
        service.log.clear()
        scan = open_source(train).scan(cache=cache)
        return scan, len(service.answered("GET", 206))

    cache = DigestCache.default()
    assert scanned()[1] > 3
    assert scanned()[1] >= 3  # objects of a moment ago may still be replaced
    monkeypatch.setattr("svp.data.shard_listing._SETTLED_NS", 0)
    first, _ = scanned()
    again, requests = scanned()
    assert requests == 0
    assert again.pool.id == first.pool.id
    assert (again.pool.labels, again.pool.groups) == (first.pool.labels, first.pool.groups)
    for path in (cache.path.parent / "shards").rglob("*.listing"):
        path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    again, requests = scanned()
    assert (again.pool.id, requests) == (first.pool.id, 3 * 2)
    put("train/0001.tar", tar_of(samples(10, 5)))
    again, requests = scanned()
    assert (len(again.pool), requests) == (13, 2 + 5)


def test_large_images_are_indexed_by_their_headers(put, service, monkeypatch):
    seen = []
    reads = RemoteFile.read_at

    def read_at(self, offset, size):
        data = reads(self, offset, size)
        seen.append(len(data))
        return data

    monkeypatch.setattr(RemoteFile, "read_at", read_at)
    large = {f"{n}.png": bytes(3 * 2**20) for n in range(5)}
    small = {f"{n:04}.png": bytes(20_000) for n in range(300)}
    for name, members, most_bytes, most_requests in (
        ("large", large, 2**20, 12), ("small", small, 7 * 2**20, 12),
    ):  # fmt: skip
        url = put(f"{name}/0.tar", tar_of({**members, "0000.cls": b"1"}))
        source = open_source(url.removesuffix("/0.tar") + "/{0..0}.tar")
        seen.clear()
        assert len(source.list_items(Silent()).entries) == len(members)
        assert sum(seen) < most_bytes, name
        assert len(seen) <= most_requests, name


def test_only_new_shards_are_read_and_only_new_images_embedded(train, client, put, tmp_path):
    torch.set_num_threads(1)
    small_folder(tmp_path / "encoder")
    encoder = open_encoder(str(tmp_path / "encoder"))
    store, cache = open_store(tmp_path / "store", create=True), DigestCache(tmp_path / "cache")

    def run():
        source = open_source(train)
        scan = source.scan(cache=cache)
        result = embed(scan.pool, source, encoder, store)
        assert result.failed_items == 0
        return scan.reread, result.embedded, result.reused

    assert run() == (12, 12, 0)
    assert run() == (0, 0, 12)
    obstore.rename(client, "train/0002.tar", "train/renamed.tar")
    assert run() == (4, 0, 12)
    put("train/0003.tar", tar_of(samples(40, 4)))
    assert run() == (4, 4, 12)
    put("train/0000.tar", tar_of({"new.png": png(99), **samples(0, 4)}))
    assert run() == (5, 1, 16)
    obstore.delete(client, "train/renamed.tar")
    assert run() == (0, 0, 13)
    obstore.delete(client, "train/0003.tar")


def test_what_cannot_be_used_is_recorded(put):
    url = put(
        "odd/pool.tar",
        tar_of({
            "good.png": png(0), "good.cls": b"1", "two.png": png(1), "two.jpg": b"x",
            "bad.png": png(2), "bad.json": b"{", "../evil.png": png(3), "d/e.png": png(4),
        }),
    )  # fmt: skip
    scan = open_source(url).scan()
    assert scan.pool.ids == ("pool/d/e", "pool/good")
    reasons = {failure.id: failure.reason for failure in scan.failures}
    assert set(reasons) == {"pool/two", "pool/bad", "pool/../evil.png"}
    assert ".json cannot be read" in reasons["pool/bad"]


def test_reads_elsewhere_find_nothing(train):
    source = open_source(train)
    for uri in (
        "0000/0000.png", "0009/0+10/0.png", "0000/0+10", "../train/0000/0+10/x.png",
        "0000/0+99999999999/x.png", "0000/-1+10/x.png", "x",
    ):  # fmt: skip
        with pytest.raises(FileNotFoundError):
            source.read(uri)


def test_missing_damaged_compressed_and_mixed_shards(train, put):
    with pytest.raises(InputError, match=r"no s3://shards/train/0003\.tar"):
        open_source(f"{train}/{{0000..0003}}.tar")
    with pytest.raises(InputError, match="must match files"):
        open_source(f"{train}/test-*.tar")
    with pytest.raises(InputError, match=r"no object s3://shards/train/9\.tar"):
        open_source(f"{train}/9.tar")
    put("damaged/0.tar", tar_of(samples(0, 4))[:2000])
    with pytest.raises(InputError, match=r"must be complete.*s3://shards/damaged/0\.tar"):
        open_source("s3://shards/damaged").scan()
    put("packed/0.tar.gz", b"\x1f\x8b")
    with pytest.raises(InputError, match=r"aws s3 cp s3://shards/packed/0\.tar\.gz"):
        open_source("s3://shards/packed")
    with pytest.raises(InputError, match=r"aws s3 cp s3://shards/packed/0\.tar\.gz"):
        open_source("s3://shards/packed/0.tar.gz")
    put("mixed/0.tar", tar_of(samples(0, 1)))
    put("mixed/1.parquet", b"")
    with pytest.raises(InputError, match="Parquet files only"):
        open_source("s3://shards/mixed/{0.tar,1.parquet}")


def test_a_service_that_fails_is_waited_for_or_told(train, service):
    wrong = []

    def misbehave(method, path, headers):
        if path.endswith("/0001.tar") and len(wrong) < 2:
            wrong.append(path)
            return 503
        return None

    service.misbehave = misbehave
    assert len(open_source(train).scan().pool) == 12
    assert len(wrong) == 2
    source = open_source(train)
    service.misbehave = lambda method, path, headers: 503 if path.endswith("2.tar") else None
    with pytest.raises(TemporaryError):
        source.scan()


def test_plain_archives(put):
    members = {"cat/1.png": png(1), "dog/2.png": png(2), "notes.txt": b""}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    for key, data in (("plain/a.tar", tar_of(members)), ("plain/a.zip", stream.getvalue())):
        source = open_source(put(key, data))
        pool = source.scan().pool
        assert (pool.ids, pool.labels) == (("cat/1.png", "dog/2.png"), ("cat", "dog"))
        assert pickle.loads(pickle.dumps(source)).read("dog/2.png") == png(2)
    with pytest.raises(InputError, match="must be complete"):
        open_source(put("plain/b.zip", stream.getvalue()[:100]))


def test_parquet_files_with_images(put):
    for number, name in enumerate(("train-00000", "train-00001", "test-00000")):
        table = pa.table({
            "image": [
                {"bytes": png(10 * number + n), "path": f"{n}.png"} for n in range(3)
            ],
            "label": ["a", "b", "a"],
        })  # fmt: skip
        stream = io.BytesIO()
        pq.write_table(table, stream, row_group_size=2)
        put(f"tables/{name}.parquet", stream.getvalue())
    whole = open_source("s3://shards/tables")
    pool = whole.scan().pool
    assert pool.ids[:2] == ("test/000000000/0.png", "test/000000001/1.png")
    assert pool.splits == ("test",) * 3 + ("train",) * 6
    assert pool.labels == ("a", "b", "a") * 3
    again = pickle.loads(pickle.dumps(whole))
    assert [again.read(uri) for uri in pool.uris] == [
        png(n) for n in (20, 21, 22, 0, 1, 2, 10, 11, 12)
    ]
    assert open_source("s3://shards/tables/train-*.parquet").scan().pool.ids == pool.ids[3:]
    assert len(open_source("s3://shards/tables/test-00000.parquet").scan().pool) == 3


def test_a_saved_dataset_must_be_copied(put):
    put("saved/state.json", b"{}")
    put("saved/data-00000-of-00001.arrow", b"")
    with pytest.raises(InputError, match=r"aws s3 sync s3://shards/saved FOLDER"):
        open_source("s3://shards/saved")


def test_a_walk_reads_each_byte_once_and_any_order(put):
    data = os.urandom(3_000_000)
    url = put("walk/x.bin", data)
    file = RemoteFile(Buckets().describe([url], Silent())[url], Buckets())
    walk = file.walk()
    assert walk.read() == data
    for offset, size in ((0, 10), (2_999_990, 100), (5, 0), (1_000_000, 700_000), (3_000_001, 5)):
        walk.seek(offset)
        assert walk.read(size) == data[offset : offset + size]
    assert walk.seek(-4, os.SEEK_END) == 2_999_996
    assert walk.read(10) == data[-4:]
