import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from feature_store import CorruptChunkError, Failure, MissingRowsError, Pool, layout
from feature_store.export import export_table


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    # 8 halves a row, so 16 rows a batch: the 100 rows take seven of them, the last one short.
    monkeypatch.setattr(layout, "CHUNK_BYTES", 256)


def _pool(samples, count, start=0):
    ids = [f"i{(n * 37) % count:04}" for n in range(count)]
    return Pool.create(ids, ["u"] * count, samples.digests(count, start))


def _ids(path):
    with path.open(newline="") as file:
        return [(row["id"], row["digest"]) for row in csv.DictReader(file)]


def _read(path, form):
    """Return ids, digests and embeddings as somebody without this package reads them."""
    if form == "parquet":
        table = pq.read_table(path)
        x = np.stack(table.column("embedding").to_numpy())
        return table.column("id").to_pylist(), table.column("digest").to_pylist(), x
    ids, digests = zip(*_ids(path / "ids.csv"), strict=True)
    if form == "npy":
        return list(ids), list(digests), np.load(path / "embeddings.npy", allow_pickle=False)
    return list(ids), list(digests), zarr.open_array(path / "embeddings.zarr", mode="r")[:]


@pytest.mark.parametrize("form", ["zarr", "parquet", "npy"])
@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_a_pool_in_its_order_without_failed_items(table, samples, tmp_path, form, stored):
    pool = _pool(samples, 100)
    failures = {pool.digests[7].tobytes(): Failure("corrupt", "cut")}
    samples.fill(table, samples.digests(120), dtype=stored, failures=failures)
    seen = []
    done = export_table(
        table, tmp_path / "out", form=form, pool=pool, report=lambda *now: seen.append(now)
    )
    assert (done.rows, done.failed, done.dim, done.dtype) == (99, 1, 8, stored)
    ids, digests, x = _read(tmp_path / "out", form)
    kept = np.delete(np.arange(100), 7)
    assert ids == [pool.ids[i] for i in kept]
    assert digests == [pool.digests[i].tobytes().hex() for i in kept]
    assert x.dtype == stored
    np.testing.assert_array_equal(x, samples.embed(pool.digests[kept], dtype=stored))
    assert sum(rows for rows, _ in seen) == seen[0][1] == 99
    assert len(seen) > 5, "batches are small, so memory is bounded"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("form", ["zarr", "parquet", "npy"])
def test_a_whole_table_in_another_dtype(table, samples, tmp_path, form):
    samples.fill(table, samples.digests(100))
    done = export_table(table, tmp_path / "deep" / "out", form=form, dtype="float32")
    ids, digests, x = _read(done.path, form)
    assert ids == digests
    assert len(set(ids)) == 100
    rows = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, samples.embed(rows))


@pytest.mark.parametrize("form", ["zarr", "parquet", "npy"])
def test_nothing_is_overwritten_and_nothing_half_done_is_left(table, samples, tmp_path, form):
    samples.fill(table, samples.digests(100))
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(FileExistsError):
        export_table(table, out, form=form)
    assert out.read_text() == "mine"
    out.unlink()
    with pytest.raises(MissingRowsError) as missing:
        export_table(table, out, form=form, pool=_pool(samples, 20, 90))
    assert missing.value.missing == 10
    chunk = sorted(Path(table._storage.url).rglob("embeddings/c.1.0"))[0]
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CorruptChunkError):
        export_table(table, out, form=form)
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


def test_an_empty_table_is_not_exported(table, tmp_path):
    with pytest.raises(MissingRowsError, match="none"):
        export_table(table, tmp_path / "out", form="npy")
