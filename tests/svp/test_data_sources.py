"""Folders, manifests and joined sources: ids, labels, splits, digests, refusals."""

import csv
import hashlib
import io
import os
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from svp.data import DecodeError, Scan, Source, failure_of, open_source
from svp.errors import InputError

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links and permissions")


def png(value=0):
    stream = io.BytesIO()
    Image.new("L", (2, 2), value % 256).save(stream, "PNG", compress_level=0)
    return stream.getvalue() + value.to_bytes(4, "big")


def plant(root, names):
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return root


def manifest(path, rows, columns=("id", "path", "label", "split", "group")):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def columns(scan: Scan):
    pool = scan.pool
    empty = (None,) * len(pool)
    return {
        name: (label, split)
        for name, label, split in zip(
            pool.ids, pool.labels or empty, pool.splits or empty, strict=True
        )
    }


def test_class_folders_are_labels(tmp_path):
    plant(tmp_path, ["dog/2.PNG", "cat/1.jpg", "cat/deep/er/3.webp", "loose.tif", "dog/notes.txt"])
    source: Source = open_source(str(tmp_path))
    scan = source.scan()
    assert columns(scan) == {
        "cat/1.jpg": ("cat", None),
        "cat/deep/er/3.webp": ("cat", None),
        "dog/2.PNG": ("dog", None),
        "loose.tif": (None, None),
    }
    assert scan.pool.ids == tuple(sorted(scan.pool.ids))
    assert scan.pool.splits is None
    assert scan.failures == ()
    assert scan.reread == 4
    for name, uri, digest in zip(scan.pool.ids, scan.pool.uris, scan.pool.digests, strict=True):
        data = (tmp_path / name).read_bytes()
        assert source.read(uri) == data
        assert digest.tobytes() == hashlib.sha256(data).digest()


def test_split_folders_come_before_class_folders(tmp_path):
    plant(tmp_path, ["train/cat/1.png", "valid/cat/2.png", "Test/3.png", "val/dog/4.png"])
    assert columns(open_source(tmp_path).scan()) == {
        "Test/3.png": (None, "test"),
        "train/cat/1.png": ("cat", "train"),
        "val/dog/4.png": ("dog", "val"),
        "valid/cat/2.png": ("cat", "val"),
    }


def test_a_class_may_be_called_train(tmp_path):
    plant(tmp_path, ["train/1.png", "bicycle/2.png"])
    assert columns(open_source(tmp_path).scan()) == {
        "bicycle/2.png": ("bicycle", None),
        "train/1.png": ("train", None),
    }


def test_a_split_beside_other_folders(tmp_path):
    plant(tmp_path, ["train/cat/1.png", "unlabelled/2.png"])
    assert columns(open_source(tmp_path).scan())["train/cat/1.png"] == ("cat", "train")


@pytest.mark.parametrize(
    ("names", "meanings"),
    [
        (["data/cat/1.png", "data/dog/2.png"], [("cat", None), ("dog", None)]),
        (["a/b/train/cat/1.png", "a/b/test/dog/2.png"], [("dog", "test"), ("cat", "train")]),
        (["data/cat/1.png", "data/cat/2.png"], [("cat", None), ("cat", None)]),
        (["cat/1.png", "cat/deep/2.png"], [("cat", None), ("cat", None)]),
        (["train/cat/1.png", "train/cat/2.png"], [("cat", "train"), ("cat", "train")]),
        (["data/test/1.png", "data/train/2.png"], [(None, "test"), (None, "train")]),
        (["data/1.png", "data/2.png"], [("data", None), ("data", None)]),
        (["data/cat/1.png", "data/cats/2.png"], [("cat", None), ("cats", None)]),
    ],
)
def test_folders_that_wrap_everything_are_no_labels(tmp_path, names, meanings):
    plant(tmp_path, names)
    assert list(columns(open_source(tmp_path).scan()).values()) == meanings


def test_flat_folders_have_no_labels(tmp_path):
    plant(tmp_path, ["b.png", "a.png"])
    pool = open_source(tmp_path).scan().pool
    assert pool.ids == ("a.png", "b.png")
    assert pool.labels is None
    assert pool.groups is None


def test_names_of_any_script(tmp_path):
    names = [
        "katze/\u00fcber.png",
        "\u732b/\u5199\u771f 1.png",
        "cat/a'b\"c,d.png",
        "cat/\U0001f408.png",
    ]
    plant(tmp_path, names)
    source = open_source(tmp_path)
    pool = source.scan().pool
    assert set(pool.ids) == set(names)
    assert all(source.read(uri) for uri in pool.uris)


def test_hidden_files_and_system_folders_are_left_out(tmp_path):
    plant(tmp_path, ["a.png", "._a.png", ".thumbs/b.png", "__MACOSX/c.png"])
    assert open_source(tmp_path).scan().pool.ids == ("a.png",)


@posix_only
def test_links_are_followed_but_not_in_circles(tmp_path):
    plant(tmp_path, ["in/cat/1.png", "elsewhere/2.png"])
    root = tmp_path / "in"
    (root / "cat" / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "loop").symlink_to(root)
    (root / "gone.png").symlink_to(tmp_path / "nothing.png")
    scan = open_source(root).scan()
    assert scan.pool.ids == ("cat/1.png", "cat/2.png", "dog/2.png")
    assert [(failure.id, failure.kind) for failure in scan.failures] == [("gone.png", "missing")]


@posix_only
def test_a_name_that_is_not_text_is_recorded(tmp_path):
    plant(tmp_path, ["a.png"])
    try:
        (tmp_path / os.fsdecode(b"b\xff.png")).write_bytes(png())
    except OSError:
        pytest.skip("this file system stores text names only")
    scan = open_source(tmp_path).scan()
    assert scan.pool.ids == ("a.png",)
    assert [failure.kind for failure in scan.failures] == ["refused"]
    assert "UTF-8" in scan.failures[0].reason


@posix_only
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission_are_recorded(tmp_path):
    plant(tmp_path, ["a.png", "b.png", "locked/c.png"])
    (tmp_path / "b.png").chmod(0)
    (tmp_path / "locked").chmod(0)
    try:
        scan = open_source(tmp_path).scan()
    finally:
        (tmp_path / "locked").chmod(0o755)
    assert scan.pool.ids == ("a.png",)
    assert [(failure.id, failure.kind) for failure in scan.failures] == [
        ("b.png", "transient"),
        ("locked/", "transient"),
    ]


def test_a_read_that_fails_is_a_failure_of_one_item(tmp_path, monkeypatch):
    plant(tmp_path, [f"{number}.png" for number in range(200)])
    source = open_source(tmp_path)
    read = type(source).read

    def flaky(self, uri):
        if uri == "7.png":
            raise OSError(5, "Input/output error")
        if uri == "8.png":
            (tmp_path / uri).unlink()
        return read(self, uri)

    monkeypatch.setattr(type(source), "read", flaky)
    scan = source.scan()
    assert len(scan.pool) == 198
    assert scan.reread == 198
    assert [(failure.id, failure.kind, failure.reason) for failure in scan.failures] == [
        ("7.png", "transient", "input/output error"),
        ("8.png", "missing", "no such file or directory"),
    ]


def test_files_too_large_are_not_read(tmp_path, monkeypatch):
    plant(tmp_path, ["a.png", "b.png"])
    monkeypatch.setattr("svp.data.listing.MAX_BYTES", 1_000)
    (tmp_path / "b.png").write_bytes(bytes(1_001))
    scan = open_source(tmp_path).scan()
    assert scan.pool.ids == ("a.png",)
    assert [(failure.id, failure.kind) for failure in scan.failures] == [("b.png", "too_large")]


def test_sources_that_do_not_exist_or_fit(tmp_path):
    with pytest.raises(InputError, match=r"must exist. Got .*nowhere"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(InputError, match="must hold images"):
        open_source(tmp_path)
    (tmp_path / "train.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"give train\.zip itself"):
        open_source(tmp_path)
    (tmp_path / "one.png").write_bytes(png())
    with pytest.raises(InputError, match="Give the folder that holds it"):
        open_source(tmp_path / "one.png")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"end in \.csv, \.parquet, \.zip"):
        open_source(tmp_path / "notes.txt")
    for url in ("http://host/images", "s3://", "s3://bucket/a/../b", "file:///etc"):
        with pytest.raises(InputError, match="must be named s3://bucket/key"):
            open_source(url)
    with pytest.raises(InputError, match="A source must be given"):
        open_source([])
    with pytest.raises(InputError, match="must belong to a manifest"):
        open_source(tmp_path, root=tmp_path)
    for name in ("no.csv", "no.parquet"):
        with pytest.raises(InputError, match="A manifest must exist"):
            open_source(tmp_path / name)


@pytest.mark.parametrize(
    "uri", ["../a.png", "/etc/passwd", "x/../../a.png", "C:\\a.png", "", "a\0b"]
)
def test_a_uri_cannot_leave_a_folder(tmp_path, uri):
    plant(tmp_path / "in", ["a.png"])
    plant(tmp_path, ["a.png"])
    with pytest.raises(InputError, match="must lie inside"):
        open_source(tmp_path / "in").read(uri)


def test_an_item_that_is_gone_is_an_oserror(tmp_path):
    source = open_source(plant(tmp_path, ["a.png"]))
    with pytest.raises(FileNotFoundError) as caught:
        source.read("b.png")
    assert failure_of(caught.value) == ("missing", "no such file or directory")
    assert failure_of(PermissionError(13, "Permission denied")) == (
        "transient",
        "permission denied",
    )
    assert failure_of(DecodeError("too_large", "big")) == ("too_large", "big")


def test_a_manifest_names_everything(tmp_path):
    plant(tmp_path / "images", ["1.png", "2.png", "3.png"])
    rows = [
        ("z", "images/1.png", "cat", "train", "video 1"),
        ("a", "./images/2.png", "", "valid", ""),
        ("m", "images/3.png", "dog", "test", ""),
    ]
    source = open_source(manifest(tmp_path / "pool.csv", rows))
    pool = source.scan().pool
    assert pool.ids == ("a", "m", "z")
    assert pool.labels == (None, "dog", "cat")
    assert pool.splits == ("val", "test", "train")
    assert pool.groups == (None, None, "video 1")
    assert source.read(pool.uris[0]) == png(1)


def test_a_manifest_of_two_columns_and_a_root(tmp_path):
    plant(tmp_path / "images", ["cat/1.png"])
    (tmp_path / "lists").mkdir()
    path = manifest(tmp_path / "lists" / "pool.csv", [("x", "cat/1.png")], ("id", "path"))
    path.write_text("\ufeff" + path.read_text(encoding="utf-8"), encoding="utf-8")
    pool = open_source(path, root=tmp_path / "images").scan().pool
    assert pool.ids == ("x",)
    assert pool.labels is pool.splits is pool.groups is None
    with pytest.raises(InputError, match="must be a folder"):
        open_source(path, root=tmp_path / "nowhere")


def test_a_parquet_manifest_of_other_types(tmp_path):
    import pyarrow
    import pyarrow.parquet

    plant(tmp_path, ["1.png", "2.png", "3.png"])
    table = pyarrow.table(
        {
            "id": [3, 1, 2],
            "path": ["1.png", "2.png", "3.png"],
            "label": [1.0, None, float("nan")],
            "group": [["a", "b"], None, []],
            "other": [b"x", b"y", b"z"],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "pool.parquet")
    pool = open_source(tmp_path / "pool.parquet").scan().pool
    assert pool.ids == ("1", "2", "3")
    assert pool.labels == (None, None, "1")
    assert pool.groups == (None, None, "a|b")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match="must be readable"):
        open_source(tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    "path", ["../1.png", "in/../../1.png", "/tmp/1.png", "C:\\1.png", "..\\1.png"]
)
def test_a_manifest_cannot_name_paths_outside_its_root(tmp_path, path):
    plant(tmp_path, ["1.png", "in/2.png"])
    listed = manifest(tmp_path / "in" / "pool.csv", [("a", "2.png"), ("b", path)], ("id", "path"))
    with pytest.raises(InputError, match="must lie inside"):
        open_source(listed)


@posix_only
@pytest.mark.parametrize("through", ["file", "folder"])
def test_a_manifest_cannot_escape_through_links(tmp_path, through):
    plant(tmp_path, ["out/1.png", "in/2.png", "in/real/3.png"])
    if through == "file":
        (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out" / "1.png")
        path = "link.png"
    else:
        (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
        path = "link/1.png"
    (tmp_path / "in" / "fine").symlink_to(tmp_path / "in" / "real")
    listed = manifest(tmp_path / "in" / "pool.csv", [("a", "fine/3.png")], ("id", "path"))
    source = open_source(listed)
    assert source.scan().pool.ids == ("a",)
    with pytest.raises(InputError, match="a symbolic link leads outside"):
        source.read(path)
    listed = manifest(tmp_path / "in" / "pool.csv", [("a", "2.png"), ("b", path)], ("id", "path"))
    with pytest.raises(InputError, match="a symbolic link leads outside"):
        open_source(listed).scan()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,path\na,1.png\nb,1.png\na,1.png\n", r"must be unique. Got a more than once"),
        ("path\n1.png\n", r"columns id and path. Got path in .*add id"),
        ("id;path\na;1.png\n", r"Got id;path in"),
        ("id,path\n", "Got no row"),
        ("", "Got none in"),
        ("id,path\n,1.png\n", "must have an id and a path"),
        ("id,path\na\n", r"Got 1 in row 1"),
        ("id,path,path\na,1.png,2.png\n", "Got path twice"),
        ('id,path\na,"1.png\n', "well formed"),
        ("id,path,split\na,1.png,tset\n", "train, val or test. Got 'tset' in row 1"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, text, message):
    plant(tmp_path, ["1.png"])
    (tmp_path / "pool.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / "pool.csv")


def test_a_manifest_that_is_not_utf8(tmp_path):
    (tmp_path / "pool.csv").write_bytes(b"id,path\n\xe9,1.png\n")
    with pytest.raises(InputError, match="must be UTF-8"):
        open_source(tmp_path / "pool.csv")


def test_rows_without_a_file_are_failures(tmp_path):
    plant(tmp_path, ["1.png"])
    (tmp_path / "folder.png").mkdir()
    rows = [("a", "1.png"), ("b", "2.png"), ("c", "folder.png"), ("d", "1.png/x.png")]
    scan = open_source(manifest(tmp_path / "pool.csv", rows, ("id", "path"))).scan()
    assert scan.pool.ids == ("a",)
    assert [(failure.id, failure.kind) for failure in scan.failures] == [
        ("b", "missing"),
        ("c", "refused"),
        ("d", "missing"),
    ]


def test_joined_sources(tmp_path):
    plant(tmp_path / "one", ["cat/1.png"])
    plant(tmp_path / "two", ["2.png"])
    listed = manifest(
        tmp_path / "two" / "pool.csv", [("b", "2.png", "dog")], ("id", "path", "label")
    )
    source = open_source([tmp_path / "one", str(listed)])
    pool = source.scan().pool
    assert pool.ids == ("b", "cat/1.png")
    assert pool.labels == ("dog", "cat")
    assert [source.read(uri) for uri in pool.uris] == [png(0), png(0)]
    assert str(tmp_path / "one") in source.uri
    for uri in ("cat/1.png", "7:cat/1.png", "-1:cat/1.png"):
        with pytest.raises(InputError, match="NUMBER:URI"):
            source.read(uri)


def test_joined_sources_must_not_share_ids(tmp_path):
    plant(tmp_path / "one", ["cat/1.png", "cat/2.png"])
    plant(tmp_path / "two", ["cat/2.png"])
    with pytest.raises(InputError, match=r"unique across sources. Got 'cat/2\.png' in both"):
        open_source([tmp_path / "one", tmp_path / "two"]).scan()


def test_sources_travel_between_processes(tmp_path):
    plant(tmp_path, ["cat/1.png"])
    listed = manifest(tmp_path / "pool.csv", [("a", "cat/1.png")], ("id", "path"))
    for source in (open_source(tmp_path), open_source(listed), open_source([tmp_path, listed])):
        copy = pickle.loads(pickle.dumps(source))
        pool = copy.scan().pool
        assert pool.id == source.scan().pool.id
        assert copy.read(pool.uris[0]) == png(0)


def test_an_empty_pool_of_failures(tmp_path):
    scan = open_source(manifest(tmp_path / "pool.csv", [("a", "no.png")], ("id", "path"))).scan()
    assert len(scan.pool) == 0
    assert scan.pool.digests.shape == (0, 32)
    assert scan.pool.digests.dtype == np.uint8
    assert len(scan.failures) == 1
