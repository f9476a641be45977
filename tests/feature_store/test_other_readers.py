"""A segment is plain Zarr v3: TensorStore and Dask read what zarr-python and we read."""

from pathlib import Path

import numpy as np
import pytest

from feature_store import Failure


@pytest.fixture(params=["float16", "float32"])
def segment(store, table, samples, request):
    digests = samples.digests(100)
    bad = {digests[7].tobytes(): Failure("corrupt", "x")}
    samples.fill(table, digests, dtype=request.param, failures=bad, chunk_rows=16, segment_rows=100)
    (manifest,) = table.segments()
    expected = samples.embed(digests, dtype=request.param)
    expected[7] = np.nan
    root = Path(store.url) / "encoders" / table.encoder_id / table.view / "segments"
    return root / manifest.id, expected, np.delete(digests, 7, axis=0)


def test_tensorstore_reads_equal_values(table, segment):
    tensorstore = pytest.importorskip("tensorstore", reason="has no wheel here")
    path, expected, digests = segment

    def opened(name):
        kvstore = {"driver": "file", "path": str(path / name)}
        return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()

    stored = opened("embeddings")
    assert (stored.dtype.name, stored.shape) == (expected.dtype.name, expected.shape)
    values = stored.read().result()
    np.testing.assert_array_equal(values, expected)
    rows = np.asarray([3, 99, 50])
    np.testing.assert_array_equal(stored[rows].read().result(), expected[rows])
    kept = np.delete(np.arange(100), 7)
    assert values[kept].tobytes() == table.read(digests).tobytes()
    keys = np.delete(opened("digests").read().result(), 7, axis=0)
    np.testing.assert_array_equal(keys, digests)


def test_tensorstore_detects_damage_too(segment):
    tensorstore = pytest.importorskip("tensorstore", reason="has no wheel here")
    path, _, _ = segment
    chunk = path / "embeddings" / "c.2.0"
    damaged = bytearray(chunk.read_bytes())
    damaged[5] ^= 1
    chunk.write_bytes(damaged)
    kvstore = {"driver": "file", "path": str(path / "embeddings")}
    stored = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    with pytest.raises(ValueError, match="Digest mismatch"):
        stored.read().result()


def test_dask_reads_equal_values_through_zarr(segment):
    array = pytest.importorskip("dask.array")
    path, expected, _ = segment
    lazy = array.from_zarr(str(path), component="embeddings")
    assert lazy.chunks[0] == (16,) * 6 + (4,)
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), expected)
