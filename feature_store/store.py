"""A feature store: pools, encoders and their tables under one root."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from feature_store import layout
from feature_store.digest import canonical_json, sha256_hex
from feature_store.errors import (
    EncoderMismatchError,
    FeatureStoreError,
    StoreFormatError,
    StoreNotFoundError,
)
from feature_store.pool import Pool, pool_from_parquet, pool_to_parquet
from feature_store.storage import Storage, open_storage
from feature_store.table import Table

_KIND: Final = "svp feature store"


def encoder_id_of(identity: Mapping[str, Any]) -> str:
    """Return the id of an encoder: 16 hexadecimal characters of its identity's SHA-256."""
    return sha256_hex(canonical_json(dict(identity)))[:16]


def open_store(url: str | Path, *, create: bool = False) -> "FeatureStore":
    """Open the store under a path or URL.

    Args:
        url: Local path, or a file://, s3://, gs:// or az:// URL.
        create: Make it a store if it is none; a bucket must exist.

    Raises:
        StoreNotFoundError: If there is no store and `create` is False.
        StoreFormatError: If the store has another format version.
        FeatureStoreError: If such URLs are not supported or the storage cannot hold a store.
        StorageUnavailableError: If the storage does not answer now.
    """
    storage = open_storage(url)
    if storage.size(layout.STORE_KEY) is None:
        if not create:
            raise StoreNotFoundError(
                f"A store must hold {layout.STORE_KEY}. Got {storage.url} without it. "
                "Check the path, or create the store by embedding into it."
            )
        marker = {"format": layout.FORMAT, "kind": _KIND}
        storage.create(layout.STORE_KEY, canonical_json(marker) + b"\n")
    return FeatureStore(storage)


class FeatureStore:
    """Pools, encoders and tables of embeddings. Writers never coordinate, readers never wait."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.url = storage.url
        _check_format(storage)

    @property
    def storage(self) -> Storage:
        """Where the store's objects live."""
        return self._storage

    def put_pool(self, pool: Pool) -> str:
        """Store a pool's ids, uris and digests; return its id. Nothing happens if it is there."""
        key = layout.pool_key(pool.id)
        if self._storage.size(key) is None:
            self._storage.create(key, pool_to_parquet(pool))
        return pool.id

    def pool(self, pool_id: str) -> Pool:
        """Return a stored pool, without labels, splits and groups.

        Raises:
            StoreNotFoundError: If it is not stored.
            CorruptChunkError: If its snapshot is damaged.
        """
        data = self._get(layout.pool_key(pool_id), "pool", pool_id, self.pools)
        return pool_from_parquet(data, pool_id)

    def pools(self) -> list[str]:
        """Return the ids of the stored pools."""
        entries = self._storage.list(layout.POOLS)
        return [entry.name.removesuffix(".parquet") for entry in entries]

    def put_encoder(
        self, identity: Mapping[str, Any], *, about: Mapping[str, Any] | None = None
    ) -> str:
        """Store an encoder's identity and return its id. Nothing happens if it is there.

        Args:
            identity: JSON values that decide the vectors: weights, layer, preprocessing, mode.
            about: JSON values that do not: licence, parent, where it came from. The first wins.
        """
        encoder_id = encoder_id_of(identity)
        record = {"about": dict(about or {}), "id": encoder_id, "identity": dict(identity)}
        self._storage.create(layout.encoder_key(encoder_id), canonical_json(record) + b"\n")
        self.encoder_record(encoder_id)  # what another writer stored is checked, too
        return encoder_id

    def encoder(self, encoder_id: str) -> dict[str, Any]:
        """Return the identity of a stored encoder.

        Raises:
            StoreNotFoundError: If it is not stored.
            EncoderMismatchError: If the stored identity does not give this id.
        """
        identity: dict[str, Any] = self.encoder_record(encoder_id)["identity"]
        return identity

    def encoder_record(self, encoder_id: str) -> dict[str, Any]:
        """Return "id", "identity" and "about" of a stored encoder; raises as `encoder`."""
        data = self._get(layout.encoder_key(encoder_id), "encoder", encoder_id, self.encoders)
        try:
            record: dict[str, Any] = json.loads(data)
            intact = record["id"] == encoder_id == encoder_id_of(record["identity"])
        except (ValueError, KeyError, TypeError) as error:
            raise _mismatch(encoder_id) from error
        if not intact:
            raise _mismatch(encoder_id)
        return record

    def encoders(self) -> list[str]:
        """Return the ids of the stored encoders."""
        return [
            entry.name
            for entry in self._storage.list(layout.ENCODERS)
            if self._storage.size(layout.encoder_key(entry.name)) is not None
        ]

    def views(self, encoder_id: str) -> list[str]:
        """Return the views of an encoder that hold something."""
        prefix = f"{layout.ENCODERS}/{layout.check_identity(encoder_id, 'encoder')}"
        return [entry.name for entry in self._storage.list(prefix) if entry.size is None]

    def table(self, encoder_id: str, view: str = "eval") -> Table:
        """Return the table of a stored encoder and view; it may be empty.

        Raises:
            StoreNotFoundError: If the encoder is not stored.
            EncoderMismatchError: If its stored identity does not give its id.
        """
        self.encoder(encoder_id)
        return Table(self._storage, encoder_id, view)

    def _get(self, key: str, what: str, name: str, known: Any) -> bytes:
        try:
            return self._storage.get(key)
        except FileNotFoundError as error:
            names = known()
            listed = ", ".join(names[:10]) if names else "none"
            raise StoreNotFoundError(
                f"The {what} must be in the store {self.url}. Got {name}. Stored: {listed}."
            ) from error


def _check_format(storage: Storage) -> None:
    try:
        marker = json.loads(storage.get(layout.STORE_KEY))
        version = marker["format"] if marker["kind"] == _KIND else None
    except FileNotFoundError as error:
        raise StoreNotFoundError(
            f"A store must hold {layout.STORE_KEY}. Got {storage.url} without it. Check the path."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreFormatError(
            f"{layout.STORE_KEY} must describe a feature store. Got something else in "
            f"{storage.url}. Restore the file, or choose another directory."
        ) from error
    if version != layout.FORMAT:
        raise StoreFormatError(
            f"The format of a store must be {layout.FORMAT}. Got {version!r} in {storage.url}. "
            "Install the svp version that wrote it, or embed into a new store."
        )


def _mismatch(encoder_id: str) -> FeatureStoreError:
    return EncoderMismatchError(
        f"The identity in encoder.json must give the id {encoder_id}. Got another one. "
        "Restore the file from a copy; its vectors cannot be trusted until then."
    )
