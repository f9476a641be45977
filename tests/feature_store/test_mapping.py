import mmap
import os
import subprocess
import sys

import numpy as np
import pytest

from feature_store import CorruptChunkError, open_store
from feature_store.mapping import JoinedChunks, Maps, can_join

ROWS = 5000  # three chunks, the last one filled up
CHUNK_ROWS = {8: 2048, 9: 2000}  # of 8 numbers they fill whole pages, of 9 they do not


@pytest.fixture(params=[8, 9], ids=["joined", "file by file"])
def dim(request):
    assert can_join(3, 2 * request.param * CHUNK_ROWS[request.param]) == (request.param == 8)
    return request.param


@pytest.fixture
def filled(store, table, samples, dim):
    digests = samples.digests(ROWS)
    samples.fill(table, digests, dim=dim, chunk_rows=CHUNK_ROWS[dim], segment_rows=ROWS)
    return digests


def _fresh(store, table):
    return open_store(store.url).table(table.encoder_id)


def _orders():
    rng = np.random.default_rng(0)
    return (
        rng.permutation(ROWS),
        rng.integers(0, ROWS, 3 * ROWS),
        rng.permutation(ROWS)[:50],
        np.array([7]),
        # A chunk in order among scattered rows: these go to places that do not follow each other.
        np.concatenate([rng.permutation(900), np.arange(2048, 4096), rng.permutation(800)]),
        np.concatenate([np.arange(2040, 2060), [3, 1], np.arange(4990, 5000)]),
    )


def test_scattered_rows_are_the_stored_ones(store, table, samples, dim, filled):
    expected = samples.embed(filled, dim)
    fresh = _fresh(store, table)
    for order in _orders():
        for verify in (False, True):
            read = fresh.read(filled[order], verify=verify)
            np.testing.assert_array_equal(read, expected[order])


def test_rows_of_several_segments(store, table, samples, dim, filled):
    more = samples.digests(4000, start=ROWS)
    samples.fill(table, more, dim=dim, chunk_rows=1024, segment_rows=1024)
    both = np.concatenate([filled, more])[np.random.default_rng(1).permutation(ROWS + 4000)]
    np.testing.assert_array_equal(_fresh(store, table).read(both), samples.embed(both, dim))


def test_damage_is_refused_before_a_row_is_read(store, table, samples, dim, filled, segment_files):
    scattered = filled[np.random.default_rng(2).permutation(ROWS)]
    path = next(
        path for path in segment_files(table) if path.name == "c.1.0" and "emb" in str(path)
    )
    intact = path.read_bytes()
    for offset in (0, len(intact) // 2, len(intact) - 5, len(intact) - 4, len(intact) - 1):
        damaged = bytearray(intact)
        damaged[offset] ^= 1
        path.write_bytes(damaged)
        fresh = _fresh(store, table)
        for _ in range(2):
            with pytest.raises(CorruptChunkError, match=r"c\.1\.0"):
                fresh.read(scattered)
    # A map over a file that is too short would end the process, not raise.
    for kept in (0, 1, mmap.PAGESIZE, len(intact) - 4, len(intact) - 1):
        path.write_bytes(intact[:kept])
        for verify in (False, True):
            with pytest.raises(CorruptChunkError, match=r"c\.1\.0"):
                _fresh(store, table).read(scattered, verify=verify)
    path.unlink()
    fresh = _fresh(store, table)
    with pytest.raises(CorruptChunkError, match=r"c\.1\.0"):
        fresh.read(scattered)
    # What was mapped for the others before is of use, and nothing else is opened for them.
    rest = filled[np.random.default_rng(3).permutation(2000)]
    np.testing.assert_array_equal(fresh.read(rest), samples.embed(rest, dim))
    path.write_bytes(intact)
    np.testing.assert_array_equal(fresh.read(scattered), samples.embed(scattered, dim))


def test_a_segment_computed_again_is_not_read_from_old_files(table, samples, filled, dim, store):
    order = np.random.default_rng(4).permutation(ROWS)
    assert len(table.segments()) == 1
    old = table.read(filled[order])
    (segment,) = table.segments()
    prefix = f"encoders/{table.encoder_id}/eval/segments"
    storage = table._storage
    for key in (f"{prefix}/{segment.id}.json", *(found.key for found in storage.walk(prefix))):
        storage.delete(key)
    assert table.segments() == ()
    sizes = {"chunk_rows": CHUNK_ROWS[dim], "segment_rows": ROWS}
    (plan,) = table.plan(filled, dim=dim, dtype="float16", **sizes)
    assert plan.id == segment.id
    writer = table.writer(plan)
    for chunk in writer.pending():
        part = plan.digests[chunk.start : chunk.stop]
        writer.write(chunk, samples.embed(part, dim) + np.float16(1))
    writer.seal()
    np.testing.assert_array_equal(table.read(filled[order]), old + np.float16(1))


def test_limited_addresses_are_respected(store, table, samples, filled, dim, child_environment):
    # Under such a limit a segment's range of addresses is not taken; the rows are the same.
    code = (
        "import resource, sys, numpy as np; from feature_store import open_store;"
        "from feature_store.mapping import can_join; most = 2**40;"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most)); assert not can_join(1, 2**20);"
        "table = open_store(sys.argv[1]).table(sys.argv[2]); asked = table.digests()[::-3].copy();"
        "sys.stdout.buffer.write(table.read(asked).tobytes())"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, store.url, table.encoder_id],
        env=child_environment,
        capture_output=True,
        check=True,
    )
    assert child.stdout == samples.embed(filled[::-3], dim).tobytes()


def test_only_whole_pages_and_ordinary_segments_are_joined():
    page = mmap.ALLOCATIONGRANULARITY
    assert can_join(64, 16 * 2**20)
    assert can_join(1, page)
    assert not can_join(1, page + 2)
    assert not can_join(100_000, page), "the system limits how many files a process maps"


def test_chunks_lie_one_behind_the_other(tmp_path):
    page = mmap.ALLOCATIONGRANULARITY
    for index in range(3):
        (tmp_path / str(index)).write_bytes(bytes([index + 1]) * page + b"end%d" % index)
    joined = JoinedChunks(3, page)
    opened = []

    def handle(index):
        opened.append(index)
        return os.open(tmp_path / str(index), os.O_RDONLY)

    joined.add([2, 0], handle)
    joined.add([0, 1, 1], handle)
    assert opened == [2, 0, 1]
    assert joined.bytes_C.reshape(3, page).min(axis=1).tolist() == [1, 2, 3]
    assert joined.bytes_C.reshape(3, page).max(axis=1).tolist() == [1, 2, 3]
    assert [joined.trailer(index) for index in range(3)] == [b"end0", b"end1", b"end2"]
    assert bytes(joined.payload(1)) == b"\2" * page
    assert joined.bytes_C.ctypes.data % 2**21 == 0, "large pages need that"
    with pytest.raises(ValueError, match="read-only"):
        joined.bytes_C[0] = 0


def test_the_least_recently_used_is_closed_first():
    made = []

    def make(name):
        made.append(name)
        return name * 2

    maps = Maps(limit=2)
    for name in "abacab":
        assert maps.get(name, lambda name=name: make(name)) == name * 2
    assert made == ["a", "b", "c", "b"]
