"""What is read again, and what never is."""

import os
import time

import numpy as np
import pytest

from svp.data import DigestCache, open_source
from svp.data.digest_cache import UInt8Array
from svp.progress import Lines


def keys(*numbers) -> UInt8Array:
    rows = [np.frombuffer(number.to_bytes(16, "little"), dtype=np.uint8) for number in numbers]
    return np.stack(rows)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "cat").mkdir(parents=True)
    for number in range(5):
        (root / "cat" / f"{number}.png").write_bytes(b"image %d" % number)
    return root


@pytest.fixture
def cache(tmp_path):
    return DigestCache(tmp_path / "cache")


def test_an_unchanged_folder_is_not_read_again(folder, cache):
    first = open_source(folder).scan(cache=cache)
    again = open_source(folder).scan(cache=DigestCache(cache.path))
    assert (first.reread, again.reread) == (5, 0)
    assert first.pool.id == again.pool.id
    assert open_source(folder).scan().reread == 5


def test_a_touched_file_is_read_again_and_stays_the_same_item(folder, cache):
    first = open_source(folder).scan(cache=cache)
    os.utime(folder / "cat" / "3.png", ns=(0, 1_234_567_890_123))
    again = open_source(folder).scan(cache=cache)
    assert again.reread == 1
    assert again.pool.id == first.pool.id
    assert open_source(folder).scan(cache=cache).reread == 0


def test_an_edited_file_is_another_image(folder, cache):
    first = open_source(folder).scan(cache=cache)
    (folder / "cat" / "3.png").write_bytes(b"IMAGE 3")
    again = open_source(folder).scan(cache=cache)
    assert again.reread == 1
    assert again.pool.id != first.pool.id
    assert (first.pool.digests != again.pool.digests).any(axis=1).tolist() == [
        name == "cat/3.png" for name in first.pool.ids
    ]


def test_an_edit_that_keeps_length_and_time_is_seen(folder, cache):
    path = folder / "cat" / "3.png"
    status = path.stat()
    first = open_source(folder).scan(cache=cache)
    path.write_bytes(b"IMAGE 3")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = open_source(folder).scan(cache=cache)
    assert again.reread == 1
    assert again.pool.id != first.pool.id


def test_edits_right_after_a_scan_are_seen(folder, cache):
    path = folder / "cat" / "0.png"
    for number in range(5):
        path.write_bytes(b"image %d" % number)
        scanned = open_source(folder).scan(cache=cache)
        path.write_bytes(b"other %d" % number)
        assert open_source(folder).scan(cache=cache).pool.id != scanned.pool.id


def test_a_renamed_file_is_a_new_item_of_the_same_bytes(folder, cache):
    first = open_source(folder).scan(cache=cache)
    (folder / "cat" / "3.png").rename(folder / "cat" / "9.png")
    again = open_source(folder).scan(cache=cache)
    assert again.reread == 1
    assert again.pool.ids[-1] == "cat/9.png"
    assert again.pool.digests[-1].tobytes() == first.pool.digests[3].tobytes()


def test_a_removed_file_needs_no_reading_and_an_added_one_only_itself(folder, cache):
    open_source(folder).scan(cache=cache)
    (folder / "cat" / "3.png").unlink()
    scan = open_source(folder).scan(cache=cache)
    assert (len(scan.pool), scan.reread) == (4, 0)
    (folder / "cat" / "new.png").write_bytes(b"new")
    scan = open_source(folder).scan(cache=cache)
    assert (len(scan.pool), scan.reread) == (5, 1)


def test_manifests_and_joined_sources_are_cached_too(folder, cache, tmp_path):
    listed = tmp_path / "pool.csv"
    listed.write_text("id,path\na,images/cat/0.png\nb,images/cat/1.png\n", encoding="utf-8")
    for specs, n in ((listed, 2), ([listed, folder], 7)):
        first = open_source(specs).scan(cache=cache)
        assert len(first.pool) == n
        assert open_source(specs).scan(cache=cache).reread == 0


@pytest.mark.parametrize("damage", [b"", b"svpdig01", b"garbage" * 100, "flip", "cut"])
def test_a_damaged_cache_costs_time_and_never_truth(folder, cache, damage):
    first = open_source(folder).scan(cache=cache)
    path = cache.file(str(folder))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[40] ^= 1
    elif damage == "cut":
        del data[-48:]
    else:
        data = damage
    path.write_bytes(bytes(data))
    again = open_source(folder).scan(cache=cache)
    assert again.reread == 5
    assert again.pool.id == first.pool.id
    assert open_source(folder).scan(cache=cache).reread == 0


def test_a_scan_that_is_interrupted_goes_on_where_it_stopped(tmp_path, cache, monkeypatch):
    root = tmp_path / "many"
    root.mkdir()
    for number in range(400):
        (root / f"{number:03}.png").write_bytes(b"%d" % number)
    source = open_source(root)
    read = type(source).read
    seen = []

    def interrupted(self, uri):
        seen.append(uri)
        if len(seen) > 200:
            raise KeyboardInterrupt
        return read(self, uri)

    monkeypatch.setattr(type(source), "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        source.scan(cache=cache)
    monkeypatch.setattr(type(source), "read", read)
    scan = source.scan(cache=cache)
    assert len(scan.pool) == 400
    assert scan.reread < 400


def test_a_cache_that_cannot_be_written_is_said_and_survived(folder, tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    scan = open_source(folder).scan(cache=DigestCache(tmp_path / "file"), progress=Lines())
    assert len(scan.pool) == 5
    assert "cannot be written" in capsys.readouterr().err


def test_lookups_by_key(cache):
    digests_ND = np.arange(96, dtype=np.uint8).reshape(3, 32)
    cache.put("a source", keys(5, 2**100, 1), digests_ND)
    found_N, got_ND = cache.find("a source", keys(2**100, 7, 1, 2**101, 5))
    assert found_N.tolist() == [True, False, True, False, True]
    np.testing.assert_array_equal(got_ND[[0, 2, 4]], digests_ND[[1, 2, 0]])
    assert not got_ND[[1, 3]].any()
    found_N, _ = cache.find("another source", keys(5))
    assert not found_N.any()
    # Keys that share their first eight bytes hide each other: a miss, never a wrong digest.
    twins_NK = keys(3, 3 + 2**64)
    cache.put("a source", twins_NK, digests_ND[:2])
    found_N, got_ND = cache.find("a source", twins_NK)
    assert found_N.sum() == 1
    np.testing.assert_array_equal(got_ND[found_N], digests_ND[:2][found_N])
    cache.put("a source", keys(1)[:0], digests_ND[:0])
    assert not cache.find("a source", keys(1))[0].any()


def test_the_default_place_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SVP_CACHE_DIR", str(tmp_path))
    assert DigestCache.default().path == tmp_path / "digests"
    monkeypatch.delenv("SVP_CACHE_DIR")
    assert DigestCache.default().path.name == "digests"


def test_lookups_grow_gently(cache):
    rng = np.random.Generator(np.random.PCG64(1))
    n = 300_000
    keys_NK = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    digests_ND = rng.integers(0, 256, (n, 32), dtype=np.uint8)
    start = time.perf_counter()
    cache.put("pool", keys_NK, digests_ND)
    found_N, got_ND = cache.find("pool", keys_NK[::-1])
    assert time.perf_counter() - start < 10
    assert found_N.all()
    np.testing.assert_array_equal(got_ND, digests_ND[::-1])
