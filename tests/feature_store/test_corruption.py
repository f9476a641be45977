import random
import shutil

import numpy as np
import pytest

from feature_store import CorruptChunkError, EncoderMismatchError, open_store
from feature_store.audit import audit_segment
from feature_store.digest import sha256_hex
from feature_store.reader import SegmentReader


@pytest.fixture
def digests(table, samples):
    digests = samples.digests(40)
    samples.fill(table, digests, chunk_rows=16, segment_rows=40)
    return digests


def _fresh(store, table):
    return open_store(store.url).table(table.encoder_id)


def _offsets(path, rng):
    size = path.stat().st_size
    return {0, size - 1, *(rng.randrange(size) for _ in range(6))}


def test_a_flipped_bit_anywhere_is_refused(store, table, digests, segment_files):
    (segment,) = table.segments()
    scattered = np.random.default_rng(0).permutation(40)
    rng = random.Random(0)
    files = segment_files(table)
    assert len(files) == 8  # three zarr.json, three chunks, one chunk of digests, the manifest
    for path in files:
        intact = path.read_bytes()
        for offset in _offsets(path, rng):
            damaged = bytearray(intact)
            damaged[offset] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            fresh = _fresh(store, table)
            for order in (np.arange(40), scattered):
                with pytest.raises(CorruptChunkError, match=segment.id) as info:
                    fresh.read(digests[order])
                assert info.value.segment == segment.id
                assert info.value.chunk in str(path)
            problems = fresh.verify()
            assert problems
            assert problems[0].segment == segment.id
            assert problems[0].object in str(path)
        path.write_bytes(intact)
    assert _fresh(store, table).verify() == []


def test_truncation_and_loss_are_refused(store, table, digests, segment_files):
    for path in segment_files(table):
        if path.suffix == ".json" and path.name != "zarr.json":
            continue  # without its manifest a segment does not exist
        intact = path.read_bytes()
        for kept in (0, len(intact) // 2, len(intact) - 1, None):
            if kept is None:
                path.unlink()
            else:
                path.write_bytes(intact[:kept])
            for verify in (True, False):
                fresh = _fresh(store, table)
                with pytest.raises(CorruptChunkError, match=table.segments()[0].id):
                    fresh.read(digests[::-1], verify=verify)
                with pytest.raises(CorruptChunkError):
                    fresh.read(digests, verify=verify)
            assert _fresh(store, table).verify()
        path.write_bytes(intact)


def test_swapped_chunks_are_refused(store, table, digests, segment_files):
    # Each is consistent in itself; only the manifest knows that they stand in the wrong place.
    first, second = [path for path in segment_files(table) if "embeddings/c." in str(path)][:2]
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    with pytest.raises(CorruptChunkError, match=r"c\.0\.0|c\.1\.0"):
        _fresh(store, table).read(digests)
    assert len(_fresh(store, table).verify()) == 2


def test_undamaged_chunks_stay_readable(store, table, digests, samples, segment_files):
    last = next(path for path in segment_files(table) if path.name == "c.2.0")
    last.write_bytes(b"")
    fresh = _fresh(store, table)
    np.testing.assert_array_equal(fresh.read(digests[:32]), samples.embed(digests[:32]))
    np.testing.assert_array_equal(fresh.read(digests[[3, 31]]), samples.embed(digests[[3, 31]]))
    with pytest.raises(CorruptChunkError, match=r"embeddings/c\.2\.0"):
        fresh.read(digests[[3, 39]])


def test_a_chunk_is_checked_once_for_scattered_rows(store, table, digests, samples, segment_files):
    fresh = _fresh(store, table)
    fresh.read(digests[[1, 3]])
    path = next(path for path in segment_files(table) if "embeddings/c.0.0" in str(path))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1  # in the stored checksum: the rows are right
    path.write_bytes(damaged)
    np.testing.assert_array_equal(fresh.read(digests[[5, 7]]), samples.embed(digests[[5, 7]]))
    again = _fresh(store, table)
    np.testing.assert_array_equal(
        again.read(digests[[5, 7]], verify=False), samples.embed(digests[[5, 7]])
    )
    with pytest.raises(CorruptChunkError):
        again.read(digests[[5, 7]])


def test_a_short_chunk_before_publication_is_written_again(table, samples, store):
    digests = samples.digests(40)
    plan = table.plan(digests, dim=8, dtype="float16", chunk_rows=16)[0]
    writer = table.writer(plan)
    chunks = list(writer.pending())
    for chunk in chunks:
        writer.write(chunk, samples.embed(digests[chunk.start : chunk.stop]))
    prefix = f"encoders/{table.encoder_id}/eval/segments/{plan.id}/embeddings"
    path = table._storage.local_path(f"{prefix}/c.1.0")
    path.write_bytes(path.read_bytes()[:-5])
    again = table.writer(plan)
    assert [chunk.index for chunk in again.pending()] == [1]
    again.write(chunks[1], samples.embed(digests[16:32]))
    # The right size but other bytes, as after a power loss on a careless disk.
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(CorruptChunkError, match="never published"):
        again.seal()
    assert [chunk.index for chunk in again.pending()] == [1]
    again.write(chunks[1], samples.embed(digests[16:32]))
    again.seal()
    np.testing.assert_array_equal(table.read(digests), samples.embed(digests))


def test_a_chunk_that_changed_after_it_was_written_is_not_published(table, samples):
    # Consistent in itself, so only what the writer remembers of its own bytes tells.
    digests = samples.digests(32)
    (plan,) = table.plan(digests, dim=8, dtype="float16", chunk_rows=16)
    writer = table.writer(plan)
    for chunk in list(writer.pending()):
        writer.write(chunk, samples.embed(digests[chunk.start : chunk.stop]))
    prefix = f"encoders/{table.encoder_id}/eval/segments/{plan.id}/embeddings"
    first, second = (table._storage.local_path(f"{prefix}/c.{i}.0") for i in range(2))
    first.write_bytes(second.read_bytes())
    with pytest.raises(CorruptChunkError, match="never published"):
        writer.seal()
    (chunk,) = writer.pending()
    writer.write(chunk, samples.embed(digests[chunk.start : chunk.stop]))
    writer.seal()
    np.testing.assert_array_equal(table.read(digests), samples.embed(digests))
    assert table.verify() == []


def test_a_segment_in_the_wrong_place_is_refused(store, table, digests, segment_files):
    other = store.table(store.put_encoder({"arch": "other"}))
    manifest = next(path for path in segment_files(table) if path.parent.name == "segments")
    source = manifest.parent
    target = source.parents[2] / other.encoder_id / "eval" / "segments"
    shutil.copytree(source, target)
    with pytest.raises(EncoderMismatchError, match="wrong place"):
        other.read(digests)
    assert other.verify()


def test_meaning_is_checked_when_bytes_agree(store, table, digests):
    # Rewritten manifests agree with the bytes but not with each other.
    import dataclasses

    (manifest,) = table.segments()
    prefix = f"encoders/{table.encoder_id}/eval/segments"
    reader = SegmentReader(table._storage, prefix, manifest)
    assert audit_segment(reader) == []
    forged = dataclasses.replace(manifest, planned=sha256_hex(b""))
    assert audit_segment(SegmentReader(table._storage, prefix, forged))[0].object == "digests"
