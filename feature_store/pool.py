"""A pool: an immutable, ordered snapshot of items.

Its id covers ids and content digests, never labels: two people with the same images share
embeddings whatever they call the classes.

Shapes: N = items.
"""

import functools
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_store.digest import sha256_hex
from feature_store.errors import CorruptChunkError, PoolError
from feature_store.index import check_digests
from feature_store.layout import DIGEST_BYTES, FORMAT

_METADATA_KEY: Final = b"feature_store.pool"
_NAMED_IDS: Final = 5  # ids an error message lists before it only counts

Column = tuple[str | None, ...] | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool:
    """N items ordered by id. Build it with `Pool.create`, which sorts and checks.

    `labels`, `splits` and `groups` live in memory only: neither the id nor the stored snapshot
    knows them.
    """

    ids: tuple[str, ...]
    """Stable names, distinct, ascending."""
    uris: tuple[str, ...]
    """What the source reads an item by."""
    digests: NDArray[np.uint8]
    """SHA-256 of each item's encoded bytes, (N, 32), read-only."""
    labels: Column = None
    """Class names, None for an unlabelled item."""
    splits: Column = None
    """Such as train, val, test; None for an item outside them."""
    groups: Column = None
    """Items that belong together, such as frames of one video."""

    def __post_init__(self) -> None:
        check_digests(self.digests)
        for name in ("uris", "digests", "labels", "splits", "groups"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.ids):
                raise PoolError(
                    f"{name} of a pool must have one entry per item. Got {len(column)} for "
                    f"{len(self.ids)} items. Pass columns of equal length."
                )
        for one, other in zip(self.ids, self.ids[1:], strict=False):
            if one >= other:
                raise PoolError(
                    f"Items of a pool must be distinct and ordered by id. Got {one!r} before "
                    f"{other!r}. Use Pool.create."
                )

    @classmethod
    def create(
        cls,
        ids: Sequence[str],
        uris: Sequence[str],
        digests: NDArray[np.uint8],
        labels: Sequence[str | None] | None = None,
        splits: Sequence[str | None] | None = None,
        groups: Sequence[str | None] | None = None,
    ) -> "Pool":
        """Order the items by id and check them.

        Raises:
            PoolError: If ids repeat (the message names them) or columns differ in length.
        """
        repeated = _repeated(ids)
        if repeated:
            raise PoolError(
                f"Ids of a pool must be distinct. Got {_named(repeated)} more than once. "
                "Rename the items or drop the copies."
            )
        order = sorted(range(len(ids)), key=ids.__getitem__)

        def arrange(column: Sequence[str | None] | None) -> Column:
            if column is None or len(column) != len(ids):
                return column if column is None else tuple(column)
            return tuple(column[i] for i in order)

        digests = check_digests(digests)
        if len(digests) == len(ids):
            digests = digests[np.asarray(order, np.int64)]
        digests.flags.writeable = False
        return cls(
            ids=tuple(ids[i] for i in order),
            uris=tuple(uris[i] for i in order) if len(uris) == len(ids) else tuple(uris),
            digests=digests,
            labels=arrange(labels),
            splits=arrange(splits),
            groups=arrange(groups),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def id(self) -> str:
        """First 16 hexadecimal characters of a SHA-256 over the (id, digest) pairs in order."""
        try:
            names = [name.encode() for name in self.ids]
        except UnicodeEncodeError as error:
            raise PoolError(
                f"Ids of a pool must be valid Unicode. Got {error.object!r}. Rename the item."
            ) from error
        # Lengths first: the joined names alone could be cut in more than one way.
        lengths = np.fromiter(map(len, names), "<u8", len(names))
        hasher = hashlib.sha256(b"feature_store pool 1\n")
        for part in (lengths.tobytes(), b"".join(names), self.digests.tobytes()):
            hasher.update(part)
        return hasher.hexdigest()[:16]

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def index_of(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """Return the row of each id.

        Raises:
            PoolError: If ids are not in the pool; the message names some.
        """
        ids = list(ids)
        rows = [self._rows.get(name, -1) for name in ids]
        unknown = [name for name, row in zip(ids, rows, strict=True) if row < 0]
        if unknown:
            raise PoolError(
                f"Ids must be in the pool of {len(self)} items. Got {_named(unknown)}. "
                "Compare them with the ids of the source."
            )
        return np.asarray(rows, np.int64)

    def subset(self, rows: Sequence[int] | NDArray[np.int64]) -> "Pool":
        """Return the pool of the items in `rows`, ordered by id again."""
        chosen = np.sort(np.asarray(rows, np.int64))
        if len(chosen) and not 0 <= chosen[0] <= chosen[-1] < len(self):
            raise PoolError(
                f"Rows must be in [0, {len(self)}). Got {chosen[0]} to {chosen[-1]}. "
                "Take them from this pool."
            )

        def pick(column: Column) -> Column:
            return None if column is None else tuple(column[i] for i in chosen)

        return Pool(
            ids=tuple(self.ids[i] for i in chosen),
            uris=tuple(self.uris[i] for i in chosen),
            digests=self.digests[chosen],
            labels=pick(self.labels),
            splits=pick(self.splits),
            groups=pick(self.groups),
        )


def pool_to_parquet(pool: Pool) -> bytes:
    """Return the stored snapshot: columns id, uri and digest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "id": pa.array(pool.ids, pa.string()),
            "uri": pa.array(pool.uris, pa.string()),
            "digest": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(DIGEST_BYTES), len(pool), [None, pa.py_buffer(pool.digests.tobytes())]
            ),
        }
    ).replace_schema_metadata({_METADATA_KEY: f"{FORMAT} {pool.id} {_uris_digest(pool)}".encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def pool_from_parquet(data: bytes, pool_id: str) -> Pool:
    """Read a stored snapshot and prove that it is the pool `pool_id`.

    Raises:
        CorruptChunkError: If the bytes are damaged or belong to another pool.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        digests = table.column("digest").combine_chunks()
        if isinstance(digests, pa.ChunkedArray):
            digests = pa.concat_arrays(digests.chunks) if digests.num_chunks else None
        flat = b"" if digests is None else b"".join(digests.to_pylist())
        pool = Pool(
            ids=tuple(table.column("id").to_pylist()),
            uris=tuple(table.column("uri").to_pylist()),
            digests=np.frombuffer(flat, np.uint8).reshape(-1, DIGEST_BYTES),
        )
        expected = f"{FORMAT} {pool_id} {_uris_digest(pool)}".encode()
        intact = pool.id == pool_id and table.schema.metadata.get(_METADATA_KEY) == expected
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise _damaged(pool_id) from error
    if not intact:
        raise _damaged(pool_id)
    return pool


def _damaged(pool_id: str) -> CorruptChunkError:
    return CorruptChunkError(
        f"The snapshot of pool {pool_id} must match its id. Got other bytes. "
        "Delete the file and scan the source again.",
        segment="",
        chunk=f"{pool_id}.parquet",
    )


def _uris_digest(pool: Pool) -> str:
    return sha256_hex("\0".join(pool.uris).encode())


def _repeated(ids: Sequence[str]) -> list[str]:
    if len(set(ids)) == len(ids):
        return []
    seen: set[str] = set()
    return sorted({name for name in ids if name in seen or seen.add(name)})  # type: ignore[func-returns-value]


def _named(ids: Sequence[str]) -> str:
    listed = ", ".join(repr(name) for name in ids[:_NAMED_IDS])
    return listed if len(ids) <= _NAMED_IDS else f"{listed} and {len(ids) - _NAMED_IDS:,} more"
