"""What every storage has to do, and the whole store on it. Subclasses bring a `storage` fixture."""

import threading
import time

import numpy as np
import pytest

from feature_store import CorruptChunkError, Failure, FeatureStore, Pool, StoreNotFoundError
from feature_store.storage import Entry


def make_store(storage):
    storage.create("store.json", b'{"format":1,"kind":"svp feature store"}\n')
    return FeatureStore(storage)


def replace(storage, key, data):
    storage.delete(key)
    assert storage.create(key, data)


def in_threads(work, count):
    errors = []

    def guarded(number):
        try:
            work(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


class StorageContract:
    def test_objects_are_created_once(self, storage):
        assert storage.size("a/b.json") is None
        assert storage.list("a") == []
        with pytest.raises(FileNotFoundError):
            storage.get("a/b.json")
        with pytest.raises(FileNotFoundError):
            storage.get_range("a/b.json", 0, 1)
        assert storage.create("a/b.json", b"12", memoryview(b"345"))
        assert not storage.create("a/b.json", b"other")
        assert storage.get("a/b.json") == b"12345"
        assert storage.size("a/b.json") == 5
        assert storage.create("a/c/d", b"")
        assert storage.get("a/c/d") == b""
        assert storage.size("a/c/d") == 0
        assert storage.list("a") == [Entry("b.json", 5), Entry("c", None)]
        assert storage.list("a/b") == []
        storage.delete("a/b.json")
        storage.delete("a/b.json")
        assert storage.size("a/b.json") is None
        assert storage.create("a/b.json", b"new")
        assert [entry.name for entry in storage.list("")] == ["a"]

    def test_ranges_end_with_the_object(self, storage):
        storage.create("x", b"12345")
        storage.create("empty", b"")
        for key, start, length, expected in (
            ("x", 1, 2, b"23"),
            ("x", 3, 9, b"45"),
            ("x", 5, 9, b""),
            ("x", 2, 0, b""),
            ("empty", 0, 1, b""),
        ):
            assert bytes(storage.get_range(key, start, length)) == expected
        assert [bytes(part) for part in storage.get_ranges("x", [(3, 2), (0, 1), (0, 5)])] == [
            b"45",
            b"1",
            b"12345",
        ]

    def test_a_walk_goes_to_any_depth(self, storage):
        assert list(storage.walk("")) == []
        for key, data in (("a/b", b"12"), ("a/c/d", b"1"), ("ab/e", b"")):
            storage.create(key, data)
        found = {one.key: one for one in storage.walk("") if not one.key.startswith(".")}
        assert {key: one.size for key, one in found.items()} == {"a/b": 2, "a/c/d": 1, "ab/e": 0}
        assert sorted(one.key for one in storage.walk("a")) == ["a/b", "a/c/d"]
        assert not any(one.unfinished for one in found.values())
        assert all(abs(one.modified_s - time.time()) < 600 for one in found.values())

    def test_one_of_many_creators_wins(self, storage):
        won = []
        in_threads(lambda i: won.append(i) if storage.create("x", b"%d" % i) else None, 8)
        assert len(won) == 1
        assert storage.get("x") == b"%d" % won[0]

    def test_a_store_holds_pools_encoders_and_rows(self, storage, samples):
        store = make_store(storage)
        digests = samples.digests(100)
        pool = Pool.create(ids=[f"{i:03d}" for i in range(100)], uris=["u"] * 100, digests=digests)
        assert store.pool(store.put_pool(pool)).id == pool.id
        assert store.pools() == [pool.id]
        with pytest.raises(StoreNotFoundError, match=pool.id):
            store.pool("0" * 16)
        encoder_id = store.put_encoder(samples.identity)
        assert store.encoders() == [encoder_id]
        table = store.table(encoder_id)
        bad = {digests[9].tobytes(): Failure("missing", "x")}
        assert samples.fill(table, digests, failures=bad) == 100
        assert table.failures() == bad
        assert samples.fill(table, digests, retry=True) == 1
        assert samples.fill(table, digests) == 0
        assert store.views(encoder_id) == ["eval"]
        orders = (
            np.arange(100),
            np.arange(100)[::-1],
            np.random.default_rng(0).permutation(100),
            np.array([5, 5, 99, 0, 5]),
            np.arange(3, 41),
        )
        for order in orders:
            fresh = store.table(encoder_id)
            for verify in (False, True, True):
                np.testing.assert_array_equal(
                    fresh.read(digests[order], verify=verify), samples.embed(digests[order])
                )
        wider = fresh.read(digests[orders[2]], dtype="float32")
        np.testing.assert_array_equal(wider, samples.embed(digests[orders[2]], dtype="float32"))
        assert table.verify() == []

    def test_damage_is_refused(self, storage, samples):
        store = make_store(storage)
        table = store.table(store.put_encoder(samples.identity))
        digests = samples.digests(40)
        samples.fill(table, digests, segment_rows=40)
        (segment,) = table.segments()
        prefix = f"encoders/{table.encoder_id}/eval/segments/{segment.id}/embeddings"
        scattered = np.random.default_rng(0).permutation(40)
        intact = storage.get(f"{prefix}/c.0.0")
        flipped = bytearray(intact)
        flipped[37] ^= 4
        for data in (
            bytes(flipped),
            intact[:-1],
            intact + b"\0",
            b"",
            storage.get(f"{prefix}/c.1.0"),
            None,
        ):
            storage.delete(f"{prefix}/c.0.0")
            if data is not None:
                storage.create(f"{prefix}/c.0.0", data)
            for rows in (np.arange(40), scattered):
                fresh = store.table(table.encoder_id)
                with pytest.raises(CorruptChunkError, match=r"c\.0\.0"):
                    fresh.read(digests[rows])
            assert fresh.verify()
        np.testing.assert_array_equal(fresh.read(digests[16:]), samples.embed(digests[16:]))
        storage.create(f"{prefix}/c.0.0", intact)
        assert store.table(table.encoder_id).verify() == []

    def test_a_chunk_is_checked_once_for_scattered_rows(self, storage, samples):
        store = make_store(storage)
        table = store.table(store.put_encoder(samples.identity))
        digests = samples.digests(32)
        samples.fill(table, digests, segment_rows=32)
        few, others = digests[[1, 3, 20]], digests[[5, 7, 31, 5]]
        np.testing.assert_array_equal(table.read(few), samples.embed(few))
        key = next(
            f"encoders/{table.encoder_id}/eval/segments/{segment.id}/embeddings/c.0.0"
            for segment in table.segments()
        )
        damaged = bytearray(storage.get(key))
        damaged[-1] ^= 1  # in the stored checksum: the rows are right
        replace(storage, key, bytes(damaged))
        fresh = store.table(table.encoder_id)
        np.testing.assert_array_equal(fresh.read(others, verify=False), samples.embed(others))
        with pytest.raises(CorruptChunkError):
            fresh.read(others)

    def test_racing_writers_publish_one_consistent_segment(self, storage, samples):
        store = make_store(storage)
        encoder_id = store.put_encoder(samples.identity)
        digests = samples.digests(80)
        plan = store.table(encoder_id).plan(digests, dim=8, dtype="float16", chunk_rows=8)[0]
        sealed = []

        def work(value):
            writer = FeatureStore(storage).table(encoder_id).writer(plan)
            for chunk in writer.pending():
                writer.write(chunk, np.full((len(chunk), 8), value, np.float16))
            sealed.append(writer.seal())

        in_threads(work, 3)
        assert sealed[0] == sealed[1] == sealed[2]
        table = store.table(encoder_id)
        read = table.read(digests).reshape(10, 64)
        assert set(np.unique(read)) <= {0, 1, 2}
        assert (read == read[:, :1]).all(), "a chunk comes from one writer"
        assert table.verify() == []

    def test_a_damaged_chunk_before_publication_is_written_again(self, storage, samples):
        store = make_store(storage)
        table = store.table(store.put_encoder(samples.identity))
        digests = samples.digests(40)
        plan = table.plan(digests, dim=8, dtype="float16", chunk_rows=16)[0]
        writer = table.writer(plan)
        chunks = list(writer.pending())
        for chunk in chunks:
            writer.write(chunk, samples.embed(digests[chunk.start : chunk.stop]))
        key = f"encoders/{table.encoder_id}/eval/segments/{plan.id}/embeddings/c.1.0"
        for damage in (slice(None, -5), slice(None, None, -1)):
            replace(storage, key, storage.get(key)[damage])
            again = table.writer(plan)
            if damage.step:  # the right size but other bytes
                with pytest.raises(CorruptChunkError, match="never published"):
                    again.seal()
            assert [chunk.index for chunk in again.pending()] == [1]
            again.write(chunks[1], samples.embed(digests[16:32]))
        again.seal()
        np.testing.assert_array_equal(table.read(digests), samples.embed(digests))
