from pathlib import Path

import numpy as np
import pytest

from feature_store import (
    CorruptChunkError,
    Failure,
    FeatureStore,
    FeatureStoreError,
    Pool,
    StoreConflictError,
    StoreNotFoundError,
    open_store,
)
from feature_store.transfer import copy_store


@pytest.fixture
def target(tmp_path):
    return open_store(tmp_path / "target", create=True)


def _bytes(store):
    root = Path(store.url)
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_a_copy_is_the_same_store(store, table, samples, target):
    digests = samples.digests(100)
    samples.fill(table, digests, failures={digests[7].tobytes(): Failure("corrupt", "cut")})
    samples.fill(store.table(table.encoder_id, "weak-0"), digests[:20])
    store.put_pool(Pool.create([f"i{n}" for n in range(100)], ["u"] * 100, digests))
    seen = []
    copied = copy_store(store, target, report=lambda done, total: seen.append((done, total)))
    assert _bytes(target) == _bytes(store)
    assert (copied.encoders, copied.pools, copied.segments, copied.present) == (1, 1, 3, 0)
    assert sum(done for done, _ in seen) == seen[0][1] == copied.bytes
    again = copy_store(store, target)
    assert (again.segments, again.present, again.objects, again.bytes) == (0, 3, 0, 0)
    assert target.table(table.encoder_id).verify() == []


def test_only_published_segments_and_chosen_encoders_are_copied(store, table, samples, target):
    other = store.table(store.put_encoder({"arch": "other"}))
    samples.fill(table, samples.digests(20))
    samples.fill(other, samples.digests(20))
    plan = table.plan(samples.digests(20, 50), dim=8, dtype="float16", chunk_rows=10)[0]
    writer = table.writer(plan)
    writer.write(plan.chunks()[0], samples.embed(plan.digests[:10]))
    copied = copy_store(store, target, encoders=[table.encoder_id])
    assert (copied.segments, target.encoders()) == (1, [table.encoder_id])
    assert not list(Path(target.url).rglob(f"{plan.id}*"))
    with pytest.raises(StoreNotFoundError):
        copy_store(store, target, encoders=["0" * 16])


def test_what_an_earlier_copy_left_is_checked(store, table, samples, target):
    samples.fill(table, samples.digests(60))
    copy_store(store, target)
    root = Path(target.url) / "encoders" / table.encoder_id / "eval" / "segments"
    (manifest,) = root.glob("*.json")
    whole = _bytes(target)
    manifest.unlink()
    damaged, gone = (root / manifest.stem / "embeddings" / f"c.{i}.0" for i in (0, 1))
    damaged.write_bytes(b"\0" * damaged.stat().st_size)
    gone.unlink()
    copied = copy_store(store, target)
    assert (copied.segments, copied.objects) == (1, 2)
    assert _bytes(target) == whole


def test_damage_in_the_source_is_not_passed_on(store, table, samples, target):
    samples.fill(table, samples.digests(60))
    chunk = next(Path(store.url).rglob("embeddings/c.1.0"))
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CorruptChunkError, match=r"embeddings/c\.1\.0"):
        copy_store(store, target)
    assert target.table(table.encoder_id).segments() == ()


def test_a_segment_in_the_making_elsewhere_is_left_alone(store, table, samples, target):
    digests, others = samples.digests(60), samples.digests(30, 100)
    samples.fill(table, digests)
    samples.fill(table, others)
    theirs = target.table(target.put_encoder(samples.identity))
    plan = theirs.plan(digests, dim=8, dtype="float16", chunk_rows=16, segment_rows=64)[0]
    writer = theirs.writer(plan)
    writer.write(plan.chunks()[0], np.zeros((16, 8), np.float16))
    with pytest.raises(StoreConflictError, match=plan.id):
        copy_store(store, target)
    np.testing.assert_array_equal(theirs.read(others), samples.embed(others))
    for chunk in writer.pending():
        writer.write(chunk, np.zeros((len(chunk), 8), np.float16))
    writer.seal()
    assert copy_store(store, target).present == 2
    assert not theirs.read(digests[:16]).any(), "the first who published wins"
    assert theirs.verify() == []


def test_to_itself_is_refused(store):
    with pytest.raises(FeatureStoreError, match="another"):
        copy_store(store, FeatureStore(store.storage))
