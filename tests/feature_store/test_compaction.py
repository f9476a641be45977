import os
import time
from pathlib import Path

import numpy as np
import pytest

from feature_store import CorruptChunkError, Failure, StoreConflictError, open_store
from feature_store.compaction import compact_table
from feature_store.garbage import delete_garbage, find_garbage


def _compact(store, table, **sizes):
    return compact_table(store.storage, table, **sizes)


def _gc_all(store):
    """Delete garbage as if a day had passed."""
    moment = time.time() - 86400
    for path in Path(store.url).rglob("*"):
        os.utime(path, (moment, moment))
    found = find_garbage(store, older_than_s=3600)
    return delete_garbage(store, found, older_than_s=3600)


def _publish(table, digests, x, failures=None):
    """Publish a segment by a writer that saw none of the others."""
    empty = type(table)(table._storage, table.encoder_id, table.view)
    plan = empty.plan(digests, dim=8, dtype=x.dtype.name, chunk_rows=16)[0]
    writer = empty.writer(plan)
    for chunk in writer.pending():
        rows = slice(chunk.start, chunk.stop)
        wrong = {
            i - chunk.start: f for i, f in (failures or {}).items() if chunk.start <= i < chunk.stop
        }
        writer.write(chunk, x[rows], wrong)
    return writer.seal().id


def test_small_segments_become_one_with_the_same_bits(store, table, samples):
    digests = samples.digests(120)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 8)).astype(np.float16)
    x[5] = [-0.0, 6e-8, -6e-8, 65504, 0, 1, 2, 3]  # signed zero and subnormal numbers too
    ids = [_publish(table, digests[i : i + 20], x[i : i + 20]) for i in range(0, 120, 20)]
    seen = []
    done = _compact(store, table, report=lambda *now: seen.append(now))
    assert set(done.sources) == set(ids)
    assert (len(done.merged), done.rows, done.bytes) == (1, 120, x.nbytes)
    assert sum(size for size, _ in seen) == seen[0][1] == x.nbytes
    rows = table.resolve(digests)
    assert {rows.segments[i] for i in rows.segment} == set(done.merged), "readers turn to it"
    assert table.read(digests).tobytes() == x.tobytes()
    assert table.rows == 120
    assert len(_gc_all(store)) == 6
    assert [segment.id for segment in table.segments()] == list(done.merged)
    assert table.read(digests).tobytes() == x.tobytes()
    assert table.verify() == []
    assert table.missing(digests).tolist() == []
    merged = table.segments()[0].provenance["merged"]
    assert set(merged) == set(ids)
    assert _compact(store, table).merged == ()


def test_running_again_before_gc_does_nothing(store, table, samples):
    for start in range(0, 60, 20):
        samples.fill(table, samples.digests(20, start))
    first = _compact(store, table)
    files = {path: path.stat().st_mtime_ns for path in Path(store.url).rglob("*")}
    assert len(first.merged) == 1
    assert _compact(store, table).merged == ()
    assert {path: path.stat().st_mtime_ns for path in Path(store.url).rglob("*")} == files


def test_large_segments_stay_and_groups_fit(store, table, samples):
    x = samples.embed(samples.digests(200))
    parts = [(0, 60), (60, 80), (80, 100), (100, 120), (120, 140), (140, 160), (160, 180)]
    for start, stop in parts:
        _publish(table, samples.digests(stop - start, start), x[start:stop])
    done = _compact(store, table, segment_rows=64)
    assert len(done.sources) == 6, "the one of 60 rows is nearly full"
    assert len(done.merged) == 2
    sizes = {segment.id: segment.rows for segment in table.segments()}
    assert [sizes[segment_id] for segment_id in done.merged] == [60, 60]
    _gc_all(store)
    assert len(table.segments()) == 3
    np.testing.assert_array_equal(table.read(samples.digests(180)), x[:180])


def test_what_readers_see_of_repeated_rows_never_changes(store, table, samples):
    # Segments that overlap at random, each with values of its own.
    rng = np.random.default_rng(1)
    digests = samples.digests(100)
    for value in range(1, 15):
        rows = rng.choice(100, rng.integers(5, 25), replace=False)
        _publish(table, digests[rows], np.full((len(rows), 8), value, np.float16))
    known = np.setdiff1d(np.arange(100), table.missing(digests))
    before = table.read(digests[known])
    for segment_rows in (64, 64, 128, None):
        _compact(store, table, segment_rows=segment_rows)
        np.testing.assert_array_equal(table.read(digests[known]), before)
        _gc_all(store)
        np.testing.assert_array_equal(table.read(digests[known]), before)
    assert len(table.segments()) == 1
    assert table.rows == len(known)
    assert table.verify() == []


def test_failures_move_and_count_once(store, table, samples):
    digests = samples.digests(60)
    bad = {digests[i].tobytes(): Failure("corrupt", f"cut {i}") for i in (3, 25)}
    for start in range(0, 60, 20):
        samples.fill(table, digests[start : start + 20], failures=bad)
    samples.fill(table, digests, failures={}, retry=False)
    again = {digests[3].tobytes(): Failure("missing", "gone")}
    samples.fill(table, digests, failures=again, retry=True)  # 3 fails twice, 25 succeeds
    before = dict(table.failures())
    attempts = [plan.attempt for plan in table.plan(digests[[3]], dim=8, dtype="float16")]
    done = _compact(store, table)
    assert len(done.merged) == 1
    for _ in range(2):
        assert (
            dict(table.failures()) == before == {digests[3].tobytes(): Failure("missing", "gone")}
        )
        plans = table.plan(digests[[3]], dim=8, dtype="float16")
        assert [plan.attempt for plan in plans] == attempts == [2]
        assert table.missing(digests, retry=True).tolist() == [3]
        _gc_all(store)
    assert {segment.attempt for segment in table.segments()} == {0, 1}
    assert table.verify() == []


def test_damage_is_not_merged(store, table, samples):
    for start in range(0, 60, 20):
        samples.fill(table, samples.digests(20, start))
    chunk = sorted(Path(store.url).rglob("embeddings/c.0.0"))[1]
    data = bytearray(chunk.read_bytes())
    data[9] ^= 16
    chunk.write_bytes(data)
    with pytest.raises(CorruptChunkError):
        _compact(store, table)
    assert len(table.segments()) == 3


def test_an_unfinished_segment_with_other_vectors_is_left_alone(store, table, samples):
    digests = samples.digests(40)
    for start in (0, 20):
        samples.fill(table, digests[start : start + 20])
    merged = open_store(store.url)
    order = _order(store, table)
    empty = type(table)(store.storage, table.encoder_id, "eval")
    plan = empty.plan(order, dim=8, dtype="float16")[0]
    writer = empty.writer(plan)
    writer.write(plan.chunks()[0], np.ones((40, 8), np.float16))
    with pytest.raises(StoreConflictError, match=plan.id):
        _compact(merged, merged.table(table.encoder_id))
    np.testing.assert_array_equal(table.read(digests), samples.embed(digests))
    chunk = next(Path(store.url).rglob(f"{plan.id}/embeddings/c.0.0"))
    chunk.write_bytes(b"\1" * chunk.stat().st_size)
    assert _compact(store, table).merged == (plan.id,)
    np.testing.assert_array_equal(table.read(digests), samples.embed(digests))
    assert table.verify() == []


def _order(store, table):
    """Return the digests in the order in which they are merged."""
    from feature_store.compaction import _groups, _plan

    (group,) = _groups(store.storage, table, table.segments(), None)
    return _plan(store.storage, table, group).digests


def test_mixed_dtypes_are_not_merged(store, table, samples):
    samples.fill(table, samples.digests(20))
    samples.fill(table, samples.digests(20, 50), dtype="float32")
    with pytest.raises(StoreConflictError, match="dtype"):
        _compact(store, table)
