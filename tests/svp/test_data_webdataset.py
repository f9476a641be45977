"""WebDataset shards: samples, labels, ids, growing, damage, many shards."""

import gzip
import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from svp.data import DigestCache, open_source
from svp.errors import InputError
from svp.progress import Lines


def jpg(value):
    stream = io.BytesIO()
    Image.new("L", (2, 2), value).save(stream, "JPEG")
    return stream.getvalue()


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(first, count):
    members = {}
    for number in range(first, first + count):
        members[f"{number:04d}.jpg"] = jpg(number)
        members[f"{number:04d}.cls"] = f"{number % 3}\n".encode()
    return members


@pytest.fixture
def shards(tmp_path):
    for number in range(3):
        shard(tmp_path / "shards" / f"train-{number:06d}.tar", samples(10 * number, 4))
    return tmp_path / "shards"


def test_patterns_folders_and_globs_name_the_same_items(shards):
    named = [shards / "train-{000000..000002}.tar", shards, shards / "*.tar"]
    pools = [open_source(str(one)).scan().pool for one in named]
    assert pools[0].ids[:2] == ("train-000000/0000", "train-000000/0001")
    assert pools[0].labels[:4] == ("0", "1", "2", "0")
    assert set(pools[0].splits) == {"train"}
    assert {pool.id for pool in pools} == {pools[0].id}
    for pool, name in zip(pools, named, strict=True):
        source = open_source(name)
        for uri, number in zip(pool.uris, [0, 1, 2, 3, 10, 11, 12, 13, 20], strict=False):
            assert source.read(uri) == jpg(number)  # without a scan before
    one = open_source(shards / "train-000001.tar").scan().pool
    assert one.ids == pools[0].ids[4:8]


def test_labels_come_from_cls_or_json(tmp_path):
    path = shard(
        tmp_path / "pool.tar",
        {
            "a.jpg": jpg(1), "a.cls": b"cat",
            "a.json": b'{"label": 3, "group": "g", "split": "valid"}',
            "b.JPG": jpg(2), "b.json": json.dumps({"cls": "\u732b"}).encode(),
            "c.x.jpg": jpg(3), "c.txt": b"a caption",
            "d/e.jpg": jpg(4), "d/e.seg.png": b"mask", "d/e.cls": b" 7 ",
            ".hidden.jpg": b"x", "__key__": b"",
        },
    )  # fmt: skip
    pool = open_source(path).scan().pool
    assert pool.ids == ("pool/a", "pool/b", "pool/c", "pool/d/e")
    assert pool.labels == ("cat", "\u732b", None, "7")
    assert pool.splits == ("val", None, None, None)
    assert pool.groups == ("g", None, None, None)
    assert [open_source(path).read(uri) for uri in pool.uris] == [jpg(n) for n in (1, 2, 3, 4)]


def test_samples_that_cannot_be_used_are_recorded(tmp_path):
    path = shard(
        tmp_path / "pool.tar",
        {
            "good.jpg": jpg(0), "good.cls": b"1",
            "two.jpg": jpg(1), "two.png": jpg(2),
            "bad.jpg": jpg(3), "bad.json": b"{",
            "raw.jpg": jpg(4), "raw.cls": b"\xff\xfe",
            "../evil.jpg": jpg(5),
            "label.cls": b"0",
        },
    )  # fmt: skip
    scan = open_source(path).scan()
    assert scan.pool.ids == ("pool/good",)
    reasons = {failure.id: failure.reason for failure in scan.failures}
    assert "several images: jpg, png" in reasons["pool/two"]
    assert ".json cannot be read" in reasons["pool/bad"]
    assert ".cls cannot be read" in reasons["pool/raw"]
    assert 'leaves the source by ".."' in reasons["pool/../evil.jpg"]
    assert len(reasons) == 4


def test_a_plain_archive_stays_one(tmp_path):
    path = shard(tmp_path / "pool.tar", {"cat/1.jpg": jpg(1), "notes.txt": b"", "2.json": b"{}"})
    assert open_source(path).scan().pool.ids == ("cat/1.jpg",)


def test_equal_keys_of_two_shards_are_different_items_and_named(tmp_path):
    shard(tmp_path / "a.tar", samples(0, 2))
    shard(tmp_path / "b.tar", samples(1, 2))
    log = io.StringIO()
    scan = open_source(tmp_path).scan(progress=Lines(log))
    assert scan.pool.ids == ("a/0000", "a/0001", "b/0001", "b/0002")
    assert "1 keys occur in more than one shard, such as 0001" in log.getvalue()


def test_a_key_twice_in_one_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("x.jpg")
            archive.addfile(info, io.BytesIO())
    with pytest.raises(InputError, match=r"Got x\.jpg twice"):
        open_source(tmp_path / "*.tar").scan()


def test_only_new_shards_are_read_again(shards, tmp_path):
    cache = DigestCache(tmp_path / "cache")
    assert open_source(shards).scan(cache=cache).reread == 12
    shard(shards / "train-000003.tar", samples(30, 4))
    again = open_source(shards).scan(cache=cache)
    assert (len(again.pool), again.reread) == (16, 4)


def test_compressed_shards_and_more_shards_than_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr("svp.data.webdataset._OPEN_SHARDS", 2)
    for number in range(8):
        path = shard(tmp_path / "w" / f"{number}.tar", samples(number, 1))
        if number % 2:
            path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    source = pickle.loads(pickle.dumps(open_source(tmp_path / "w")))
    pool = source.scan().pool
    assert pool.ids == tuple(f"{number}/{number:04d}" for number in range(8))
    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(source.read, pool.uris * 5))
    assert found == [jpg(number) for number in range(8)] * 5


def test_missing_and_damaged_shards(shards):
    with pytest.raises(InputError, match=r"no .*train-000003\.tar"):
        open_source(str(shards / "train-{000000..000003}.tar"))
    with pytest.raises(InputError, match="must match files"):
        open_source(str(shards / "test-*.tar"))
    whole = (shards / "train-000001.tar").read_bytes()
    (shards / "train-000001.tar").write_bytes(whole[:2000])
    with pytest.raises(InputError, match="must be complete"):
        open_source(shards).scan()


def test_reads_outside_the_shards_find_nothing(shards):
    source = open_source(shards)
    source.scan()
    for uri in ("train-000000/9999.jpg", "train-000009/0.jpg", "../x", "train-000000"):
        with pytest.raises(FileNotFoundError):
            source.read(uri)


def test_a_glob_of_different_things_is_refused(shards):
    (shards / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="WebDataset shards"):
        open_source(str(shards / "*"))
