"""Manifests of both formats: those with SHA-256 of earlier versions stay as good as new ones."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from feature_store import CorruptChunkError, FailedRow, Failure, StoreFormatError, open_store
from feature_store.compaction import compact_table
from feature_store.digest import canonical_json, content_digest, sha256_hex
from feature_store.manifest import SegmentManifest, StoredObject
from feature_store.transfer import copy_store

# As written to disks: neither may ever change. {name} and {digest} differ between the formats.
_PUBLISHED = (
    '{{"attempt":1,"chunk_rows":2,"digests":[{digests}],"dim":2,"dtype":"float16",'
    '"embeddings":[{first},{second}],"encoder_id":"0123456789abcdef",'
    '"failures":[{{"digest":"' + "b" * 64 + '","failure":{{"kind":"corrupt",'
    '"reason":"ends early: ü"}},"row":1}}],"format":{format},"id":"00112233445566aa",'
    '"metadata":[{metadata}],"planned":"' + "a" * 64 + '",'
    '"provenance":{{"created":"2026-01-02T03:04:05+00:00"}},"rows":3,'
    '"sha256":"{sha256}","view":"eval"}}\n'
)
_OLD = _PUBLISHED.format(
    format=1,
    digests='{"crc32c":9,"key":"digests/c.0.0","sha256":"' + "e" * 64 + '","size":132}',
    first='{"crc32c":7,"key":"embeddings/c.0.0","sha256":"' + "c" * 64 + '","size":12}',
    second='{"crc32c":8,"key":"embeddings/c.1.0","sha256":"' + "d" * 64 + '","size":12}',
    metadata='{"crc32c":null,"key":"zarr.json","sha256":"' + "f" * 64 + '","size":5}',
    sha256="8d69e2ea6df6da36688f7b2a0a204946e38d172a9ad7506b34b4bfed02cfd40a",
).encode()
_NEW = _PUBLISHED.format(
    format=2,
    digests='{"blake3":"' + "e" * 64 + '","crc32c":9,"key":"digests/c.0.0","size":132}',
    first='{"blake3":"' + "c" * 64 + '","crc32c":7,"key":"embeddings/c.0.0","size":12}',
    second='{"blake3":"' + "d" * 64 + '","crc32c":8,"key":"embeddings/c.1.0","size":12}',
    metadata='{"blake3":"' + "f" * 64 + '","crc32c":null,"key":"zarr.json","size":5}',
    sha256="901699a0eefba9e49bc6bc89c98a90d3054816bde8c4ce983af86f84e2642dd4",
).encode()


@pytest.mark.parametrize(
    ("data", "number", "algorithm"), [(_OLD, 1, "sha256"), (_NEW, 2, "blake3")]
)
def test_both_formats_are_read_and_written_byte_for_byte(data, number, algorithm):
    manifest = SegmentManifest.from_bytes(data, "00112233445566aa")
    assert manifest.format == number
    assert manifest.to_bytes() == data
    assert {stored.algorithm for stored in manifest.objects()} == {algorithm}
    assert manifest.embeddings[1] == StoredObject("embeddings/c.1.0", 12, 8, "d" * 64, algorithm)
    assert manifest.failures == (FailedRow(1, "b" * 64, Failure("corrupt", "ends early: ü")),)
    for offset in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[offset] ^= 1
        with pytest.raises(CorruptChunkError, match="00112233445566aa"):
            SegmentManifest.from_bytes(bytes(damaged), "00112233445566aa")


def _forged(change):
    body = {key: value for key, value in json.loads(_NEW).items() if key != "sha256"} | change
    return canonical_json({**body, "sha256": sha256_hex(canonical_json(body))}) + b"\n"


def test_a_format_of_the_future_is_not_called_damage():
    with pytest.raises(StoreFormatError, match="newer"):
        SegmentManifest.from_bytes(_forged({"format": 3, "more": "x"}), "00112233445566aa")
    # Its digest does not fit: nobody wrote that.
    with pytest.raises(CorruptChunkError):
        SegmentManifest.from_bytes(_NEW.replace(b'"format":2', b'"format":3'), "00112233445566aa")


def test_a_manifest_names_one_hash_for_all_objects():
    for change in ({"format": 1}, {"metadata": json.loads(_OLD)["metadata"]}, {"format": []}):
        with pytest.raises(CorruptChunkError):
            SegmentManifest.from_bytes(_forged(change), "00112233445566aa")


def test_content_is_compared_to_the_last_byte():
    data = b"0123456789"
    for algorithm, digest in (
        ("blake3", content_digest(data[:4], memoryview(data)[4:])),
        ("sha256", hashlib.sha256(data).hexdigest()),
    ):
        stored = StoredObject("x", len(data), None, digest, algorithm)
        assert stored.is_content(data)
        assert not stored.is_content(data[:-1] + b"8")
        assert not stored.is_content(data + b"0")
    # Of the BLAKE3 paper's test vectors.
    assert content_digest() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


@pytest.fixture
def mixed(store, table, samples):
    """Return the digests of two segments, the first of which an earlier version published."""
    digests = samples.digests(60)
    samples.fill(table, digests[:30], segment_rows=None)
    (manifest,) = table.segments()
    root = Path(store.url, "encoders", table.encoder_id, table.view, "segments")

    def as_before(stored):
        sha256 = sha256_hex((root / manifest.id / stored.key).read_bytes())
        return dataclasses.replace(stored, digest=sha256, algorithm="sha256")

    names = ("embeddings", "digests", "metadata")
    objects = {name: tuple(map(as_before, getattr(manifest, name))) for name in names}
    old = dataclasses.replace(manifest, **objects)
    (root / f"{manifest.id}.json").write_bytes(old.to_bytes())
    samples.fill(open_store(store.url).table(table.encoder_id), digests[30:], segment_rows=None)
    return digests


def _fresh(store, table):
    return open_store(store.url).table(table.encoder_id)


def test_a_store_may_mix_formats(store, table, samples, mixed, tmp_path):
    order = np.random.default_rng(0).permutation(60)
    target = open_store(tmp_path / "target", create=True)
    copy_store(store, target)
    for one in (store, target):
        fresh = _fresh(one, table)
        assert sorted(manifest.format for manifest in fresh.segments()) == [1, 2]
        assert fresh.verify() == []
        np.testing.assert_array_equal(fresh.read(mixed[order]), samples.embed(mixed[order]))
    again = copy_store(store, target)
    assert (again.segments, again.present) == (0, 2)
    compact_table(store.storage, _fresh(store, table))
    fresh = _fresh(store, table)
    assert sorted(manifest.format for manifest in fresh.segments()) == [1, 2, 2]
    assert fresh.verify() == []
    np.testing.assert_array_equal(fresh.read(mixed), samples.embed(mixed))


def test_damage_is_named_in_both_formats(store, table, mixed, segment_files, tmp_path):
    for number, path in enumerate(segment_files(table)):
        intact = path.read_bytes()
        damaged = bytearray(intact)
        damaged[len(intact) // 2] ^= 4
        path.write_bytes(damaged)
        (problem,) = _fresh(store, table).verify()
        assert problem.object in str(path)
        with pytest.raises(CorruptChunkError):
            copy_store(store, open_store(tmp_path / f"{number}", create=True))
        path.write_bytes(intact)
