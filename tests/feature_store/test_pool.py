import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store import CorruptChunkError, Pool, PoolError, StoreNotFoundError, open_store
from feature_store.pool import pool_from_parquet, pool_to_parquet


def _pool(ids, **columns):
    digests = np.frombuffer(
        b"".join(hashlib.sha256(name.encode()).digest() for name in ids), np.uint8
    ).reshape(-1, 32)
    return Pool.create(list(ids), [f"file/{name}" for name in ids], digests, **columns)


def test_items_are_ordered_by_id_with_their_columns():
    pool = _pool("cab", labels=["C", None, "B"], splits=["train", "val", None], groups="zxy")
    assert pool.ids == ("a", "b", "c")
    assert pool.uris == ("file/a", "file/b", "file/c")
    assert pool.labels == (None, "B", "C")
    assert pool.splits == ("val", None, "train")
    assert pool.groups == ("x", "y", "z")
    assert pool.digests[2].tobytes() == hashlib.sha256(b"c").digest()
    assert len(pool) == 3
    with pytest.raises(ValueError, match="read-only"):
        pool.digests[0] = 0


def test_the_id_covers_ids_and_digests_only():
    pool = _pool("abc")
    assert pool.id == _pool("cba", labels=["x", "y", "z"]).id
    assert len(pool.id) == 16
    assert pool.id != _pool("abd").id
    other = Pool.create(pool.ids, pool.uris, pool.digests[::-1])
    assert pool.id != other.id
    # Names that join to the same text are different items.
    same = np.zeros((2, 32), np.uint8)
    assert Pool.create(["ab", "c"], "xy", same).id != Pool.create(["a", "bc"], "xy", same).id


def test_wrong_columns_are_refused():
    with pytest.raises(PoolError, match="'a' more than once"):
        _pool("aba")
    with pytest.raises(ValueError, match=r"'0', '1', '2', '3', '4' and 3 more"):
        _pool([str(i) for i in range(8)] * 2)
    digests = np.zeros((2, 32), np.uint8)
    for columns in (
        {"uris": "x"},
        {"digests": digests[:1]},
        {"labels": ["x"]},
        {"splits": []},
        {"groups": ["x"] * 3},
    ):
        with pytest.raises(PoolError, match="one entry per item"):
            Pool.create(**({"ids": "ab", "uris": "xy", "digests": digests} | columns))
    with pytest.raises(ValueError, match="uint8"):
        Pool.create("ab", "xy", np.zeros((2, 32)))
    with pytest.raises(PoolError, match="ordered by id"):
        Pool(ids=("b", "a"), uris=("x", "y"), digests=digests)


def test_rows_of_ids_and_subsets():
    pool = _pool("abcdef", labels=list("ABCDEF"))
    assert pool.index_of(["c", "a", "c"]).tolist() == [2, 0, 2]
    assert pool.index_of([]).dtype == np.int64
    with pytest.raises(PoolError, match="'x', 'y'"):
        pool.index_of(["a", "x", "y"])
    part = pool.subset([4, 1])
    assert (part.ids, part.labels) == (("b", "e"), ("B", "E"))
    assert part.id == _pool("be").id
    for rows in ([6], [-1], [2, 2]):
        with pytest.raises(PoolError):
            pool.subset(rows)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=8))
def test_snapshots_come_back(ids):
    pool = _pool(ids, labels=["x"] * len(ids))
    read = pool_from_parquet(pool_to_parquet(pool), pool.id)
    assert (read.ids, read.uris, read.labels) == (pool.ids, pool.uris, None)
    np.testing.assert_array_equal(read.digests, pool.digests)


def test_ids_that_are_no_text_are_refused():
    with pytest.raises(PoolError, match="valid Unicode"):
        _ = Pool.create(["\udc80"], ["x"], np.zeros((1, 32), np.uint8)).id


def test_pools_are_stored_once(store):
    pool = _pool("abc")
    assert store.pools() == []
    assert store.put_pool(pool) == store.put_pool(pool) == pool.id
    assert store.pools() == [pool.id]
    assert open_store(store.url).pool(pool.id).ids == pool.ids
    with pytest.raises(StoreNotFoundError, match=pool.id):
        store.pool("0" * 16)


def test_damaged_snapshots_are_refused(store):
    pool = _pool([f"image-{i}" for i in range(50)])
    data = pool_to_parquet(pool)
    with pytest.raises(CorruptChunkError):
        pool_from_parquet(data, _pool("x").id)
    unnoticed = 0
    for offset in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[offset] ^= 1
        try:
            read = pool_from_parquet(bytes(damaged), pool.id)
        except CorruptChunkError:
            continue
        unnoticed += 1  # unused bytes of the container: what is read is right all the same
        assert (read.id, read.uris) == (pool.id, pool.uris)
    assert unnoticed < len(data) / 7
