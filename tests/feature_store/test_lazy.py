import subprocess
import sys

import numpy as np
import pytest

from feature_store import (
    CorruptChunkError,
    FeatureStoreError,
    MissingRowsError,
    dask_array,
    read_blocks,
    read_tensor,
)

ORDERS = {
    "stored": np.arange(300),
    "from the middle": np.arange(40, 200),
    "scattered": np.random.default_rng(0).permutation(300),
    "repeated": np.asarray([5, 5, 4, 299]),
    "both": np.concatenate([np.arange(128), np.random.default_rng(1).permutation(300)]),
}


@pytest.fixture
def digests(table, samples):
    digests = samples.digests(300)
    samples.fill(table, digests[:200], chunk_rows=32, segment_rows=100)
    samples.fill(table, digests, chunk_rows=16, segment_rows=100)
    return digests


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("rows", [7, 64, 1000, None])
def test_blocks_are_the_whole(table, samples, digests, order, rows):
    asked = digests[order]
    parts = list(read_blocks(table, asked, rows=rows))
    assert [part.start for part, _ in parts] == [0, *(part.stop for part, _ in parts)][:-1]
    assert all(len(x) == part.stop - part.start <= (rows or 1000) for part, x in parts)
    np.testing.assert_array_equal(np.concatenate([x for _, x in parts]), samples.embed(asked))


def test_blocks_end_where_chunks_end(table, digests):
    bounds = [part.stop for part, _ in read_blocks(table, digests[:100], rows=40)]
    assert bounds == [32, 64, 100]  # 4 rows of a chunk that ends with its segment
    assert [part.stop for part, _ in read_blocks(table, digests[20:80], rows=40)] == [12, 44, 60]


def test_blocks_have_the_asked_dtype_and_are_checked(table, store, digests, segment_files):
    (_, x), *_ = read_blocks(table, digests, dtype="float32")
    assert x.dtype == np.float32
    assert list(read_blocks(table, digests[:0])) == []
    with pytest.raises(ValueError, match="at least 1"):
        next(read_blocks(table, digests, rows=0))
    path = next(path for path in segment_files(table) if "embeddings/c.1.0" in str(path))
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CorruptChunkError, match=r"c\.1\.0"):
        list(read_blocks(store.table(table.encoder_id), digests))


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_dask_array_has_equal_values(table, samples, digests, order):
    pytest.importorskip("dask.array")
    asked = digests[order]
    lazy = dask_array(table, asked)
    assert (lazy.shape, lazy.dtype) == ((len(asked), 8), np.float16)
    assert max(lazy.chunks[0]) <= 32
    np.testing.assert_array_equal(lazy.compute(scheduler="threads"), samples.embed(asked))
    np.testing.assert_array_equal(lazy[-3:].compute(scheduler="sync"), samples.embed(asked)[-3:])
    total = lazy.astype("f8").sum().compute(scheduler="sync")
    assert total == samples.embed(asked).astype("f8").sum()


def test_a_dask_task_reads_one_chunk_and_only_when_asked(table, store, digests, segment_files):
    pytest.importorskip("dask.array")
    lazy = dask_array(table, digests[:200])
    assert lazy.chunks[0] == (32, 32, 32, 4) * 2
    last = [path for path in segment_files(table) if path.name == "c.3.0"]
    for path in last:
        path.write_bytes(b"")
    assert lazy[:32].compute(scheduler="sync").shape == (32, 8)
    with pytest.raises(CorruptChunkError, match=r"c\.3\.0"):
        lazy.compute(scheduler="sync")


def test_a_dask_task_runs_in_another_process(table, samples, digests, tmp_path, child_environment):
    pytest.importorskip("dask.array")
    import pickle

    (tmp_path / "lazy").write_bytes(pickle.dumps(dask_array(table, digests)))
    code = (
        "import pickle, sys, numpy as np;"
        "lazy = pickle.load(open(sys.argv[1], 'rb'));"
        "np.save(sys.argv[2], lazy.compute(scheduler='sync'))"
    )
    out = tmp_path / "x.npy"
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "lazy", out], env=child_environment, check=True
    )
    np.testing.assert_array_equal(np.load(out), samples.embed(digests))


def test_missing_rows_are_named_at_once(table, samples, digests):
    asked = samples.digests(310)
    for read in (lambda: next(read_blocks(table, asked)), lambda: read_tensor(table, asked)):
        with pytest.raises(MissingRowsError, match="10 without"):
            read()
    pytest.importorskip("dask.array")
    with pytest.raises(MissingRowsError, match="10 without"):
        dask_array(table, asked)
    with pytest.raises(MissingRowsError, match="must have rows"):
        dask_array(table, asked[:0])


def test_a_missing_package_is_named(table, digests, monkeypatch):
    for name, read in (("dask", dask_array), ("torch", read_tensor)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(FeatureStoreError, match=f"(?i){name} must be installed"):
            read(table, digests)
