"""Images in a bucket of a real S3 server process: manifests, prefixes, limits, retries."""

import hashlib
import io
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from feature_store import object_storage
from svp.data import DigestCache, open_source
from svp.errors import InputError, TemporaryError
from tests.buckets.service import Service

obstore = pytest.importorskip("obstore", reason="needs the extra objectstore")


def png(value=0):
    stream = io.BytesIO()
    Image.new("L", (2, 2), value % 256).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


@pytest.fixture
def service(s3, monkeypatch):
    monkeypatch.setattr(object_storage, "RETRIES", 3)
    monkeypatch.setattr(object_storage, "PATIENCE_S", 5.0)
    s3.make_bucket("images")
    s3.make_bucket("other")
    s3.reset()
    return s3


@pytest.fixture
def put(service):
    from obstore.store import S3Store

    def upload(url, data):
        bucket, _, key = url.removeprefix("s3://").partition("/")
        client = S3Store(bucket, client_options={"allow_http": True})
        obstore.put(client, key, data)
        service.log.clear()
        return url

    return upload


def rows(names, *, label=True):
    header = "id,path,label\n" if label else "id,path\n"
    return (header + "".join(f"{n},{name},{n % 2}\n" for n, name in enumerate(names))).encode()


def test_a_remote_manifest_names_objects(put, service, tmp_path):
    names = [f"photos/{n:03d}.png" for n in range(5)]
    for n, name in enumerate(names):
        put(f"s3://images/set/{name}", png(n))
    whole = [*names[:3], "s3://images/set/photos/003.png", "gone.png"]
    url = put("s3://images/set/manifest.csv", rows(whole))
    cache = DigestCache(tmp_path)
    source = open_source(url)
    scan = source.scan(cache=cache)
    assert scan.pool.ids == ("0", "1", "2", "3")
    assert scan.pool.labels == ("0", "1", "0", "1")
    assert [(one.id, one.kind) for one in scan.failures] == [("4", "missing")]
    for number, (uri, digest) in enumerate(zip(scan.pool.uris, scan.pool.digests, strict=True)):
        assert uri == f"s3://images/set/photos/{number:03d}.png"
        assert pickle.loads(pickle.dumps(source)).read(uri) == png(number)
        assert digest.tobytes() == hashlib.sha256(png(number)).digest()
    service.log.clear()
    assert open_source(url).scan(cache=cache).reread == 0
    assert service.answered("GET", 206) == ["/images/set/manifest.csv"]
    put("s3://images/set/photos/001.png", png(9) + b"more")
    assert open_source(url).scan(cache=cache).reread == 1


def test_a_local_manifest_of_objects_in_two_buckets(put, tmp_path):
    urls = [put("s3://images/two/a.png", png(1)), put("s3://other/b.png", png(2))]
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "path": urls}), path)
    source = open_source(path)
    assert [source.read(uri) for uri in source.scan().pool.uris] == [png(1), png(2)]


def test_a_root_says_where_relative_paths_are(put, tmp_path):
    put("s3://images/base/deep/a.png", png(1))
    (tmp_path / "pool.csv").write_bytes(rows(["deep/a.png"]))
    source = open_source(tmp_path / "pool.csv", root="s3://images/base")
    assert source.scan().pool.uris == ("s3://images/base/deep/a.png",)
    (tmp_path / "pool.csv").write_bytes(rows(["s3://images/basement/a.png"]))
    with pytest.raises(InputError, match="must lie inside s3://images/base"):
        open_source(tmp_path / "pool.csv", root="s3://images/base")


@pytest.mark.parametrize(
    "path",
    ["s3://other/a.png", "../a.png", "s3://images/set/../a.png", "http://host/a.png", "/a.png"],
)
def test_a_remote_manifest_cannot_lead_elsewhere(put, path):
    url = put("s3://images/confined/manifest.csv", rows([path]))
    with pytest.raises(InputError):
        open_source(url)


def test_files_and_objects_are_not_mixed(put, tmp_path):
    (tmp_path / "pool.csv").write_bytes(rows(["s3://images/a.png", "b.png"]))
    with pytest.raises(InputError, match="all be URLs or all be files"):
        open_source(tmp_path / "pool.csv")


def test_only_what_the_manifest_names_is_read(put):
    put("s3://images/one/a.png", png())
    put("s3://images/one/b.png", png())
    source = open_source(put("s3://images/one/m.csv", rows(["a.png"])))
    with pytest.raises(FileNotFoundError):
        source.read("s3://images/one/b.png")


def test_a_prefix_is_a_folder(put):
    for name in ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "notes.txt", ".x/4.png"):
        put(f"s3://images/folder/{name}", png(len(name)))
    put("s3://images/folder-two/5.png", png())
    source = open_source("s3://images/folder/")
    pool = source.scan().pool
    assert pool.ids == ("test/cat/3.png", "train/cat/1.png", "train/dog/2.png")
    assert pool.labels == ("cat", "cat", "dog")
    assert pool.splits == ("test", "train", "train")
    assert source.read("train/dog/2.png") == png(15)
    with pytest.raises(InputError, match="must lie below it"):
        source.read("../folder-two/5.png")
    with pytest.raises(InputError, match="must hold images"):
        open_source("s3://images/nothing").scan()
    with pytest.raises(InputError, match="bucket of a source must exist"):
        open_source("s3://nowhere/images").scan()


def test_many_objects_are_listed_rather_than_asked_for(put, service, monkeypatch):
    monkeypatch.setattr("svp.data.bucket._FEW", 3)
    names = [f"{n}.png" for n in range(6)]
    for n, name in enumerate(names):
        put(f"s3://images/many/{name}", png(n))
    source = open_source(put("s3://images/many/m.csv", rows([*names, "gone.png"])))
    scan = source.scan()
    assert (len(scan.pool), len(scan.failures)) == (6, 1)
    assert not [path for how, path, _ in service.log if how == "HEAD"]


def test_objects_too_large_are_not_read(put, monkeypatch):
    put("s3://images/large/a.png", png())
    put("s3://images/large/b.png", bytes(1001))
    monkeypatch.setattr("svp.data.listing.MAX_BYTES", 1000)
    scan = open_source("s3://images/large").scan()
    assert scan.pool.ids == ("a.png",)
    assert [one.kind for one in scan.failures] == ["too_large"]


def test_passing_failures_are_retried_and_lasting_ones_recorded(put, service):
    for n in range(4):
        put(f"s3://images/busy/{n}.png", png(n))
    wrong = {}

    def misbehave(method, path, headers):
        if path.endswith("/1.png") and wrong.setdefault(path, 0) < 2:
            wrong[path] += 1
            return 503
        return 503 if path.endswith("/2.png") else None

    service.misbehave = misbehave
    scan = open_source("s3://images/busy").scan()
    assert scan.pool.ids == ("0.png", "1.png", "3.png")
    assert [(one.id, one.kind) for one in scan.failures] == [("2.png", "transient")]
    assert list(wrong.values()) == [2]
    service.misbehave = lambda method, path, headers: 403
    with pytest.raises(InputError, match="credentials"):
        open_source("s3://images/busy").scan()
    service.misbehave = lambda method, path, headers: Service.DROP
    with pytest.raises(TemporaryError):
        open_source("s3://images/busy").scan()
