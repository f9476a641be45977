"""Embeddings on disk: content-addressed, written once, verified on every read.

store = open_store("features", create=True)
encoder_id = store.put_encoder({"arch": "ViT-B-32", ...})
table = store.table(encoder_id)
todo = table.missing(pool.digests)
for plan in table.plan(pool.digests[todo], dim=512, dtype="float16"):
writer = table.writer(plan)
for chunk in writer.pending():
rows = todo[plan.positions[chunk.start : chunk.stop]]
writer.write(chunk, embed(rows))
writer.seal()
x_Nd = table.read(pool.digests)
"""

from feature_store.audit import Problem
from feature_store.digest import canonical_json, sha256_hex
from feature_store.errors import (
    CorruptChunkError,
    EncoderMismatchError,
    FeatureStoreError,
    MissingRowsError,
    PoolError,
    StorageUnavailableError,
    StoreConflictError,
    StoreFormatError,
    StoreInputError,
    StoreNotFoundError,
    ViewMismatchError,
)
from feature_store.layout import Chunk
from feature_store.lazy import dask_array, read_blocks
from feature_store.manifest import FailedRow, Failure, FailureKind, SegmentManifest, StoredObject
from feature_store.object_storage import ObjectStorage
from feature_store.plan import SegmentPlan
from feature_store.pool import Pool
from feature_store.segment import SegmentWriter
from feature_store.storage import LocalStorage, Storage, open_storage
from feature_store.store import FeatureStore, encoder_id_of, open_store
from feature_store.table import Rows, Table
from feature_store.tensors import read_tensor

__all__ = [
    "open_store",
    "FeatureStore",
    "Table",
    "Rows",
    "read_blocks",
    "read_tensor",
    "dask_array",
    "Pool",
    "Problem",
    "encoder_id_of",
    "SegmentPlan",
    "SegmentWriter",
    "Chunk",
    "Failure",
    "FailureKind",
    "FailedRow",
    "SegmentManifest",
    "StoredObject",
    "Storage",
    "LocalStorage",
    "ObjectStorage",
    "open_storage",
    "canonical_json",
    "sha256_hex",
    "FeatureStoreError",
    "CorruptChunkError",
    "EncoderMismatchError",
    "MissingRowsError",
    "PoolError",
    "StorageUnavailableError",
    "StoreConflictError",
    "StoreFormatError",
    "StoreInputError",
    "StoreNotFoundError",
    "ViewMismatchError",
]
