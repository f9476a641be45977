"""A feature store: pools, encoders and their tables under one root."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from feature_store import layout
from feature_store.audit import Problem
from feature_store.digest import canonical_json, sha256_hex
from feature_store.errors import (
    CorruptChunkError,
    EncoderMismatchError,
    FeatureStoreError,
    StoreFormatError,
    StoreNotFoundError,
    ViewMismatchError,
)
from feature_store.pool import Pool, pool_from_parquet, pool_to_parquet
from feature_store.storage import LocalStorage, Storage, open_storage
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
        StoreInputError: If such URLs are not supported or the storage cannot hold a store.
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


def check_place(url: str | Path) -> None:
    """Refuse a local path that is no store and cannot become one; nothing is made.

    A store that can only be read is not refused: all that is asked of it may be there.

    Raises:
        StoreInputError: Something else is there, it cannot be written, or there are no such URLs.
    """
    storage = open_storage(url)
    if isinstance(storage, LocalStorage) and storage.size(layout.STORE_KEY) is None:
        storage.check_place()


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
        key = layout.encoder_key(encoder_id)
        # Looked up first: a store that can only be read serves what it has.
        if self._storage.size(key) is None:
            record = {"about": dict(about or {}), "id": encoder_id, "identity": dict(identity)}
            self._storage.create(key, canonical_json(record) + b"\n")
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

    def put_golden(self, encoder_id: str, record: Mapping[str, Any]) -> bool:
        """Store what an encoder made of known images, unless somebody did; return whether it did.

        Args:
            encoder_id: A stored encoder.
            record: JSON values. The store does not read them.
        """
        self.encoder(encoder_id)
        return self._storage.create(layout.golden_key(encoder_id), _sealed(record))

    def golden(self, encoder_id: str) -> dict[str, Any] | None:
        """Return what was stored by `put_golden` first, None if nothing was.

        Raises:
            CorruptChunkError: If it is damaged.
        """
        return self._unsealed(layout.golden_key(encoder_id))

    def put_view(self, encoder_id: str, view: str, record: Mapping[str, Any]) -> None:
        """Store how the images of a view are made. Nothing happens if the same is there.

        Call it before the first vector of the view is published: a table holds vectors of one
        making only, and a table whose making nobody recorded cannot be added to under a record.

        Args:
            encoder_id: A stored encoder.
            view: Name of the table.
            record: JSON values that decide the images: policy, version, seed.

        Raises:
            ViewMismatchError: If the table was made in another way, or in an unknown one.
            CorruptChunkError: If what is stored is damaged.
        """
        key = layout.view_key(encoder_id, view)
        if self._storage.size(key) is None:
            if self.table(encoder_id, view).segments():
                raise ViewMismatchError(
                    f"A table that is added to as view {view!r} of encoder {encoder_id} must say "
                    f"how its images were made. Got one without {key}. Choose another name for "
                    "the view, or another store."
                )
            self._storage.create(key, _sealed(record))
        stored = self.view_record(encoder_id, view)
        if canonical_json(stored) != canonical_json(dict(record)):
            raise ViewMismatchError(
                f"View {view!r} of encoder {encoder_id} must be made as the stored one: "
                f"{_short_json(stored)}. Got {_short_json(record)}. Use the stored settings, "
                "another index of the view, or another store."
            )

    def view_record(self, encoder_id: str, view: str) -> dict[str, Any] | None:
        """Return how the images of a view are made, None where nobody recorded it.

        Raises:
            CorruptChunkError: If what is stored is damaged.
        """
        return self._unsealed(layout.view_key(encoder_id, view))

    def verify_records(self, encoder_id: str) -> list[Problem]:
        """Check what is stored beside the tables of an encoder: its golden record, its views.

        Returns:
            What is damaged; the segments have their own check, `Table.verify`.
        """
        keys = [layout.view_key(encoder_id, view) for view in self.views(encoder_id)]
        problems = []
        for key in (layout.golden_key(encoder_id), *keys):
            try:
                self._unsealed(key)
            except CorruptChunkError as error:
                problems.append(Problem("", key, str(error)))
        return problems

    def _unsealed(self, key: str) -> dict[str, Any] | None:
        try:
            data = self._storage.get(key)
        except FileNotFoundError:
            return None
        try:
            found = json.loads(data)
            record: dict[str, Any] = found["record"]
            intact = data == _sealed(record) and isinstance(record, dict)
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise CorruptChunkError(
                f"{key} must be what was written. Got other bytes in {self.url}. "
                "Restore it from a copy.",
                segment="",
                chunk=key,
            )
        return record

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


def _sealed(record: Mapping[str, Any]) -> bytes:
    """Return a record with its own checksum, so that a flipped bit is not taken for content."""
    content = dict(record)
    return (
        canonical_json({"record": content, "sha256": sha256_hex(canonical_json(content))}) + b"\n"
    )


def _short_json(record: Mapping[str, Any] | None) -> str:
    return canonical_json(dict(record or {})).decode()


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
