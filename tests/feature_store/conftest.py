"""Small stores with embeddings that follow from the digest, so that every row can be checked."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from feature_store import FeatureStore, open_store

IDENTITY = {"arch": "tiny", "weights": "0" * 64}


class Samples:
    """Digests and embeddings that any process can recompute."""

    identity = IDENTITY

    @staticmethod
    def digests(count, start=0):
        rows = [hashlib.sha256(b"%d" % i).digest() for i in range(start, start + count)]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32).copy()

    @staticmethod
    def embed(digests, dim=8, dtype="float16"):
        """Return the first bytes of each digest, minus 128."""
        return (digests[:, :dim].astype(np.float32) - 128).astype(dtype)

    @classmethod
    def fill(cls, table, digests, *, dim=8, dtype="float16", failures=None, retry=False, **sizes):
        """Embed what is missing; return how many rows were computed.

        `failures` maps a digest's bytes to its Failure.
        """
        computed = 0
        todo = table.missing(digests, retry=retry)
        sizes = {"chunk_rows": 16, "segment_rows": 64} | sizes
        for plan in table.plan(digests[todo], dim=dim, dtype=dtype, **sizes):
            writer = table.writer(plan)
            for chunk in writer.pending():
                part = plan.digests[chunk.start : chunk.stop]
                wrong = {
                    offset: failures[row.tobytes()]
                    for offset, row in enumerate(part)
                    if failures and row.tobytes() in failures
                }
                writer.write(chunk, cls.embed(part, dim, dtype), wrong)
                computed += len(chunk)
            writer.seal()
        return computed


@pytest.fixture(scope="session")
def samples():
    return Samples


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return open_store(tmp_path / "store", create=True)


@pytest.fixture
def table(store):
    return store.table(store.put_encoder(IDENTITY))


@pytest.fixture
def segment_files(store):
    """Return a function that lists the files of a table's segments, manifests included."""

    def files(table):
        root = Path(store.url) / "encoders" / table.encoder_id / table.view / "segments"
        return sorted(path for path in root.rglob("*") if path.is_file())

    return files


@pytest.fixture
def child_environment():
    """Return the environment of a process that imports this checkout."""
    root = Path(__file__).parents[2]
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
