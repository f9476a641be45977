"""zarr-python is the reference: it must read what we write, and we what it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from feature_store import CorruptChunkError, Failure, open_store
from feature_store.digest import content_digest
from feature_store.manifest import SegmentManifest, StoredObject


def _segments(store, table):
    return Path(store.url) / "encoders" / table.encoder_id / table.view / "segments"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_zarr_reads_equal_values(store, table, samples, dtype):
    digests = samples.digests(100)
    bad = {digests[7].tobytes(): Failure("corrupt", "x")}
    samples.fill(table, digests, dtype=dtype, failures=bad, chunk_rows=16, segment_rows=100)
    (segment,) = table.segments()
    group = zarr.open_group(_segments(store, table) / segment.id, mode="r")
    assert sorted(name for name, _ in group.members()) == ["digests", "embeddings"]
    expected, keys = samples.embed(digests, dtype=dtype), digests.copy()
    expected[7], keys[7] = np.nan, 0
    np.testing.assert_array_equal(group["embeddings"][:], expected)
    np.testing.assert_array_equal(group["digests"][:], keys)
    assert group["embeddings"].dtype == dtype
    assert group["embeddings"].chunks == (16, 8)
    assert np.isnan(group["embeddings"].fill_value)
    assert group.attrs["feature_store"]["encoder"] == table.encoder_id
    np.testing.assert_array_equal(
        group["embeddings"].oindex[[3, 99, 50]], table.read(digests[[3, 99, 50]])
    )


def test_zarr_detects_damage_too(store, table, samples):
    digests = samples.digests(10)
    samples.fill(table, digests)
    path = _segments(store, table) / table.segments()[0].id / "embeddings" / "c.0.0"
    damaged = bytearray(path.read_bytes())
    damaged[0] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(path.parents[1], mode="r")["embeddings"][:]


@pytest.mark.parametrize("sharded", [False, True])
def test_segments_with_other_codecs_are_read_through_zarr(store, table, samples, sharded):
    digests = samples.digests(40)
    samples.fill(table, digests, segment_rows=None)
    (segment,) = table.segments()
    root = _segments(store, table) / segment.id
    expected = table.read(digests)
    rewritten = root.with_name("rewritten")
    group = zarr.open_group(rewritten, mode="w")
    for name, values in (("embeddings", expected), ("digests", digests)):
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(4, values.shape[1]),
            shards=(16, values.shape[1]) if sharded else None,
        )
        array[:] = values
    for path in root.rglob("c.*"):
        path.unlink()
    for path in [path for path in rewritten.rglob("*") if path.is_file()]:
        target = root / path.relative_to(rewritten)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        path.unlink()
    _publish(root, segment)
    fresh = open_store(store.url).table(table.encoder_id)
    np.testing.assert_array_equal(fresh.read(digests), expected)
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(fresh.read(digests[order]), expected[order])
    assert fresh.verify() == []
    lost = next(path for path in (root / "embeddings" / "c").rglob("*") if path.is_file())
    lost.unlink()  # zarr would fill it with zeros
    with pytest.raises(CorruptChunkError, match=segment.id):
        open_store(store.url).table(table.encoder_id).read(digests)


def _publish(root, segment):
    def stored(path):
        data = path.read_bytes()
        return StoredObject(str(path.relative_to(root)), len(data), None, content_digest(data))

    def objects(name):
        files = sorted((root / name / "c").rglob("*"))
        return tuple(stored(path) for path in files if path.is_file())

    manifest = SegmentManifest(
        **{
            **{name: getattr(segment, name) for name in segment.__dataclass_fields__},
            "embeddings": objects("embeddings"),
            "digests": objects("digests"),
            "metadata": tuple(stored(path) for path in sorted(root.rglob("zarr.json"))),
        }
    )
    path = root.with_name(f"{segment.id}.json")
    assert json.loads(path.read_bytes())["sha256"]
    path.write_bytes(manifest.to_bytes())
