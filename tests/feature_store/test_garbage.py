import os
import time
from pathlib import Path

import numpy as np
import pytest

from feature_store import CorruptChunkError, Failure, open_store
from feature_store.garbage import delete_garbage, find_garbage

HOUR_S = 3600.0


@pytest.fixture
def aged(store):
    """Return a function that makes everything stored so far a day old."""

    def age(days=1.0):
        moment = time.time() - days * 24 * HOUR_S
        for path in Path(store.url).rglob("*"):
            os.utime(path, (moment, moment))

    return age


def _gc(store, hours=12.0, keep=()):
    found = find_garbage(store, older_than_s=hours * HOUR_S, keep=keep)
    return delete_garbage(store, found, older_than_s=hours * HOUR_S)


def _files(store):
    return {str(path) for path in Path(store.url).rglob("*") if path.is_file()}


def _unfinished(table, samples, start=500):
    plan = table.plan(samples.digests(40, start), dim=8, dtype="float16", chunk_rows=10)[0]
    writer = table.writer(plan)
    chunk = plan.chunks()[0]
    x = samples.embed(plan.digests[:10])
    writer.write(chunk, x, {2: Failure("corrupt", "cut")})
    return writer


def test_nothing_published_is_garbage(store, table, samples, aged):
    digests = samples.digests(100)
    samples.fill(table, digests, failures={digests[3].tobytes(): Failure("corrupt", "cut")})
    aged()
    before = _files(store)
    assert _gc(store, 0) == ()
    assert _files(store) == before


def test_unfinished_segments_go_when_they_are_old(store, table, samples, aged):
    samples.fill(table, samples.digests(50))
    aged()
    published = _files(store)
    writer = _unfinished(table, samples)
    assert _gc(store) == ()
    aged()
    found = find_garbage(store, older_than_s=12 * HOUR_S)
    assert [item.kind for item in found] == ["unfinished"]
    assert len(found[0].keys) == 5  # three zarr.json, a chunk, a failure record
    assert find_garbage(store, older_than_s=12 * HOUR_S, keep={table.encoder_id}) == ()
    assert _files(store) > published, "finding deletes nothing"
    assert [item.keys for item in _gc(store)] == [found[0].keys]
    assert _files(store) == published
    for chunk in writer.pending():
        writer.write(chunk, samples.embed(writer.plan.digests[chunk.start : chunk.stop]))
    aged()
    np.testing.assert_array_equal(
        table.read(samples.digests(50)), samples.embed(samples.digests(50))
    )


def test_a_segment_continued_meanwhile_stays(store, table, samples, aged):
    writer = _unfinished(table, samples)
    aged()
    found = find_garbage(store, older_than_s=12 * HOUR_S)
    chunk = writer.plan.chunks()[1]
    writer.write(chunk, samples.embed(writer.plan.digests[chunk.start : chunk.stop]))
    assert delete_garbage(store, found, older_than_s=12 * HOUR_S) == ()
    assert len(list(writer.pending())) == 2


def test_leftovers_of_killed_writers_go(store, table, samples, aged):
    samples.fill(table, samples.digests(50))
    root = Path(store.url)
    (segments,) = root.glob("encoders/*/eval/segments")
    published = next(segments.glob("*.json")).stem
    left = [
        root / ".probe-0123456789ab",
        root / "pools" / ".x.parquet.0123456789ab.tmp",
        segments / published / "embeddings" / ".c.0.0.0123456789ab.tmp",
        segments.parent / "failures" / f"{published}.0.abc.json",
    ]
    foreign = [root / "notes" / ".x.tmp", root / "notes.txt", segments.parent / "notes.txt"]
    for path in left + foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert _gc(store) == ()
    aged()
    assert {root / item.name for item in _gc(store)} == set(left)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in foreign)


def _publish(table, samples, numbers, value=None, failures=()):
    """Publish a segment of these samples by a writer that saw none of the others."""
    digests = np.concatenate([samples.digests(1, number) for number in numbers])
    empty = type(table)(table._storage, table.encoder_id, table.view)
    plan = empty.plan(digests, dim=8, dtype="float16", chunk_rows=16)[0]
    writer = empty.writer(plan)
    for chunk in writer.pending():
        part = plan.digests[chunk.start : chunk.stop]
        x = samples.embed(part) if value is None else np.full((len(part), 8), value, np.float16)
        wrong = {
            row: Failure("corrupt", "cut")
            for row, digest in enumerate(part)
            if digest.tobytes() in {samples.digests(1, n).tobytes() for n in failures}
        }
        writer.write(chunk, x, wrong)
    return writer.seal().id


def test_superseded_segments_go_and_no_reader_notices(store, table, samples, aged):
    small = _publish(table, samples, range(10), value=1)
    other = _publish(table, samples, range(5, 20), value=2)
    alone = _publish(table, samples, range(40, 44), value=3)
    digests = samples.digests(20)
    aged()
    assert _gc(store) == (), "no row is held twice in full"
    large = _publish(table, samples, range(30), value=4)
    before = table.read(digests)
    assert (before == 4).all(), "of equal digests the row of the larger segment is read"
    assert _gc(store) == (), "the larger one is too young"
    aged()
    gone = _gc(store)
    assert {Path(item.name).name for item in gone} == {small, other}
    assert all(item.held_by == (large,) for item in gone)
    assert {segment.id for segment in table.segments()} == {large, alone}
    np.testing.assert_array_equal(table.read(digests), before)
    assert table.verify() == []
    assert _gc(store, 0) == ()


def test_of_segments_with_the_same_rows_one_stays(store, table, samples, aged):
    _publish(table, samples, range(10), value=1)
    _publish(table, samples, reversed(range(10)), value=2)
    before = table.read(samples.digests(10))
    aged()
    assert len(_gc(store)) == 1
    np.testing.assert_array_equal(table.read(samples.digests(10)), before)
    assert _gc(store) == ()


def test_the_last_record_of_a_failure_stays(store, table, samples, aged):
    holder = _publish(table, samples, range(20))
    failed = _publish(table, samples, [1, 2, 50], failures=[50])
    aged()
    assert _gc(store) == (), f"only {failed} knows why 50 failed, {holder} does not"
    _publish(table, samples, [50])
    aged()
    assert [Path(item.name).name for item in _gc(store)] == [failed]
    assert table.failures() == {}


def test_nothing_goes_while_its_holder_is_damaged(store, table, samples, aged):
    _publish(table, samples, range(10))
    large = _publish(table, samples, range(30))
    aged()
    chunk = next(Path(store.url).rglob(f"{large}/embeddings/c.0.0"))
    data = bytearray(chunk.read_bytes())
    data[3] ^= 4
    chunk.write_bytes(data)
    aged()
    before = _files(store)
    with pytest.raises(CorruptChunkError, match=large):
        _gc(store)
    assert _files(store) == before


def test_a_killed_deletion_leaves_an_unfinished_segment(store, table, samples, aged, monkeypatch):
    small = _publish(table, samples, range(10))
    _publish(table, samples, range(30))
    aged()
    deleted = []
    delete = store.storage.delete

    def stop(key):
        if len(deleted) == 2:
            raise KeyboardInterrupt
        deleted.append(key)
        delete(key)

    monkeypatch.setattr(store.storage, "delete", stop)
    with pytest.raises(KeyboardInterrupt):
        _gc(store)
    monkeypatch.undo()
    fresh = open_store(store.url)
    assert fresh.table(table.encoder_id).verify() == []
    assert [item.kind for item in _gc(fresh)] == ["unfinished"]
    assert not any(small in name for name in _files(store))
