import errno
import json
import os

import pytest

from feature_store import atomic
from feature_store.digest import canonical_json, sha256_hex


def test_writing_replaces_and_creating_does_not(tmp_path):
    path = tmp_path / "a" / "b.txt"
    assert atomic.create_bytes(path, b"one")
    assert not atomic.create_bytes(path, b"two")
    assert path.read_bytes() == b"one"
    atomic.write_bytes(path, b"three")
    assert path.read_bytes() == b"three"
    atomic.write_text(path, "grün")
    assert path.read_text(encoding="utf-8") == "grün"
    atomic.write_json(path, {"b": 1, "a": ["ü"]})
    assert path.read_text(encoding="utf-8") == '{\n  "a": [\n    "ü"\n  ],\n  "b": 1\n}\n'
    assert json.loads(path.read_bytes()) == {"a": ["ü"], "b": 1}
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(path, {"a": float("inf")})
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"]


def test_a_failure_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "x"
    atomic.write_bytes(path, b"old")

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (atomic.write_bytes, atomic.create_bytes):
        with pytest.raises(OSError, match="No space"):
            write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space cannot be reserved here")
def test_space_for_large_files_is_reserved_where_that_is_possible(tmp_path, monkeypatch):
    data = os.urandom(2**20)
    assert atomic.create_parts(tmp_path / "x", (data, b"", b"end"))
    assert (tmp_path / "x").read_bytes() == data + b"end"

    def refuse(number):
        def fails(_handle, _start, length):
            assert length == len(data) + 3
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "posix_fallocate", fails)

    refuse(errno.EOPNOTSUPP)
    assert atomic.create_parts(tmp_path / "y", (data, b"end"))
    assert (tmp_path / "y").read_bytes() == data + b"end"
    refuse(errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        atomic.create_parts(tmp_path / "z", (data, b"end"))
    assert atomic.create_parts(tmp_path / "z", (b"small",))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x", "y", "z"]


def test_a_swept_temporary_file_means_that_somebody_published(tmp_path, monkeypatch):
    path = tmp_path / "x"

    def swept(_source, target):
        target.write_bytes(b"theirs")
        raise FileNotFoundError

    monkeypatch.setattr(os, "link", swept)
    assert not atomic.create_bytes(path, b"ours")
    assert path.read_bytes() == b"theirs"


def test_canonical_json_has_one_form():
    assert canonical_json({"b": [1, 2.5, None], "a": "ü"}) == '{"a":"ü","b":[1,2.5,null]}'.encode()
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json([float("nan")])
    assert sha256_hex(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
