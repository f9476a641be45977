"""A study's embeddings as tensors, split into what may be labelled and what only evaluates.

Shapes: M = items with an embedding on one side, d = features.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from svp.study.located import Located, RowReader, TableAddress, locate
from svp.study.study import Study

if TYPE_CHECKING:
    import torch

    from feature_store.pool import Pool
    from feature_store.store import FeatureStore
    from svp.proxies import Standardiser
    from svp.strategies.base import Rows

#: Splits that are never labelled, by the names sources use.
EVALUATION_SPLITS: Final[Mapping[str, str]] = {
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}

Int64Array = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """Items with an embedding.

    Attributes:
        ids: Their ids, ascending.
        uris: What the source reads them by.
        labels: The source's own labels.
        x_Md: Embeddings as stored, on the CPU; `StoredRows` where they were not read.
        dropped: Items of this side that could not be embedded.
        groups: Group of each item, None for an item without; None: the source has none.
    """

    ids: tuple[str, ...]
    uris: tuple[str, ...]
    labels: tuple[str | None, ...]
    x_Md: "torch.Tensor | StoredRows"
    dropped: int
    groups: tuple[str | None, ...] | None = None

    def keys(self) -> npt.NDArray[np.uint64]:
        """Return one number per item that depends on its id alone."""
        from svp.strategies.keys import keys_of

        return keys_of(self.ids)

    def group_numbers(self) -> Int64Array | None:
        """Return the number of each item's group, (M,); items without one share a group."""
        if self.groups is None:
            return None
        names = [name or "" for name in self.groups]
        number = {name: place for place, name in enumerate(sorted(set(names)))}
        return np.asarray([number[name] for name in names], dtype=np.int64)

    def take(self, rows: Int64Array) -> "Features":
        """Return some of the items, in this order."""
        import torch

        chosen = rows.tolist()
        x_Md = self.x_Md
        return Features(
            ids=tuple(self.ids[row] for row in chosen),
            uris=tuple(self.uris[row] for row in chosen),
            labels=tuple(self.labels[row] for row in chosen),
            x_Md=x_Md.take(rows) if isinstance(x_Md, StoredRows) else x_Md[torch.from_numpy(rows)],
            dropped=0,
            groups=None if self.groups is None else tuple(self.groups[row] for row in chosen),
        )


class StoredRows:
    """Embeddings that stay in the store; `svp.strategies.base.Rows` read where they are.

    Args:
        address: The table.
        located: Where the rows lie in it.
    """

    def __init__(self, address: TableAddress, located: Located) -> None:
        self._address, self._located = address, located
        self._reader = RowReader(address)

    @property
    def shape(self) -> tuple[int, int]:
        """(M, d)."""
        return len(self._located), self._address.dim

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, had they been read."""
        return self.shape[0] * self.shape[1] * np.dtype(self._address.dtype).itemsize

    @property
    def device(self) -> "torch.device":
        """The CPU."""
        import torch

        return torch.device("cpu")

    def gather(self, rows_K: Int64Array) -> "torch.Tensor":
        """Return some rows, (K, d), in the stored type."""
        import torch

        return torch.from_numpy(self._reader.read(self._located.take(rows_K)))

    def take(self, rows_K: Int64Array) -> "StoredRows":
        """Return some of the rows, still unread."""
        return StoredRows(self._address, self._located.take(rows_K))

    def load(self) -> "torch.Tensor":
        """Return all rows, (M, d)."""
        return self.gather(np.arange(len(self._located)))


def split_rows(pool: "Pool") -> dict[str, Int64Array]:
    """Return the rows of a pool per side: `train` (also items without split), `val`, `test`."""
    splits = pool.splits or (None,) * len(pool)
    sides: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for row, split in enumerate(splits):
        sides[EVALUATION_SPLITS.get(split or "", "train")].append(row)
    return {side: np.asarray(rows, dtype=np.int64) for side, rows in sides.items()}


def read_features(
    study: Study,
    store: "FeatureStore",
    pool: "Pool",
    encoder_id: str,
    rows: Sequence[int] | Int64Array,
    *,
    unread: bool = False,
) -> Features:
    """Read the embeddings of some rows of the study's pool.

    Args:
        study: The study.
        store: Its store.
        pool: Its images.
        encoder_id: Whose embeddings.
        rows: Of the pool.
        unread: Leave them in the store, as `StoredRows`.

    Raises:
        InputError: Some of them were never embedded; the message names the command that does it.
    """
    import torch

    from feature_store.errors import MissingRowsError
    from svp.embed import load_features
    from svp.errors import InputError

    part = pool.subset(np.asarray(rows, dtype=np.int64))
    try:
        if unread:
            kept_M, stored = _located(store, part, encoder_id)
        else:
            kept_M, x_nd = load_features(store, part, encoder_id)
    except MissingRowsError as error:
        raise InputError(
            f"Every item must be embedded first. Got {error.missing} of {error.total} without an "
            f"embedding. Run: svp embed {study.path}"
        ) from error
    labels = part.labels or (None,) * len(part)
    return Features(
        ids=tuple(part.ids[row] for row in kept_M),
        uris=tuple(part.uris[row] for row in kept_M),
        labels=tuple(labels[row] for row in kept_M),
        x_Md=stored if unread else torch.from_numpy(np.ascontiguousarray(x_nd)),
        dropped=len(part) - len(kept_M),
        groups=None if part.groups is None else tuple(part.groups[row] for row in kept_M),
    )


def _located(store: "FeatureStore", part: "Pool", encoder_id: str) -> tuple[Int64Array, StoredRows]:
    """Return which items have an embedding, and where it lies; as `svp.embed.load_features`."""
    table = store.table(encoder_id)
    failed = table.failures()
    kept = [row for row, digest in enumerate(part.digests) if digest.tobytes() not in failed]
    kept_M = np.asarray(kept, dtype=np.int64)
    located_M = locate(table, part.digests[kept_M])
    address = TableAddress(
        store_url=store.url if "://" in store.url else str(Path(store.url).resolve()),
        encoder_id=encoder_id,
        view=table.view,
        dim=table.dim or 0,
        dtype=str(table.dtype),
    )
    return kept_M, StoredRows(address, located_M)


def standardiser_of(x_Md: "torch.Tensor | Rows") -> "Standardiser":
    """Return the standardiser of a pool, with the same bits whether it was read or not."""
    import torch

    from svp.proxies import Standardiser
    from svp.proxies.standardiser import TILE_ROWS, tile_sums

    if isinstance(x_Md, torch.Tensor):
        return Standardiser.fit(x_Md)
    total = x_Md.shape[0]
    if not total:
        return Standardiser.fit(torch.empty(x_Md.shape))
    origin_d = x_Md.gather(np.zeros(1, dtype=np.int64))[0].to(torch.float32)
    sums = (
        tile_sums(x_Md.gather(np.arange(start, min(start + TILE_ROWS, total))), origin_d)
        for start in range(0, total, TILE_ROWS)
    )
    return Standardiser.of_sums(origin_d, sums, total)


def place(x_Md: "torch.Tensor | StoredRows", device: str) -> "torch.Tensor | StoredRows":
    """Return embeddings on `device` if they take less than half of its free memory.

    Strategies read the pool again and again; left on the CPU it travels tile by tile each time,
    which is slower but never fails.
    """
    import torch

    target = torch.device(device)
    if target.type != "cuda" or isinstance(x_Md, StoredRows):
        return x_Md
    free, _ = torch.cuda.mem_get_info(target)
    return x_Md.to(target) if x_Md.nbytes < free / 2 else x_Md
